"""Small Visual Genome folders: real layout, drawn photos."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from tap_engine.pipeline.sources.visual_genome import VisualGenomeSource
from tap_engine.schemas.progress import Say


def jpeg(number: int, size_wh: tuple[int, int]) -> bytes:
    colour = np.random.default_rng(number).integers(0, 255, 3)
    file = io.BytesIO()
    Image.new("RGB", size_wh, tuple(int(v) for v in colour)).save(file, "JPEG")
    return file.getvalue()


def region(region_id: int, number: int, phrase: object, box=(10, 20, 30, 40), **more) -> dict:
    x, y, width, height = box
    found = {"region_id": region_id, "image_id": number, "phrase": phrase}
    return found | {"x": x, "y": y, "width": width, "height": height} | more


def write_world(folder: Path, entries: list, sizes: dict[int, tuple[int, int]]) -> Path:
    """The two json files and a photo for every size, in VG_100K and VG_100K_2 in turns."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "region_descriptions.json").write_text(json.dumps(entries))
    rows = [{"image_id": n, "width": w, "height": h} for n, (w, h) in sizes.items()]
    (folder / "image_data.json").write_text(json.dumps(rows))
    for number, size in sizes.items():
        add_photo(folder, number, size)
    return folder


def add_photo(folder: Path, number: int, size_wh: tuple[int, int]) -> None:
    photos = folder / ("VG_100K" if number % 2 else "VG_100K_2")
    photos.mkdir(exist_ok=True)
    (photos / f"{number}.jpg").write_bytes(jpeg(number, size_wh))


def simple_world(folder: Path, numbers, regions: int = 3, size_wh=(100, 80)) -> Path:
    entries = [
        {"id": n, "regions": [region(n * 100 + k, n, f"thing {k}") for k in range(regions)]}
        for n in numbers
    ]
    return write_world(folder, entries, dict.fromkeys(numbers, size_wh))


def source_of(folder: Path, **kwargs) -> VisualGenomeSource:
    return VisualGenomeSource(
        str(folder / "region_descriptions.json"),
        str(folder / "image_data.json"),
        kwargs.pop("images", [str(folder)]),
        **kwargs,
    )


def prepared(
    folder: Path, index: Path, say: Say = lambda text: None, **kwargs
) -> VisualGenomeSource:
    """A source as a build has it once there is a store: read, indexed and kept."""
    source = source_of(folder, **kwargs)
    source.prepare(str(index), say)
    source.index(source.shards()[0], 2)
    return source

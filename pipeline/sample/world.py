"""Scenes of the sample world, written as SA-1B shards, Visual Genome files and a truth table.

    OUT/sample.json                      settings and versions
    OUT/train/sa_000000.tar              scenes to train on, in SA-1B's layout
    OUT/validation/sa_005000.tar         other scenes, to measure on
    OUT/visual_genome/...                captioned scenes, in Visual Genome's layout
    OUT/truth/*.parquet                  what every region really shows

Scenes are numbered so that no two of any seed or split share an id, and each is drawn from its
own number alone: however many processes draw, the same seed gives the same bytes. A killed run
continues where it stopped; a shard is there whole or not at all.
"""

import io
import json
import multiprocessing
import os
import shutil
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from tap_engine.pipeline.sample.drawings import select
from tap_engine.pipeline.sample.files import (
    JPEG_QUALITY,
    PARTS,
    SCENES_PER_PART,
    Drawn,
    SceneName,
    draw_scene,
)
from tap_engine.pipeline.sample.sprites import load_sprites
from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.provenance import Provenance, software
from tap_engine.schemas.replacing import replacing
from tap_engine.schemas.shipped import sample_scenes
from tap_engine.schemas.truth import truth_schema

RENDERER_VERSION = 1
"""Raise when the same seed gives other pixels or masks."""

SHARD_SCENES = 512

MAX_SEED = 80_000

REGION_DESCRIPTIONS = "region_descriptions.json"

_TASK_SCENES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig:
    """Settings of a sample world.

    Attributes:
        scenes: training scenes in SA-1B's layout.
        validation: scenes in SA-1B's layout to measure on.
        captioned: scenes in Visual Genome's layout; every fifth is for validation.
        size: side of a scene, px.
        seed: 0..80,000; another seed gives other scenes with other ids.
        groups: concept groups that may appear (see sample/concepts.tsv); all when empty.
    """

    scenes: int = 500
    validation: int = 100
    captioned: int = 100
    size: int = 512
    seed: int = 0
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn or numbered."""
        for name in ("scenes", "validation", "captioned"):
            if not 0 <= getattr(self, name) < SCENES_PER_PART:
                raise ConfigError(
                    f"sample.{name} must be in 0..{SCENES_PER_PART - 1}, "
                    f"got {getattr(self, name)!r}"
                )
        if not 128 <= self.size <= 2048:
            raise ConfigError(f"sample.size must be in 128..2048 px, got {self.size!r}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"sample.seed must be in 0..{MAX_SEED}, got {self.seed!r}")
        select(self.groups)

    def counts(self) -> dict[str, int]:
        """Scenes by part."""
        held_out = self.captioned // 5
        return {
            "train": self.scenes,
            "validation": self.validation,
            "captioned-train": self.captioned - held_out,
            "captioned-validation": held_out,
        }


@dataclass(frozen=True, slots=True)
class SampleSummary:
    """Counts of a run: what it wrote, and what was there already."""

    scenes: int
    regions: int
    scenes_before: int


def write_sample_world(
    out: Path,
    config: SampleConfig,
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SampleSummary:
    """Draw the scenes that `out` lacks; the same call again continues a killed one.

    Args:
        out: a folder, made where it is missing.
        config: which scenes.
        workers: processes; 0 takes one per core for more than a hundred scenes.
        progress: called with (scenes done, scenes in all).

    Raises:
        SchemaError: `out` holds a sample world of other settings.
        ConfigError: `out` holds something else.
    """
    _claim(out, config)
    blocks = list(_blocks(out, config))
    total = sum(len(block.names) for block in blocks)
    missing = [block for block in blocks if not block.done]
    before = total - sum(len(block.names) for block in missing)
    done, regions = before, 0
    if progress:
        progress(done, total)
    if workers == 0:
        workers = len(os.sched_getaffinity(0)) if total - before > 100 else 1
    with _drawing(config, workers) as draw:
        for block in missing:
            written: list[dict[str, Any]] = []
            with block.open() as add:
                for drawn in draw(block.names):
                    add(drawn)
                    written += drawn.truth
                    done += 1
                    if progress:
                        progress(done, total)
                _write_truth(out / "truth" / f"{block.path.stem}.parquet", written)
            regions += len(written)
    _finish_visual_genome(out, config)
    return SampleSummary(scenes=done - before, regions=regions, scenes_before=before)


def copy_shipped_scenes(out: Path) -> None:
    """Copy the rendered scenes that come with the package.

    Their bytes are the same everywhere, whatever the version of OpenCV; see sample/README.md.

    Raises:
        ConfigError: `out` is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; name a new folder")
    shutil.copytree(sample_scenes(), out, dirs_exist_ok=True)


@dataclass(frozen=True, slots=True)
class _Block:
    """Scenes that are written together."""

    path: Path
    names: tuple[SceneName, ...]

    @property
    def done(self) -> bool:
        """Its file is there, or the one that replaced it."""
        joined = self.path.parents[1] / REGION_DESCRIPTIONS
        return self.path.exists() or (self.path.suffix == ".json" and joined.exists())

    @contextmanager
    def open(self) -> Iterator[Callable[[Drawn], None]]:
        """A function that adds a scene; the block appears under its name at the end, or not."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as partial_path, open(partial_path, "wb") as file:
            if self.path.suffix == ".tar":
                with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                    yield partial(_add_to_tar, tar)
            else:
                photos = self.path.parents[1] / "VG_100K"
                photos.mkdir(parents=True, exist_ok=True)
                scenes: list[dict[str, Any]] = []
                yield partial(_add_to_visual_genome, scenes, photos)
                file.write(_compact(scenes))


def _blocks(out: Path, config: SampleConfig) -> Iterator[_Block]:
    for part, count in config.counts().items():
        for position, start in enumerate(range(0, count, SHARD_SCENES)):
            indices = range(start, min(start + SHARD_SCENES, count))
            names = tuple(SceneName(config.seed, part, index) for index in indices)
            # Shard names, too, differ between seeds and splits: stores tell shards apart by them.
            half = PARTS.index(part) % 2
            stem = f"{config.seed * 10_000 + half * 5_000 + position:06}"
            if part.startswith("captioned"):
                yield _Block(out / "visual_genome" / "blocks" / f"vg_{stem}.json", names)
            else:
                yield _Block(out / part / f"sa_{stem}.tar", names)


def _add_to_tar(tar: tarfile.TarFile, drawn: Drawn) -> None:
    files = ((".jpg", drawn.jpeg), (".json", _compact(drawn.annotations)))
    for suffix, content in files:
        # TarInfo's other fields (time, owner, mode) are fixed by default: same scene, same bytes.
        member = tarfile.TarInfo(f"./sa_{drawn.number}{suffix}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def _add_to_visual_genome(scenes: list[dict[str, Any]], photos: Path, drawn: Drawn) -> None:
    (photos / f"{drawn.number}.jpg").write_bytes(drawn.jpeg)
    scenes.append(drawn.annotations)


def _finish_visual_genome(out: Path, config: SampleConfig) -> None:
    """Join the blocks into Visual Genome's two files, and the split into densecap's form."""
    folder = out / "visual_genome"
    blocks = sorted((folder / "blocks").glob("*.json"))
    if not blocks:
        return
    scenes = [scene for block in blocks for scene in json.loads(block.read_bytes())]
    numbers = [scene["image"]["image_id"] for scene in scenes]
    first_held_out = SceneName(config.seed, "captioned-validation", 0).number
    regions = [
        {"id": number, "regions": scene["regions"]}
        for number, scene in zip(numbers, scenes, strict=True)
    ]
    splits = {
        "train": [number for number in numbers if number < first_held_out],
        "val": [number for number in numbers if number >= first_held_out],
        "test": [],
    }
    for name, content in (
        ("image_data.json", [scene["image"] for scene in scenes]),
        ("splits.json", splits),
        (REGION_DESCRIPTIONS, regions),
    ):
        with replacing(folder / name) as partial_path:
            partial_path.write_bytes(_compact(content))
    shutil.rmtree(folder / "blocks")


def _write_truth(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial_path:
        pq.write_table(pa.Table.from_pylist(rows, truth_schema()), partial_path, compression="zstd")


def _claim(out: Path, config: SampleConfig) -> None:
    """Write sample.json, or check that the one that is there agrees."""
    made = load_sprites().made
    settings = asdict(config) | {
        "groups": list(config.groups),
        "renderer": RENDERER_VERSION,
        "jpeg_quality": JPEG_QUALITY,
        "font": made["font"],
        "font_version": made["font_version"],
        "sprites": made["pixels"],
    }
    wanted = Provenance(settings, software() | {"opencv": cv2.__version__})
    path = out / "sample.json"
    if path.is_file():
        wanted.require_same(Provenance.from_json(path.read_text("utf-8")), str(out))
        return
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} holds other files; name a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(wanted.to_json() + "\n", "utf-8")


@contextmanager
def _drawing(
    config: SampleConfig, workers: int
) -> Iterator[Callable[[tuple[SceneName, ...]], Iterable[Drawn]]]:
    """A function from scene names to drawn scenes in the same order, on several processes."""
    if workers == 1:
        yield lambda names: (draw_scene(name, config.size, config.groups) for name in names)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        yield lambda names: _in_order(pool, names, config, 2 * workers)


def _in_order(
    pool: ProcessPoolExecutor, names: tuple[SceneName, ...], config: SampleConfig, ahead: int
) -> Iterator[Drawn]:
    """Results in order with at most `ahead` tasks under way, so memory does not grow."""
    running: deque[Future[list[Drawn]]] = deque()
    for start in range(0, len(names), _TASK_SCENES):
        running.append(pool.submit(_draw_scenes, names[start : start + _TASK_SCENES], config))
        if len(running) > ahead:
            yield from running.popleft().result()
    while running:
        yield from running.popleft().result()


def _draw_scenes(names: tuple[SceneName, ...], config: SampleConfig) -> list[Drawn]:
    return [draw_scene(name, config.size, config.groups) for name in names]


def _one_thread() -> None:
    cv2.setNumThreads(1)


def _compact(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()

"""Small photos, masks and a way to read a folder of them, for the tests of own photos."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tap_engine.pipeline.crop import decode_image
from tap_engine.pipeline.sources.annotated import Problem
from tap_engine.pipeline.sources.detect import find_annotations, open_folder
from tap_engine.pipeline.sources.photo_folder import PhotoFolderSource
from tap_engine.pipeline.sources.records import ImageRecord

WIDTH, HEIGHT = 60, 40
SQUARE = [5, 6, 15, 6, 15, 18, 5, 18]
"""A rectangle of 10 x 12 px."""


def pixels(width=WIDTH, height=HEIGHT, seed=0):
    """[H, W, 3] uint8, with a bright block where SQUARE is."""
    found = np.random.default_rng(seed).integers(0, 90, (height, width, 3), dtype=np.uint8)
    found[6:18, 5:15] = 250
    return found


def encoded(image, form="PNG", **options) -> bytes:
    """A picture as the bytes of a file."""
    out = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(out, form, **options)
    return out.getvalue()


def put(path: Path, content) -> Path:
    """Write bytes, text, or anything else as json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, bytes | str):
        content = json.dumps(content, indent=1)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rectangle(left, top, width, height):
    """[H, W] bool."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + height, left : left + width] = True
    return mask


@dataclass
class Read:
    """A folder as a build reads it."""

    source: PhotoFolderSource
    images: dict[str, ImageRecord]
    problems: list[Problem]

    def of(self, name: str) -> list[tuple[str | None, int]]:
        """(label, area) of an image's regions."""
        return [(region.label, region.area) for region in self.images[name].regions]

    @property
    def lost(self) -> list[str]:
        """What was left out."""
        return [str(problem) for problem in self.problems if not problem.note]

    @property
    def notes(self) -> list[str]:
        """What was kept and said."""
        return [str(problem) for problem in self.problems if problem.note]


def read(folder: Path, source: str = "auto", keep="as-is") -> Read:
    """Find out what a folder is and read all of it."""
    opened = open_folder([str(folder)])
    found = find_annotations(opened, source)
    made = PhotoFolderSource(opened, found, keep)
    problems = list(found.problems)
    images = {}
    for entry in found.entries:
        record, more = made.annotate(entry, decode_image)
        problems += more
        if record is not None:
            images[entry.name] = record
    return Read(made, images, problems)

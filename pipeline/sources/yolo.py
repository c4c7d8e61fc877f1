"""YOLO's text beside each photo: a class and fractions of the picture's sides, a region a line.

    class x y x y x y ...          an outline; an odd number more is a score
    class x y width height         a box around (x, y); a sixth number is a score

Each line stands for itself. Labels come from data.yaml (`names`) or classes.txt; words stay as they
are written (`no` is "no", not false).
"""

import math
import re
from typing import Any

import numpy as np
import yaml

from tap_engine.pipeline.sources.annotated import (
    Entry,
    Found,
    Problem,
    Shape,
    Sheet,
    clean_label,
    note,
)
from tap_engine.pipeline.sources.class_table import read_lines
from tap_engine.pipeline.sources.folder import Folder, Names, parent, stem, suffix
from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.schemas.rejects import Reason

_OVER = 0.1
"""Fractions beyond 0..1 by up to this are cut at the picture's border and said, not refused."""

_ROUNDING = 1e-3
TABLES = ("classes.txt", "obj.names", "_darknet.labels", "names.txt", "labels.txt")
_NOT_LABELS = re.compile(r"readme|license|licence|requirements|train|val|test|notes", re.I)


class YoloReader:
    """Reads the text of a photo; an entry's detail is its path, or None.

    Args:
        names: label by class number.
    """

    format = "yolo"

    def __init__(self, names: dict[int, str | None]) -> None:
        self.names = names
        self.labels = tuple(dict.fromkeys(name for _, name in sorted(names.items()) if name))

    def settings(self) -> dict[str, Any]:
        """Nothing but the files decides the rows."""
        return {}

    def read(self, folder: Folder, entry: Entry) -> Sheet:
        """One photo's lines."""
        sheet = Sheet()
        if entry.detail is None:
            return sheet
        for number, line in enumerate(read_lines(folder.read(entry.detail)), 1):
            if not line.strip():
                continue
            place = f"{entry.detail}:{number}"
            try:
                shape, said = self._shape(line, place)
            except SchemaError as error:
                text = f"line {number} of {entry.name}: {error}; it says {line.strip()[:40]!r}"
                problem = Problem(place, text, Reason.SHAPE_UNREADABLE, entry.name, -1)
                sheet.problems.append(problem)
                continue
            sheet.shapes.append(shape)
            if said:
                sheet.problems.append(note(place, said, entry.name))
        return sheet

    def _shape(self, line: str, place: str) -> tuple[Shape, str]:
        words = line.split()
        if len(words) == 1 and "," in line:
            raise SchemaError("the numbers are parted by commas, expected spaces")
        label, unknown = self._label(words[0])
        values = np.array([_number(word) for word in words[1:]])
        if len(values) < 4:
            raise SchemaError(
                f"expected a class and a box of 4 numbers or an outline of 6 or more, found "
                f"{len(values)} numbers"
            )
        if len(values) % 2:
            values = values[:-1]  # a score at the end
        shape = Shape(place=place, title=f"line {place.rpartition(':')[2]}", label=label)
        shape.fractions = True
        if len(values) == 4:
            x, y, w, h = values
            _check(values[2:])
            over = _check(np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]))
            shape.box = [x - w / 2, y - h / 2, w, h]
        else:
            over = _check(values)
            shape.outlines = [values.reshape(-1, 2)]
        return shape, "; ".join(part for part in (unknown, over) if part)

    def _label(self, word: str) -> tuple[str | None, str]:
        try:
            number = float(word)
        except ValueError as error:
            known = {name: name for name in self.labels}
            if word in known:
                return word, ""
            raise SchemaError(f"expected a class number, found {word[:40]!r}") from error
        if not number.is_integer() or number < 0:
            raise SchemaError(f"expected a class number of 0 or more, found {word}")
        label = self.names.get(int(number))
        if label is None and self.names:
            return None, f"class {int(number)} has no name in the table: kept without a label"
        return label, ""


def _number(word: str) -> float:
    try:
        found = float(word)
    except ValueError as error:
        raise SchemaError(f"expected a number, found {word[:40]!r}") from error
    if not math.isfinite(found):
        raise SchemaError(f"the number {word} is not finite")
    return found


def _check(values: np.ndarray[Any, Any]) -> str:
    """A note where fractions reach over the border.

    Raises:
        SchemaError: they are pixels.
    """
    low, high = float(values.min()), float(values.max())
    if low < -_OVER or high > 1 + _OVER:
        raise SchemaError(
            f"numbers of {low:g} to {high:g}: pixels? expected fractions of 0..1 (normalised)"
        )
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        return f"fractions of {low:g} to {high:g}, cut at the picture's border"
    return ""


def is_label_file(folder: Folder, name: str) -> bool:
    """Whether a text file holds YOLO lines: its first full line is a class and numbers."""
    if name.rsplit("/", 1)[-1].lower() in TABLES:
        return False
    for line in read_lines(folder.head(name, 1 << 14)):
        words = line.replace(",", " ").split()
        if not words:
            continue
        numeric = 0
        for word in words[1:]:
            try:
                float(word)
                numeric += 1
            except ValueError:
                pass
        return numeric >= 4 and numeric * 2 > len(words)
    return False


def find_yolo(folder: Folder, files: list[str]) -> Found:
    """The text of each photo: beside it, or under `labels` where the photo is under `images`.

    Args:
        folder: holds both.
        files: text files that may be labels.
    """
    photos = Names(folder.pictures)
    texts = {(parent(name), stem(name)): name for name in files}
    used: set[str] = set()
    found = Found(YoloReader(read_names(folder)))
    by_stem: dict[str, list[str]] = {}
    for name in files:
        by_stem.setdefault(stem(name).casefold(), []).append(name)
    for photo in photos.files:
        place = _text_folder(parent(photo))
        text = texts.get((place, stem(photo))) or texts.get((parent(photo), stem(photo)))
        if text is None:
            same = by_stem.get(stem(photo).casefold(), [])
            alone = len(same) == 1 and len(photos.with_stem(stem(photo))) == 1
            text = same[0] if alone else None
        if text:
            used.add(text)
        found.entries.append(Entry(photo, text))
    for name in files:
        if name not in used and not _NOT_LABELS.fullmatch(stem(name)):
            text = f"no photo of the name {stem(name)!r} is found"
            found.problems.append(Problem(name, text, Reason.IMAGE_MISSING, name))
    if not used:
        first = "; ".join(str(problem) for problem in found.problems[:3])
        raise SourceError(f"{folder.uri}: no photo is found for any YOLO text. {first}")
    table = f"{len(found.reader.labels)} class names" if found.reader.labels else "no class names"
    found.said.append(
        f"YOLO text: {len(used):,} files for {len(found.entries):,} photos, {table}"
        + ("" if found.reader.labels else " (data.yaml or classes.txt): regions get no label")
    )
    return found


def _text_folder(photos: str) -> str:
    """images/train -> labels/train: the last `images` of a path becomes `labels`."""
    parts = photos.split("/")
    for index in range(len(parts) - 1, -1, -1):
        if parts[index].lower() in ("images", "image", "jpegimages"):
            parts[index] = "labels"
            return "/".join(parts)
    return photos


def read_names(folder: Folder) -> dict[int, str | None]:
    """Label by class number, of the first table that has one."""
    for name in folder.with_suffix(".yaml", ".yml"):
        if names := _yaml_names(folder.read(name)):
            return names
    for name in folder.sizes:
        if name.rsplit("/", 1)[-1].lower() in TABLES:
            lines = [line.strip() for line in read_lines(folder.read(name))]
            while lines and not lines[-1]:
                lines.pop()
            return {number: clean_label(line) for number, line in enumerate(lines)}
    return {}


def _yaml_names(data: bytes) -> dict[int, str | None]:
    try:
        # The base loader leaves every word as text: `no` stays a name.
        content = yaml.load(data, Loader=yaml.BaseLoader)
        names = content["names"]
        pairs = enumerate(names) if isinstance(names, list) else names.items()
        return {int(number): clean_label(name) for number, name in pairs}
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, UnicodeError):
        return {}


def looks_like_yolo(folder: Folder) -> list[str]:
    """Text files that hold YOLO lines, or are empty and lie beside such; none if no line does."""
    texts = [
        name
        for name in folder.with_suffix(".txt")
        if name.rsplit("/", 1)[-1].lower() not in TABLES and suffix(name) == ".txt"
    ]
    sample = texts if len(texts) <= 200 else texts[:: len(texts) // 200]
    homes = {parent(name) for name in sample if is_label_file(folder, name)}
    roots = {home.split("/labels")[0] for home in homes if "labels" in home.split("/")}
    return [
        name for name in texts if parent(name) in homes or any(_under(name, root) for root in roots)
    ]


def _under(name: str, root: str) -> bool:
    return "labels" in name.split("/") and (root in ("", "labels") or name.startswith(f"{root}/"))

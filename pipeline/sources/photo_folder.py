"""A person's own photos as a source: any format's shapes become checked regions here.

Masks decide. Area, box and iscrowd of a file are compared, never used to drop a region. An image's
number comes from its path under the folder (folder.py), so adding photos renumbers nothing; two
paths with one number are a reject. Problems carry file and line and become rejects, or notes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tap_engine.pipeline.sources.annotated import Entry, Found, Problem, Reader, Shape, Sheet, note
from tap_engine.pipeline.sources.folder import Folder, image_number
from tap_engine.pipeline.sources.photo import Keep, Photo, SizeWh, read_photo
from tap_engine.pipeline.sources.records import ImageRecord, RegionRecord, Shard, Unit
from tap_engine.schemas import polygons, rle
from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.schemas.keys import MAX_REGIONS, pack_image_id
from tap_engine.schemas.progress import Say
from tap_engine.schemas.rejects import Reason, Reject, Stage

NAME = "photos"
"""Source name of own photos in keys, whatever format their masks have."""

_NO_ID = -1
"""A region without id must not read as a whole image left out."""

_EDGE_PX = 0.5
_AREA_SLACK = 0.05


@dataclass(frozen=True)
class PhotoUnit(Unit):
    """A unit that also knows what each photo's reader needs."""

    entries: tuple[Entry, ...] = ()

    def without(self, drop: npt.NDArray[np.bool_]) -> "PhotoUnit":
        """The unit without some of its images."""
        kept = tuple(e for e, gone in zip(self.entries, drop, strict=True) if not gone)
        return _unit(self.shard, kept)


class PhotoFolderSource:
    """Photos in a folder with annotations in one format.

    Args:
        folder: where they lie.
        found: what detect.py found in it.
        keep: which photos are stored as they are (photo.py).
    """

    name = NAME
    captioned = False
    labelled = True

    def __init__(self, folder: Folder, found: Found, keep: Keep = "as-is") -> None:
        self.folder = folder
        self.reader: Reader = found.reader
        self.keep: Keep = keep
        self.found: Found | None = found

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "reader": self.reader, "keep": self.keep, "found": None}

    def prepare(self, index_folder: str | None, say: Say) -> None:
        """Nothing: what the folder is has been found out and said already."""

    def settings(self) -> dict[str, Any]:
        """Folder and format; photos may come later, another folder has other photos."""
        settings = {
            "format": self.reader.format,
            "folder": self.folder.name,
            "photos": self.keep,
        }
        return settings | self.reader.settings()

    def labels(self) -> tuple[str, ...]:
        """Names of regions: of the class table, else of all annotations, in order of appearance.

        Raises:
            SourceError: no region has a label.
        """
        assert self.found is not None
        names = dict.fromkeys(self.reader.labels)
        for entry in [] if names else self.found.entries:
            try:
                shapes = self.reader.read(self.folder, entry).shapes
            except (SchemaError, SourceError):
                continue  # a reject of the build
            names |= dict.fromkeys(shape.label for shape in shapes if shape.label)
        if not names:
            raise SourceError(
                f"{self.folder.uri}: no region has a label, so they are no vocabulary"
            )
        return tuple(names)

    def shards(self) -> list[Shard]:
        """The folder."""
        return [Shard(self.folder.uri, 0)]

    def index(self, shard: Shard, unit_images: int) -> tuple[list[Unit], list[Reject]]:
        """Photos in the order of their paths, and what is wrong with the set as a whole."""
        assert self.found is not None
        problems = list(self.found.problems)
        entries = _distinct(self.found.entries, problems)
        units: list[Unit] = [
            _unit(shard.uri, tuple(entries[start : start + unit_images]))
            for start in range(0, len(entries), unit_images)
        ]
        return units, [_reject(problem, Stage.INDEX, None) for problem in problems]

    def load(self, unit: Unit, index: int) -> tuple[ImageRecord | None, list[Reject]]:
        """One photo with its regions; every problem becomes a reject, none an exception."""
        assert isinstance(unit, PhotoUnit)
        record, problems = self.annotate(unit.entries[index])
        image_id = int(unit.image_ids[index])
        rejects = [_reject(p, Stage.READ, image_id) for p in problems if not p.note or p.photo]
        if record is not None:
            record.image_id = image_id
        return record, rejects

    def annotate(
        self, entry: Entry, decode: Callable[[bytes], object] = len
    ) -> tuple[ImageRecord | None, list[Problem]]:
        """One photo with its regions, and everything that is wrong with it.

        The record's image_id is the caller's to fill. Notes without a photo's name are about
        regions that were kept: for people who check, not for the store.

        Args:
            entry: the photo.
            decode: tries the photo's bytes, raising SchemaError; a build does that itself.
        """
        try:
            sheet = self.reader.read(self.folder, entry)
        except (SchemaError, SourceError) as error:
            return None, [_unread(entry, error)]
        problems = sheet.problems
        try:
            data = self.folder.read(entry.name) if sheet.photo is None else sheet.photo
        except SourceError as error:
            problems.append(Problem("", str(error), Reason.IMAGE_MISSING, entry.name))
            return None, problems
        place = sheet.place or entry.name
        try:
            photo = _photo(data, entry.name, sheet, self.keep)
            decode(photo.data)
        except SchemaError as error:
            wrong_size = "stated, the file is" in str(error)
            reason = Reason.IMAGE_SIZE_MISMATCH if wrong_size else Reason.IMAGE_UNREADABLE
            text = f"{entry.name}: {error}"
            return None, [*problems, Problem(place, text, reason, entry.name)]
        problems += [note(place, f"{entry.name}: {text}", entry.name) for text in photo.notes]
        record = ImageRecord(0, entry.name, photo.width, photo.height, photo.data)
        for ordinal, shape in enumerate(sheet.shapes):
            outcome = _region(ordinal, shape, (photo.height, photo.width), problems)
            if isinstance(outcome, RegionRecord):
                record.regions.append(outcome)
            else:
                region = _NO_ID if shape.region_id is None else shape.region_id
                text = f"{shape.title} of {entry.name}: {outcome[1]}"
                problems.append(Problem(shape.place, text, outcome[0], entry.name, region))
        return record, problems


def _unread(entry: Entry, error: Exception) -> Problem:
    """The annotations of a photo cannot be read at all: the photo is left out with them."""
    text = f"the annotations of {entry.name} cannot be read: {error}"
    return Problem("", text, Reason.JSON_MALFORMED, entry.name)


def _distinct(entries: list[Entry], problems: list[Problem]) -> list[Entry]:
    """Entries whose numbers differ; of two with one, the later name is a problem."""
    first: dict[int, str] = {}
    kept = []
    for entry in sorted(entries, key=lambda e: e.name):
        number = image_number(entry.name)
        if first.setdefault(number, entry.name) == entry.name:
            kept.append(entry)
            continue
        text = f"{entry.name} has the number of {first[number]}, by chance: rename one of them"
        problems.append(Problem("", text, Reason.DUPLICATE_IMAGE, entry.name))
    return kept


def _unit(shard: str, entries: tuple[Entry, ...]) -> PhotoUnit:
    numbers = [pack_image_id(NAME, image_number(entry.name)) for entry in entries]
    names = "\n".join(entry.name.replace("\n", " ") for entry in entries)
    spans = np.empty((len(entries), 0), np.int64)
    return PhotoUnit(shard, 0, names, np.array(numbers, np.int64), spans, entries=entries)


def _photo(data: bytes, name: str, sheet: Sheet, keep: Keep) -> Photo:
    """The photo, the way up that its annotations mean."""
    masks: set[SizeWh] = set()
    right = bottom = 0.0
    for shape in sheet.shapes:
        try:
            if shape.exact and shape.patch is not None:
                masks.add((shape.patch.shape[1], shape.patch.shape[0]))
            elif (size := rle.stated_size(shape.coco)) is not None:
                masks.add((size[1], size[0]))
            elif not shape.fractions:
                corners = shape.outlines or _outlines(shape.coco)
                right = max([right, *(float(c[:, 0].max()) for c in corners)])
                bottom = max([bottom, *(float(c[:, 1].max()) for c in corners)])
        except SchemaError:
            continue  # said when the region itself is read
    return read_photo(data, name, sheet.size_wh, masks, (right, bottom), keep)


def _outlines(coco: Any) -> list[polygons.Outline]:
    if not isinstance(coco, list) or not coco or isinstance(coco[0], dict):
        return []
    return polygons.outlines(coco)


def _region(
    ordinal: int, shape: Shape, size_hw: tuple[int, int], problems: list[Problem]
) -> RegionRecord | tuple[Reason, str]:
    """A checked region, or (reason, detail) of a reject; notes go to `problems`."""
    if ordinal >= MAX_REGIONS:
        return Reason.TOO_MANY_REGIONS, f"region {ordinal} of at most {MAX_REGIONS}"
    region_id = ordinal if shape.region_id is None else shape.region_id
    try:
        counts = _mask(shape, size_hw)
        if counts is None:
            box = _box(shape, size_hw)
            area = max(round(box[2] * box[3]), 1)
            return RegionRecord(ordinal, region_id, None, None, box, area, label=shape.label)
        runs = rle.runs(counts, size_hw)
    except SchemaError as error:
        return _reason(str(error)), str(error)
    area = rle.area(runs)
    if area == 0:
        return Reason.MASK_EMPTY, "the mask is empty: no pixel is inside the picture"
    bounds = rle.bbox_xywh(runs, size_hw)
    _compare(shape, area, bounds, problems)
    return RegionRecord(
        ordinal,
        region_id,
        counts,
        runs,
        bounds,
        area,
        shape.predicted_iou,
        shape.stability_score,
        label=shape.label,
    )


def _mask(shape: Shape, size_hw: tuple[int, int]) -> bytes | None:
    """Compressed counts of a shape; None for a box alone.

    Raises:
        SchemaError: the mask cannot be read, or there is neither mask nor box.
    """
    height, width = size_hw
    if shape.patch is not None:
        return _placed(shape, size_hw)
    if shape.outlines:
        scale = np.array([width, height] if shape.fractions else [1, 1], np.float64)
        return polygons.fill([corners * scale for corners in shape.outlines], size_hw)
    if shape.coco is not None and shape.coco != []:
        empty = isinstance(shape.coco, list) and all(part == [] for part in shape.coco)
        if not (empty and shape.box is not None):
            return rle.from_coco(shape.coco, size_hw)
    if shape.box is None:
        raise SchemaError("neither a mask nor a box")
    return None


def _placed(shape: Shape, size_hw: tuple[int, int]) -> bytes:
    assert shape.patch is not None
    height, width = size_hw
    patch = shape.patch
    if patch.shape == size_hw and shape.at == (0, 0):
        return rle.encode(patch)
    if shape.exact:
        raise SchemaError(
            f"mask of size {patch.shape[1]} x {patch.shape[0]} for a photo of {width} x {height}"
        )
    left, top = shape.at
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + patch.shape[1], width), min(top + patch.shape[0], height)
    whole = np.zeros(size_hw, bool)
    if x0 < x1 and y0 < y1:
        whole[y0:y1, x0:x1] = patch[y0 - top : y1 - top, x0 - left : x1 - left]
    return rle.encode(whole)


def _box(shape: Shape, size_hw: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box alone, cut to the picture.

    Raises:
        SchemaError: not four finite numbers, empty, outside, or fractions in place of pixels.
    """
    height, width = size_hw
    left, top, w, h = _four(shape.box)
    if shape.fractions:
        left, top, w, h = left * width, top * height, w * width, h * height
    elif max(left, top, w, h) <= 1 and min(left, top) >= 0 and max(height, width) > 2:
        raise SchemaError(
            "all four numbers of the box lie in 0..1: fractions of the picture (normalised), or a "
            f"box too small; expected pixels, found {[left, top, w, h]}"
        )
    if w <= 0 or h <= 0:
        raise SchemaError(
            f"the box is empty: its width and height must not be zero or negative, found {w:g} x "
            f"{h:g}"
        )
    x0, y0 = max(left, 0.0), max(top, 0.0)
    x1, y1 = min(left + w, float(width)), min(top + h, float(height))
    if x1 <= x0 or y1 <= y0:
        raise SchemaError(
            f"the box {[left, top, w, h]} (x, y, width, height) is outside of the picture of "
            f"{width} x {height}"
        )
    return x0, y0, x1 - x0, y1 - y0


def _four(box: Any) -> list[float]:
    if isinstance(box, dict) and {"x", "y", "width", "height"} <= box.keys():
        box = [box[side] for side in ("x", "y", "width", "height")]
    if not isinstance(box, list | tuple):
        raise SchemaError(f"expected the box as a list of four numbers, found {polygons.kind(box)}")
    if len(box) == 5:
        raise SchemaError("the box has 5 numbers, a rotated one: expected 4 (x, y, width, height)")
    if len(box) != 4:
        raise SchemaError(f"expected a box of 4 numbers (four), found {len(box)}")
    return [polygons.number(value) for value in box]


def _compare(
    shape: Shape, area: int, bounds: tuple[int, int, int, int], problems: list[Problem]
) -> None:
    """Notes where the file's own area or box is not the mask's; the mask counts."""
    try:
        if shape.area_seen is not None:
            stated = polygons.number(shape.area_seen)
            if abs(stated - area) > max(2.0, _AREA_SLACK * area + 0.3 * sum(bounds[2:])):
                problems.append(_note(shape, f"area {stated:g} stated, its mask has {area} px"))
        if shape.box_seen:
            box = _four(shape.box_seen)
            # SAM writes width and height one less, others round.
            if any(
                abs(a - b) > 2 + 0.02 * max(bounds[2:]) for a, b in zip(box, bounds, strict=True)
            ):
                found = [round(value, 1) for value in box]
                problems.append(_note(shape, f"box {found} stated, its mask has {list(bounds)}"))
    except SchemaError as error:
        problems.append(_note(shape, f"area or box beside the mask: {error}"))


def _note(shape: Shape, text: str) -> Problem:
    return note(shape.place, f"{shape.title}: {text}; the mask counts")


def _reason(text: str) -> Reason:
    """The closed word for what a mask's or box's own error says."""
    if "size" in text and "mask of" in text:
        return Reason.RLE_SIZE_MISMATCH
    if text.startswith("the box is empty"):
        return Reason.BOX_EMPTY
    if "is outside of the picture" in text:
        return Reason.BOX_OUTSIDE
    return Reason.RLE_GARBAGE if "RLE" in text else Reason.SHAPE_UNREADABLE


def _reject(problem: Problem, stage: Stage, image_id: int | None) -> Reject:
    if image_id is None and problem.photo and not problem.note and problem.region is None:
        image_id = pack_image_id(NAME, image_number(problem.photo))
    return Reject(
        stage=stage,
        reason=problem.reason,
        detail=str(problem)[:500],
        image_id=image_id,
        region_id=problem.region,
    )

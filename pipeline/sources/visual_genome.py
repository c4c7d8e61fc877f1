"""Visual Genome as a source: boxes with phrases, of releases 1.0 and 1.2.

    region_descriptions.json    what regions there are; decides which images are wanted
    image_data.json             the size of each image
    N.jpg                       in VG_100K and VG_100K_2, or in one flat folder
    splits                      densecap's {"train": [...], "val": [...], "test": [...]}; optional

The json is staged once by visual_genome_stage.py; a unit then knows where its slices are.
"""

import hashlib
import json
import threading
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tap_engine.pipeline.sources.captions import RULES_VERSION, CleaningCounts
from tap_engine.pipeline.sources.filesystem import Unreadable, absolute_uri, list_folder, read_small
from tap_engine.pipeline.sources.json_items import index_json
from tap_engine.pipeline.sources.records import ImageRecord, RegionRecord, Shard, Unit
from tap_engine.pipeline.sources.visual_genome_stage import (
    Staged,
    find_staged,
    keep_staged,
    open_regions,
    stage,
)
from tap_engine.schemas import values
from tap_engine.schemas.boxes import clip_xyxy, xywh_to_xyxy, xyxy_to_xywh
from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.schemas.filesystem import open_filesystem
from tap_engine.schemas.keys import MAX_REGIONS, pack_image_id
from tap_engine.schemas.progress import Say
from tap_engine.schemas.rejects import Reason, Reject, Stage
from tap_engine.schemas.tables import SPLITS

_SUBFOLDERS = ("VG_100K", "VG_100K_2")
"""Where the two photo archives unpack to."""

_MAX_PHOTO = 1 << 28
"""256 MiB: a wrong size must not exhaust memory."""

_BOX = ("x", "y", "width", "height")


class _Span(NamedTuple):
    """A row of `Unit.spans`."""

    folder: int
    width: int
    height: int
    batch: int
    first: int
    regions: int
    split: int


class VisualGenomeSource:
    """Images of Visual Genome with their described regions.

    Args:
        regions: region_descriptions.json; path or URI, as all of these.
        image_data: image_data.json.
        images: folders with N.jpg, or with VG_100K and VG_100K_2 in them.
        splits: densecap's split file; None leaves `split` empty.

    Raises:
        SourceError: a folder or the split file cannot be read (seen at once, said at once).
        SchemaError: the split file is of another layout.
    """

    name = "vg"
    captioned = True
    labelled = False

    def __init__(
        self, regions: str, image_data: str, images: Sequence[str], splits: str | None = None
    ) -> None:
        self._regions = absolute_uri(regions)
        self._image_data = absolute_uri(image_data)
        self._folders = [folder for uri in images for folder in _photo_folders(absolute_uri(uri))]
        self._splits = read_splits(absolute_uri(splits)) if splits else None
        self._staged: Staged | None = None
        self._staged_uri = ""
        self._settings: dict[str, Any] = {}
        self._scratch: TemporaryDirectory[str] | None = None
        self._index_folder: str | None = None
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        # What a worker needs; the index of all images is the driver's.
        return {name: getattr(self, name) for name in ("_folders", "_staged_uri", "_settings")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    def prepare(self, index_folder: str | None, say: Say) -> None:
        """Read the region json, unless an earlier run left it staged in `index_folder`.

        Some minutes for the whole of v1.2.

        Raises:
            SourceError: the file is not there or cannot be read.
            SchemaError: it is not of this layout.
        """
        self._index_folder = index_folder
        self._staged = find_staged(self._regions, index_folder) if index_folder else None
        if self._staged is None:
            self._scratch = TemporaryDirectory(prefix="tap-visual-genome-")
            self._staged = stage(self._regions, self._scratch.name, say)
        self._staged_uri = self._staged.regions_uri
        self._settings = {
            "annotations": self._staged.digest,
            "cleaning_rules": RULES_VERSION,
            "splits": None if self._splits is None else _fingerprint(self._splits),
        }

    @property
    def _prepared(self) -> Staged:
        if self._staged is None:
            raise SourceError("a Visual Genome source was used before its `prepare` was called")
        return self._staged

    @property
    def counts(self) -> CleaningCounts:
        """Counts of what cleaning did to the phrases."""
        return self._prepared.counts

    def settings(self) -> dict[str, Any]:
        """Facts that decide the rows: annotations, cleaning, split. Photos may come later."""
        return self._settings

    def shards(self) -> list[Shard]:
        """The one json."""
        return [Shard(self._regions, 0)]

    def index(self, shard: Shard, unit_images: int) -> tuple[list[Unit], list[Reject]]:
        """Images in the json's order; those without photo or size, and bad entries, as rejects."""
        if self._scratch and self._index_folder:  # now there is a store to keep it in
            self._staged = keep_staged(self._prepared, self._index_folder)
            self._staged_uri = self._staged.regions_uri
            self._scratch.cleanup()
            self._scratch = None
        photos = self._photos()
        sizes = read_sizes(self._image_data)
        spans: dict[int, _Span] = {}
        rejects: list[Reject] = []

        def reject(reason: Reason, detail: str, number: int | None = None) -> None:
            image_id = None if number is None else pack_image_id(self.name, number)
            rejects.append(
                Reject(stage=Stage.INDEX, reason=reason, detail=detail, image_id=image_id)
            )

        columns = (column.to_pylist() for column in self._prepared.images.columns)
        for number, batch, offset, count, problem in zip(*columns, strict=True):
            if problem is not None:
                reject(Reason.JSON_MALFORMED, problem)
            elif number in spans:
                reject(Reason.DUPLICATE_IMAGE, f"image {number} has a second entry", number)
            elif number not in photos:
                reject(Reason.IMAGE_MISSING, f"no {number}.jpg in any image folder", number)
            elif number not in sizes:
                reject(
                    Reason.ANNOTATIONS_MISSING, f"no size of image {number} in image_data", number
                )
            else:
                split = (self._splits or {}).get(number, -1)
                spans[number] = _Span(photos[number], *sizes[number], batch, offset, count, split)
        numbers = list(spans)
        parts = (numbers[at : at + unit_images] for at in range(0, len(numbers), unit_images))
        units = [
            Unit(
                shard.uri,
                0,
                "\n".join(f"{number}.jpg" for number in part),
                np.array([pack_image_id(self.name, number) for number in part], np.int64),
                np.array([spans[number] for number in part], np.int64),
            )
            for part in parts
        ]
        return units, rejects

    def load(self, unit: Unit, index: int) -> tuple[ImageRecord | None, list[Reject]]:
        """One image with its regions: boxes cut to the image, problems as rejects."""
        image_id, name = int(unit.image_ids[index]), unit.file_names[index]
        span = _Span(*(int(value) for value in unit.spans[index]))
        try:
            photo = read_small(f"{self._folders[span.folder]}/{name}", _MAX_PHOTO)
        except Unreadable as error:
            reason, detail = Reason.IMAGE_UNREADABLE, f"{name}: {error}"
            return None, [Reject(stage=Stage.READ, reason=reason, detail=detail, image_id=image_id)]
        split = SPLITS[span.split] if span.split >= 0 else None
        record = ImageRecord(image_id, name, span.width, span.height, photo, split=split)
        rejects: list[Reject] = []
        seen: set[int] = set()
        batch = self._rows(span.batch).slice(span.first, span.regions)
        stated = np.stack([batch.column(side).to_numpy(zero_copy_only=False) for side in _BOX], -1)
        boxes = xyxy_to_xywh(clip_xyxy(xywh_to_xyxy(stated), (span.height, span.width)))
        for ordinal, (row, box) in enumerate(zip(batch.to_pylist(), boxes.tolist(), strict=True)):
            outcome = _region(ordinal, row, box, (span.height, span.width), seen)
            if isinstance(outcome, RegionRecord):
                record.regions.append(outcome)
                continue
            reason, detail = outcome
            rejects.append(
                Reject(
                    stage=Stage.READ,
                    reason=reason,
                    detail=detail,
                    image_id=image_id,
                    # A region without id must not read as a whole image left out.
                    region_id=-1 if row["region_id"] is None else row["region_id"],
                )
            )
        return record, rejects

    def _rows(self, batch: int) -> pa.RecordBatch:
        """A batch of staged regions; each thread keeps its last one."""
        if getattr(self._local, "batch", None) != batch:
            if not hasattr(self._local, "reader"):
                self._local.reader = open_regions(self._staged_uri)
            self._local.rows = self._local.reader.get_batch(batch)
            self._local.batch = batch
        return self._local.rows

    def _photos(self) -> dict[int, int]:
        """Photo number -> index of its folder; the first folder wins."""
        found: dict[int, int] = {}
        for index, folder in enumerate(self._folders):
            for entry in list_folder(folder):
                stem, _, suffix = entry.base_name.rpartition(".")
                if entry.is_file and suffix == "jpg" and stem.isdecimal() and stem[0] != "0":
                    found.setdefault(int(stem), index)
        return found


def read_splits(uri: str) -> dict[int, int]:
    """Image number -> index into SPLITS, of a json {"train": [...], "val": [...], "test": [...]}.

    Raises:
        SourceError: no such file, or no json.
        SchemaError: another layout, or an image in two splits.
    """
    found: dict[int, int] = {}
    filesystem, path = open_filesystem(uri)
    try:
        with filesystem.open_input_stream(path) as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise SourceError(f"{uri}: cannot be read as json: {error}") from error
    if not isinstance(content, dict) or set(content) - set(SPLITS):
        raise SchemaError(
            f"{uri}: expected lists of image numbers under {', '.join(SPLITS)}, as in "
            f"densecap_splits.json; found {', '.join(map(str, content))[:100]}"
        )
    for index, split in enumerate(SPLITS):
        numbers = content.get(split, [])
        if not isinstance(numbers, list):
            raise SchemaError(f"{uri}: {split!r} is {numbers!r:.50}, expected a list of numbers")
        for place, entry in enumerate(numbers):
            try:
                number = values.integer(int(entry) if isinstance(entry, str) else entry)
            except ValueError as error:
                raise SchemaError(f"{uri}: entry {place} of {split!r}: {error}") from error
            if found.setdefault(number, index) != index:
                raise SchemaError(
                    f"{uri}: image {number} is in {split} and in {SPLITS[found[number]]}"
                )
    return found


def read_sizes(uri: str) -> dict[int, tuple[int, int]]:
    """Image number -> (width, height) px, of image_data.json; early releases say `id`.

    Raises:
        SourceError: no such file, or no json.
        SchemaError: another layout.
    """
    sizes: dict[int, tuple[int, int]] = {}
    items = index_json(uri)
    for place, row in items.rows(items.frame):
        try:
            number = values.integer(row["image_id"] if "image_id" in row else row["id"])
            sizes[number] = values.integer(row["width"], 32), values.integer(row["height"], 32)
        except (KeyError, TypeError, ValueError) as error:
            raise SchemaError(
                f"{items.place(place)}: expected a list of {{image_id, width, height}}: {error!r}"
            ) from error
    if not sizes:
        raise SchemaError(f"{uri}: expected a list of {{image_id, width, height}}, found no image")
    return sizes


def _photo_folders(uri: str) -> list[str]:
    """A folder itself where photos are in it, and its unpacked archives."""
    inside = {entry.base_name for entry in list_folder(uri) if not entry.is_file}
    return [uri, *(f"{uri.rstrip('/')}/{name}" for name in _SUBFOLDERS if name in inside)]


def _region(
    ordinal: int,
    row: dict[str, Any],
    box: list[float],
    size_hw: tuple[int, int],
    seen: set[int],
) -> RegionRecord | tuple[Reason, str]:
    """A checked region with its clipped box (xywh), or (reason, detail) of a reject."""
    if row["reason"] is not None:
        return Reason(row["reason"]), f"region {ordinal}: {row['detail']}"
    region_id = row["region_id"]
    if ordinal >= MAX_REGIONS:
        return Reason.TOO_MANY_REGIONS, f"region {ordinal} of at most {MAX_REGIONS}"
    if region_id in seen:
        return Reason.DUPLICATE_REGION, f"region {ordinal} repeats id {region_id}"
    seen.add(region_id)
    if not row["caption"]:
        return Reason.CAPTION_EMPTY, f"phrase {row['caption_raw']!r:.100}"
    left, top, width, height = box
    if row["width"] <= 0 or row["height"] <= 0:
        return Reason.BOX_EMPTY, f"box {_numbers(row)} (xywh)"
    if width <= 0 or height <= 0:
        return Reason.BOX_OUTSIDE, f"box {_numbers(row)} (xywh) on {size_hw[1]} x {size_hw[0]}"
    return RegionRecord(
        ordinal,
        region_id,
        rle=None,
        runs=None,
        bbox_xywh=(left, top, width, height),
        area=max(round(width * height), 1),
        caption=row["caption"],
        caption_raw=row["caption_raw"],
    )


def _numbers(row: dict[str, Any]) -> str:
    return ", ".join(f"{row[side]:g}" for side in _BOX)


def _fingerprint(splits: dict[int, int]) -> str:
    pairs = np.array(sorted(splits.items()), "<i8")
    return hashlib.blake2b(pairs.tobytes(), digest_size=8).hexdigest()

"""SA-1B's layout: tars or folders of `sa_N.jpg` with `sa_N.json`.

Members may start with `./` and come in any order; an image and its annotations meet by name. Any
other data set in this layout works as well (the number at the end of a name is the image's id).
"""

import json
import math
import re
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from tap_engine.pipeline.sources.filesystem import absolute_uri, base_name, list_folder
from tap_engine.pipeline.sources.index_cache import load_index, save_index
from tap_engine.pipeline.sources.records import ImageRecord, RegionRecord, Shard, Unit
from tap_engine.pipeline.sources.tar_index import Damage, Member, read_index
from tap_engine.schemas import rle
from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.schemas.filesystem import open_filesystem
from tap_engine.schemas.keys import MAX_REGIONS, MAX_SOURCE_ID, pack_image_id
from tap_engine.schemas.progress import Say
from tap_engine.schemas.rejects import Reason, Reject, Stage

_Row = tuple[str, int, int, int, int]
"""Name of an image; offset and size of its file and of its annotations."""

_NUMBER = re.compile(r"(?<!\d)\d{1,13}$")
_IMAGE_SUFFIXES = (".jpg", ".jpeg")
_MAX_JSON = 1 << 28
"""256 MiB: SA-1B's largest are below 1 MiB; a wrong size must not exhaust memory."""

_OWN_PHOTOS = "; own photos with COCO json, masks or the like are read by --source auto"


class Sa1bSource:
    """Tars and folders in SA-1B's layout.

    Args:
        uris: tars, folders of tars, folders of images; paths or URIs.
        name: source name for the keys, e.g. "sa1b" or "sample".
    """

    captioned = False
    labelled = False

    def __init__(self, uris: list[str], name: str = "sa1b") -> None:
        self.uris = [absolute_uri(uri) for uri in uris]
        self.name = name
        self._index_folder: str | None = None
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    def prepare(self, index_folder: str | None, say: Say) -> None:
        """Nothing is read; indices of large tars will be kept in `index_folder`."""
        self._index_folder = index_folder

    def settings(self) -> dict[str, Any]:
        """Nothing but the files decides the rows, and more of them may come."""
        return {}

    def shards(self) -> list[Shard]:
        """Every tar and every folder with images, each once.

        Raises:
            SourceError: a path holds neither.
        """
        found: dict[tuple[str, int], Shard] = {}
        for uri in self.uris:
            for shard in _expand(uri):
                found.setdefault((base_name(shard.uri), shard.size), shard)
        return list(found.values())

    def index(self, shard: Shard, unit_images: int) -> tuple[list[Unit], list[Reject]]:
        """Pairs of image and annotations, `unit_images` at a time, in file order; and the rest."""
        rows, rejects = self._folder_rows(shard) if shard.files else self._tar_rows(shard)
        rows, repeated = self._unique(rows)
        return self._units(shard, rows, unit_images), rejects + repeated

    def load(self, unit: Unit, index: int) -> tuple[ImageRecord | None, list[Reject]]:
        """One image with its regions; every problem becomes a reject, none an exception."""
        image_id = int(unit.image_ids[index])
        name = unit.file_names[index]
        jpeg_at, jpeg_size, json_at, json_size = (int(value) for value in unit.spans[index])

        def reject(reason: Reason, detail: str) -> tuple[None, list[Reject]]:
            return None, [Reject(stage=Stage.READ, reason=reason, detail=detail, image_id=image_id)]

        if json_size > _MAX_JSON:
            return reject(Reason.JSON_MALFORMED, f"annotations of {json_size:,} bytes")
        if jpeg_at < 0:
            text = self._read(f"{unit.shard}/{_stem(name)}.json", 0, json_size)
            jpeg = self._read(f"{unit.shard}/{name}", 0, jpeg_size)
        else:
            text = self._read(unit.shard, json_at, json_size)
            jpeg = self._read(unit.shard, jpeg_at, jpeg_size)
        try:
            # RecursionError: a file of 100,000 brackets is bad input, not a bug of ours.
            content = json.loads(text)
            image = content["image"]
            stated_id, height, width = (_int(image[key]) for key in ("image_id", "height", "width"))
            annotations = content["annotations"]
            if not isinstance(annotations, list):
                raise TypeError("`annotations` is not a list")
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            return reject(Reason.JSON_MALFORMED, f"{name}: {type(error).__name__}: {error}"[:300])
        if stated_id != _number(name):
            return reject(
                Reason.JSON_OF_OTHER_IMAGE, f"{name}: annotations are of image {stated_id}"
            )
        if min(height, width) < 1:
            return reject(Reason.JSON_MALFORMED, f"{name}: size {width} x {height}")
        record = ImageRecord(image_id, name, width, height, jpeg)
        rejects: list[Reject] = []
        seen: set[int] = set()
        for ordinal, annotation in enumerate(annotations):
            outcome = _region(ordinal, annotation, (height, width), seen)
            if isinstance(outcome, RegionRecord):
                record.regions.append(outcome)
                continue
            reason, detail, region_id = outcome
            rejects.append(
                Reject(
                    stage=Stage.READ,
                    reason=reason,
                    detail=detail,
                    image_id=image_id,
                    region_id=region_id,
                )
            )
        return record, rejects

    def _read(self, uri: str, offset: int, size: int) -> bytes:
        """Bytes of a file; each thread keeps the last shard open, so a tar is opened once."""
        if getattr(self._local, "uri", None) != uri:
            filesystem, path = open_filesystem(uri)
            self._local.file, self._local.uri = filesystem.open_input_file(path), uri
        return self._local.file.read_at(size, offset)

    def _tar_rows(self, shard: Shard) -> tuple[list[_Row], list[Reject]]:
        images: dict[str, tuple[str, int, int]] = {}
        annotations: dict[str, tuple[int, int]] = {}
        rejects: list[Reject] = []
        for found in self._members(shard):
            if isinstance(found, Damage):
                detail = f"{base_name(shard.uri)} at byte {found.offset:,}: {found.detail}"
                rejects.append(_index_reject(Reason.TAR_DAMAGED, detail))
                continue
            name = found.name.removeprefix("./")
            if name.lower().endswith(_IMAGE_SUFFIXES):
                images.setdefault(_stem(name), (name, found.offset, found.size))
            elif name.endswith(".json"):
                annotations.setdefault(_stem(name), (found.offset, found.size))
        rows: list[_Row] = []
        for stem, (name, offset, size) in images.items():
            if stem not in annotations:
                rejects.append(self._unpaired(Reason.ANNOTATIONS_MISSING, name, f"{stem}.json"))
            elif _number(name) is None:
                rejects.append(_index_reject(Reason.BAD_NAME, f"{name!r} has no image number"))
            else:
                rows.append((name, offset, size, *annotations[stem]))
        for stem in annotations.keys() - images.keys():
            rejects.append(self._unpaired(Reason.IMAGE_MISSING, f"{stem}.json", f"{stem}.jpg"))
        rows.sort(key=lambda row: row[1])
        rejects.sort(key=lambda r: (r.image_id if r.image_id is not None else -1, r.detail))
        return rows, rejects

    def _members(self, shard: Shard) -> list[Member | Damage]:
        filesystem, path = open_filesystem(shard.uri)
        try:
            info = filesystem.get_file_info(path)
            kept = self._index_folder and load_index(self._index_folder, shard.uri, info)
            if kept:
                return kept
            with filesystem.open_input_file(path) as file:
                index = list(read_index(file))
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{shard.uri}: cannot be read: {error}") from error
        if self._index_folder:
            save_index(self._index_folder, shard.uri, info, index)
        return index

    def _folder_rows(self, shard: Shard) -> tuple[list[_Row], list[Reject]]:
        sizes = dict(zip(shard.files, shard.file_sizes, strict=True))
        rows: list[_Row] = []
        rejects = []
        for name, size in sizes.items():
            if name.lower().endswith(_IMAGE_SUFFIXES):
                annotations = f"{_stem(name)}.json"
                if annotations not in sizes:
                    rejects.append(self._unpaired(Reason.ANNOTATIONS_MISSING, name, annotations))
                else:
                    rows.append((name, -1, size, -1, sizes[annotations]))
            elif not any(f"{_stem(name)}{end}" in sizes for end in _IMAGE_SUFFIXES):
                rejects.append(self._unpaired(Reason.IMAGE_MISSING, name, f"{_stem(name)}.jpg"))
        return rows, rejects

    def _unique(self, rows: list[_Row]) -> tuple[list[_Row], list[Reject]]:
        """The first row of each image number, and a reject for each further one."""
        first: dict[int, str] = {}
        unique, rejects = [], []
        for row in rows:
            number = _number(row[0])
            assert number is not None
            if first.setdefault(number, row[0]) == row[0]:
                unique.append(row)
                continue
            rejects.append(
                _index_reject(
                    Reason.DUPLICATE_IMAGE,
                    f"{row[0]} has the number of {first[number]}",
                    pack_image_id(self.name, number),
                )
            )
        return unique, rejects

    def _units(self, shard: Shard, rows: list[_Row], unit_images: int) -> list[Unit]:
        size = 0 if shard.files else shard.size
        units = []
        for start in range(0, len(rows), unit_images):
            part = rows[start : start + unit_images]
            ids = [pack_image_id(self.name, _number(row[0]) or 0) for row in part]
            names = "\n".join(row[0] for row in part)
            spans = np.array([row[1:] for row in part], np.int64)
            units.append(Unit(shard.uri, size, names, np.array(ids, np.int64), spans))
        return units

    def _unpaired(self, reason: Reason, name: str, missing: str) -> Reject:
        number = _number(name)
        image_id = None if number is None else pack_image_id(self.name, number)
        return _index_reject(reason, f"{name}: no {missing} beside it", image_id)


def _expand(uri: str) -> Iterator[Shard]:
    filesystem, path = open_filesystem(uri)
    info = filesystem.get_file_info(path)
    if info.is_file:
        if not path.endswith(".tar"):
            raise SourceError(
                f"{uri}: expected a .tar or a folder, found another kind of file{_OWN_PHOTOS}"
            )
        yield Shard(uri, info.size)
        return
    entries = list_folder(uri)
    tars = [entry for entry in entries if entry.is_file and entry.base_name.endswith(".tar")]
    for tar in tars:
        yield Shard(f"{uri.rstrip('/')}/{tar.base_name}", tar.size)
    loose = [
        entry
        for entry in entries
        if entry.is_file
        and entry.base_name.lower().endswith((*_IMAGE_SUFFIXES, ".json"))
        and _number(entry.base_name) is not None
    ]
    if not tars and not loose:
        raise SourceError(
            f"{uri}: expected sa_*.tar shards or sa_N.jpg with sa_N.json, found neither among "
            f"{len(entries)} entries{_OWN_PHOTOS}"
        )
    if loose:
        loose.sort(key=lambda entry: (_number(entry.base_name), entry.base_name))
        yield Shard(
            uri.rstrip("/"),
            sum(entry.size for entry in loose),
            tuple(entry.base_name for entry in loose),
            tuple(entry.size for entry in loose),
        )


def _region(
    ordinal: int, annotation: Any, size_hw: tuple[int, int], seen: set[int]
) -> RegionRecord | tuple[Reason, str, int | None]:
    """A checked region, or (reason, detail, region id) of a reject."""
    region_id: int | None = None
    try:
        region_id = _int(annotation["id"])
        if not -(1 << 63) <= region_id < 1 << 63:
            region_id, number = None, region_id
            raise ValueError(f"id {number} is not an int64")
        if ordinal >= MAX_REGIONS:
            return (
                Reason.TOO_MANY_REGIONS,
                f"annotation {ordinal} of at most {MAX_REGIONS}",
                region_id,
            )
        if region_id in seen:
            return (
                Reason.DUPLICATE_REGION,
                f"annotation {ordinal} repeats id {region_id}",
                region_id,
            )
        seen.add(region_id)
        segmentation = annotation["segmentation"]
        height, width = (_int(side) for side in segmentation["size"])
        counts = segmentation["counts"].encode("ascii")
        scores = [_score(annotation.get(key)) for key in ("predicted_iou", "stability_score")]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        detail = f"annotation {ordinal}: {type(error).__name__}: {error}"
        return Reason.JSON_MALFORMED, detail[:300], region_id
    if (height, width) != size_hw:
        return (
            Reason.RLE_SIZE_MISMATCH,
            f"mask of {width} x {height} on an image of {size_hw[1]} x {size_hw[0]}",
            region_id,
        )
    try:
        runs = rle.runs(counts, size_hw)
    except SchemaError as error:
        return Reason.RLE_GARBAGE, str(error), region_id
    area = rle.area(runs)
    if area == 0:
        return Reason.MASK_EMPTY, "no pixel is inside", region_id
    box = rle.bbox_xywh(runs, size_hw)
    return RegionRecord(ordinal, region_id, counts, runs, box, area, scores[0], scores[1])


def _index_reject(reason: Reason, detail: str, image_id: int | None = None) -> Reject:
    return Reject(stage=Stage.INDEX, reason=reason, detail=detail, image_id=image_id)


def _int(value: Any) -> int:
    """An integer of json; 3.0 is one, 3.5, "3" and true are not."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise TypeError(f"expected an integer, found {value!r:.50}")
    return int(value)


def _score(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"expected a finite number, found {value!r:.50}")
    return float(value)


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0]


def _number(name: str) -> int | None:
    """The image number at the end of a file's stem; None where there is none."""
    match = _NUMBER.search(_stem(base_name(name)))
    if match is None or int(match[0]) > MAX_SOURCE_ID:
        return None
    return int(match[0])

"""SA-1B as a source: tars or folders of `sa_N.jpg` with `sa_N.json`.

Members may start with `./` and come in any order; an image and its annotations meet by name. Any
other data set in this layout works as well (the number at the end of a name is the image's id).
"""

import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from tap_engine.pipeline.sources.filesystem import (
    Entry,
    Unreadable,
    absolute_uri,
    base_name,
    describe,
    is_sidecar,
    list_folder,
    place_of,
    read_small,
    shown,
)
from tap_engine.pipeline.sources.index_cache import load_index, save_index
from tap_engine.pipeline.sources.records import ImageRecord, RegionRecord, Shard, Unit
from tap_engine.pipeline.sources.sa1b_annotations import read_annotations, region
from tap_engine.pipeline.sources.tar_index import Damage, Member, read_index
from tap_engine.schemas.errors import SourceError
from tap_engine.schemas.filesystem import open_filesystem
from tap_engine.schemas.keys import MAX_SOURCE_ID, pack_image_id
from tap_engine.schemas.progress import Say
from tap_engine.schemas.rejects import Reason, Reject, Stage

_Row = tuple[str, int, int, int, int]
"""Name of an image; offset and size of its file and of its annotations."""

_NUMBER = re.compile(r"(?<!\d)\d{1,13}$")
_IMAGE_SUFFIXES = (".jpg", ".jpeg")
_MAX_BYTES = 1 << 28
"""256 MiB of one image or json: SA-1B's are a few; a wrong size must not exhaust memory."""

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
        found: dict[object, Shard] = {}
        for uri in self.uris:
            for shard in _expand(uri):
                found.setdefault(place_of(shard.uri), shard)
        return list(found.values())

    def index(self, shard: Shard, unit_images: int) -> tuple[list[Unit], list[Reject]]:
        """Pairs of image and annotations, `unit_images` at a time, in file order; and the rest."""
        found = self._folder_rows(shard) if shard.files else self._tar_rows(shard)
        rows, rejects, mtime_ns = found
        rows, repeated = self._unique(rows)
        return self._units(shard, rows, unit_images, mtime_ns), rejects + repeated

    def load(self, unit: Unit, index: int) -> tuple[ImageRecord | None, list[Reject]]:
        """One image with its regions; every problem becomes a reject, none an exception."""
        image_id = int(unit.image_ids[index])
        name = unit.file_names[index]
        jpeg_at, jpeg_size, json_at, json_size = (int(value) for value in unit.spans[index])

        def reject(reason: Reason, detail: str) -> tuple[None, list[Reject]]:
            return None, [Reject(stage=Stage.READ, reason=reason, detail=detail, image_id=image_id)]

        if json_size > _MAX_BYTES:
            return reject(Reason.JSON_MALFORMED, f"{name}: annotations of {json_size:,} bytes")
        if jpeg_size > _MAX_BYTES:
            return reject(Reason.IMAGE_UNREADABLE, f"{name}: an image of {jpeg_size:,} bytes")
        try:
            if jpeg_at < 0:
                text = self._read_json(f"{unit.shard}/{_stem(name)}")
                jpeg = read_small(f"{unit.shard}/{name}", _MAX_BYTES)
            else:
                text = self._read(unit, json_at, json_size)
                jpeg = self._read(unit, jpeg_at, jpeg_size)
        except Unreadable as error:
            return reject(Reason.IMAGE_UNREADABLE, f"{name}: {error}")
        try:
            found = read_annotations(text)
        except ValueError as error:
            return reject(Reason.JSON_MALFORMED, f"{name}: {error}"[:300])
        if found.image_number != _number(name):
            return reject(
                Reason.JSON_OF_OTHER_IMAGE, f"{name}: annotations are of image {found.image_number}"
            )
        height, width = found.size_hw
        record = ImageRecord(image_id, name, width, height, jpeg)
        rejects: list[Reject] = []
        seen: set[int] = set()
        for ordinal, annotation in enumerate(found.regions):
            outcome = region(ordinal, annotation, found.size_hw, seen)
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

    def _read(self, unit: Unit, offset: int, size: int) -> bytes:
        """Bytes of a tar; each thread keeps the last one open, so it is opened once."""
        if getattr(self._local, "uri", None) != unit.shard:
            unit.require_unchanged()
            filesystem, path = open_filesystem(unit.shard)
            self._local.file, self._local.uri = filesystem.open_input_file(path), unit.shard
        return self._local.file.read_at(size, offset)

    def _read_json(self, stem: str) -> bytes:
        """The json beside an image, whichever way its ending is written."""
        try:
            return read_small(f"{stem}.json", _MAX_BYTES)
        except (Unreadable, FileNotFoundError):
            try:
                return read_small(f"{stem}.JSON", _MAX_BYTES)
            except (Unreadable, FileNotFoundError):
                pass
            raise

    def _tar_rows(self, shard: Shard) -> tuple[list[_Row], list[Reject], int]:
        rejects: list[Reject] = []
        files: list[tuple[str, int, int]] = []
        index, mtime_ns = self._members(shard)
        for found in index:
            if isinstance(found, Damage):
                detail = f"{shard.name} at byte {found.offset:,}: {found.detail}"
                rejects.append(_index_reject(Reason.TAR_DAMAGED, detail))
            else:
                files.append((found.name.removeprefix("./"), found.offset, found.size))
        rows, unpaired = self._pairs(files)
        rows.sort(key=lambda row: row[1])
        rejects += unpaired
        rejects.sort(key=lambda r: (r.image_id if r.image_id is not None else -1, r.detail))
        return rows, rejects, mtime_ns

    def _pairs(self, files: Iterable[tuple[str, int, int]]) -> tuple[list[_Row], list[Reject]]:
        """Images with their annotations; halves and names that cannot be used, as rejects.

        Args:
            files: name, offset and size of each; offset -1 in a folder.
        """
        images: dict[str, tuple[str, int, int]] = {}
        annotations: dict[str, tuple[int, int]] = {}
        bad: dict[str, str] = {}
        for name, offset, size in files:
            is_image = name.lower().endswith(_IMAGE_SUFFIXES)
            if is_sidecar(name) or not (is_image or name.lower().endswith(".json")):
                continue
            if shown(name) != name:
                bad.setdefault(_stem(name), name)
            elif is_image:
                images.setdefault(_stem(name), (name, offset, size))
            else:
                annotations.setdefault(_stem(name), (offset, size))
        rows: list[_Row] = []
        rejects = [
            _index_reject(Reason.BAD_NAME, f"{shown(name)}: a line break, or not UTF-8")
            for name in bad.values()
        ]
        for stem, (name, offset, size) in images.items():
            if stem not in annotations:
                rejects.append(self._unpaired(Reason.ANNOTATIONS_MISSING, name, f"{stem}.json"))
            elif _number(name) is None:
                rejects.append(_index_reject(Reason.BAD_NAME, f"{name!r} has no image number"))
            else:
                rows.append((name, offset, size, *annotations[stem]))
        for stem in annotations.keys() - images.keys():
            rejects.append(self._unpaired(Reason.IMAGE_MISSING, f"{stem}.json", f"{stem}.jpg"))
        return rows, rejects

    def _members(self, shard: Shard) -> tuple[list[Member | Damage], int]:
        filesystem, path = open_filesystem(shard.uri)
        try:
            info = filesystem.get_file_info(path)
            kept = self._index_folder and load_index(self._index_folder, shard.uri, info)
            if kept:
                return kept, info.mtime_ns or 0
            with filesystem.open_input_file(path) as file:
                index = list(read_index(file))
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{shard.uri}: cannot be read: {error}") from error
        if self._index_folder:
            save_index(self._index_folder, shard.uri, info, index)
        return index, info.mtime_ns or 0

    def _folder_rows(self, shard: Shard) -> tuple[list[_Row], list[Reject], int]:
        sizes = zip(shard.files, shard.file_sizes, strict=True)
        return *self._pairs((name, -1, size) for name, size in sizes), 0

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

    def _units(self, shard: Shard, rows: list[_Row], unit_images: int, mtime_ns: int) -> list[Unit]:
        size = 0 if shard.files else shard.size
        units = []
        for start in range(0, len(rows), unit_images):
            part = rows[start : start + unit_images]
            ids = [pack_image_id(self.name, _number(row[0]) or 0) for row in part]
            names = "\n".join(row[0] for row in part)
            spans = np.array([row[1:] for row in part], np.int64)
            sizes = np.array([row[2] for row in part], np.int64)
            unit = Unit(shard.uri, size, names, np.array(ids, np.int64), spans, sizes, mtime_ns)
            units.append(unit)
        return units

    def _unpaired(self, reason: Reason, name: str, missing: str) -> Reject:
        number = _number(name)
        image_id = None if number is None else pack_image_id(self.name, number)
        return _index_reject(reason, f"{name}: no {missing} beside it", image_id)


def _expand(uri: str) -> Iterator[Shard]:
    info = describe(uri)
    if info.is_file:
        if not uri.endswith(".tar"):
            raise SourceError(
                f"{uri}: expected a .tar or a folder, found another kind of file{_OWN_PHOTOS}"
            )
        yield Shard(uri, info.size)
        return
    entries = [entry for entry in list_folder(uri) if not is_sidecar(entry.base_name)]
    tars = [entry for entry in entries if entry.is_file and entry.base_name.endswith(".tar")]
    for tar in tars:
        yield Shard(f"{uri.rstrip('/')}/{tar.base_name}", tar.size)
    loose = _loose([entry for entry in entries if entry.is_file])
    if not tars and not loose:
        raise SourceError(
            f"{uri}: expected sa_*.tar shards or sa_N.jpg with sa_N.json, found neither among "
            f"{len(entries)} entries{_OWN_PHOTOS}"
        )
    if loose:
        yield Shard(
            uri.rstrip("/"),
            sum(entry.size for entry in loose),
            tuple(entry.base_name for entry in loose),
            tuple(entry.size for entry in loose),
        )


def _loose(files: list[Entry]) -> list[Entry]:
    """Images and annotations of a folder by number; those without one where they are a pair."""
    ends = (*_IMAGE_SUFFIXES, ".json")
    mine = [entry for entry in files if entry.base_name.lower().endswith(ends)]
    stems = Counter(_stem(entry.base_name) for entry in mine)
    kept = [
        entry
        for entry in mine
        if _number(entry.base_name) is not None or stems[_stem(entry.base_name)] > 1
    ]
    numbered = ((-1 if (n := _number(e.base_name)) is None else n, e.base_name, e) for e in kept)
    return [entry for _, _, entry in sorted(numbered, key=lambda row: row[:2])]


def _index_reject(reason: Reason, detail: str, image_id: int | None = None) -> Reject:
    return Reject(stage=Stage.INDEX, reason=reason, detail=detail, image_id=image_id)


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0]


def _number(name: str) -> int | None:
    """The image number at the end of a file's stem; None where there is none."""
    match = _NUMBER.search(_stem(base_name(name)))
    if match is None or int(match[0]) > MAX_SOURCE_ID:
        return None
    return int(match[0])

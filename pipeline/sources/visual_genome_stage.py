"""Visual Genome's region_descriptions.json, streamed once into Arrow files that can be sliced.

The json of v1.2 is one list of 700 MB; parsed at once it would take some 10 GB. Here it passes
through ijson, phrases are cleaned on the way, and two files result:
    NAME.regions.arrow    rows in file order, cut into batches at image borders
    NAME.images.arrow     where each image's rows are; written last, so it says that both are whole
They are made in a temporary folder, since the store's settings depend on them, and kept in the
store's `_index` folder once there is a store. A cache like index_cache.py: made again when it is
gone. Memory holds one batch and a row an image.
"""

import json
import math
import shutil
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from pyarrow import fs

from tap_engine.pipeline.sources.captions import RULES_VERSION, CleaningCounts
from tap_engine.pipeline.sources.filesystem import base_name
from tap_engine.pipeline.sources.json_items import index_json
from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.schemas.filesystem import open_filesystem
from tap_engine.schemas.keys import MAX_SOURCE_ID
from tap_engine.schemas.progress import Progress, Say
from tap_engine.schemas.rejects import Reason
from tap_engine.schemas.replacing import replacing_in

_BATCH_ROWS = 16_384
_READ_BYTES = 1 << 20
_METADATA = b"tap.staged"

STAGED_REGIONS = pa.schema(
    [
        pa.field("region_id", pa.int64()),
        pa.field("x", pa.float64()),
        pa.field("y", pa.float64()),
        pa.field("width", pa.float64()),
        pa.field("height", pa.float64()),
        pa.field("caption", pa.string()),
        pa.field("caption_raw", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
"""A region as it stands in the json; `reason` and `detail` where it cannot be read."""

STAGED_IMAGES = pa.schema(
    [
        pa.field("number", pa.int64()),
        pa.field("batch", pa.int32()),
        pa.field("offset", pa.int32()),
        pa.field("count", pa.int32()),
        pa.field("problem", pa.string()),
    ]
)
"""One row per entry of the json; `number` is null where `problem` says why."""


@dataclass(frozen=True)
class Staged:
    """A staged file.

    Attributes:
        regions_uri: URI of the rows.
        images_uri: URI of `images` as a file.
        images: table of schema `STAGED_IMAGES`, in file order.
        digest: digest of the json's bytes, 16 hex digits.
        counts: what cleaning did.
    """

    regions_uri: str
    images_uri: str
    images: pa.Table
    digest: str
    counts: CleaningCounts


def find_staged(uri: str, folder: str) -> Staged | None:
    """What an earlier `stage` or `keep_staged` of this very json left in `folder`; None without.

    Raises:
        SourceError: there is no such json.
    """
    regions_uri, images_uri = _places(uri, folder)
    if (images := _read_images(images_uri)) is None:
        return None
    content = json.loads((images.schema.metadata or {})[_METADATA])
    counts = CleaningCounts.from_json(content["counts"])
    return Staged(regions_uri, images_uri, images, content["digest"], counts)


def stage(uri: str, folder: str, say: Say) -> Staged:
    """Stream a json into `folder`: some minutes for the whole of v1.2.

    Raises:
        SourceError: no such file, or no json.
        SchemaError: not a list of images with regions.
    """
    _write(uri, *_places(uri, folder), say)
    staged = find_staged(uri, folder)
    assert staged is not None
    return staged


def keep_staged(staged: Staged, folder: str) -> Staged:
    """Copy staged files to where every worker can read them, and a later run finds them."""
    places = []
    for uri in (staged.regions_uri, staged.images_uri):  # images last: they vouch for both
        places.append(f"{folder}/{base_name(uri)}")
        source, path = open_filesystem(uri)
        target, target_path = open_filesystem(places[-1])
        target.create_dir(target_path.rsplit("/", 1)[0])
        with (
            source.open_input_stream(path) as content,
            replacing_in(target, target_path) as partial,
            target.open_output_stream(partial) as sink,
        ):
            shutil.copyfileobj(content, sink, _READ_BYTES)
    return replace(staged, regions_uri=places[0], images_uri=places[1])


def _places(uri: str, folder: str) -> tuple[str, str]:
    """Files of the regions and of the images; a json that was changed has others."""
    filesystem, path = open_filesystem(uri)
    info = filesystem.get_file_info(path)
    if not info.is_file:
        raise SourceError(f"{uri}: expected region_descriptions.json, found no such file")
    name = f"{base_name(uri)}-{info.size}-{info.mtime_ns or 0}-rules{RULES_VERSION}"
    return f"{folder}/{name}.regions.arrow", f"{folder}/{name}.images.arrow"


def open_regions(uri: str) -> pa.ipc.RecordBatchFileReader:
    """The staged regions, mapped where they are local; `get_batch` reads one batch.

    Raises:
        SourceError: they are gone.
    """
    filesystem, path = open_filesystem(uri)
    try:
        local = isinstance(filesystem, fs.LocalFileSystem)
        return pa.ipc.open_file(pa.memory_map(path) if local else filesystem.open_input_file(path))
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{uri}: cannot be read; the same command makes it again") from error


def _read_images(uri: str) -> pa.Table | None:
    filesystem, path = open_filesystem(uri)
    try:
        with filesystem.open_input_file(path) as file:
            table = pa.ipc.open_file(file).read_all()
    except (OSError, pa.ArrowException):
        return None  # absent or damaged: it is only a cache
    return table if table.schema.equals(STAGED_IMAGES) else None


def _write(uri: str, regions_uri: str, images_uri: str, say: Say) -> None:
    filesystem, path = open_filesystem(uri)
    size_mb = filesystem.get_file_info(path).size / 1e6
    say(f"reading {uri} ({size_mb:,.1f} MB) once")
    target, regions_path = open_filesystem(regions_uri)
    _, images_path = open_filesystem(images_uri)
    target.create_dir(regions_path.rsplit("/", 1)[0])
    counts = CleaningCounts()
    images: list[tuple[int | None, int, int, int, str | None]] = []
    items = index_json(uri)
    progress = Progress(int(size_mb), unit="MB read", say=say)
    with (
        replacing_in(target, regions_path) as partial,
        target.open_output_stream(partial) as sink,
        pa.ipc.new_file(sink, STAGED_REGIONS) as writer,
    ):
        batches = 0
        rows: list[tuple[Any, ...]] = []
        for row, entry in items.rows(items.frame):
            number, regions, problem = _image(entry)
            images.append((number, batches, len(rows), len(regions), problem))
            rows += [_region(region, number, counts) for region in regions]
            if len(rows) >= _BATCH_ROWS:
                writer.write_batch(_batch(rows))
                batches, rows = batches + 1, []
            done_mb = int(items.ends[row]) // 1_000_000
            progress.update(done_mb, f"{len(images):,} images, {counts.phrases:,} regions")
        writer.write_batch(_batch(rows))
        if not images:
            raise SchemaError(f"{uri}: expected a list of {{id, regions}}, found no image")
    content = json.dumps({"digest": items.digest, "counts": counts.to_json()})
    table = pa.table([list(c) for c in zip(*images, strict=True)], schema=STAGED_IMAGES)
    table = table.replace_schema_metadata({_METADATA: content})
    with (
        replacing_in(target, images_path) as partial,
        target.open_output_stream(partial) as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)


def _image(entry: Any) -> tuple[int | None, list[Any], str | None]:
    """(image number, its regions, None), or (None, [], what is wrong with the entry)."""
    try:
        number, regions = entry["id"], entry["regions"]
        if not isinstance(regions, list):
            raise TypeError("`regions` is not a list")
        if type(number) is not int or not 0 <= number <= MAX_SOURCE_ID:
            raise TypeError(f"`id` is {number!r:.50}")
    except (KeyError, TypeError) as error:
        found = "no json" if entry is None else f"{json.dumps(entry)[:80]}"
        return None, [], f"entry {found}: {type(error).__name__}: {error}"
    return number, regions, None


def _region(region: Any, number: int | None, counts: CleaningCounts) -> tuple[Any, ...]:
    """A row of `STAGED_REGIONS`; v1.0 says `id` and `image`, v1.2 `region_id` and `image_id`."""
    region_id = None
    try:
        region_id = region["region_id"] if "region_id" in region else region["id"]
        if type(region_id) is not int or not -(1 << 63) <= region_id < 1 << 63:
            region_id, wrong = None, region_id
            raise TypeError(f"id {wrong!r:.50} is no int64")
        image = region.get("image_id", region.get("image", number))
        if image != number:
            reason = Reason.JSON_OF_OTHER_IMAGE
            return _unreadable(region_id, reason, f"a region of image {image!r:.50}")
        box = [float(region[side]) for side in ("x", "y", "width", "height")]
        if not all(map(math.isfinite, box)):
            raise ValueError(f"box {box}")
        raw = region["phrase"]
        if not isinstance(raw, str):
            raise TypeError(f"phrase {raw!r:.50} is no text")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        detail = f"{type(error).__name__}: {error}"
        return _unreadable(region_id, Reason.JSON_MALFORMED, detail[:300])
    return region_id, *box, counts.clean(raw), raw, None, None


def _unreadable(region_id: int | None, reason: Reason, detail: str) -> tuple[Any, ...]:
    return region_id, None, None, None, None, None, None, reason.value, detail


def _batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [()] * len(STAGED_REGIONS)
    return pa.record_batch(
        [pa.array(list(c), f.type) for c, f in zip(columns, STAGED_REGIONS, strict=True)],
        schema=STAGED_REGIONS,
    )

"""Prediction files: reading and writing what a model said, apart from its score.

An evaluation writes a folder of Parquet parts. Each part is written whole or not at all, and its
metadata lists the images it covers, also those without a single row: the data is the ledger of
what is done. A killed run continues with the same command; scoring reads the folder as often as
it likes, and reads anybody's COCO results json, Parquet or Lance table as well.
"""

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from tap_engine.schemas import rle as rles
from tap_engine.schemas import values
from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.schemas.filesystem import open_filesystem
from tap_engine.schemas.provenance import METADATA_KEY, Provenance
from tap_engine.train.data.lance_table import open_table
from tap_engine.train.evaluation.ground_truth import first_event, stream_json

INSTANCES = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("category_id", pa.int32(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("bbox_xywh", pa.list_(pa.float64(), 4)),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("rle", pa.binary()),
        pa.field("area", pa.float64()),
    ]
)
"""A detection: box, mask (compressed counts and its size, px) or both. `area` is what S/M/L cut it
by, px^2; null for the mask's own, or the box's where there is no mask. float64 as in COCO's json: a
rounded score breaks ties in another way, and the oracles hold to six digits."""

CAPTIONS = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("region_id", pa.int64(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
    ]
)

IMAGES_KEY = "tap.images"
FLUSH_ROWS = 50_000
FLUSH_S = 60.0
"""A part is written when it holds this many rows or is this old: what a kill can cost."""

_JSON_CHUNK = 8192


@dataclass(frozen=True)
class PredictionFolder:
    """The parts of one run.

    Attributes:
        parts: paths, sorted.
        done: image ids they cover.
        provenance: what made them; None while there is no part.
    """

    filesystem: fs.FileSystem
    parts: tuple[str, ...]
    done: frozenset[int]
    provenance: Provenance | None


def open_folder(path: str) -> PredictionFolder:
    """Reads what a prediction folder holds so far; an absent one holds nothing.

    Raises:
        SchemaError: parts of different settings, or one image in two parts.
    """
    filesystem, inner = open_filesystem(path)
    listing = filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))
    parts = sorted(info.path for info in listing if info.path.endswith(".parquet"))
    done: set[int] = set()
    provenance: Provenance | None = None
    for part in parts:
        metadata = pq.read_schema(part, filesystem=filesystem).metadata or {}
        if IMAGES_KEY.encode() not in metadata:
            raise SchemaError(
                f"{part}: not a part of an evaluation (no {IMAGES_KEY!r} in its metadata); give a "
                "single .parquet file by its own name, or another --out"
            )
        images = json.loads(metadata[IMAGES_KEY.encode()])
        if twice := done.intersection(images):
            raise SchemaError(
                f"{path}: image {min(twice)} is in two parts, the second is {part}; two runs wrote "
                "here at the same time. Remove one run's parts"
            )
        done.update(images)
        found = Provenance.from_json(metadata[METADATA_KEY.encode()].decode())
        if provenance is not None:
            found.require_same(provenance, part)
        provenance = provenance or found
    return PredictionFolder(filesystem, tuple(parts), frozenset(done), provenance)


class PredictionWriter:
    """Appends one image's rows after the other; use as a context manager.

    Leaving it by an error keeps what is complete: images are added whole, so no part ever holds
    half an image.
    """

    def __init__(
        self,
        path: str,
        schema: pa.Schema,
        provenance: Provenance,
        *,
        rank: int = 0,
        flush_rows: int = FLUSH_ROWS,
        flush_s: float = FLUSH_S,
    ) -> None:
        """Opens the folder; it may hold earlier parts of the same settings.

        Raises:
            SchemaError: its parts were made with other settings; names each that differs.
        """
        earlier = open_folder(path)
        if earlier.provenance is not None:
            provenance.require_same(earlier.provenance, path)
        self.done = earlier.done
        self._filesystem, self._path = open_filesystem(path)
        self._filesystem.create_dir(self._path)
        self._remove_drafts(rank)
        self._schema = schema
        self._provenance = provenance
        self._rank = rank
        self._flush_rows = flush_rows
        self._flush_s = flush_s
        self._images: list[int] = []
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0
        self._since = time.monotonic()

    def _remove_drafts(self, rank: int) -> None:
        """Drafts that a killed run of this rank left; nothing ever read them."""
        for info in self._filesystem.get_file_info(fs.FileSelector(self._path)):
            if info.base_name.startswith(f"{rank:04d}-") and info.base_name.endswith(".draft"):
                self._filesystem.delete_file(info.path)

    def add(self, image_id: int, rows: pa.RecordBatch) -> None:
        """Take all rows of an image; none is fine, the image is done all the same."""
        self._images.append(image_id)
        if rows.num_rows:
            self._batches.append(rows.cast(self._schema))
            self._rows += rows.num_rows
        if self._rows >= self._flush_rows or time.monotonic() - self._since > self._flush_s:
            self.flush()

    def flush(self) -> None:
        """Write what was added as one part: under another name first, then renamed."""
        if self._images:
            metadata = {
                IMAGES_KEY: json.dumps(self._images),
                METADATA_KEY: self._provenance.to_json(),
            }
            table = pa.Table.from_batches(self._batches, schema=self._schema)
            name = f"{self._rank:04d}-{uuid.uuid4().hex}"
            draft = f"{self._path}/{name}.draft"
            with self._filesystem.open_output_stream(draft) as sink:
                pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
            self._filesystem.move(draft, f"{self._path}/{name}.parquet")
        self._images, self._batches, self._rows = [], [], 0
        self._since = time.monotonic()

    def __enter__(self) -> "PredictionWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


def read_predictions(
    path: str, schema: pa.Schema, sizes: Mapping[int, tuple[int, int]] | None = None
) -> Iterator[pa.RecordBatch]:
    """Rows of a prediction file in batches of `schema`; memory is that of a batch.

    Args:
        path: a folder this module wrote, a .parquet file, a .lance table, or a COCO results .json.
        schema: one of this module's; columns the file lacks become null where null is allowed.
        sizes: height and width by image, for results whose masks are polygons.

    Raises:
        SourceError: nothing there, or an unknown kind of file.
        SchemaError: a row or column is not of the layout.
    """
    if path.endswith(".json"):
        yield from _json_batches(path, schema, sizes or {})
        return
    try:
        for batch in _stored_batches(path):
            yield _conform(batch, schema, path)
    except (OSError, pa.ArrowException) as error:
        raise SchemaError(f"{path}: cannot be read: {error!s:.200}") from error


def is_folder(path: str) -> bool:
    """Whether predictions are a folder of parts, by looking; a file of one form is not.

    Raises:
        SourceError: nothing there, or an unknown kind of file.
    """
    filesystem, inner = open_filesystem(path)
    try:
        kind = filesystem.get_file_info(inner).type
    except OSError as error:
        raise SourceError(f"{path}: {error!s:.200}") from error
    if kind == fs.FileType.NotFound:
        raise SourceError(f"{path}: no such file or folder")
    if path.rstrip("/").endswith(".lance"):
        return False
    if kind != fs.FileType.Directory and not path.endswith((".json", ".parquet")):
        raise SourceError(
            f"{path}: expected predictions as .json (COCO results, not compressed), .parquet, "
            ".lance or a folder that `tap-train eval` wrote"
        )
    return bool(kind == fs.FileType.Directory)


def _stored_batches(path: str) -> Iterator[pa.RecordBatch]:
    if path.rstrip("/").endswith(".lance"):
        yield from open_table(path, hint="expected predictions as a Lance table").to_batches()
        return
    filesystem, inner = open_filesystem(path)
    parts = open_folder(path).parts if is_folder(path) else (inner,)
    for part in parts:
        yield from pq.ParquetFile(filesystem.open_input_file(part)).iter_batches(_JSON_CHUNK)


def _conform(batch: pa.RecordBatch, schema: pa.Schema, path: str) -> pa.RecordBatch:
    columns = []
    for field in schema:
        index = batch.schema.get_field_index(field.name)
        if index < 0 and not field.nullable:
            raise SchemaError(
                f"{path}: predictions lack column {field.name!r} ({field.type}); found "
                f"{', '.join(batch.schema.names)}"
            )
        if index >= 0 and not field.nullable and batch.column(index).null_count:
            raise SchemaError(f"{path}: column {field.name!r} has nulls, every row needs a value")
        columns.append(
            pa.nulls(batch.num_rows, field.type)
            if index < 0
            else batch.column(index).cast(field.type)
        )
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _json_batches(
    path: str, schema: pa.Schema, sizes: Mapping[int, tuple[int, int]]
) -> Iterator[pa.RecordBatch]:
    if schema not in (INSTANCES, CAPTIONS):
        raise SourceError(f"{path}: this kind of prediction has no json layout; give .parquet")
    if first_event(path) != "start_array":
        raise SchemaError(f"{path}: expected a list of results, as COCO's results files are")
    pending: list[dict[str, Any]] = []
    for number, row in enumerate(stream_json(path, "item")):
        try:
            if not isinstance(row, dict):
                raise ValueError(f"expected an object, found {type(row).__name__}")
            pending.append(_instance_row(row, sizes) if schema == INSTANCES else _caption_row(row))
        except (KeyError, TypeError, ValueError, IndexError, OverflowError, SchemaError) as error:
            raise SchemaError(f"{path}: result {number}: {error!r} in {row!r:.160}") from error
        if len(pending) == _JSON_CHUNK:
            yield pa.RecordBatch.from_pylist(pending, schema=schema)
            pending = []
    if pending:
        yield pa.RecordBatch.from_pylist(pending, schema=schema)


def _instance_row(row: Mapping[str, Any], sizes: Mapping[int, tuple[int, int]]) -> dict[str, Any]:
    """A COCO result.

    One with box and mask is of the box's area, as for pycocotools and lvis; detectron2 takes the
    box away for that reason.
    """
    out: dict[str, Any] = {
        "image_id": values.integer(row["image_id"]),
        "category_id": values.integer(row["category_id"], 32),
        "score": values.number(row["score"]),
    }
    if row.get("bbox"):
        out["bbox_xywh"] = values.box(row["bbox"])
        out["area"] = out["bbox_xywh"][2] * out["bbox_xywh"][3]
    if "segmentation" in row and row["segmentation"] is not None:
        segmentation = row["segmentation"]
        if isinstance(segmentation, list):
            if out["image_id"] not in sizes:
                raise ValueError(f"image {out['image_id']} is not in the truth")
            size_hw = sizes[out["image_id"]]
        elif isinstance(segmentation, dict):
            height, width = segmentation["size"]
            size_hw = (values.integer(height, 32), values.integer(width, 32))
        else:
            raise ValueError(f"`segmentation` is {type(segmentation).__name__}, expected a mask")
        out |= {"height": size_hw[0], "width": size_hw[1]}
        out["rle"] = rles.from_coco(segmentation, size_hw)
    return out


def _caption_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Region by `region_id`, `annotation_id` or `id`; COCO's own captions have only the image."""
    names = ("region_id", "annotation_id", "id", "image_id")
    found = [row[name] for name in names if name in row]
    if not found:
        raise ValueError(f"none of {', '.join(names)} says which region it is of")
    return {
        "image_id": values.integer(row.get("image_id", 0)),
        "region_id": values.integer(found[0]),
        "caption": values.text(row["caption"]),
    }

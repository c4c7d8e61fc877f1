"""Images of an evaluation, from a folder beside a json file or from a store.

With `ground_truth` this is all that an evaluation sees of a data set. The sample world is one like
the others: a store, whose truth table says what its regions are.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from tap_engine.model.image_input import Rgb, to_rgb
from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.schemas.keys import unpack_image_id
from tap_engine.schemas.tables import CONCEPTS, IMAGES, REGIONS, table_uri
from tap_engine.schemas.truth import OBJECT, Truth
from tap_engine.train.data.lance_table import open_table
from tap_engine.train.evaluation.ground_truth import (
    NO_CATEGORY,
    Category,
    GroundTruth,
    TruthImage,
    region_table,
)

_FEW = 1000
"""So many images are asked for by name; for more, Lance reads all rows and we choose."""


@dataclass(frozen=True)
class EvalSet:
    """Ground truth and its pixels.

    Attributes:
        truth: images, categories, regions.
        pixels: image id -> [H, W, 3] uint8 RGB.
    """

    truth: GroundTruth
    pixels: Callable[[int], Rgb]


def with_folder(truth: GroundTruth, root: str) -> EvalSet:
    """Ground truth with its images in a folder.

    An image is looked for under its whole path, under its COCO folder (LVIS val lies in train2017
    and val2017), and flat (Visual Genome).
    """
    folder = Path(root)
    if not folder.is_dir():
        raise SourceError(f"{root}: no such image folder")

    def pixels(image_id: int) -> Rgb:
        record = truth.images[image_id]
        parts = record.file_name.split("/")
        names = dict.fromkeys([record.file_name, "/".join(parts[-2:]), parts[-1]])
        for name in names:
            if (folder / name).is_file():
                return _decoded((folder / name).read_bytes(), record, str(folder / name))
        raise SourceError(f"{root}: image {image_id} is not there as {' or '.join(names)}")

    return EvalSet(truth, pixels)


def from_store(
    store: str,
    *,
    truth_table: str | None = None,
    image_numbers: Iterable[int] | None = None,
    first: int = 0,
    by_box: bool = False,
    storage_options: Mapping[str, str] | None = None,
) -> EvalSet:
    """A store as an evaluation set: its own masks, boxes and captions are the truth.

    Args:
        store: folder or URI.
        truth_table: the sample world's truth: a parquet file or a folder of them. Its regions of
            kind "object" and their names are the truth then, over the store's whole vocabulary.
        image_numbers: only these images, by their source's own numbers; such as one split of Visual
            Genome.
        first: only the first so many of them; 0 for all.
        by_box: regions of the same box are one, with all their phrases as references; otherwise
            each has its own phrase alone, as in GRiT's test of Visual Genome.
        storage_options: options of the object store, as Lance takes them.

    Raises:
        StoreError: no such store.
        SourceError: none of its images is wanted.
        SchemaError: the truth table names what the store's vocabulary lacks, or image numbers that
            several sources of the store have.
    """
    images = open_table(table_uri(store, IMAGES), storage_options)
    listed = images.to_table(["image_id", "width", "height", "file_name"]).to_pydict()
    records = {
        image_id: TruthImage(image_id=image_id, size_hw=(height, width), file_name=name)
        for image_id, width, height, name in zip(*listed.values(), strict=True)
    }
    if image_numbers is not None:
        records = _numbered(store, records, set(image_numbers))
    if first:
        records = dict(islice(records.items(), first))
    rows = {image_id: row for row, image_id in enumerate(listed["image_id"]) if image_id in records}
    if not records:
        raise SourceError(f"{store}: none of the wanted images is in this store")
    regions, categories = _stored_regions(store, storage_options, records, truth_table)
    if by_box:
        regions = _joined_by_box(regions)
    truth = GroundTruth(store.rstrip("/").rsplit("/", 1)[-1], records, categories, regions)

    def pixels(image_id: int) -> Rgb:
        (found,) = images.read_blobs("jpeg", indices=[rows[image_id]])
        return _decoded(found[1] or b"", records[image_id], f"{store}, image {image_id}")

    return EvalSet(truth, pixels)


def _joined_by_box(regions: pa.Table) -> pa.Table:
    """Captioned regions, the first of each box with the references of all."""
    found: dict[tuple[float, ...], dict[str, Any]] = {}
    for row in regions.to_pylist():
        if row["captions"]:
            first = found.setdefault((row["image_id"], *row["bbox_xywh"]), row)
            if first is not row:
                first["captions"] += row["captions"]
    return region_table(iter(found.values()))


def _numbered(
    store: str, records: Mapping[int, TruthImage], numbers: set[int]
) -> dict[int, TruthImage]:
    """Images with these numbers; all sources number from 1, so only one source may have them."""
    found = {image_id: unpack_image_id(image_id) for image_id in records}
    chosen = {image_id for image_id, (_, number) in found.items() if number in numbers}
    if len(sources := {found[image_id][0] for image_id in chosen}) > 1:
        raise SchemaError(
            f"{store} has images with these numbers from {' and '.join(sorted(sources))}; evaluate "
            "on a store of one source"
        )
    return {image_id: record for image_id, record in records.items() if image_id in chosen}


def _stored_regions(
    store: str,
    options: Mapping[str, str] | None,
    records: Mapping[int, TruthImage],
    truth_table: str | None,
) -> tuple[pa.Table, dict[int, Category]]:
    rows = _rows_of(open_table(table_uri(store, REGIONS), options), records)
    if truth_table is None:
        return region_table(_region_rows(rows, {})), {}
    concepts = open_table(table_uri(store, CONCEPTS), options)
    names = concepts.to_table(["concept_id", "name"]).to_pydict()
    # Category ids start at 1, as in COCO: 0 is "no category".
    category_ids = {
        name: concept_id + 1
        for concept_id, name in zip(names["concept_id"], names["name"], strict=True)
    }
    known = _named_regions(truth_table, category_ids)
    regions = region_table(
        _region_rows((r for r in rows if (r["image_id"], r["region_id"]) in known), known)
    )
    if not regions.num_rows:
        raise SchemaError(
            f"no region of {store} is an object of {truth_table}; was it built from these scenes?"
        )
    categories = {
        category_id: Category(category_id=category_id, name=name)
        for name, category_id in sorted(category_ids.items(), key=lambda item: item[1])
    }
    return regions, categories


def _rows_of(table: lance.LanceDataset, records: Mapping[int, TruthImage]) -> Iterator[Any]:
    """Region rows of some images, one pass, a batch in memory."""
    columns = ["image_id", "region_id", "bbox_xywh", "area", "rle", "caption"]
    wanted = pa.array(list(records), pa.int64())
    few = len(records) <= _FEW
    condition = f"image_id IN ({', '.join(map(str, records))})" if few else None
    for batch in table.to_batches(columns=columns, filter=condition):
        yield from batch.filter(pc.is_in(batch["image_id"], wanted)).to_pylist()


def _named_regions(truth_table: str, category_ids: Mapping[str, int]) -> dict[tuple[int, int], int]:
    """(image_id, region_id) -> category id of every object in the truth table."""
    objects = {
        key: thing.concept
        for key, thing in Truth.read(truth_table).rows.items()
        if thing.kind == OBJECT
    }
    if unknown := set(objects.values()) - category_ids.keys():
        raise SchemaError(
            f"{truth_table}: concept {min(unknown)!r} is not in the store's vocabulary"
        )
    return {key: category_ids[name] for key, name in objects.items()}


def _region_rows(
    rows: Iterable[Mapping[str, Any]], categories: Mapping[tuple[int, int], int]
) -> Iterator[dict[str, Any]]:
    for row in rows:
        caption = row["caption"]
        yield {
            "region_id": row["region_id"],
            "image_id": row["image_id"],
            "category_id": categories.get((row["image_id"], row["region_id"]), NO_CATEGORY),
            "bbox_xywh": [float(side) for side in row["bbox_xywh"]],
            "area": float(row["area"]),
            "crowd": False,
            "rle": row["rle"],
            "captions": None if caption is None else [caption],
        }


def _decoded(content: bytes, record: TruthImage, where: str) -> Rgb:
    """Pixels in stored orientation, as masks are drawn on them; size checked."""
    try:
        with Image.open(io.BytesIO(content)) as file:
            rgb = to_rgb(file)
    except OSError as error:
        raise SourceError(f"{where}: not a readable picture: {error}") from error
    if record.size_hw != (0, 0) and rgb.shape[:2] != record.size_hw:
        raise SchemaError(
            f"{where}: the picture is {rgb.shape[:2]}, the ground truth says {record.size_hw} "
            "(height, width); resized copies cannot be evaluated"
        )
    return rgb

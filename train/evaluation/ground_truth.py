"""Ground truth of an evaluation: images, categories and regions, whatever file they come from.

`read_coco_layout` takes COCO, LVIS and GRiT json (Visual Genome captions); refcocog.py and
eval_sets.py make the same object from RefCOCOg's pickle and from a store. Regions are one Arrow
table, so LVIS val (244,707 of them) costs its bytes and not a gigabyte of dictionaries.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import ijson
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tap_engine.schemas import rle as rles
from tap_engine.schemas import values
from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.schemas.filesystem import open_filesystem

TRUTH_REGIONS = pa.schema(
    [
        pa.field("region_id", pa.int64(), nullable=False),
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("category_id", pa.int32(), nullable=False),
        pa.field("bbox_xywh", pa.list_(pa.float64(), 4), nullable=False),
        pa.field("area", pa.float64(), nullable=False),
        pa.field("crowd", pa.bool_(), nullable=False),
        pa.field("rle", pa.binary()),
        pa.field("captions", pa.list_(pa.string())),
    ]
)
"""One row per region. `area` is what S/M/L are cut by, px^2: the file's own, else the mask's, else
the box's. `category_id` is 0 where the data has no categories. `captions` are its references."""

NO_CATEGORY = 0

_COCO_KEYS = frozenset({"images", "annotations", "categories", "info", "licenses", "type"})

Entry = TypeVar("Entry")

Rows = npt.NDArray[np.int64]

_NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """One class of the data set; `frequency` is LVIS's r, c or f, empty elsewhere."""

    category_id: int
    name: str
    frequency: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthImage:
    """One image.

    Attributes:
        image_id: the data set's own number.
        size_hw: height and width, px; 0 where the file does not say (captions need no size).
        file_name: path below the image folder; of the url where the file states only that.
        negative: categories verified to be absent (LVIS); None where the file does not say.
        not_exhaustive: categories of which not every instance is annotated (LVIS).
    """

    image_id: int
    size_hw: tuple[int, int]
    file_name: str
    negative: tuple[int, ...] | None = None
    not_exhaustive: tuple[int, ...] = ()


@dataclass(frozen=True)
class GroundTruth:
    """Ground truth that predictions are compared with.

    Attributes:
        name: what it is called in reports.
        images: image id -> image, in evaluation order.
        categories: category id -> category, in the file's order (index i = i-th entry).
        regions: rows of `TRUTH_REGIONS`, in the file's order.
    """

    name: str
    images: Mapping[int, TruthImage]
    categories: Mapping[int, Category]
    regions: pa.Table

    def __post_init__(self) -> None:
        """Predictions are matched by region id: each must be there once.

        Raises:
            SchemaError: names one that is there twice.
        """
        ids, times = np.unique(self.regions["region_id"].to_numpy(), return_counts=True)
        if (times > 1).any():
            raise SchemaError(f"{self.name}: region {ids[times > 1][0]} is there twice")

    def require_masks(self) -> None:
        """Refuse truth of which a part has no mask, as files with boxes among the masks.

        Raises:
            SchemaError: says how many regions have none.
        """
        if without := self.regions["rle"].null_count:
            bare = self.regions.filter(pc.is_null(self.regions["rle"]))
            raise SchemaError(
                f"{self.name}: {without:,} of {self.regions.num_rows:,} annotations have no mask, "
                f"such as {bare['region_id'][0].as_py()}; take them out, or score boxes instead"
            )

    def require_categories(self) -> None:
        """Refuse truth without regions, or with regions of categories that it does not list.

        Raises:
            SchemaError: names the category and one of its regions.
        """
        if not self.regions.num_rows:
            raise SchemaError(f"{self.name} has no annotations, so there is nothing to name")
        known = pc.is_in(self.regions["category_id"], pa.array(list(self.categories), pa.int32()))
        strange = self.regions.filter(pc.invert(known))
        if strange.num_rows:
            raise SchemaError(
                f"{self.name}: annotation {strange['region_id'][0].as_py()} is of category "
                f"{strange['category_id'][0].as_py()}, which `categories` does not list"
            )

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over images, boxes, class names and reference texts, in any order."""
        table = self.regions.sort_by([("image_id", "ascending"), ("region_id", "ascending")])
        digest = hashlib.sha256(np.sort(np.fromiter(self.images, np.int64)).tobytes())
        for name in ("image_id", "region_id", "category_id"):
            digest.update(table[name].to_numpy().tobytes())
        for category_id in sorted(self.categories):
            digest.update(f"{category_id} {self.categories[category_id].name}\n".encode())
        boxes = table["bbox_xywh"].combine_chunks().flatten().to_numpy()
        digest.update(np.rint(boxes * 100).astype(np.int64).tobytes())
        digest.update(
            "\n".join(caption for row in self.references(table) for caption in row).encode()
        )
        return digest.hexdigest()[:16]

    @property
    def is_lvis(self) -> bool:
        """Whether LVIS's rules can be kept: class frequencies, and what is verified absent."""
        return all(row.frequency in ("r", "c", "f") for row in self.categories.values()) and any(
            row.negative is not None for row in self.images.values()
        )

    @staticmethod
    def references(regions: pa.Table) -> list[list[str]]:
        """Reference captions of each row; an empty list where it has none."""
        return [row or [] for row in regions["captions"].to_pylist()]

    @cached_property
    def _rows_by_image(self) -> dict[int, Rows]:
        return _grouped(self.regions["image_id"].to_numpy())

    @cached_property
    def _rows_by_category(self) -> dict[int, Rows]:
        return _grouped(self.regions["category_id"].to_numpy())

    def regions_of(self, image_id: int) -> pa.Table:
        """Rows of one image, in the file's order."""
        return self.regions.take(self._rows_by_image.get(image_id, _NO_ROWS))

    def regions_of_category(self, category_id: int) -> pa.Table:
        """Rows of one category, in the file's order."""
        return self.regions.take(self._rows_by_category.get(category_id, _NO_ROWS))

    def restricted_to(self, image_ids: Iterable[int]) -> "GroundTruth":
        """The part of the truth that lies on some images; another fingerprint, honestly so."""
        wanted = set(image_ids)
        kept = pc.is_in(self.regions["image_id"], pa.array(sorted(wanted), pa.int64()))
        images = {image_id: row for image_id, row in self.images.items() if image_id in wanted}
        return replace(self, images=images, regions=self.regions.filter(kept))


def read_coco_layout(path: str, *, masks: bool = True) -> GroundTruth:
    """Ground truth of a COCO, LVIS or GRiT json file.

    Args:
        path: the file, with `images`, `annotations` and, but for captions, `categories`.
        masks: keep the masks; polygons become RLE as pycocotools does it.

    Raises:
        SourceError: the file is not there, or no json.
        SchemaError: it is not of this layout.
    """
    images = {
        row.image_id: row for row in _read(path, "images", "image", lambda _, row: _image(row))
    }
    categories = {
        row.category_id: row
        for row in _read(path, "categories", "category", lambda _, row: _category(row))
    }
    if not images:
        raise SchemaError(
            f"{path}: expected COCO-layout ground truth with `images` and `annotations`, found no "
            "images; is it a results file?"
        )
    return GroundTruth(
        os.path.basename(path), images, categories, _region_table(path, images, masks)
    )


def region_table(rows: Iterator[Mapping[str, Any]], *, chunk: int = 8192) -> pa.Table:
    """Rows as dictionaries -> a table of `TRUTH_REGIONS`, built a chunk at a time."""
    batches, pending = [], []
    for row in rows:
        pending.append(row)
        if len(pending) == chunk:
            batches.append(pa.RecordBatch.from_pylist(pending, schema=TRUTH_REGIONS))
            pending = []
    if pending:
        batches.append(pa.RecordBatch.from_pylist(pending, schema=TRUTH_REGIONS))
    return pa.Table.from_batches(batches, schema=TRUTH_REGIONS)


def stream_json(path: str, prefix: str) -> Iterator[Any]:
    """Values at an ijson prefix of a json file, one at a time; a path or a URI that Arrow knows.

    Raises:
        SourceError: not there, or no json.
    """
    filesystem, inner = open_filesystem(path)
    try:
        with filesystem.open_input_stream(inner) as file:
            yield from ijson.items(file, prefix, use_float=True)
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: not readable as json: {error}") from error


def first_event(path: str) -> str:
    """First event of a json file, in ijson's words: start_map, start_array, number, ...

    Raises:
        SourceError: not there, or no json.
    """
    filesystem, inner = open_filesystem(path)
    try:
        with filesystem.open_input_stream(inner) as file:
            for event, _ in ijson.basic_parse(file):
                return str(event)
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: not readable as json: {error}") from error
    return ""


def is_coco_layout(path: str) -> bool:
    """True for json that begins like COCO's files, or with a list as results do."""
    filesystem, inner = open_filesystem(path)
    try:
        with filesystem.open_input_stream(inner) as file:
            for event, value in ijson.basic_parse(file):
                if event != "start_map":
                    return event != "map_key" or value in _COCO_KEYS
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except (ijson.JSONError, UnicodeDecodeError):
        pass  # the reader that follows says what is wrong
    return True


def _grouped(ids: npt.NDArray[np.integer]) -> dict[int, Rows]:
    if not ids.size:
        return {}
    order = np.argsort(ids, kind="stable")
    found, first = np.unique(ids[order], return_index=True)
    return dict(zip(found.tolist(), np.split(order, first[1:]), strict=True))


def _read(
    path: str, key: str, word: str, make: Callable[[int, dict[str, Any]], Entry]
) -> Iterator[Entry]:
    """Entries of a list of the file, made into what they stand for; a garbled one is named."""
    for place, row in enumerate(stream_json(path, f"{key}.item")):
        try:
            if not isinstance(row, dict):
                raise ValueError(f"expected an object, found {type(row).__name__}")
            yield make(place, row)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError, SchemaError) as error:
            raise SchemaError(f"{path}: {word} {place}: {error!r}") from error


def _image(row: Mapping[str, Any]) -> TruthImage:
    return TruthImage(
        image_id=values.integer(row["id"]),
        size_hw=(values.integer(row.get("height", 0), 32), values.integer(row.get("width", 0), 32)),
        file_name=str(row.get("file_name") or _file_of_url(str(row.get("coco_url", "")))),
        negative=tuple(row["neg_category_ids"]) if "neg_category_ids" in row else None,
        not_exhaustive=tuple(row.get("not_exhaustive_category_ids", ())),
    )


def _category(row: Mapping[str, Any]) -> Category:
    return Category(
        category_id=values.integer(row["id"], 32),
        name=values.text(row["name"]),
        frequency=str(row.get("frequency", "")),
    )


def _file_of_url(url: str) -> str:
    """`train2017/000000000009.jpg` of LVIS's coco_url: val images lie in both COCO folders."""
    return "/".join(url.split("/")[-2:])


def _region_table(path: str, images: Mapping[int, TruthImage], masks: bool) -> pa.Table:
    of_images: dict[int, list[str]] = {}

    def row_of(place: int, row: Mapping[str, Any]) -> dict[str, Any] | None:
        if "caption" not in row or "bbox" in row or "segmentation" in row:
            return _region_row(place, row, images, masks)
        image_id = values.integer(row["image_id"])
        if image_id not in images:
            raise ValueError(f"image {image_id} is not among the file's `images`")
        of_images.setdefault(image_id, []).append(values.text(row["caption"]))
        return None

    def rows() -> Iterator[dict[str, Any]]:
        found = _read(path, "annotations", "annotation", row_of)
        yield from (row for row in found if row is not None)
        yield from (_whole_image(images[image_id], texts) for image_id, texts in of_images.items())

    return region_table(rows())


def _whole_image(image: TruthImage, captions: list[str]) -> dict[str, Any]:
    """COCO's captions are of images: one region an image, with the image's number."""
    height, width = image.size_hw
    return {
        "region_id": image.image_id,
        "image_id": image.image_id,
        "category_id": NO_CATEGORY,
        "bbox_xywh": [0.0, 0.0, float(width), float(height)],
        "area": float(width * height),
        "crowd": False,
        "captions": captions,
    }


def _region_row(
    place: int, row: Mapping[str, Any], images: Mapping[int, TruthImage], masks: bool
) -> dict[str, Any]:
    image_id = values.integer(row["image_id"])
    size_hw = images[image_id].size_hw
    box = values.box(row["bbox"]) if row.get("bbox") else None
    rle = None
    if (masks or not box) and row.get("segmentation"):
        if min(size_hw) < 1:
            raise ValueError(f"image {image_id} states no height and width, which masks need")
        rle = rles.from_coco(row["segmentation"], size_hw)
    box = box or _box_of(rle, size_hw)
    caption = row.get("caption")
    return {
        "region_id": values.integer(row.get("id", place + 1)),
        "image_id": image_id,
        "category_id": values.integer(row.get("category_id", NO_CATEGORY), 32),
        "bbox_xywh": box,
        "area": values.number(row["area"]) if "area" in row else _area_of(rle, size_hw, box),
        "crowd": bool(row.get("iscrowd", 0)),
        "rle": rle,
        # A null is no text; a region of which nothing was said has no reference.
        "captions": None if caption is None else [values.text(caption)],
    }


def _box_of(rle: bytes | None, size_hw: tuple[int, int]) -> list[float]:
    if rle is None:
        raise SchemaError("has neither `bbox` nor a mask")
    return [float(side) for side in rles.bbox_xywh(rles.runs(rle, size_hw), size_hw)]


def _area_of(rle: bytes | None, size_hw: tuple[int, int], box: Sequence[float]) -> float:
    return box[2] * box[3] if rle is None else float(rles.area(rles.runs(rle, size_hw)))

"""What is measured on: images of a store that were not trained on, and what they really show."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tap_engine.model.image_input import Rgb, to_rgb
from tap_engine.schemas.boxes import xywh_to_xyxy
from tap_engine.schemas.errors import SourceError
from tap_engine.train.store_reader import StoredImage, StoreReader

COLUMNS = ("region_id", "bbox_xywh", "rle")
"""What a store must hold to be measured on; with `OPTIONAL` more is measured."""

OPTIONAL = ("embedding", "caption")

OBJECT, STUFF = "object", "stuff"
"""Kinds of regions of the sample world that have a name of their own; a part goes by its object's
name, which often it cannot show."""


class Thing(NamedTuple):
    """What a region of the sample world is; `tint` is None for things in their own colours."""

    kind: str
    concept: str
    tint: str | None = None


@dataclass(frozen=True, slots=True)
class Truth:
    """What regions really are, by (image_id, region_id)."""

    rows: Mapping[tuple[int, int], Thing]

    @classmethod
    def read(cls, path: str | Path) -> "Truth":
        """The truth table that `tap-data sample` writes: a parquet file or a folder of them.

        Raises:
            SourceError: nothing there.
        """
        path = Path(path)
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not files or not all(file.is_file() for file in files):
            raise SourceError(f"{path}: expected the truth table (parquet) of `tap-data sample`")
        columns = ["image_id", "region_id", "kind", "concept", "tint"]
        table = pa.concat_tables(pq.read_table(file, columns=columns) for file in files)
        images, regions, *known = (table[name].to_pylist() for name in columns)
        keys = zip(images, regions, strict=True)
        return cls(dict(zip(keys, map(Thing, *known), strict=True)))

    def of(self, stored: StoredImage) -> list[Thing | None]:
        """What each region of an image is; None where the table does not say."""
        ids = stored.regions["region_id"].to_pylist()
        return [self.rows.get((stored.image_id, region_id)) for region_id in ids]


def open_measured(uri: str, storage_options: Mapping[str, str] | None = None) -> StoreReader:
    """A store with the columns that are measured.

    Args:
        uri: folder or object-store prefix.
        storage_options: for object stores, as Lance takes them.
    """
    return StoreReader(
        uri, region_columns=COLUMNS, optional_columns=OPTIONAL, storage_options=storage_options
    )


def stored_images(reader: StoreReader, count: int, split: str = "") -> Iterator[StoredImage]:
    """Of the first `count` images of a split those with masks, and only the regions with one."""
    for stored in reader.first(count, split):
        masked = stored.regions.filter(stored.regions["rle"].is_valid())
        if len(masked):
            yield replace(stored, regions=masked)


def pixels_of(stored: StoredImage) -> Rgb:
    """[H, W, 3] uint8."""
    with Image.open(io.BytesIO(stored.jpeg)) as file:
        return to_rgb(file)


def boxes_of(stored: StoredImage) -> npt.NDArray[np.float64]:
    """[R, 4] xyxy px."""
    column = stored.regions["bbox_xywh"].combine_chunks()
    return xywh_to_xyxy(column.flatten().to_numpy().reshape(-1, 4)).astype(np.float64)

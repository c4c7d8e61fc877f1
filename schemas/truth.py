"""The truth table of the sample world: what every region of it really shows.

One row per region, joined to a store's `regions` by (image_id, region_id). Nothing of the data
engine reads it; it is there to measure with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.schemas.tables import check_columns

OBJECT, PART, STUFF = "object", "part", "stuff"
KINDS = (OBJECT, PART, STUFF)
"""Kinds of regions. Objects and stuff have a name of their own; a part goes by its object's name,
which often it cannot show."""


def truth_schema() -> pa.Schema:
    """Columns of the truth table; `kind` is of KINDS, `visibility` the share not hidden.

    `region_id` is the annotation's id in the SA-1B json, or the region's in the Visual Genome
    one; `parent_id` is the object's `region_id` for a part, null otherwise; `glyph` is null for
    stuff, `tint` for things in their own colours, `caption` outside Visual Genome.
    """
    return pa.schema(
        [
            pa.field("image_id", pa.int64(), nullable=False),
            pa.field("region_id", pa.int64(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("split", pa.string(), nullable=False),
            pa.field("kind", pa.string(), nullable=False),
            pa.field("concept", pa.string(), nullable=False),
            pa.field("concept_group", pa.string(), nullable=False),
            pa.field("glyph", pa.string()),
            pa.field("tint", pa.string()),
            pa.field("visibility", pa.float32(), nullable=False),
            pa.field("area", pa.int32(), nullable=False),
            pa.field("parent_id", pa.int64()),
            pa.field("caption", pa.string()),
        ]
    )


class Thing(NamedTuple):
    """Truth of one region of the sample world; `tint` is None for things in their own colours."""

    kind: str
    concept: str
    tint: str | None = None


@dataclass(frozen=True, slots=True)
class Truth:
    """Truth of all regions, by (image_id, region_id)."""

    rows: Mapping[tuple[int, int], Thing]

    @classmethod
    def read(cls, path: str | Path) -> "Truth":
        """The truth table of a file or folder, as a look-up.

        Raises:
            SourceError: nothing there.
            SchemaError: a column is missing or of another type.
        """
        columns = ("image_id", "region_id", "kind", "concept", "tint")
        table = read_truth(path, columns)
        images, regions, *known = (table[name].to_pylist() for name in columns)
        keys = zip(images, regions, strict=True)
        return cls(dict(zip(keys, map(Thing, *known), strict=True)))


def read_truth(path: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The truth table of a file, or of all files of a folder.

    Args:
        path: file or folder.
        columns: the columns wanted; by default all of `truth_schema`.

    Raises:
        SourceError: nothing there.
        SchemaError: a wanted column is missing or of another type.
    """
    path = Path(path)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise SourceError(
            f"{path}: expected a truth table (parquet) or the folder `truth` that "
            "`tap-data sample` writes"
        )
    wanted = pa.schema([field for field in truth_schema() if not columns or field.name in columns])
    tables = []
    for file in files:
        try:
            tables.append(pq.read_table(file))
        except pa.ArrowInvalid as error:
            raise SchemaError(f"{file}: not a parquet file: {error}") from error
        check_columns(tables[-1].schema, wanted, "truth")
    table = pa.concat_tables([table.select(wanted.names) for table in tables])
    if "split" not in wanted.names:
        return table
    # Tables written before 2026-11-25 have another word for the split.
    place = wanted.get_field_index("split")
    split = pc.if_else(pc.equal(table["split"], "validation"), "val", table["split"])
    return table.set_column(place, wanted.field("split"), split)

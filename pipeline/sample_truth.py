"""The truth table of the sample world: what every region of it really shows.

One row a region, joined to a store's `regions` by (image_id, region_id). Nothing of the data
engine reads it; it is there to measure with.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.schemas.tables import check_columns

SPLITS = ("train", "validation")


def truth_schema() -> pa.Schema:
    """Columns of the truth table; `visibility` and `kind` as in sample_scene.SceneRegion.

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


def read_truth(path: str | Path) -> pa.Table:
    """The truth table of a file, or of all files of a folder.

    Raises:
        SourceError: nothing there.
        SchemaError: a column is missing or of another type.
    """
    path = Path(path)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise SourceError(
            f"{path}: expected a truth table (parquet) or the folder `truth` that "
            "`tap-data sample` writes"
        )
    tables = []
    for file in files:
        try:
            tables.append(pq.read_table(file))
        except pa.ArrowInvalid as error:
            raise SchemaError(f"{file}: not a parquet file: {error}") from error
        check_columns(tables[-1].schema, truth_schema(), "truth")
    return pa.concat_tables([table.select(truth_schema().names) for table in tables])

import subprocess
import sys

import pyarrow as pa
import pytest

from tap_engine.schemas import tables
from tap_engine.schemas.errors import SchemaError


def test_a_wrong_width_names_table_column_and_both_types() -> None:
    found = tables.regions_schema(embedding_dim=768, top_k=8)
    with pytest.raises(SchemaError, match=r"'regions' column 'embedding'.*1024.*768"):
        tables.check_columns(found, tables.regions_schema(1024, 8), "regions")
    with pytest.raises(SchemaError, match="lacks column 'unit'"):
        tables.check_columns(pa.schema([("image_id", pa.int64())]), tables.rejects_schema(), "x")


def test_more_columns_are_allowed() -> None:
    found = tables.concepts_schema(8).append(pa.field("mine", pa.int8()))
    tables.check_columns(found, tables.concepts_schema(8), "concepts")


def test_the_contracts_load_nothing_heavy() -> None:
    heavy = ("torch", "ray", "lance", "cv2", "open_clip")
    program = (
        "import sys, tap_engine.schemas.tables, tap_engine.schemas.rle,"
        "tap_engine.schemas.vocabulary, tap_engine.schemas.provenance;"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr

import shutil
from datetime import timedelta

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tap_engine.pipeline.concepts import fixed_size_lists
from tap_engine.pipeline.store import Store, blob_column
from tap_engine.pipeline.verify import verify
from tap_engine.schemas.tables import IMAGES, REGIONS, REJECTS

pytestmark = pytest.mark.ray


@pytest.fixture
def store(built_store, tmp_path):
    shutil.copytree(built_store, tmp_path / "store")
    return Store(str(tmp_path / "store"))


def append(store: Store, table: str, rows: pa.Table) -> None:
    lance.write_dataset(rows, store.table_uri(table), mode="append")


def problems(store: Store) -> str:
    return "\n".join(verify(store).problems)


def test_a_good_store_passes_every_check(store) -> None:
    report = verify(store)
    assert report.ok, report.problems
    assert len(report.checks) == 20


def test_rows_written_twice_are_found(store) -> None:
    append(store, REGIONS, store.open(REGIONS).to_table(limit=5))
    found = problems(store)
    assert "regions of an image lie together" in found
    assert "region_count 5, 10 rows" in found
    assert "index on regions.key is up to date: 5 rows" in found


def test_lost_rows_are_found(store) -> None:
    store.open(REGIONS).delete("image_id = 3 AND region_id = 3002")
    assert "1 images differ, such as 3: region_count 5, 4 rows" in problems(store)


def test_an_image_without_regions_table_rows_and_regions_without_image_are_found(store) -> None:
    store.open(IMAGES).delete("image_id = 3")
    assert "5 regions without image" in problems(store)


def test_wrong_vectors_are_found(store) -> None:
    rows = store.open(REGIONS).to_table()
    store.open(REGIONS).delete("true")
    vectors = np.stack(rows.column("embedding").to_pylist()).astype(np.float16)
    vectors[1] *= np.float16(1.1)
    vectors[2, 0] = np.nan
    place = rows.schema.get_field_index("embedding")
    field = rows.schema.field("embedding")
    append(store, REGIONS, rows.set_column(place, field, fixed_size_lists(vectors, pa.float16())))
    found = problems(store)
    assert "embeddings are finite: 1 are not" in found
    assert "embeddings have unit length: 1 do not" in found


def test_strange_reasons_are_found(store) -> None:
    row = {"unit": 1, "stage": "read", "reason": "moon phase", "detail": ""}
    append(store, REJECTS, pa.Table.from_pylist([row], schema=store.open(REJECTS).schema))
    assert "reason is a known word: found moon phase" in problems(store)


def test_tables_of_two_builds_are_told_apart(store) -> None:
    other = store.provenance(IMAGES)
    changed = type(other)({**other.settings, "top_k": 2}, other.made)
    store.open(IMAGES).update_schema_metadata({"tap.provenance": changed.to_json()})
    assert "one provenance: top_k: 2 against 3" in problems(store)


def test_bytes_that_are_no_jpeg_are_found(store) -> None:
    dataset = store.open(IMAGES)
    last = dataset.to_table(columns=[n for n in dataset.schema.names if n != "jpeg"])
    last = last.filter(pc.field("image_id") == 8).combine_chunks().to_batches()[0]
    dataset.delete("image_id = 8")
    columns = [
        blob_column([b"GIF89a"]) if name == "jpeg" else last.column(name)
        for name in dataset.schema.names
    ]
    append(store, IMAGES, pa.table(columns, schema=dataset.schema))
    found = problems(store)
    assert "sampled image files are JPEGs: row 7 is not, and 0 more" in found


def test_cleaning_old_versions_hurts_nothing(store) -> None:
    store.open(REGIONS).cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
    assert verify(store).ok

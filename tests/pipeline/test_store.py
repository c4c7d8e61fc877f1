import numpy as np
import pyarrow as pa
import pytest

from tap_engine.pipeline.key_index import rows_of_keys
from tap_engine.pipeline.store import Store, scan
from tap_engine.schemas.errors import StoreError
from tap_engine.schemas.keys import region_key
from tap_engine.schemas.tables import REGIONS

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def regions(built_store):
    """The opened table: 8 images of 5 regions, in units of 4."""
    return Store(str(built_store)).open(REGIONS)


def test_rows_come_in_the_order_of_the_keys(regions) -> None:
    keys = regions.to_table(columns=["key"]).column("key").to_numpy()
    wanted = np.random.default_rng(0).permutation(keys)[:20]
    wanted = np.append(wanted, wanted[3])  # a repeated key is a repeated row
    found = rows_of_keys(regions, wanted, ["embedding", "key"])
    assert found.column_names == ["embedding", "key"]
    assert found.column("key").to_pylist() == wanted.tolist()
    by_key = {row["key"]: row for row in regions.to_table().to_pylist()}
    expected = [by_key[key]["embedding"] for key in wanted.tolist()]
    assert found.column("embedding").to_pylist() == expected
    assert rows_of_keys(regions, [int(keys[7])]).to_pylist() == [by_key[int(keys[7])]]


def test_no_keys_are_no_rows(regions) -> None:
    found = rows_of_keys(regions, [], ["rle", "key"])
    assert found.num_rows == 0
    assert found.column_names == ["rle", "key"]


def test_a_missing_key_is_named(regions) -> None:
    missing = region_key(99, 7)
    with pytest.raises(
        StoreError, match=rf"no region {missing} \(image 99, ordinal 7\) and 1 more"
    ):
        rows_of_keys(regions, [region_key(1, 0), missing, region_key(99, 8)])


def test_a_lookup_goes_through_the_index(regions) -> None:
    plan = regions.scanner(columns=["key"], filter="key IN (65536, 65537)").explain_plan()
    assert "ScalarIndexQuery" in plan


def test_a_scan_has_every_row_once_in_storage_order(regions) -> None:
    batches = list(scan(regions, ["key", "embedding"]))
    assert all(batch.num_rows for batch in batches)
    assert pa.Table.from_batches(batches) == regions.to_table(columns=["key", "embedding"])
    few = list(scan(regions, ["key"], "key < 131072"))
    assert sum(batch.num_rows for batch in few) == 5

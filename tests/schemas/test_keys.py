import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_engine.schemas import keys
from tap_engine.schemas.errors import SchemaError


@given(
    st.sampled_from(sorted(keys.SOURCES)),
    st.integers(0, keys.MAX_SOURCE_ID),
    st.integers(0, keys.MAX_REGIONS - 1),
)
def test_keys_round_trip_within_int64(source: str, source_id: int, ordinal: int) -> None:
    image_id = keys.pack_image_id(source, source_id)
    key = keys.region_key(image_id, ordinal)
    assert 0 <= key < 1 << 63
    assert keys.split_key(key) == (image_id, ordinal)
    assert keys.unpack_image_id(image_id) == (source, source_id)


def test_sa1b_ids_are_the_numbers_in_the_file_names() -> None:
    assert keys.pack_image_id("sa1b", 142238) == 142238
    assert keys.region_key(142238, 3) == 142238 * 65536 + 3


def test_arrays_give_the_same_keys_as_ints() -> None:
    ordinals = np.arange(5, dtype=np.int64)
    assert keys.region_key(np.int64(7) + 0 * ordinals, ordinals).tolist() == [
        keys.region_key(7, k) for k in range(5)
    ]


@pytest.mark.parametrize(("source", "number"), [("sa1b", -1), ("sa1b", 1 << 43), ("flickr", 1)])
def test_bad_image_numbers_are_refused(source: str, number: int) -> None:
    with pytest.raises(SchemaError, match=source):
        keys.pack_image_id(source, number)


@pytest.mark.parametrize("ordinal", [-1, 65536])
def test_bad_ordinals_are_refused(ordinal: int) -> None:
    with pytest.raises(SchemaError, match="ordinal"):
        keys.region_key(1, ordinal)


def test_unit_ids_follow_shard_and_images() -> None:
    ids = np.arange(4)
    units = {
        keys.unit_id(name, size, images)
        for name in ("sa_000000.tar", "sa_000001.tar")
        for size in (100, 101)
        for images in (ids, ids[:2], ids[::-1], ids[:0])
    }
    assert len(units) == 16
    assert all(0 <= unit < 1 << 63 for unit in units)
    assert keys.unit_id("sa_000000.tar", 100, ids) == keys.unit_id(
        "sa_000000.tar", 100, [0, 1, 2, 3]
    )

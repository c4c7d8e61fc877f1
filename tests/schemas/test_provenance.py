import pytest

from tap_engine.schemas.errors import SchemaError
from tap_engine.schemas.provenance import Provenance, software


def test_round_trip_and_differences_name_both_values() -> None:
    stored = Provenance({"teacher": {"name": "RN50", "mean": (0.5, 0.5)}, "top_k": 64}, software())
    assert not stored.differences(Provenance.from_json(stored.to_json()))
    other = Provenance({"teacher": {"name": "ViT-B-32", "mean": (0.5, 0.5)}, "top_k": 64})
    with pytest.raises(SchemaError, match=r"teacher.name: 'ViT-B-32' against 'RN50'"):
        other.require_same(stored, "table 'regions'")


def test_what_may_differ_does_not_matter() -> None:
    Provenance({"a": 1}, {"torch": "2.6"}).require_same(Provenance({"a": 1}, {"torch": "9"}), "t")


def test_damaged_metadata_is_refused() -> None:
    with pytest.raises(SchemaError, match="damaged"):
        Provenance.from_json('{"made": {}}')

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from tap_engine.jobs.data_cli import app
from tap_engine.pipeline.nearest import nearest_regions
from tap_engine.pipeline.store import Store
from tap_engine.schemas.errors import ConfigError, StoreError
from tap_engine.schemas.tables import REGIONS

pytestmark = pytest.mark.ray


@pytest.fixture
def store(built_store) -> Store:
    return Store(str(built_store))


def by_hand(store: Store, row: int, keep: np.ndarray) -> tuple[int, list[int], np.ndarray]:
    """Key of a row, all other kept keys by falling cosine, and the cosines; float64."""
    table = store.open(REGIONS).to_table(columns=["key", "embedding"])
    keys = table["key"].to_numpy()
    vectors = np.asarray(table["embedding"].to_pylist(), np.float64)
    cosine = vectors @ vectors[row] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors[row])
    keep = keep & (keys != keys[row])
    order = np.flatnonzero(keep)[np.argsort(-cosine[keep], kind="stable")]
    return int(keys[row]), keys[order].tolist(), cosine[order]


def test_the_nearest_are_those_of_the_cosine(store) -> None:
    for row in (0, 17, 39):
        key, expected, cosine = by_hand(store, row, np.ones(40, bool))
        found = nearest_regions(store, key, top=6)
        assert found.num_rows == 6
        np.testing.assert_allclose(found["similarity"].to_numpy(), cosine[:6], atol=2e-3)
        # Neighbours whose cosines differ by less than float16 can tell may change places.
        assert set(found["key"].to_pylist()) <= set(expected[:8])
    assert nearest_regions(store, key, top=100).num_rows == 39


def test_a_filter_is_applied_before_the_search(store) -> None:
    area = store.open(REGIONS).to_table(columns=["area"])["area"].to_numpy()
    middle = int(np.median(area))
    key, expected, _ = by_hand(store, 3, area > middle)
    found = nearest_regions(store, key, top=100, filter_=f"area > {middle}")
    assert sorted(found["key"].to_pylist()) == sorted(expected)
    none = nearest_regions(store, key, filter_="has_concept('dog') AND NOT has_concept('dog')")
    assert none.num_rows == 0


def test_what_cannot_be_searched_is_an_error(store) -> None:
    with pytest.raises(StoreError, match="no region 5"):
        nearest_regions(store, 5)
    key, _, _ = by_hand(store, 0, np.ones(40, bool))
    with pytest.raises(ConfigError, match="--top must be at least 1, got 0"):
        nearest_regions(store, key, top=0)
    with pytest.raises(ConfigError, match="close ones: dog"):
        nearest_regions(store, key, filter_="concept = 'do'")
    with pytest.raises(ConfigError, match="no_column"):
        nearest_regions(store, key, filter_="no_column = 3")


def test_the_command_prints_names(store) -> None:
    key, _, _ = by_hand(store, 0, np.ones(40, bool))
    arguments = ["nearest", store.uri, "--key", str(key), "--top", "3", "--format", "json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 3
    assert rows[0].keys() == {"key", "image_id", "region_id", "similarity", "concept"}
    assert all(row["concept"] in {"person", "dog", "cat", "tree", "car", "sky"} for row in rows)

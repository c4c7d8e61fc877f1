import lance
import numpy as np
import pytest
import torch

from tap_engine.schemas.errors import ConfigError, StoreError
from tap_engine.train.concepts import CONCEPT_LOSSES, ConceptSpace
from tap_engine.train.data.store_reader import StoreReader
from tap_engine.train.objective import LossConfig
from tests.train.small_store import CONCEPTS, LOGIT_SCALE, make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("concepts") / "store", 4)


def reader(store):
    return StoreReader(str(store), region_columns=["embedding"])


def test_distribution_is_the_formula_with_the_teachers_scale(store):
    space = ConceptSpace.of_store(reader(store))
    table = lance.dataset(str(store / "concepts.lance")).to_table().to_pylist()
    assert len(space.names) == CONCEPTS and space.logit_scale == LOGIT_SCALE
    v = np.random.default_rng(0).standard_normal(16)
    for column, log_probs in (
        ("target_embedding", space.teacher_log_probs),
        ("source_embedding", space.student_log_probs),
    ):
        texts = np.array([row[column] for row in table])
        logits = LOGIT_SCALE * texts @ v / np.linalg.norm(v) / np.linalg.norm(texts, axis=1)
        expected = np.exp(logits - logits.max())
        expected /= expected.sum()
        found = log_probs(torch.tensor(v, dtype=torch.float32)).exp().numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)
    # Asymmetric: the two sides differ.
    assert not torch.allclose(space.source_weights, space.target_weights)


def test_scale_can_be_given(store):
    assert ConceptSpace.of_store(reader(store), 100.0).logit_scale == 100.0
    table = ConceptSpace.of_store(reader(store)).table
    torch.testing.assert_close(table.weights(), ConceptSpace.of_store(reader(store)).source_weights)


def test_stores_of_other_concepts_do_not_mix(store, tmp_path):
    same = make_store(tmp_path / "same", 2)
    other = make_store(tmp_path / "other", 2, seed=5)
    assert len(ConceptSpace.of_stores([reader(store), reader(same)]).names) == CONCEPTS
    with pytest.raises(ConfigError, match="one concept space"):
        ConceptSpace.of_stores([reader(store), reader(other)])


def test_a_store_that_does_not_say_its_scale_is_refused(store, tmp_path):
    nameless = make_store(tmp_path / "nameless", 2)
    path = str(nameless / "regions.lance")
    table = lance.dataset(path).to_table().replace_schema_metadata({})
    lance.write_dataset(table, path, mode="overwrite")
    with pytest.raises(StoreError, match="build-semantic"):
        ConceptSpace.of_store(reader(nameless))


def test_every_loss_names_the_columns_it_needs():
    for name, (columns, _) in CONCEPT_LOSSES.items():
        assert columns and LossConfig(concept_loss=name).concept_loss == name

import lance
import numpy as np
import pytest
import torch

from tap_engine.schemas.errors import ConfigError, StoreError
from tap_engine.train.concepts import CONCEPT_LOSSES, ConceptSpace
from tap_engine.train.data.augment import AugmentConfig
from tap_engine.train.data.examples import ExampleConfig
from tap_engine.train.data.store_reader import StoreReader
from tap_engine.train.data.stream import Share, Stream, StreamConfig
from tap_engine.train.loss_config import LossConfig
from tests.train.small_store import CONCEPTS, LOGIT_SCALE, make_store

BATCHED = ("embedding", "concept_ids", "concept_probs")


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


@pytest.mark.parametrize("name", CONCEPT_LOSSES)
def test_a_loss_works_with_the_columns_it_names_and_only_with_them(store, name):
    space = ConceptSpace.of_store(reader(store))

    def values(columns):
        config = StreamConfig(stores=(str(store),), workers=0)
        examples = ExampleConfig(
            image_px=64,
            mask_px=16,
            regions=4,
            soft_masks=True,
            fill_rgb=(0, 0, 0),
            columns=columns,
            augment=AugmentConfig(),
            seed=0,
        )
        (batch,) = Stream(config, examples).batches(Share(images=2), consumed=0, steps=1, pin=False)
        embeds = torch.randn(*batch.valid.shape, len(space.source_weights))
        return CONCEPT_LOSSES[name].loss(space, embeds, batch)

    needed = tuple(c for c in LossConfig(concept_loss=name).columns if c in BATCHED)
    assert needed == CONCEPT_LOSSES[name].columns
    assert values(needed).isfinite().all()
    other = ("concept_ids", "concept_probs") if "embedding" in needed else ("embedding",)
    with pytest.raises(AssertionError):
        values(other)

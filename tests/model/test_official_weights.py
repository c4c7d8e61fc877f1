import collections
import os
import pickle

import numpy as np
import pytest
import torch

from tap_engine.model import official_weights
from tap_engine.model.concepts import ConceptTable
from tap_engine.model.config import PRESETS
from tap_engine.model.official_weights import (
    match_preset,
    model_shapes,
    read_official,
    released_as,
    write_official,
    write_official_concepts,
)
from tap_engine.schemas.errors import CheckpointError
from tests.model.small import small_model


def write_pickle(path, content):
    path.write_bytes(pickle.dumps(content))
    return path


def state(kind: str) -> dict[str, object]:
    tensors = small_model().state_dict()
    if kind == "numpy":
        return {k: v.numpy() for k, v in tensors.items()}
    if kind == "parameters":
        return {
            k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in tensors.items()
        }
    return collections.OrderedDict(tensors)


@pytest.mark.parametrize("kind", ["numpy", "tensors", "parameters"])
def test_pickles_of_arrays_and_tensors_are_read(tmp_path, kind) -> None:
    found = read_official(write_pickle(tmp_path / "w.pkl", state(kind)))
    assert isinstance(found, dict)
    for name, value in small_model().state_dict().items():
        assert torch.equal(found[name], value), name


def test_there_and_back(tmp_path) -> None:
    weights = small_model().state_dict()
    write_official(tmp_path / "w.pkl", weights)
    again = read_official(tmp_path / "w.pkl")
    assert list(again) == list(weights)
    # The official loader is an ordinary unpickler: plain arrays must be in there.
    plain = pickle.loads((tmp_path / "w.pkl").read_bytes())
    assert all(isinstance(value, np.ndarray) for value in plain.values())


class Attack:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


class NestedAttack:
    """Code inside the bytes that torch's own storage loader would unpickle."""

    def __init__(self, marker):
        self.content = pickle.dumps(Attack(marker), protocol=2)

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.content,)


@pytest.mark.parametrize("attack", [Attack, NestedAttack])
def test_code_in_a_pickle_is_not_run(tmp_path, attack) -> None:
    marker = tmp_path / "pwned"
    path = write_pickle(tmp_path / "w.pkl", {"pixel_mean": attack(marker)})
    with pytest.raises(CheckpointError):
        read_official(path)
    assert not marker.exists()


@pytest.mark.parametrize("content", [[1, 2, 3], {"a": "b"}, {1: np.zeros(2)}, "text"])
def test_other_content_is_refused(tmp_path, content) -> None:
    with pytest.raises(CheckpointError, match="expected a pickled dict"):
        read_official(write_pickle(tmp_path / "w.pkl", content))


@pytest.mark.parametrize("name", ["tap-b", "tap-h"])
def test_the_preset_is_found_by_its_shapes(name) -> None:
    weights = {k: torch.empty(s, device="meta") for k, s in model_shapes(PRESETS[name]).items()}
    assert match_preset(weights, "x")[0] == name
    weights["image_encoder.extra"] = weights.pop("pixel_mean")
    with pytest.raises(CheckpointError, match=rf"against {name}.*1 missing, first 'pixel_mean'"):
        match_preset(weights, "x")


def test_concept_files(tmp_path) -> None:
    embeddings = torch.nn.functional.normalize(torch.randn(5, 8), dim=-1)
    names = ["a", "b", "c", "d", "e"]
    path = write_pickle(tmp_path / "c.pkl", [embeddings.T.numpy() * 100, names])
    table = read_official(path)
    assert isinstance(table, ConceptTable)
    assert table.names == tuple(names)
    assert table.logit_scale == pytest.approx(100, rel=1e-5)
    torch.testing.assert_close(table.text_embeddings, embeddings)
    write_official_concepts(tmp_path / "d.pkl", table)
    weights, again = pickle.loads((tmp_path / "d.pkl").read_bytes())
    assert again == names
    np.testing.assert_allclose(weights, embeddings.T.numpy() * 100, rtol=1e-5)


def test_concept_files_that_make_no_sense(tmp_path) -> None:
    weights = np.ones((8, 3), np.float32)
    with pytest.raises(CheckpointError, match=r"expected weights \[E, 2\]"):
        read_official(write_pickle(tmp_path / "c.pkl", [weights, ["a", "b"]]))
    weights[:, 0] = 9
    with pytest.raises(CheckpointError, match="as long as the logit scale"):
        read_official(write_pickle(tmp_path / "c.pkl", [weights, ["a", "b", "c"]]))


def test_released_files_are_known_by_their_sum(tmp_path, monkeypatch) -> None:
    path = write_pickle(tmp_path / "c.pkl", {})
    digest, release = released_as(path)
    assert release is None
    monkeypatch.setitem(official_weights.RELEASED_MD5, digest[:6], "tap_vit_b_v1_1")
    assert released_as(path) == (digest, "tap_vit_b_v1_1")

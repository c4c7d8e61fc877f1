import pytest
import torch
from safetensors.torch import save_file

from tap_engine.model.checkpoint import ModelCard, load_model, load_weights, read_card, save_model
from tap_engine.model.concepts import ConceptTable
from tap_engine.schemas.errors import CheckpointError, ConfigError
from tests.model.small import small_config, small_model


def test_weights_and_card_come_back(tmp_path) -> None:
    model = small_model()
    card = ModelCard(
        config=model.config, tokenizer="ab", vocabulary="cd", logit_scale=22.0, about={"step": 7}
    )
    path = save_model(tmp_path / "run", model.state_dict(), card)
    assert path == tmp_path / "run" / "model.safetensors"
    assert read_card(path) == read_card(tmp_path / "run") == card
    again = load_model(tmp_path / "run")
    assert not again.training
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(again.encode_image(images), model.encode_image(images))


def test_half_weights_load_into_a_float32_model(tmp_path) -> None:
    model = small_model()
    half = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    path = save_model(tmp_path / "half.safetensors", half, ModelCard(config=model.config))
    whole = save_model(tmp_path, model.state_dict(), ModelCard(config=model.config))
    assert path.stat().st_size < 0.6 * whole.stat().st_size
    again = load_model(path)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    torch.testing.assert_close(
        again.image_decoder.mask_tokens.weight,
        model.image_decoder.mask_tokens.weight,
        rtol=1e-3,
        atol=1e-3,
    )


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    model = small_model()
    card = ModelCard(config=model.config)
    path = save_model(tmp_path, model.state_dict(), card)
    before = path.read_bytes()

    def die(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("tap_engine.schemas.replacing.os.fsync", die)
    with pytest.raises(OSError, match="disk full"):
        save_model(tmp_path, small_model(1).state_dict(), card)
    assert path.read_bytes() == before


def test_weights_of_another_model_are_refused(tmp_path) -> None:
    model = small_model()
    save_model(tmp_path, model.state_dict(), ModelCard(config=model.config))
    other = small_model(embed_dim=64)
    with pytest.raises(CheckpointError, match=r"of another shape, first .*expected \[.*found \["):
        load_weights(other, tmp_path)
    state = model.state_dict()
    state["extra"] = state.pop("pixel_mean")
    path = save_model(tmp_path / "x", state, ModelCard(config=small_config()))
    with pytest.raises(
        CheckpointError, match=r"1 missing, first 'pixel_mean'; 1 unknown, first 'extra'"
    ):
        load_model(path)


def test_files_of_another_kind_are_named(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_model(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="without a model config"):
        read_card(tmp_path / "a.safetensors")
    metadata = {"tap.config": small_config().to_json(), "tap.card": '{"mood": 1}'}
    save_file({"a": torch.zeros(1)}, tmp_path / "b.safetensors", metadata)
    with pytest.raises(CheckpointError, match="damaged or newer"):
        read_card(tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="expected a concept file"):
        ConceptTable.load(tmp_path / "a.safetensors")


def test_concept_table(tmp_path) -> None:
    table = ConceptTable(("cat", "dog", "traffic light"), torch.randn(3, 8), 22.5)
    table.save(tmp_path / "concepts.safetensors")
    again = ConceptTable.load(tmp_path / "concepts.safetensors")
    assert again.names == table.names and again.logit_scale == 22.5
    assert again.fingerprint == table.fingerprint
    torch.testing.assert_close(again.weights().norm(dim=0), torch.full((3,), 22.5))
    subset = table.subset(["dog", "cat"])
    assert torch.equal(subset.text_embeddings, table.text_embeddings[[1, 0]])
    with pytest.raises(ConfigError, match=r"first 'trafic light' \(close: traffic light\)"):
        table.subset(["cat", "trafic light"])


@pytest.mark.parametrize(
    ("names", "shape", "scale", "message"),
    [
        (("a", "b"), (3, 4), 1.0, r"need text embeddings \[2, E\]"),
        (("a", "b"), (2, 4), 0.0, "must be positive"),
    ],
)
def test_concept_tables_that_make_no_sense(names, shape, scale, message) -> None:
    with pytest.raises(ConfigError, match=message):
        ConceptTable(names, torch.randn(shape), scale)

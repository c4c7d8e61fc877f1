"""Every module reproduces the official implementation's numbers, and no near miss passes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tap_engine.model.config import PRESETS
from tap_engine.model.prompt_encoder import PromptEncoder
from tap_engine.model.tap import TapModel
from tests.golden import __main__ as golden_command
from tests.golden.checks import CHECKS, run_check
from tests.golden.fixture import Fixture
from tests.support import GOLDEN


@pytest.mark.parametrize("fixture", sorted(CHECKS))
def test_reproduces_the_official_numbers(fixture) -> None:
    verdicts = run_check(Fixture(GOLDEN / f"{fixture}.safetensors"))
    assert verdicts
    assert [v for v in verdicts if not v.passed] == []


def test_the_command_says_what_failed(tmp_path, monkeypatch, capsys) -> None:
    for suffix in ("json", "safetensors"):
        name = f"02_prompt_encoder.{suffix}"
        (tmp_path / name).write_bytes((GOLDEN / name).read_bytes())
    monkeypatch.setattr("sys.argv", ["golden", str(tmp_path)])
    assert golden_command.main() == 0
    assert "1 fixtures, 5 comparisons, 0 failed" in capsys.readouterr().out
    monkeypatch.setattr(PromptEncoder, "grid_code", lambda self, hw: torch.zeros(*hw, 64))
    assert golden_command.main() == 1
    out = capsys.readouterr().out
    assert "FAIL 02_prompt_encoder      out/img_pos" in out and "2 failed" in out
    (tmp_path / "02_prompt_encoder.safetensors").write_bytes(b"damaged")
    assert golden_command.main() == 1


def copy_without(folder: Path, stem: str, left_out: Callable[[str], bool]) -> Fixture:
    """A fixture of the same form with fewer tensors."""
    tensors = load_file(GOLDEN / f"{stem}.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not left_out(name)}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "other.safetensors")
    (folder / "other.json").write_text((GOLDEN / f"{stem}.json").read_text())
    return Fixture(folder / "other.safetensors")


@pytest.mark.parametrize(
    ("stem", "fewer"), [("01_image_encoder", 4), ("04_concept_projector", 2), ("07_end_to_end", 6)]
)
def test_tensors_for_debugging_may_be_absent(tmp_path, stem, fewer) -> None:
    def for_debugging(name: str) -> bool:
        return name.startswith(("mid/", "derived/")) or name.endswith("_scaled")

    whole = run_check(Fixture(GOLDEN / f"{stem}.safetensors"))
    verdicts = run_check(copy_without(tmp_path, stem, for_debugging))
    assert len(verdicts) == len(whole) - fewer
    assert [v for v in verdicts if not v.passed] == []


def test_weights_may_lack_only_the_number_of_batches(tmp_path) -> None:
    verdicts = run_check(
        copy_without(tmp_path, "01_image_encoder", lambda name: name.endswith("batches_tracked"))
    )
    assert verdicts and all(v.passed for v in verdicts)
    with pytest.raises(ValueError, match="weights missing"):
        run_check(copy_without(tmp_path, "01_image_encoder", lambda name: "running_mean" in name))


def test_an_expected_tensor_that_nothing_compares_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(CHECKS, "02_prompt_encoder", lambda f: iter([None]))
    with pytest.raises(ValueError, match="nothing compares out/grid"):
        run_check(Fixture(GOLDEN / "02_prompt_encoder.safetensors"))


def test_every_fixture_has_a_check() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.safetensors")) == sorted(CHECKS)


@pytest.mark.parametrize("size", ["b", "l", "h"])
def test_names_shapes_and_types_are_the_official_ones(size) -> None:
    listing = json.loads((GOLDEN / f"official_keys_tap_vit_{size}.json").read_text())
    with torch.device("meta"):
        model = TapModel(PRESETS[f"tap-{size}"])
    found = {k: (list(v.shape), str(v.dtype)) for k, v in model.state_dict().items()}
    assert found == {e["key"]: (e["shape"], f"torch.{e['dtype']}") for e in listing}
    parameters = {name for name, _ in model.named_parameters()}
    assert parameters == {e["key"] for e in listing if e["kind"] == "parameter"}


# As counted in the official code, to the digit; XL is ours ("0.4 B" is all the papers say of it).
PARAMETERS = {
    "tap-b": (97_398_160, 1_280, 6_421_732, 70_728_704),
    "tap-l": (322_163_072, 1_280, 6_421_732, 70_728_704),
    "tap-h": (658_638_080, 1_280, 6_421_732, 70_728_704),
    "tap-xl": (406_697_728, 1_280, 6_421_732, 70_728_704),
}


@pytest.mark.parametrize("preset", sorted(PARAMETERS))
def test_parameter_counts(preset) -> None:
    with torch.device("meta"):
        model = TapModel(PRESETS[preset])
    parts = (model.image_encoder, model.prompt_encoder, model.image_decoder, model.text_decoder)
    counts = tuple(sum(p.numel() for p in part.parameters()) for part in parts)
    assert counts == PARAMETERS[preset]
    assert sum(counts) == sum(p.numel() for p in model.parameters())

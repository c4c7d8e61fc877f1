from pathlib import Path

import pytest
import torch

from tap_engine.model.ovsam import classes, sam_encoder
from tests.golden.checks import run_check
from tests.golden.fixture import Fixture

FOLDER = Path(__file__).parents[2] / "golden_ovsam"
FIXTURES = sorted(FOLDER.glob("*.safetensors"))


def check(name: str) -> bool:
    (path,) = FOLDER.glob(f"{name}*.safetensors")
    return all(verdict.passed for verdict in run_check(Fixture(path)))


def test_all_twelve_are_here() -> None:
    assert len(FIXTURES) == 12


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_fixture(path: Path) -> None:
    for verdict in run_check(Fixture(path)):
        assert verdict.passed, verdict


def test_a_last_block_in_windows_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    make = sam_encoder.make_blocks
    monkeypatch.setattr(
        "tap_engine.model.ovsam.sam2clip.make_blocks",
        lambda dim, depth, heads, ratio, window, _, grid: make(
            dim, depth, heads, ratio, window, (1,), (window, window)
        ),
    )
    with pytest.raises((AssertionError, RuntimeError)):
        assert check("01")


def test_transposed_distances_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = sam_encoder._by_distance
    monkeypatch.setattr(sam_encoder, "_by_distance", lambda t, n: right(t, n).transpose(0, 1))
    assert not check("01")


def test_a_mean_over_prototypes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def averaged(embeddings, prototypes, log_scale, *, chunk=0):
        return classes.class_logits(embeddings, prototypes.mean(1, keepdim=True), log_scale)

    monkeypatch.setattr("tests.golden.ovsam_checks.class_logits", averaged)
    assert not check("04")


def test_exchanged_weights_of_fusion_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from tap_engine.model.ovsam import fusion

    monkeypatch.setattr(fusion, "NOVEL", classes.BASE)
    assert not check("09")


def test_cut_coordinates_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from tap_engine.model.ovsam.prompt_encoder import SamPromptEncoder

    right = SamPromptEncoder._code
    monkeypatch.setattr(
        SamPromptEncoder, "_code", lambda self, p: right(self, torch.clamp(p, 0, 1))
    )
    assert not check("03")

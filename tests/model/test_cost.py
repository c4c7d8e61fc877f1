"""Work and memory are what is stated, counted and not timed."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tap_engine.model.config import PRESETS
from tap_engine.model.tap import TapModel
from tests.model.small import small_model


def gflop(run) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


@pytest.fixture(scope="module")
def tap_b() -> TapModel:
    with torch.device("meta"):
        return TapModel(PRESETS["tap-b"]).eval()


@pytest.mark.parametrize(
    ("name", "expected"), [("tap-b", 808.5), ("tap-l", 2702.1), ("tap-h", 5515.8)]
)
def test_encoders_at_1024_px(name, expected) -> None:
    with torch.device("meta"), torch.no_grad():
        model = TapModel(PRESETS[name]).eval()
        found = gflop(lambda: model.image_encoder(torch.empty(1, 3, 1024, 1024)))
    assert round(found, 1) == expected


def decode(model: TapModel, images: int, prompts: int, points: int) -> None:
    labels = torch.empty(images, prompts, points, dtype=torch.int64)
    model.decode(torch.empty(images, 256, 64, 64), torch.empty(*labels.shape, 2), labels)


@pytest.mark.parametrize(("points", "alone", "of_64"), [(2, 3.707, 2.927), (10, 3.839, 3.059)])
def test_image_decoder_per_prompt(tap_b, points, alone, of_64) -> None:
    """Officially 3.707 and 3.839 per prompt; sharing the image side saves a fifth of it."""
    with torch.device("meta"), torch.no_grad():
        assert round(gflop(lambda: decode(tap_b, 1, 1, points)), 3) == alone
        assert round(gflop(lambda: decode(tap_b, 64, 1, points)) / 64, 3) == alone
        assert round(gflop(lambda: decode(tap_b, 1, 64, points)) / 64, 3) == of_64


def test_text_decoder_per_caption(tap_b) -> None:
    with torch.device("meta"), torch.no_grad():
        ids = torch.empty(1, 39, dtype=torch.int64)
        found = gflop(lambda: tap_b.caption_logits(torch.empty(1, 256), ids))
    assert round(found, 3) == 4.337


def kept_bytes(model: TapModel, prompts: int) -> int:
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    embedding = torch.randn(1, 32, 16, 16)
    points, labels = torch.rand(1, prompts, 2, 2) * 64, torch.ones(1, prompts, 2).long()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = model.decode(embedding, points, labels)
    assert out.mask_logits.requires_grad
    return sum(kept.values())


def test_recomputing_keeps_an_eighth_of_the_decoders_state_per_prompt() -> None:
    model = small_model()
    per_prompt = []
    for recompute in (False, True):
        model.set_activation_checkpointing(recompute)
        per_prompt.append(kept_bytes(model, 9) - kept_bytes(model, 1))
    assert per_prompt[1] < per_prompt[0] / 5

"""Model FLOPs of each part and step, counted by torch's FlopCounterMode on the meta device."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from benchmarks.model import flops
from tap_engine.model.config import PRESETS
from tap_engine.model.tap import TapModel

BOX_TOKENS, POINT_TOKENS, WORDS = 2, 10, 39


@cache
def part_gflop(preset: str, part: str, count: int, trained: bool) -> float:
    """GFLOP of one part for one image.

    Args:
        preset: name of a model.
        part: "encoder", "boxes", "points" or "captions".
        count: prompts or captions; the encoder has none.
        trained: with the backward pass (of inputs and weights), else forward alone.
    """
    with torch.device("meta"):
        model = TapModel(PRESETS[preset])
        size, dim = model.config.image_size, model.config.embed_dim
        run: dict[str, Callable[[], Tensor]] = {
            "encoder": lambda: model.image_encoder(torch.empty(1, 3, size, size)),
            "boxes": lambda: _decode(model, count, BOX_TOKENS),
            "points": lambda: _decode(model, count, POINT_TOKENS),
            "captions": lambda: model.caption_logits(
                torch.empty(count, dim, requires_grad=trained),
                torch.empty(count, WORDS, dtype=torch.int64),
            ),
        }
        with torch.set_grad_enabled(trained):
            forward = run[part]
            return flops((lambda: forward().sum().backward()) if trained else forward) / 1e9


def _decode(model: TapModel, prompts: int, tokens: int) -> Tensor:
    side, dim = model.config.image_size // 16, model.config.embed_dim
    image = torch.empty(1, dim, side, side, requires_grad=torch.is_grad_enabled())
    labels = torch.empty(1, prompts, tokens, dtype=torch.int64)
    out = model.decode(image, torch.empty(1, prompts, tokens, 2), labels)
    return out.mask_logits.sum() + out.iou_pred.sum() + out.sem_embeds.sum()


def step_gflop(preset: str, stage: str, prompts: int) -> float:
    """GFLOP of a training step for one image, without what recomputing adds.

    Args:
        preset: name of a model.
        stage: "1" (two rounds of prompts), "2" (the same with captions), "captions" (all but the
            text decoder is frozen).
        prompts: prompts of each round; in stage "2" and "captions", all have a caption.
    """
    trained = stage != "captions"
    total = part_gflop(preset, "encoder", 0, trained)
    rounds = [part_gflop(preset, part, prompts, trained) for part in ("boxes", "points")]
    words = 2 * part_gflop(preset, "captions", prompts, True) if stage != "1" else 0.0
    return total + sum(rounds) + words


def table() -> str:
    """The FLOP table as Markdown."""
    lines = [
        "| model | encoder | 64 boxes | 64 prompts of 10 points | 64 captions | step of stage 1 | "
        "step of stage 2 | step of captions |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for preset in ("tap-b", "tap-l"):
        parts = [
            part_gflop(preset, part, 64, False)
            for part in ("encoder", "boxes", "points", "captions")
        ]
        steps = [step_gflop(preset, stage, 64) for stage in ("1", "2", "captions")]
        cells = " | ".join(f"{value:,.1f}" for value in parts + steps)
        lines.append(f"| {preset} | {cells} |")
    return "\n".join(lines)

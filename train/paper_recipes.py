"""The papers' runs, every number with its place: stages, sizes and baselines of TAP and TAP-v2.

`PAPER_RECIPES` has them all by name: vit_SIZE_KIND. What the papers leave open is said where it is
chosen.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tap_engine.model.config import TapConfig, preset
from tap_engine.train.checkpoint import CheckpointConfig
from tap_engine.train.config import InitConfig, LoopConfig, TrainConfig
from tap_engine.train.data.augment import AugmentConfig
from tap_engine.train.data.stream import StreamConfig
from tap_engine.train.loss_config import LossConfig
from tap_engine.train.optim import OptimConfig
from tap_engine.train.prompts import PromptConfig
from tap_engine.train.run_log import LogConfig

SIZES = {"b": "tap-b", "l": "tap-l", "xl": "tap-xl", "h": "tap-h"}
"""By the letter in a recipe's name: the preset. XL is TAP-v2's, H only a released weight."""


def stage1(name: str, model: str, steps: int) -> TrainConfig:
    """Pre-training on SemanticSA-1B as both papers have it.

    TAP paper, section 4.1, and TAP-v2 paper, section 4.1: AdamW (0.9, 0.999), base rate 1e-3,
    cosine to 1 %, weight decay 0.1, scale jitter 0.5 to 2.0, batch 256 over 256 GPUs, up to 64
    prompts per GPU and stage, focal : dice = 20 : 1, dropout 0.1 in the image decoder, drop path .1
    for B and 0.2 for L, encoder from MAE (--set init.mae=FILE). Ours, where the papers are silent:
    warm-up, gradient clipping, the IoU loss's weight, the flip, bf16.
    """
    return TrainConfig(
        recipe=name,
        model=preset(model),
        init=InitConfig(needs="mae"),
        stream=StreamConfig(workers=4, mixed_runs=1024),
        augment=AugmentConfig(scale=(0.5, 2.0), flip=0.5),
        prompts=PromptConfig(),
        loss=LossConfig(),
        optim=OptimConfig(),
        train=LoopConfig(steps=steps, batch=256, images=1, precision="bf16", recompute=True),
        checkpoint=CheckpointConfig(every=1000, keep=3, keep_every=10_000),
        log=LogConfig(every=20, pictures_every=1000),
    )


def sam(base: TrainConfig, name: str) -> TrainConfig:
    """The papers' baseline "SAM (our impl.)": L_seg alone, five learned tokens instead of nine.

    TAP paper, tables 1 and 5; data, schedule, prompts and encoder are those of the same size's
    pre-training. The text decoder stays at random and frozen.
    """
    decoder = replace(base.model.decoder, semantic=False)
    model = replace(with_text(base.model, prompt="mask"), decoder=decoder)
    loss = replace(base.loss, concept=0.0, auxiliary=0.0, pooled_regions=0)
    return replace(base, recipe=name, model=model, loss=loss)


def stage2(base: TrainConfig, name: str, steps: int) -> TrainConfig:
    """Pre-training on CaptionSA-400M: --set init.weights=STAGE1 --set stream.mixture=PLAN.

    TAP-v2 paper: L_concept + 5 L_seg + L_cap (section 3.1); base rate 1e-4, 45k iterations, batch
    256 over 256 GPUs, scale jitter 0.5 to 2.0, dropout 0.4 in the text decoder (section 4.1). Ours:
    no flip, which would make "left of" wrong; the short warm-up (docs/decisions/0055).
    """
    return replace(
        base,
        recipe=name,
        model=with_text(base.model, dropout=0.4),
        init=InitConfig(needs="weights"),
        augment=replace(base.augment, flip=0.0),
        loss=replace(base.loss, concept=1.0, segmentation=5.0, caption=1.0, balanced_steps=0),
        optim=replace(base.optim, rate=base.optim.rate / 10, warmup_steps=100, rate_factors={}),
        train=replace(base.train, steps=steps),
    )


def captions(base: TrainConfig, name: str, steps: int) -> TrainConfig:
    """The text decoder alone on Visual Genome: --set init.weights=CHECKPOINT, all else frozen.

    Both papers, section 4.1: no augmentation, batch 64, base rate 1e-3, weight decay 0.1, text
    dropout 0.4 (TAP-v2; the first paper's is 0.3), context 40. Steps: TAP-v2 60k (50 epochs) after
    stage 1, and 36k at --set optim.rate=1e-4 after stage 2; the first paper 30k. Prompts as in
    v1.1: the box, then points of the mask predicted for it (--set prompts.stages=1: boxes alone,
    as v1.0). Ours: warm-up and clipping (docs/decisions/0056).
    """
    return replace(
        base,
        recipe=name,
        model=with_text(base.model, dropout=0.4),
        init=InitConfig(needs="weights"),
        augment=AugmentConfig(),
        loss=replace(base.loss, concept=0.0, segmentation=0.0, auxiliary=0.0, caption=1.0),
        optim=replace(
            base.optim,
            rate=1e-3,
            rate_batch=64,
            rate_factors={"": 0.0, "text_decoder": 1.0},
        ),
        train=replace(base.train, steps=steps, batch=64, recompute=False),
    )


def with_text(model: TapConfig, **changes: Any) -> TapConfig:
    """The same network with another text decoder."""
    return replace(model, text=replace(model.text, **changes))


def _stage1(size: str, name: str) -> TrainConfig:
    return stage1(name, SIZES[size], 180_000)


def _v1_stage1(size: str, name: str) -> TrainConfig:
    # "50 % of SA-1B": which half is not published; ours is a fixed random one.
    base = stage1(name, SIZES[size], 90_000)
    return replace(base, stream=replace(base.stream, share=0.5))


def _v1_captions(size: str, name: str) -> TrainConfig:
    base = captions(_stage1(size, name), name, 30_000)
    return replace(base, model=with_text(base.model, dropout=0.3))


def _captions_after_stage2(size: str, name: str) -> TrainConfig:
    base = captions(_stage1(size, name), name, 36_000)
    return replace(base, optim=replace(base.optim, rate=1e-4))


_KINDS: Mapping[str, tuple[Callable[[str, str], TrainConfig], str, str]] = {
    "stage1": (
        _stage1,
        "b l xl h",
        "pre-training on SemanticSA-1B, 180,000 steps (TAP-v2 paper; released v1.1)",
    ),
    "stage2": (
        lambda size, name: stage2(_stage1(size, name), name, 45_000),
        "b l xl h",
        "on CaptionSA-400M, 45,000 steps (TAP-v2 paper): concepts, masks and captions",
    ),
    "caption": (
        lambda size, name: captions(_stage1(size, name), name, 60_000),
        "b l xl h",
        "frozen after stage 1, captions of Visual Genome, 60,000 steps (TAP-v2 paper)",
    ),
    "stage2_caption": (
        _captions_after_stage2,
        "b l xl h",
        "frozen after stage 2, captions of Visual Genome, 36,000 steps at 1e-4 (TAP-v2 paper)",
    ),
    "v1_stage1": (
        _v1_stage1,
        "b l",
        "pre-training on half of SemanticSA-1B, 90,000 steps (first TAP paper)",
    ),
    "v1_caption": (
        _v1_captions,
        "b l",
        "frozen, captions of Visual Genome, 30,000 steps, dropout 0.3 (first TAP paper)",
    ),
    "sam": (
        lambda size, name: sam(_stage1(size, name), name),
        "b l",
        "without concepts, the papers' SAM (our impl.): masks alone, 180,000 steps",
    ),
}
"""Kind -> what makes it of size and name, the sizes that have it, and what it is."""


def _recipe(size: str, kind: str) -> Callable[[], TrainConfig]:
    make, _, what = _KINDS[kind]
    name = f"vit_{size}_{kind}"

    def made() -> TrainConfig:
        return make(size, name)

    made.__name__, made.__doc__ = name, f"{SIZES[size].upper()} {what}."
    return made


PAPER_RECIPES: Mapping[str, Callable[[], TrainConfig]] = {
    f"vit_{size}_{kind}": _recipe(size, kind)
    for kind, (_, sizes, _) in _KINDS.items()
    for size in sizes.split()
}

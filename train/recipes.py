"""Recipes of training: functions with every number of the papers and its place there.

A recipe is the settings and nothing else: `tap-train run --recipe NAME --set a.b=value` changes
any of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tap_engine.model.config import TapConfig, preset
from tap_engine.schemas.errors import ConfigError
from tap_engine.train.checkpoint import CheckpointConfig
from tap_engine.train.config import InitConfig, LoopConfig, TrainConfig
from tap_engine.train.data.augment import AugmentConfig
from tap_engine.train.data.stream import StreamConfig
from tap_engine.train.objective import LossConfig
from tap_engine.train.optim import OptimConfig
from tap_engine.train.prompts import PromptConfig
from tap_engine.train.run_log import LogConfig


def _stage1(name: str, model: str, steps: int) -> TrainConfig:
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


def vit_b_stage1() -> TrainConfig:
    """TAP-B, 180,000 steps (TAP-v2 paper; the released v1.1). The first paper's is 90,000."""
    return _stage1("vit_b_stage1", "tap-b", 180_000)


def vit_l_stage1() -> TrainConfig:
    """TAP-L, 180,000 steps (TAP-v2 paper; the released v1.1). The first paper's is 90,000."""
    return _stage1("vit_l_stage1", "tap-l", 180_000)


def _sam(base: TrainConfig, name: str) -> TrainConfig:
    """The papers' baseline "SAM (our impl.)": L_seg alone, five learned tokens instead of nine.

    TAP paper, tables 1 and 5; data, schedule, prompts and encoder are those of the same size's
    pre-training. The text decoder stays at random and frozen.
    """
    decoder = replace(base.model.decoder, semantic=False)
    model = replace(_with_text(base.model, prompt="mask"), decoder=decoder)
    loss = replace(base.loss, concept=0.0, auxiliary=0.0, pooled_regions=0)
    return replace(base, recipe=name, model=model, loss=loss)


def vit_b_sam() -> TrainConfig:
    """SAM-B as the TAP papers train it for comparison: masks alone."""
    return _sam(vit_b_stage1(), "vit_b_sam")


def vit_l_sam() -> TrainConfig:
    """SAM-L as the TAP papers train it for comparison: masks alone."""
    return _sam(vit_l_stage1(), "vit_l_sam")


def _stage2(base: TrainConfig, name: str, steps: int) -> TrainConfig:
    """Pre-training on CaptionSA-400M: --set init.weights=STAGE1 --set stream.mixture=PLAN.

    TAP-v2 paper: L_concept + 5 L_seg + L_cap (section 3.1); base rate 1e-4, 45k iterations, batch
    256 over 256 GPUs, scale jitter 0.5 to 2.0, dropout 0.4 in the text decoder (section 4.1). Ours:
    no flip, which would make "left of" wrong; the short warm-up (docs/decisions/0055).
    """
    return replace(
        base,
        recipe=name,
        model=_with_text(base.model, dropout=0.4),
        init=InitConfig(needs="weights"),
        augment=replace(base.augment, flip=0.0),
        loss=replace(base.loss, concept=1.0, segmentation=5.0, caption=1.0, balanced_steps=0),
        optim=replace(base.optim, rate=base.optim.rate / 10, warmup_steps=100, rate_factors={}),
        train=replace(base.train, steps=steps),
    )


def vit_b_stage2() -> TrainConfig:
    """TAP-B on CaptionSA-400M, 45,000 steps (TAP-v2 paper): concepts, masks and captions."""
    return _stage2(vit_b_stage1(), "vit_b_stage2", 45_000)


def vit_l_stage2() -> TrainConfig:
    """TAP-L on CaptionSA-400M, 45,000 steps (TAP-v2 paper): concepts, masks and captions."""
    return _stage2(vit_l_stage1(), "vit_l_stage2", 45_000)


def _caption(base: TrainConfig, name: str, steps: int) -> TrainConfig:
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
        model=_with_text(base.model, dropout=0.4),
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


def vit_b_caption() -> TrainConfig:
    """Captions of a frozen TAP-B, 60,000 steps of Visual Genome (TAP-v2 paper)."""
    return _caption(vit_b_stage1(), "vit_b_caption", 60_000)


def vit_l_caption() -> TrainConfig:
    """Captions of a frozen TAP-L, 60,000 steps of Visual Genome (TAP-v2 paper)."""
    return _caption(vit_l_stage1(), "vit_l_caption", 60_000)


def sample() -> TrainConfig:
    """The tiny model on the sample world, in three phases: under three hours on one CPU core.

    From Python, and for gates and ablations, this is one phase of boxes and single points at
    256 px; `PHASES` has what `tap-train run --recipe sample` does.

    What departs from the papers, because a small network from scratch needs it
    (docs/decisions/0053): soft masks, a balanced start, no 20:1 background weighting (alpha 0.5),
    fewer points on small regions, and the trunk of the sample teacher as a start.
    """
    return TrainConfig(
        recipe="sample",
        model=preset("tiny"),
        init=InitConfig(trunk="sample"),
        stream=StreamConfig(workers=1, soft_masks=True, read_ahead=32),
        augment=AugmentConfig(flip=0.5, brightness=0.15, channel_shift=0.04),
        prompts=PromptConfig(
            per_image=16,
            stages=1,
            box_share=0.2,
            point_area=0.2,
            box_jitter=0.05,
            box_jitter_px=10,
        ),
        loss=LossConfig(
            concept=0.5, focal_alpha=0.5, balanced_steps=400, auxiliary=2.0, pooled_regions=48
        ),
        optim=OptimConfig(
            rate=1.5e-3,
            rate_batch=4,
            betas=(0.9, 0.98),
            weight_decay=0.05,
            decay_rule="v1.0",
            warmup_steps=30,
        ),
        train=LoopConfig(steps=6_400, batch=4, images=4, threads=1),
        checkpoint=CheckpointConfig(every=500, keep=2),
        log=LogConfig(every=50, pictures_every=1000),
    )


def sample_start() -> TrainConfig:
    """The first phase of `sample` at 128 px, where a step costs a third.

    What the prompts mean is learnt here (docs/decisions/0054).
    """
    base = sample()
    return replace(
        base,
        recipe="sample_start",
        model=replace(base.model, image_size=128),
        prompts=replace(base.prompts, stages=2),
        optim=replace(base.optim, final_share=0.3),
        train=replace(base.train, steps=4500),
    )


def sample_clicks() -> TrainConfig:
    """The second phase of `sample`, at 256 px: both stages of prompts, averaged weights."""
    base = sample()
    return replace(
        base,
        recipe="sample_clicks",
        init=InitConfig(needs="weights"),
        prompts=replace(base.prompts, stages=2),
        loss=replace(base.loss, balanced_steps=0),
        optim=replace(base.optim, ema_decay=0.999),
        train=replace(base.train, steps=9000),
    )


def sample_tune() -> TrainConfig:
    """The shipped tiny model on new scenes: thirty steps, half a minute on a CPU."""
    base = sample()
    return replace(
        base,
        recipe="sample_tune",
        init=InitConfig(weights="sample"),
        stream=replace(base.stream, workers=0),
        loss=replace(base.loss, balanced_steps=0),
        optim=replace(base.optim, rate=1e-4, warmup_steps=5),
        train=replace(base.train, steps=30),
        checkpoint=CheckpointConfig(every=30),
        log=LogConfig(every=5, pictures_every=0),
    )


def sample_sam() -> TrainConfig:
    """The tiny model without concepts, at 256 px: what predicting concepts costs the masks."""
    return _sam(sample(), "sample_sam")


def smoke() -> TrainConfig:
    """Forty steps of the tiny model at 128 px: shows in a minute that everything fits together."""
    base = sample()
    return replace(
        base,
        recipe="smoke",
        model=replace(base.model, image_size=128),
        stream=replace(base.stream, workers=0),
        loss=replace(base.loss, balanced_steps=20),
        train=replace(base.train, steps=40),
        checkpoint=CheckpointConfig(every=20),
        log=LogConfig(every=10, pictures_every=20),
    )


def sample_stage2() -> TrainConfig:
    """The tiny model on a plan of the sample world: concepts, masks and captions."""
    return _stage2(sample(), "sample_stage2", 2_000)


def sample_caption() -> TrainConfig:
    """Captions of the frozen tiny model on the sample world: minutes on one CPU core.

    Boxes alone, a quarter of the papers' batch, three times their rate and no dropout: so few
    steps do not overfit (docs/decisions/0056).
    """
    base = _caption(sample(), "sample_caption", 700)
    return replace(
        base,
        model=_with_text(base.model, dropout=0.0),
        prompts=replace(base.prompts, stages=1, box_share=1.0),
        optim=replace(base.optim, rate=3e-3, rate_batch=16, warmup_steps=50),
        train=replace(base.train, batch=16, images=16),
    )


def _with_text(model: TapConfig, **changes: Any) -> TapConfig:
    return replace(model, text=replace(model.text, **changes))


RECIPES: Mapping[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        vit_b_stage1,
        vit_l_stage1,
        vit_b_sam,
        vit_l_sam,
        vit_b_stage2,
        vit_l_stage2,
        vit_b_caption,
        vit_l_caption,
        sample,
        sample_start,
        sample_clicks,
        sample_sam,
        sample_tune,
        sample_stage2,
        sample_caption,
        smoke,
    )
}


PHASES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "sample": (
        ("start", "sample_start"),
        ("clicks", "sample_clicks"),
        ("captions", "sample_caption"),
    ),
}
"""Recipes of several phases: name and recipe of each, in the order they are trained."""


def phases(name: str) -> tuple[tuple[str, TrainConfig], ...]:
    """Name and settings of the phases that `tap-train run --recipe NAME` trains, often one alone.

    Raises:
        ConfigError: no such recipe.
    """
    return tuple((phase, recipe(one)) for phase, one in PHASES.get(name, ((name, name),)))


def recipe(name: str) -> TrainConfig:
    """A recipe by name.

    Raises:
        ConfigError: no such recipe.
    """
    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]()

"""Complete runs as functions; every number of the papers is here, with its place.

A recipe is the settings and nothing else: `tap-train run --recipe NAME --set a.b=value` changes
any of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from tap_engine.model.config import preset
from tap_engine.schemas.errors import ConfigError
from tap_engine.train.augment import AugmentConfig
from tap_engine.train.checkpoint import CheckpointConfig
from tap_engine.train.config import InitConfig, LoopConfig, TrainConfig
from tap_engine.train.objective import LossConfig
from tap_engine.train.optim import OptimConfig
from tap_engine.train.prompts import PromptConfig
from tap_engine.train.run_log import LogConfig
from tap_engine.train.stream import StreamConfig


def _stage1(name: str, model: str, steps: int) -> TrainConfig:
    """Pre-training on SemanticSA-1B as both papers have it.

    TAP paper, section 4.1, and TAP-v2 paper, section 4.1: AdamW (0.9, 0.999), base rate 1e-3,
    cosine to 1 %, weight decay 0.1, scale jitter 0.5 to 2.0, batch 256 over 256 GPUs, up to 64
    prompts a GPU and stage, focal : dice = 20 : 1, dropout 0.1 in the image decoder, drop path 0.1
    for B and 0.2 for L, encoder from MAE (--set init.mae=FILE). Ours, where the papers are silent:
    warm-up, gradient clipping, the IoU loss's weight, the flip, bf16.
    """
    return TrainConfig(
        recipe=name,
        model=preset(model),
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


def sample() -> TrainConfig:
    """The tiny model on the sample world: hours on one CPU core, minutes on a GPU.

    What departs from the papers, because a small network from scratch needs it
    (docs/decisions/0053): soft masks, a balanced start, no 20:1 background weighting (alpha 0.5),
    and the trunk of the sample teacher as a start.
    """
    return TrainConfig(
        recipe="sample",
        model=preset("tiny"),
        init=InitConfig(trunk="sample"),
        stream=StreamConfig(workers=0, soft_masks=True, read_ahead=32),
        augment=AugmentConfig(flip=0.5, brightness=0.15, channel_shift=0.04),
        prompts=PromptConfig(
            per_image=16, stages=1, box_share=0.6, box_jitter=0.05, box_jitter_px=10
        ),
        loss=LossConfig(concept=0.5, focal_alpha=0.5, balanced_steps=400, auxiliary=1.0),
        optim=OptimConfig(
            rate=1.5e-3,
            rate_batch=4,
            betas=(0.9, 0.98),
            weight_decay=0.05,
            decay_rule="v1.0",
            warmup_steps=30,
        ),
        train=LoopConfig(steps=20_000, batch=4, images=4, threads=1),
        checkpoint=CheckpointConfig(every=500, keep=2),
        log=LogConfig(every=50, pictures_every=1000),
    )


def smoke() -> TrainConfig:
    """Forty steps of the tiny model at 128 px: shows in a minute that everything fits together."""
    base = sample()
    return replace(
        base,
        recipe="smoke",
        model=replace(base.model, image_size=128),
        loss=replace(base.loss, balanced_steps=20),
        train=replace(base.train, steps=40),
        checkpoint=CheckpointConfig(every=20),
        log=LogConfig(every=10, pictures_every=20),
    )


RECIPES: Mapping[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe for recipe in (vit_b_stage1, vit_l_stage1, sample, smoke)
}


def recipe(name: str) -> TrainConfig:
    """A recipe by name.

    Raises:
        ConfigError: no such recipe.
    """
    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]()

"""Recipes of training: functions with every number of the papers and its place there.

A recipe is the settings and nothing else: `tap-train run --recipe NAME --set a.b=value` changes
any of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from tap_engine.model.config import preset
from tap_engine.schemas.errors import ConfigError
from tap_engine.train.checkpoint import CheckpointConfig
from tap_engine.train.config import InitConfig, LoopConfig, TrainConfig
from tap_engine.train.data.augment import AugmentConfig
from tap_engine.train.data.stream import StreamConfig
from tap_engine.train.loss_config import LossConfig
from tap_engine.train.optim import OptimConfig
from tap_engine.train.paper_recipes import PAPER_RECIPES, captions, sam, stage2, with_text
from tap_engine.train.prompts import PromptConfig
from tap_engine.train.run_log import LogConfig


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
    return sam(sample(), "sample_sam")


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
    return stage2(sample(), "sample_stage2", 2_000)


def sample_caption() -> TrainConfig:
    """Captions of the frozen tiny model on the sample world: minutes on one CPU core.

    Boxes alone, a quarter of the papers' batch, three times their rate and no dropout: so few
    steps do not overfit (docs/decisions/0056).
    """
    base = captions(sample(), "sample_caption", 700)
    return replace(
        base,
        model=with_text(base.model, dropout=0.0),
        prompts=replace(base.prompts, stages=1, box_share=1.0),
        optim=replace(base.optim, rate=3e-3, rate_batch=16, warmup_steps=50),
        train=replace(base.train, batch=16, images=16),
    )


RECIPES: Mapping[str, Callable[[], TrainConfig]] = dict(PAPER_RECIPES) | {
    made.__name__: made
    for made in (
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

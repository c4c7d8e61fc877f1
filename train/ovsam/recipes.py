"""Runs of Open-Vocabulary SAM as functions; numbers of the published model have their place."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from tap_engine.model.config import preset
from tap_engine.model.ovsam.config import (
    AdapterConfig,
    BackboneConfig,
    HeadConfig,
    OvsamConfig,
)
from tap_engine.schemas.errors import ConfigError
from tap_engine.train.checkpoint import CheckpointConfig
from tap_engine.train.config import LoopConfig
from tap_engine.train.data.augment import AugmentConfig
from tap_engine.train.data.stream import StreamConfig
from tap_engine.train.optim import OptimConfig
from tap_engine.train.ovsam.config import OvsamInit, OvsamPromptConfig, OvsamTrainConfig
from tap_engine.train.ovsam.losses import HeadLossConfig
from tap_engine.train.run_log import LogConfig

_OPTIM = OptimConfig(
    rate=1e-4,
    rate_batch=16,
    scaling="none",
    weight_decay=0.05,
    final_share=0.01,
    warmup_steps=500,
    warmup_from=1e-3,
    rate_factors={},
)
"""As released; the paper prints a weight decay of 1e-4 (--set optim.weight_decay=1e-4)."""


def ovsam_s2c() -> OvsamTrainConfig:
    """SAM2CLIP: 24 epochs of 1 % of SA-1B, about 112,000 pictures.

    Open-Vocabulary SAM paper, section 4 and appendix; the released configuration where they differ
    (24 epochs, not 12). AdamW 1e-4, batch 16, cosine to 1 %, clip 5. No augmentation.
    """
    return OvsamTrainConfig(
        recipe="ovsam_s2c",
        stage="s2c",
        stream=StreamConfig(workers=4, mixed_runs=1024),
        optim=replace(_OPTIM, clip_norm=5.0),
        train=LoopConfig(steps=168_000, batch=16, images=2, precision="bf16"),
        checkpoint=CheckpointConfig(every=2000),
        log=LogConfig(every=50, pictures_every=0),
    )


def _c2s(name: str, steps: int, smallest: float) -> OvsamTrainConfig:
    """Open-Vocabulary SAM paper, section 4: 12 epochs, a tenth of the rate after 8 and 11.

    Scale jitter, weights and the clip norm of 0.01 are the released configuration's.
    """
    return OvsamTrainConfig(
        recipe=name,
        stage="c2s",
        stream=StreamConfig(workers=4, mixed_runs=1024),
        augment=AugmentConfig(scale=(smallest, 2.0), flip=0.5),
        optim=replace(_OPTIM, clip_norm=0.01, milestones=(8 / 12, 11 / 12)),
        train=LoopConfig(steps=steps, batch=16, images=2, precision="bf16"),
        checkpoint=CheckpointConfig(every=2000),
        log=LogConfig(every=50, pictures_every=0),
    )


def ovsam_c2s_coco() -> OvsamTrainConfig:
    """CLIP2SAM on COCO train2017: 12 epochs of the pictures with one of 48 base classes."""
    return _c2s("ovsam_c2s_coco", 80_700, 0.9)


def ovsam_c2s_lvis() -> OvsamTrainConfig:
    """CLIP2SAM on LVIS v1: 12 epochs, 866 frequent and common classes; rare ones are novel."""
    return _c2s("ovsam_c2s_lvis", 75_100, 0.1)


def ovsam_c2s_joint() -> OvsamTrainConfig:
    """CLIP2SAM on several stores: masks with classes, boxes with classes, image labels.

    Each sample has the losses it can have. --set stream.stores=..., stream.weights=...; classes of
    the union (`tap-train ovsam-classes --union`). Mixing and length are ours: the paper gives none.
    """
    return _c2s("ovsam_c2s_joint", 160_000, 0.1)


def sample_ovsam_s2c() -> OvsamTrainConfig:
    """SAM2CLIP on the sample world: the shipped tiny TAP teaches, minutes of one CPU core."""
    tiny = preset("tiny")
    dim = tiny.embed_dim
    return OvsamTrainConfig(
        recipe="sample_ovsam_s2c",
        stage="s2c",
        model=OvsamConfig(
            backbone=BackboneConfig(
                name="sample",
                layers=(2, 2, 2, 2),
                widths=(64, 128, 256, 512),
                embed_dim=128,
                pool_grid=2,
                heads=16,
            ),
            adapter=AdapterConfig(
                embed_dim=64,
                depth=3,
                num_heads=4,
                window=8,
                global_blocks=(2,),
                out=dim * (4 if tiny.decoder.detail else 1),
            ),
            head=HeadConfig(
                dim=dim,
                decoder=tiny.decoder,
                pyramid_dim=96,
                roi_grid=6,
                finest_scale=14.0,
            ),
            image_size=256,
            # The sample backbone was trained with CLIP's own mean.
            pixel_mean=(122.771, 116.746, 104.094),
            pixel_std=(68.501, 66.632, 70.323),
        ),
        mask_px=64,
        init=OvsamInit(teacher="sample"),
        stream=StreamConfig(workers=0, read_ahead=32),
        optim=replace(_OPTIM, rate=2e-3, warmup_steps=30, clip_norm=5.0),
        train=LoopConfig(steps=500, batch=8, images=8, threads=1),
        checkpoint=CheckpointConfig(every=100, keep=1),
        log=LogConfig(every=25, pictures_every=0),
    )


def sample_ovsam_s2c_single() -> OvsamTrainConfig:
    """The same with one level alone, the paper's single-scale variant."""
    base = sample_ovsam_s2c()
    adapter = replace(base.model.adapter, levels=(2,))
    model = replace(base.model, adapter=adapter)
    return replace(base, recipe="sample_ovsam_s2c_single", model=model)


def sample_ovsam_c2s() -> OvsamTrainConfig:
    """CLIP2SAM on the sample world: --set init.weights=RUN of sample_ovsam_s2c."""
    base = sample_ovsam_s2c()
    return replace(
        base,
        recipe="sample_ovsam_c2s",
        stage="c2s",
        init=OvsamInit(),
        augment=AugmentConfig(flip=0.5, brightness=0.1),
        prompts=OvsamPromptConfig(per_image=16, boxes=8),
        loss=HeadLossConfig(points=1024),
        optim=replace(base.optim, rate=2e-3, milestones=(8 / 12, 11 / 12), clip_norm=1.0),
        train=replace(base.train, steps=600),
    )


OVSAM_RECIPES: Mapping[str, Callable[[], OvsamTrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        ovsam_s2c,
        ovsam_c2s_coco,
        ovsam_c2s_lvis,
        ovsam_c2s_joint,
        sample_ovsam_s2c,
        sample_ovsam_s2c_single,
        sample_ovsam_c2s,
    )
}


def ovsam_recipe(name: str) -> OvsamTrainConfig:
    """A recipe by name.

    Raises:
        ConfigError: no such recipe.
    """
    if name not in OVSAM_RECIPES:
        raise ConfigError(f"no recipe {name!r}; there are {', '.join(OVSAM_RECIPES)}")
    return OVSAM_RECIPES[name]()

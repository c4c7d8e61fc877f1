"""A tiny Open-Vocabulary SAM with random weights, and classes for it."""

import torch

from tap_engine.model.config import DecoderConfig
from tap_engine.model.ovsam.classes import ClassTable
from tap_engine.model.ovsam.config import (
    AdapterConfig,
    BackboneConfig,
    HeadConfig,
    OvsamConfig,
)
from tap_engine.model.ovsam.model import OvsamModel

NAMES = ("ant", "bee", "cat", "dog", "eel")


def small_config(**head: object) -> OvsamConfig:
    return OvsamConfig(
        backbone=BackboneConfig(
            name="tiny",
            layers=(1, 1, 1, 1),
            widths=(16, 32, 64, 128),
            embed_dim=24,
            pool_grid=2,
            heads=4,
        ),
        adapter=AdapterConfig(
            embed_dim=16, depth=2, num_heads=2, window=3, global_blocks=(1,), out=32
        ),
        head=HeadConfig(
            **{
                "dim": 32,
                "decoder": DecoderConfig(num_heads=2, mlp_dim=48, dropout=0.0),
                "pyramid_dim": 12,
                "roi_grid": 4,
                "finest_scale": 14.0,
                **head,
            }
        ),
        image_size=64,
    )


def small_model(seed: int = 0, **head: object) -> OvsamModel:
    torch.manual_seed(seed)
    return OvsamModel(small_config(**head)).eval()


def small_classes(seed: int = 0, names: tuple[str, ...] = NAMES, each: int = 2) -> ClassTable:
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.randn(len(names), each, 24, generator=generator)
    prototypes = torch.nn.functional.normalize(prototypes, dim=-1)
    return ClassTable(names, prototypes, torch.full((len(names),), 2))

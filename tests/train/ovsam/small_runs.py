"""Runs of seconds: a tiny Open-Vocabulary SAM at 64 px on a made-up store."""

from dataclasses import replace
from pathlib import Path

import lance
import pyarrow as pa
import torch

from tap_engine.model.checkpoint import ModelCard, save_model
from tap_engine.model.config import preset
from tap_engine.model.ovsam.checkpoint import save_ovsam
from tap_engine.model.ovsam.classes import ClassTable
from tap_engine.model.ovsam.model import OvsamModel
from tap_engine.model.tap import TapModel
from tap_engine.schemas.settings import with_overrides
from tap_engine.train.ovsam.config import OvsamTrainConfig
from tap_engine.train.ovsam.recipes import ovsam_recipe
from tests.train.small_store import make_store

CLASSES = ("ant", "bee", "cat", "dog")

SETTINGS = (
    "model.image_size=64",
    "model.adapter.embed_dim=16",
    "model.adapter.num_heads=2",
    "model.adapter.window=3",
    "mask_px=16",
    "stream.run_rows=3",
    "stream.mixed_runs=2",
    "train.steps=4",
    "train.batch=2",
    "train.images=2",
    "checkpoint.every=2",
    "log.every=1",
    "log.tensorboard=false",
)


def labelled_store(root: Path, *, label: bool = True, **options) -> Path:
    """A store whose regions have a class: the ordinal's, some without one."""
    store = make_store(root, images=8, unit_images=4, seed=3, **options)
    if label:
        table = lance.dataset(str(store / "regions.lance"))
        rows = table.to_table(columns=["key"])
        names = [(*CLASSES, None)[key % 5] for key in rows["key"].to_pylist()]
        content = table.to_table().append_column("label", pa.array(names, pa.string()))
        lance.write_dataset(
            content, str(store / "regions.lance"), mode="overwrite", data_storage_version="2.2"
        )
    return store


def small_tap(folder: Path) -> Path:
    """A random tiny TAP at 64 px, as a teacher."""
    torch.manual_seed(1)
    config = replace(preset("tiny"), image_size=64)
    save_model(folder, TapModel(config).state_dict(), ModelCard(config=config))
    return folder


def small_classes(path: Path, base: tuple[str, ...] = ("ant", "bee", "cat")) -> Path:
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(4, 1, 128, generator=generator)
    prototypes /= prototypes.norm(dim=-1, keepdim=True)
    table = ClassTable(CLASSES, prototypes, torch.full((4,), 2))
    table.with_kinds(base=base, novel=set(CLASSES) - set(base)).save(path)
    return path


def small_config(name: str, store: Path, *overrides: str) -> OvsamTrainConfig:
    config = with_overrides(ovsam_recipe(name), (*SETTINGS, *overrides))
    return replace(config, stream=replace(config.stream, stores=(str(store),)))


def small_start(folder: Path, config: OvsamTrainConfig) -> Path:
    """A random Open-Vocabulary SAM of a recipe's sizes."""
    torch.manual_seed(2)
    model = OvsamModel(config.model)
    save_ovsam(folder, model.state_dict(), config.model)
    return folder

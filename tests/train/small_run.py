"""A run that trains in seconds: the tiny network at 64 px on a made-up store."""

import sys
from dataclasses import replace
from pathlib import Path

from tap_engine.schemas.settings import with_overrides
from tap_engine.train.config import TrainConfig
from tap_engine.train.recipes import recipe
from tests.train.small_store import EMBEDDING_DIM

SETTINGS = (
    "model.image_size=64",
    f"model.decoder.sem_embed_dim={EMBEDDING_DIM}",
    "model.decoder.dropout=0.1",
    "init.trunk=",
    "stream.run_rows=3",
    "stream.mixed_runs=2",
    "prompts.per_image=4",
    "prompts.stages=2",
    "train.steps=8",
    "train.batch=2",
    "train.images=2",
    "checkpoint.every=3",
    "log.every=1",
    "log.pictures_every=0",
    "log.tensorboard=false",
)


def small_config(store: Path, *overrides: str) -> TrainConfig:
    config = with_overrides(recipe("smoke"), (*SETTINGS, *overrides))
    return replace(config, stream=replace(config.stream, stores=(str(store),)))


def arguments(store: Path, out: Path, *overrides: str) -> list[str]:
    """A command line that trains the same."""
    sets = [part for setting in (*SETTINGS, *overrides) for part in ("--set", setting)]
    return ["run", "--recipe", "smoke", "--store", str(store), "--out", str(out), *sets]


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "tap_engine.jobs.train_cli", *args]

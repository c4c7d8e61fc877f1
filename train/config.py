"""The complete settings of a run.

Each part's settings live beside the code they configure; here they are put together.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tap_engine.model.attention_backends import BACKENDS
from tap_engine.model.config import TapConfig
from tap_engine.schemas.errors import ConfigError
from tap_engine.train.checkpoint import CheckpointConfig
from tap_engine.train.data.augment import AugmentConfig
from tap_engine.train.data.stream import StreamConfig
from tap_engine.train.held_out import HeldOutConfig
from tap_engine.train.loss_config import LossConfig
from tap_engine.train.optim import OptimConfig
from tap_engine.train.prompts import PromptConfig
from tap_engine.train.run_log import LogConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """Settings of the loop: length, batch and precision.

    Attributes:
        steps: optimiser steps.
        batch: images per step over all processes.
        images: images of one forward pass in one process; batch / (images * processes) passes
            are accumulated.
        seed: the seed of everything random.
        precision: "fp32", "bf16" or "fp16" (with loss scaling); losses are always float32.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads of torch; 0 leaves torch's own choice.
        channels_last: memory layout of the image encoder.
        compile: torch.compile of the repeated blocks.
        recompute: activation checkpointing: less memory, about a third more time.
        allow_tf32: float32 products and convolutions on CUDA in TF32.
        attention: kernels of attention: "sdpa" (torch's own), "flash2", "flash3", "flash4", or
            "auto": the fastest on this device, measured when the run starts.
    """

    steps: int = 90_000
    batch: int = 256
    images: int = 1
    seed: int = 0
    precision: str = "fp32"
    device: str = "auto"
    threads: int = 0
    channels_last: bool = False
    compile: bool = False
    recompute: bool = False
    allow_tf32: bool = True
    attention: str = "sdpa"

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.images) < 1:
            raise ConfigError(
                "train.steps, train.batch and train.images must be at least 1, got "
                f"{self.steps}, {self.batch}, {self.images}"
            )
        if self.threads < 0:
            raise ConfigError(f"train.threads must not be negative (0 chooses), got {self.threads}")
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise ConfigError(f"train.precision must be fp32, bf16 or fp16, got {self.precision!r}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"train.device must be auto, cpu or cuda, got {self.device!r}")
        if self.attention not in ("auto", *BACKENDS):
            raise ConfigError(
                f"train.attention must be auto, {', '.join(BACKENDS)}, got {self.attention!r}"
            )

    def accumulate(self, world: int) -> int:
        """Forward passes per step in each of `world` processes.

        Raises:
            ConfigError: the batch does not divide.
        """
        at_once = self.images * world
        if self.batch % at_once:
            near = max(at_once, round(self.batch / at_once) * at_once)
            raise ConfigError(
                f"train.batch={self.batch} does not divide into {world} processes of "
                f"train.images={self.images}; --set train.batch={near} does"
            )
        return self.batch // at_once


@dataclass(frozen=True, slots=True, kw_only=True)
class InitConfig:
    """Starting points of the weights, applied in this order; without any they are random.

    Attributes:
        weights: a run folder, checkpoint folder or .safetensors of the same model; the tiny model's
            may have been trained at another image size.
        text: take the text decoder of `weights`, too, if it is alike; False starts it at random.
        mae: a MAE ViT checkpoint for the image encoder (the papers' start).
        trunk: start of the convolutional encoder: a .safetensors of the teacher's image tower;
            "sample" is the shipped teacher's.
        tokenizer: file or folder of the captions' tokenizer; by default the one beside `weights`.
        needs: what a new run of this recipe must be given: "weights", "mae" (or weights), or
            nothing; recipes set it.
        random: start at random although the recipe needs weights.
    """

    weights: str = ""
    text: bool = True
    mae: str = ""
    trunk: str = ""
    tokenizer: str = ""
    needs: str = ""
    random: bool = False

    def __post_init__(self) -> None:
        if self.needs not in ("", "weights", "mae"):
            raise ConfigError(f"init.needs must be weights, mae or empty, got {self.needs!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """A whole run; recipes.py makes them.

    Attributes:
        recipe: name it was made by.
        model: sizes of the network.
        init: what the weights start from.
        stream: stores, order and loading.
        augment: what is varied.
        prompts: the rule by which prompts are drawn.
        loss: what is minimised.
        optim: optimiser and schedule.
        train: length, batch and arithmetic.
        checkpoint: when to save and what to keep.
        log: what is reported, and how often.
        held_out: what is measured while training.
    """

    recipe: str
    model: TapConfig
    init: InitConfig = field(default_factory=InitConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: LoopConfig = field(default_factory=LoopConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values; values of storage options are left out, they may be secrets."""
        content = dataclasses.asdict(self)
        options = content["stream"]["storage_options"]
        content["stream"]["storage_options"] = [o.split("=", 1)[0] + "=..." for o in options]
        return json.loads(json.dumps(content))


def differences(now: Mapping[str, Any], before: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`name: before -> now` for each setting that differs between two `TrainConfig.to_dict`."""
    found = []
    for name in sorted(now.keys() | before.keys()):
        ours, theirs = now.get(name), before.get(name)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            found += differences(ours, theirs, f"{prefix}{name}.")
        elif ours != theirs:
            found.append(f"{prefix}{name}: {theirs!r} -> {ours!r}")
    return found

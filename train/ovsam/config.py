"""The settings of a run of Open-Vocabulary SAM; recipes.py makes them."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from tap_engine.model.ovsam.config import OvsamConfig
from tap_engine.schemas.errors import ConfigError
from tap_engine.train.checkpoint import CheckpointConfig
from tap_engine.train.config import LoopConfig
from tap_engine.train.data.augment import AugmentConfig
from tap_engine.train.data.stream import StreamConfig
from tap_engine.train.optim import OptimConfig
from tap_engine.train.ovsam.losses import HeadLossConfig
from tap_engine.train.run_log import LogConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class OvsamInit:
    """What a run starts from, applied in this order; empty means at random.

    Attributes:
        clip: weights of the frozen CLIP: an open_clip folder or .safetensors. A run without `clip`
            and without `weights` distils into a random backbone, which is refused.
        teacher: what the adapter is to look like: a folder of transformers' SamModel, or a TAP
            checkpoint ("sample" is the shipped tiny one). The decoder and the prompt encoder start
            from it, too.
        features: a dump of the teacher's features, to read instead of computing them.
        weights: an Open-Vocabulary SAM to go on from; the second stage starts from the first.
        classes: classes with text prototypes to learn (`tap-train ovsam-classes`).
        labels: truth table of the sample world, where a store has no `label` column.
    """

    clip: str = ""
    teacher: str = ""
    features: str = ""
    weights: str = ""
    classes: str = ""
    labels: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OvsamPromptConfig:
    """How the second stage asks.

    Attributes:
        per_image: prompts a picture; instances are repeated to reach it.
        boxes: how many of them are boxes; the rest are one point each, where there is a mask.
    """

    per_image: int = 40
    boxes: int = 21

    def __post_init__(self) -> None:
        if self.per_image < 1 or not 0 <= self.boxes <= self.per_image:
            raise ConfigError(
                "prompts.per_image must be at least 1 and prompts.boxes at most that, got "
                f"{self.per_image}, {self.boxes}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class OvsamHeldOut:
    """What is measured while training: nothing; `tap-train ovsam-eval` measures a checkpoint.

    Attributes:
        every: steps; the loop asks.
    """

    every: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OvsamTrainConfig:
    """A whole run.

    Attributes:
        recipe: name it was made by.
        stage: "s2c" distils the teacher into the adapter; "c2s" trains decoder, pyramid and region
            embedding on classes and masks. What a stage does not train is frozen.
        model: sizes of the network.
        mask_px: side of the mask targets, px.
        init, stream, augment, prompts, loss, optim, train, checkpoint, log, held_out: as in
            `TrainConfig`.
    """

    recipe: str
    stage: str
    model: OvsamConfig = field(default_factory=OvsamConfig)
    mask_px: int = 1024
    init: OvsamInit = field(default_factory=OvsamInit)
    stream: StreamConfig = field(default_factory=StreamConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    prompts: OvsamPromptConfig = field(default_factory=OvsamPromptConfig)
    loss: HeadLossConfig = field(default_factory=HeadLossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: LoopConfig = field(default_factory=LoopConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    held_out: OvsamHeldOut = field(default_factory=OvsamHeldOut)

    def __post_init__(self) -> None:
        if self.stage not in ("s2c", "c2s"):
            raise ConfigError(f"stage must be s2c or c2s, got {self.stage!r}")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values; values of storage options are left out, they may be secrets."""
        content = dataclasses.asdict(self)
        options = content["stream"]["storage_options"]
        content["stream"]["storage_options"] = [o.split("=", 1)[0] + "=..." for o in options]
        return json.loads(json.dumps(content))

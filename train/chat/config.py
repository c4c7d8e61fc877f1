"""Settings of a chat run, and the recipes of the paper's two stages."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tap_engine.model.chat.config import ChatConfig, ProjectorConfig
from tap_engine.model.chat.language_model import SMOLLM2
from tap_engine.model.chat.template import TEMPLATES
from tap_engine.schemas.errors import ConfigError
from tap_engine.train.checkpoint import CheckpointConfig
from tap_engine.train.config import LoopConfig
from tap_engine.train.optim import OptimConfig
from tap_engine.train.run_log import LogConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationConfig:
    """What is learned from.

    Attributes:
        stores: stores with conversations (`tap-data import-conversations`); rows are joined.
        images: folders below which the images of each store lie, in the same order; a store that
            holds its images itself is named again.
        template: how a conversation becomes a string; "caption" is stage 1's, without a question.
        group: batches that are sorted by length together, so that sequences of a batch are of like
            length; 1 takes them as they come.
        blind: no image is shown; the control that every figure is compared with.
        max_problems: images that may be unreadable before the run stops.
    """

    stores: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    template: str = "phi2"
    group: int = 16
    blind: bool = False
    max_problems: int = 100

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            raise ConfigError(
                f"data.template must be one of {', '.join(TEMPLATES)}, got {self.template!r}"
            )
        if self.group < 1:
            raise ConfigError(f"data.group must be at least 1, got {self.group}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatStart:
    """What a run starts from.

    Attributes:
        tap: the TAP checkpoint whose encoder looks at images; "sample" is the shipped one.
        chat: a chat checkpoint to go on from, as stage 2 does from stage 1; empty starts adapters
            and projector anew.
    """

    tap: str = ""
    chat: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRunConfig:
    """A whole run.

    Attributes:
        recipe: name it was made by.
        chat: the model.
        init: what it starts from.
        data: what it learns from.
        optim: optimiser and schedule.
        train: length, batch and arithmetic; an image counts as one sequence.
        checkpoint: when to save and what to keep.
        log: what is reported, and how often.
    """

    recipe: str
    chat: ChatConfig = field(default_factory=ChatConfig)
    init: ChatStart = field(default_factory=ChatStart)
    data: ConversationConfig = field(default_factory=ConversationConfig)
    optim: OptimConfig
    train: LoopConfig
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def chat_recipe(name: str) -> ChatRunConfig:
    """A recipe by name.

    Raises:
        ConfigError: there is none; lists them.
    """
    if name not in CHAT_RECIPES:
        raise ConfigError(f"no recipe {name!r}; there are {', '.join(CHAT_RECIPES)}")
    return CHAT_RECIPES[name](name)


def _optim(rate: float, warmup_steps: int) -> OptimConfig:
    """The paper's AdamW: .9 and .95, cosine, no weight decay; the warm-up is Bunny's 3 %."""
    return OptimConfig(
        rate=rate,
        rate_batch=128,
        scaling="none",
        betas=(0.9, 0.95),
        weight_decay=0.0,
        final_share=0.0,
        warmup_steps=warmup_steps,
        rate_factors={},
    )


def _chat_caption(name: str) -> ChatRunConfig:
    """Stage 1: 232k captions, 2 epochs in batches of 128."""
    return ChatRunConfig(
        recipe=name,
        data=ConversationConfig(template="caption"),
        optim=_optim(1e-3, 109),
        train=LoopConfig(steps=3_625, batch=128, images=16, precision="bf16"),
    )


def _chat_instruct(name: str) -> ChatRunConfig:
    """Stage 2: Bunny-695K, 1 epoch in batches of 128."""
    return ChatRunConfig(
        recipe=name,
        optim=_optim(2e-4, 163),
        train=LoopConfig(steps=5_430, batch=128, images=16, precision="bf16"),
    )


_SAMPLE = ChatConfig(
    language_model=SMOLLM2,
    template="chatml",
    lora_rank=8,
    tail_blocks=0,
    max_tokens=1024,
    # The standard deviation of SmolLM2's word vectors (.1356): visual tokens start among words.
    projector=ProjectorConfig(output_scale=0.1356),
)


def _sample_chat_caption(name: str) -> ChatRunConfig:
    """Stage 1 in small: SmolLM2 learns to read the shipped TAP's features on drawn scenes."""
    return ChatRunConfig(
        recipe=name,
        chat=_SAMPLE,
        init=ChatStart(tap="sample"),
        data=ConversationConfig(template="caption"),
        optim=_optim(2e-3, 10),
        train=LoopConfig(steps=120, batch=2, images=2, threads=1),
        checkpoint=CheckpointConfig(every=20),
        log=LogConfig(every=10, tensorboard=False, pictures_every=0),
    )


def _sample_chat_instruct(name: str) -> ChatRunConfig:
    """Stage 2 in small: questions about drawn scenes."""
    base = _sample_chat_caption(name)
    return dataclasses.replace(
        base,
        data=ConversationConfig(template="chatml"),
        optim=_optim(1e-3, 10),
        train=dataclasses.replace(base.train, steps=300),
    )


CHAT_RECIPES: Mapping[str, Callable[[str], ChatRunConfig]] = MappingProxyType(
    {
        "chat_caption": _chat_caption,
        "chat_instruct": _chat_instruct,
        "sample_chat_caption": _sample_chat_caption,
        "sample_chat_instruct": _sample_chat_instruct,
    }
)

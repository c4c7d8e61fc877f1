"""The image projector: TAP's features become tokens of a language model (TAP-v2 paper, 3.2).

TAP's encoder attends inside windows only. Three residual blocks of 3x3 convolutions, identities at
first, carry information across the windows' borders; then each 2x2 neighbours become one token,
which a two-layer MLP brings to the language model's width: 64x64 features give 1,024 tokens.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from tap_engine.model.chat.config import ProjectorConfig

MERGE = 2
"""Features along each side that one token stands for."""


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each place, so that no place sees another."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ResidualBlock(nn.Module):
    """Convolutions with norms; the last gain is 0, so the block starts as the identity.

    Args:
        channels: of input and output.
        kind: "basic" or "bottleneck"; see `ProjectorConfig.block`.
    """

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        half = channels // 2
        sizes = {
            "basic": [(channels, channels, 3), (channels, channels, 3)],
            "bottleneck": [(channels, half, 1), (half, half, 3), (half, channels, 1)],
        }[kind]
        convs = [nn.Conv2d(i, o, size, padding=size // 2, bias=False) for i, o, size in sizes]
        norms = [ChannelNorm(out) for _, out, _ in sizes]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(norms[-1].weight)
        self.convs, self.norms = nn.ModuleList(convs), nn.ModuleList(norms)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        y = x
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(F.gelu(y) if number else y))
        return x + y


class ImageProjector(nn.Module):
    """Image features -> visual tokens.

    Args:
        config: switches.
        channels: of the features.
        width: of the language model's word vectors.
    """

    def __init__(self, config: ProjectorConfig, channels: int, width: int) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.Sequential(
            *(ResidualBlock(channels, config.block) for _ in range(config.blocks))
        )
        merged = channels * MERGE * MERGE if config.merge == "concat" else channels
        self.mlp = nn.Sequential(nn.Linear(merged, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, H/2 * W/2, width], row by row; H and W are even."""
        return self.mlp(self.merge(self.blocks(features))) * self.config.output_scale

    def merge(self, features: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, H/2 * W/2, 4 * C or C]."""
        if self.config.merge == "concat":
            merged = F.pixel_unshuffle(features, MERGE)
        else:
            merged = F.avg_pool2d(features, MERGE)
        return merged.flatten(2).transpose(1, 2)

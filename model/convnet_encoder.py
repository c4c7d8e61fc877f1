"""Convolutional image encoder for small models: a CLIP ResNet trunk, a pyramid, a few blocks.

Ours: a windowed ViT from scratch needs far more data than a laptop can show it. The trunk has the
layout and parameter names of open_clip's ResNet image tower (the CLIP paper's variant: three-layer
stem, average pooling before strided convolutions), so a teacher's weights load by name.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tap_engine.model.attention import SelfAttention, run_block
from tap_engine.model.config import IMAGE_STRIDE, ConvnetConfig
from tap_engine.model.image_encoder import Block

_EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 residual block; strides are average pooling."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * _EXPANSION
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        nn.init.zeros_(self.bn3.weight)
        self.downsample = nn.Sequential()
        if stride > 1 or in_channels != out_channels:
            self.downsample.add_module("-1", nn.AvgPool2d(stride))
            self.downsample.add_module("0", nn.Conv2d(in_channels, out_channels, 1, bias=False))
            self.downsample.add_module("1", nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 4 * channels, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.pool(y)))
        return F.relu(y + self.downsample(x))


class Trunk(nn.Module):
    """Four stages at strides 4, 8, 16 and 32."""

    def __init__(self, layers: tuple[int, int, int, int], width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        channels = width
        stages = []
        for stage, depth in enumerate(layers):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Bottleneck(channels, width << stage, stride))
                channels = (width << stage) * _EXPANSION
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[B, 3, S, S] -> its four stages: [B, 4w | 8w | 16w | 32w, S / 4 | 8 | 16 | 32, ...]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        stride4 = self.layer1(x)
        stride8 = self.layer2(stride4)
        stride16 = self.layer3(stride8)
        return stride4, stride8, stride16, self.layer4(stride16)


class ConvnetEncoder(nn.Module):
    """Normalised images -> image embedding."""

    def __init__(
        self, config: ConvnetConfig, *, image_size: int, out_dim: int, detail: bool = False
    ) -> None:
        super().__init__()
        self.trunk = Trunk(config.layers, config.width)
        channels = [config.width * _EXPANSION << stage for stage in (1, 2, 3)]
        self.lateral = nn.ModuleList(nn.Conv2d(c, out_dim, 1) for c in channels)
        self.pos_embed = nn.Embedding((image_size // IMAGE_STRIDE) ** 2, out_dim)
        self.blocks = nn.ModuleList(
            _identity_block(out_dim, config.num_heads, config.mlp_ratio)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(out_dim)
        # As wide as the decoder's mask features at these strides.
        fine = [(8, out_dim // 4), (4, out_dim // 8)]
        self.detail = (
            nn.ModuleList(nn.Conv2d(config.width * stride, c, 1) for stride, c in fine)
            if detail
            else None
        )
        self.activation_checkpointing = False

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] normalised -> [B, out_dim or 4 * out_dim, S/16, S/16].

        With `detail` the features of stride 8 and 4 follow, the pixels of a cell as its channels:
        `pixel_unshuffle` by 2 and by 4, out_dim and 2 * out_dim channels. One tensor stays all
        there is to keep of an image.
        """
        # Channels last in memory: a fifth less time on a CPU.
        images = images.contiguous(memory_format=torch.channels_last)
        size = (images.shape[-2] // IMAGE_STRIDE, images.shape[-1] // IMAGE_STRIDE)
        stride4, *coarser = self.trunk(images)
        levels = [conv(x) for conv, x in zip(self.lateral, coarser, strict=True)]
        x = torch.stack([_resample(level, size) for level in levels]).sum(0)
        tokens = x.flatten(2).transpose(1, 2) + self.pos_embed.weight
        for block in self.blocks:
            tokens = run_block(block, tokens, recompute=self.activation_checkpointing)
        embedding = self.norm(tokens).transpose(1, 2).unflatten(-1, size)
        if self.detail is None:
            return embedding
        fine = [
            F.pixel_unshuffle(conv(x), cells)
            for conv, x, cells in zip(self.detail, (coarser[0], stride4), (2, 4), strict=True)
        ]
        return torch.cat([embedding, *fine], 1)

    @torch.no_grad()
    def load_trunk(self, image_tower: dict[str, Tensor]) -> None:
        """Starts the trunk from a CLIP ResNet's image tower.

        Args:
            image_tower: state dict of the tower alone ("conv1.weight", "layer1.0.conv1.weight",
                ...); its attention pooling is left out.

        Raises:
            RuntimeError: names or shapes differ, from `load_state_dict`.
        """
        weights = {k: v for k, v in image_tower.items() if not k.startswith("attnpool.")}
        # CLIP looks at RGB, this model's normalised input is BGR.
        weights["conv1.weight"] = weights["conv1.weight"].flip(1)
        self.trunk.load_state_dict(weights)


def _identity_block(dim: int, num_heads: int, mlp_ratio: float) -> Block:
    """A transformer block whose two branches start at 0."""
    attn = SelfAttention(dim, num_heads)
    block = Block(dim, attn, mlp_ratio)
    for last in (attn.proj, block.mlp.fc2):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return block


def _resample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Average pooling down, bilinear up, to the grid of the embedding."""
    if x.shape[-2] > size[0]:
        return F.adaptive_avg_pool2d(x, size)
    if x.shape[-2] < size[0]:
        return F.interpolate(x, size, mode="bilinear", align_corners=False)
    return x

"""Vision transformer that attends in windows, with convolutions carrying facts across them.

Source: TAP paper, appendix A. Differs from SAM's encoder: no global attention, an index-based
relative bias, batch norm in the neck, LayerNorm eps 1e-5. Parameter names are the official ones.

Shapes: B images, H x W patches, C channels, w window side, R = B * H/w * W/w windows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tap_engine.model.attention import DropPath, FusedAttention, Mlp, attention, run_block
from tap_engine.model.config import IMAGE_STRIDE, VitConfig

CROSS_CONVS = 4


class RelativePositionBias(nn.Module):
    """One learned number per head and per displacement inside a window."""

    index: Tensor

    def __init__(self, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads, (2 * window_size - 1) ** 2))
        # Saved with the weights: official checkpoints carry it in every block.
        self.register_buffer("index", relative_index(window_size))

    def forward(self) -> Tensor:
        """[heads, w*w, w*w]: rows are queries."""
        return self.weight[:, self.index.flatten()].unflatten(-1, self.index.shape)


def relative_index(window_size: int) -> Tensor:
    """[w*w, w*w] int64: (query_y - key_y + w - 1) * (2w - 1) + query_x - key_x + w - 1."""
    y, x = torch.meshgrid(torch.arange(window_size), torch.arange(window_size), indexing="ij")
    y, x = y.flatten(), x.flatten()
    side = 2 * window_size - 1
    dy = y[:, None] - y[None, :] + window_size - 1
    dx = x[:, None] - x[None, :] + window_size - 1
    return dy * side + dx


class WindowAttention(FusedAttention):
    """Self attention with the relative bias, which is not scaled by 1 / sqrt(d)."""

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__(dim, num_heads)
        self.rel_pos_embed = RelativePositionBias(num_heads, window_size)

    def forward(self, x: Tensor) -> Tensor:
        """[R, w*w, C] -> the same."""
        q, k, v = self.project(x)
        return self.proj(attention(q, k, v, bias=self.rel_pos_embed()).flatten(2))


class Block(nn.Module):
    """Pre-norm transformer block over any attention."""

    def __init__(self, dim: int, attn: nn.Module, mlp_ratio: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """[R, N, C] -> the same."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class CrossWindowConv(nn.Module):
    """Residual bottleneck over the whole grid; starts as the identity.

    Nothing follows the sum. Convolutions are Kaiming-normal (fan out), the last gain is 0.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim // 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(dim // 2)
        self.conv2 = nn.Conv2d(dim // 2, dim // 2, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(dim // 2)
        self.conv3 = nn.Conv2d(dim // 2, dim, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(dim)
        self.activation = nn.GELU()
        for conv in (self.conv1, self.conv2, self.conv3):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.norm3.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        y = self.activation(self.norm1(self.conv1(x)))
        y = self.activation(self.norm2(self.conv2(y)))
        return x + self.norm3(self.conv3(y))


class Neck(nn.Module):
    """1x1 and 3x3 convolutions with batch norm and no activation.

    The two lists of one are the official layout, which allows for more levels.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.lateral_conv = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(dim, out_dim, 1, bias=False), nn.BatchNorm2d(out_dim))]
        )
        self.output_conv = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False), nn.BatchNorm2d(out_dim)
                )
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out_dim, H, W]."""
        return self.output_conv[0](self.lateral_conv[0](x))


class PatchEmbed(nn.Module):
    """Non-overlapping 16 px patches -> channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, IMAGE_STRIDE, IMAGE_STRIDE)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, S/16, S/16, C]."""
        return self.proj(images).permute(0, 2, 3, 1)


class VitEncoder(nn.Module):
    """Normalised images -> image embedding."""

    def __init__(self, config: VitConfig, *, image_size: int, out_dim: int) -> None:
        super().__init__()
        dim, depth = config.embed_dim, config.depth
        self.window_size = config.window_size
        self.blocks_per_conv = depth // CROSS_CONVS
        self.patch_embed = PatchEmbed(dim)
        self.pos_embed = nn.Embedding((image_size // IMAGE_STRIDE) ** 2, dim)
        nn.init.normal_(self.pos_embed.weight, std=0.02)
        rates = drop_path_rates(config.drop_path, depth)
        self.blocks = nn.ModuleList(
            Block(
                dim,
                WindowAttention(dim, config.num_heads, config.window_size),
                config.mlp_ratio,
                rate,
            )
            for rate in rates
        )
        self.norm = nn.LayerNorm(dim)
        self.cross_conv = nn.ModuleList(CrossWindowConv(dim) for _ in range(CROSS_CONVS))
        self.neck = Neck(dim, out_dim)
        self.activation_checkpointing = False

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] normalised -> [B, out_dim, S/16, S/16]."""
        return self.neck(self.last_block(images))

    def last_block(self, images: Tensor) -> Tensor:
        """What the neck is given: [B, 3, S, S] normalised -> [B, C, S/16, S/16]."""
        x = self.patch_embed(images)
        grid_hw = (x.shape[1], x.shape[2])
        x = x + self.pos_embed.weight.unflatten(0, grid_hw)
        windows = partition(x, self.window_size)
        for stage, cross_conv in enumerate(self.cross_conv):
            start = stage * self.blocks_per_conv
            for block in self.blocks[start : start + self.blocks_per_conv]:
                windows = run_block(block, windows, recompute=self.activation_checkpointing)
            last = stage == CROSS_CONVS - 1
            if last:  # the norm comes before the fourth convolution, not after it
                windows = self.norm(windows)
            x = cross_conv(unpartition(windows, self.window_size, grid_hw).permute(0, 3, 1, 2))
            if not last:
                windows = partition(x.permute(0, 2, 3, 1), self.window_size)
        return x


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Linear from 0 in the first block to `rate` in the last."""
    return [rate * index / max(depth - 1, 1) for index in range(depth)]


def partition(x: Tensor, window_size: int) -> Tensor:
    """[B, H, W, C] -> [R, w*w, C]; windows row-major inside an image, images outermost."""
    b, h, w, c = x.shape
    x = x.view(b, h // window_size, window_size, w // window_size, window_size, c)
    return x.transpose(2, 3).reshape(-1, window_size * window_size, c)


def unpartition(windows: Tensor, window_size: int, grid_hw: tuple[int, int]) -> Tensor:
    """Inverse of `partition`: [R, w*w, C] -> [B, H, W, C]."""
    h, w = grid_hw
    x = windows.view(
        -1, h // window_size, w // window_size, window_size, window_size, windows.shape[-1]
    )
    return x.transpose(2, 3).reshape(-1, h, w, windows.shape[-1])


def resize_positions(positions: Tensor, grid_size: int) -> Tensor:
    """Position table of another square grid, bicubic (a = -0.75, half-pixel centres).

    Args:
        positions: [n*n, C], row-major, no class token.
        grid_size: cells along a side of the grid wanted.

    Returns:
        [grid_size * grid_size, C] float32.
    """
    side = round(len(positions) ** 0.5)
    grid = positions.float().T.reshape(1, -1, side, side)
    grid = F.interpolate(grid, size=(grid_size, grid_size), mode="bicubic", align_corners=False)
    return grid[0].flatten(1).T.contiguous()

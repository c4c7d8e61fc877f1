"""SAM's transformer blocks with decomposed relative positions, and its image encoder.

Source: "Segment Anything" (Kirillov et al., 2023), appendix A; the positions are those of MViTv2
(Li et al., 2022), section 4.1. The adapter is made of these blocks; the encoder is the teacher.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tap_engine.model.attention import Mlp, run_block


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, H, W]; eps 1e-6."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GridAttention(nn.Module):
    """Attention over a grid; a query also weighs how far a key's row and column are.

    The logits are q k / sqrt(d) + q r_row + q r_column. The two position terms are written as extra
    channels of the query, met by one-hot channels of the key, so that any attention kernel can do
    the work and nobody stores a [N, N] bias.
    """

    def __init__(self, dim: int, num_heads: int, size_hw: tuple[int, int]) -> None:
        super().__init__()
        self.num_heads, self.size_hw = num_heads, size_hw
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        head = dim // num_heads
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * size_hw[0] - 1, head))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * size_hw[1] - 1, head))

    def forward(self, x: Tensor) -> Tensor:
        """[B, h, w, C] -> the same; h, w are those it was made for."""
        h, w = self.size_hw
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)  # [B, h, w, H, d]
        rows = torch.einsum("byxhd,ykd->byxhk", q, _by_distance(self.rel_pos_h, h))
        columns = torch.einsum("byxhd,xkd->byxhk", q, _by_distance(self.rel_pos_w, w))
        one_row = torch.eye(h, dtype=k.dtype, device=k.device).view(1, h, 1, 1, h)
        one_column = torch.eye(w, dtype=k.dtype, device=k.device).view(1, 1, w, 1, w)
        shape = k.shape[:-1]
        q = torch.cat([q * q.shape[-1] ** -0.5, rows, columns], dim=-1)
        k = torch.cat([k, one_row.expand(*shape, h), one_column.expand(*shape, w)], dim=-1)
        q, k, v = (part.flatten(1, 2).transpose(1, 2) for part in (q, k, v))  # [B, H, N, d]
        out = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return self.proj(out.transpose(1, 2).flatten(2).unflatten(1, (h, w)))


def _by_distance(table: Tensor, size: int) -> Tensor:
    """[2n - 1, d] -> [n, n, d]: for every query the rows of all keys."""
    places = torch.arange(size, device=table.device)
    return table[places[:, None] - places[None] + size - 1]


class SamBlock(nn.Module):
    """Pre-norm block; in windows, or over the whole grid where `window` is 0."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, window: int, grid_hw: tuple[int, int]
    ) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = GridAttention(dim, num_heads, (window, window) if window else grid_hw)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """[B, h, w, C] -> the same."""
        attended = self.norm1(x)
        attended = self._in_windows(attended) if self.window else self.attn(attended)
        x = x + attended
        return x + self.mlp(self.norm2(x))

    def _in_windows(self, x: Tensor) -> Tensor:
        # Padding cells are zeros after the norm and take part in the attention, as in SAM.
        size, (h, w) = self.window, x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -w % size, 0, -h % size))
        rows, columns = x.shape[1] // size, x.shape[2] // size
        x = x.unflatten(2, (columns, size)).unflatten(1, (rows, size)).transpose(2, 3)
        x = self.attn(x.flatten(0, 2)).unflatten(0, (-1, rows, columns))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :h, :w]


def make_blocks(
    dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
    window: int,
    global_blocks: tuple[int, ...],
    grid_hw: tuple[int, int],
) -> nn.ModuleList:
    """`depth` blocks, windowed but for the global ones."""
    return nn.ModuleList(
        SamBlock(dim, num_heads, mlp_ratio, 0 if i in global_blocks else window, grid_hw)
        for i in range(depth)
    )


def make_neck(dim: int, out: int) -> nn.Sequential:
    """SAM's neck: [B, dim, h, w] -> [B, out, h, w]."""
    return nn.Sequential(
        nn.Conv2d(dim, out, 1, bias=False),
        LayerNorm2d(out),
        nn.Conv2d(out, out, 3, padding=1, bias=False),
        LayerNorm2d(out),
    )


class SamImageEncoder(nn.Module):
    """SAM's image encoder: the teacher of the adapter. Defaults are SAM-H."""

    def __init__(
        self,
        *,
        image_size: int = 1024,
        embed_dim: int = 1280,
        depth: int = 32,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        window: int = 14,
        global_blocks: tuple[int, ...] = (7, 15, 23, 31),
        out: int = 256,
        patch: int = 16,
    ) -> None:
        super().__init__()
        grid = image_size // patch
        self.patch_embed = nn.Conv2d(3, embed_dim, patch, stride=patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, embed_dim))
        self.blocks = make_blocks(
            embed_dim, depth, num_heads, mlp_ratio, window, global_blocks, (grid, grid)
        )
        self.neck = make_neck(embed_dim, out)

    def forward(self, x: Tensor, *, recompute: bool = False) -> Tensor:
        """[B, 3, S, S] normalised pixels -> [B, out, S / 16, S / 16]."""
        cells = self.patch_embed(x).permute(0, 2, 3, 1) + self.pos_embed
        for block in self.blocks:
            cells = run_block(block, cells, recompute=recompute)
        return self.neck(cells.permute(0, 3, 1, 2))

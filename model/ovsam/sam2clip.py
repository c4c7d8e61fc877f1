"""SAM2CLIP: frozen CLIP's levels -> an image embedding like SAM's.

Source: Open-Vocabulary SAM paper, section 3.2. Where the paper says "bilinear upsampling and
addition", the released model projects each level to the same grid and adds (docs/ovsam.md).
"""

import torch
from torch import Tensor, nn

from tap_engine.model.attention import run_block
from tap_engine.model.ovsam.backbone import Levels
from tap_engine.model.ovsam.config import AdapterConfig
from tap_engine.model.ovsam.sam_encoder import make_blocks, make_neck


class Sam2Clip(nn.Module):
    """The adapter.

    Args:
        config: its sizes.
        widths: channels of the four CLIP levels.
        grid_hw: of the embedding: the input over 16.
    """

    pos_embed: Tensor

    def __init__(
        self, config: AdapterConfig, widths: tuple[int, ...], grid_hw: tuple[int, int]
    ) -> None:
        super().__init__()
        self.levels = config.levels
        dim = config.embed_dim
        # Each level comes to stride 16 without looking beyond a cell.
        to_grid = {
            0: lambda c: nn.Conv2d(c, dim, 4, stride=4),
            1: lambda c: nn.Conv2d(c, dim, 2, stride=2),
            2: lambda c: nn.Conv2d(c, dim, 1),
            3: lambda c: nn.ConvTranspose2d(c, dim, 2, stride=2),
        }
        self.projections = nn.ModuleList(to_grid[level](widths[level]) for level in config.levels)
        self.level_vectors = nn.Parameter(torch.randn(len(config.levels), dim))
        # The teacher's own table, a constant of the adapter.
        self.register_buffer("pos_embed", torch.zeros(1, *grid_hw, dim))
        self.blocks = make_blocks(
            dim,
            config.depth,
            config.num_heads,
            config.mlp_ratio,
            config.window,
            config.global_blocks,
            grid_hw,
        )
        self.neck = make_neck(dim, config.out)

    def forward(self, levels: Levels, *, recompute: bool = False) -> Tensor:
        """Four levels -> [B, out, S / 16, S / 16]."""
        cells = self.pos_embed
        for index, project, vector in zip(
            self.levels, self.projections, self.level_vectors, strict=True
        ):
            cells = cells + project(levels[index]).permute(0, 2, 3, 1) + vector
        for block in self.blocks:
            cells = run_block(block, cells, recompute=recompute)
        return self.neck(cells.permute(0, 3, 1, 2))

"""SAM's prompt encoder: labelled points and boxes -> tokens. Frozen.

Unlike TAP's it does not cut coordinates at the edge, and the image need not be square. It carries
SAM's mask input, which nothing here uses, so that a SAM checkpoint fits.
"""

import math

import torch
from torch import Tensor, nn

from tap_engine.model.ovsam.sam_encoder import LayerNorm2d
from tap_engine.model.prompt_encoder import Label


class SamPromptEncoder(nn.Module):
    """Labels are those of `prompt_encoder.Label`; PADDING is SAM's "not a point"."""

    coord_matrix: Tensor

    def __init__(self, embed_dim: int, image_hw: tuple[int, int]) -> None:
        super().__init__()
        self.image_hw = image_hw
        self.register_buffer("coord_matrix", torch.randn(2, embed_dim // 2))
        self.point_embed = nn.Embedding(4, embed_dim)
        self.not_a_point = nn.Embedding(1, embed_dim)
        self.no_mask = nn.Embedding(1, embed_dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, 2, stride=2),
            LayerNorm2d(4),
            nn.GELU(),
            nn.Conv2d(4, 16, 2, stride=2),
            LayerNorm2d(16),
            nn.GELU(),
            nn.Conv2d(16, embed_dim, 1),
        )
        self.requires_grad_(False)

    def forward(self, points: Tensor, labels: Tensor) -> Tensor:
        """Tokens of points; a box is two points, its corners.

        Args:
            points: [..., K, 2] (x, y) px of the input; an integer is the centre of a pixel.
            labels: [..., K] int64 of `Label`.

        Returns:
            [..., K, C] float32.
        """
        height, width = self.image_hw
        size = points.new_tensor([width, height], dtype=torch.float32)
        code = self._code((points.float() + 0.5) / size)
        padding = (labels == Label.PADDING).unsqueeze(-1)
        vectors = self.point_embed(labels.clamp(max=3))
        return torch.where(padding, self.not_a_point.weight[0], code + vectors)

    def dense(self, grid_hw: tuple[int, int]) -> Tensor:
        """[1, C, h, w]: what is added to the image where there is no mask prompt."""
        return self.no_mask.weight.view(1, -1, 1, 1).expand(1, -1, *grid_hw)

    def grid_code(self, grid_hw: tuple[int, int]) -> Tensor:
        """[h, w, C] float32 position code of cell centres."""
        h, w = grid_hw
        device = self.coord_matrix.device
        y = (torch.arange(h, device=device) + 0.5) / h
        x = (torch.arange(w, device=device) + 0.5) / w
        return self._code(torch.stack([x.expand(h, w), y[:, None].expand(h, w)], dim=-1))

    def _code(self, positions: Tensor) -> Tensor:
        # Written out and not as a matrix product, which autocast would do in half precision.
        x, y = (2 * positions - 1).split(1, dim=-1)
        matrix = self.coord_matrix.float()
        phase = (x * matrix[0] + y * matrix[1]) * (2 * math.pi)
        return torch.cat([phase.sin(), phase.cos()], dim=-1)

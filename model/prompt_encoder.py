"""Prompt encoder: points and boxes become tokens, grid cells get a position code.

Random Fourier features with a learned vector per label, as in SAM, without any mask input
(TAP paper, appendix A). Always computed in float32: the phases are large, half precision would
move a point by several pixels.
"""

import math

import torch
from torch import Tensor, nn


class Label:
    """Kinds of prompt points.

    Plain integers, because torch.compile takes `tensor == member` of an enumeration for False.
    """

    BACKGROUND = 0
    FOREGROUND = 1
    BOX_TOP_LEFT = 2
    BOX_BOTTOM_RIGHT = 3
    PADDING = 4
    COUNT = 5


def attended(labels: Tensor) -> Tensor:
    """Marks the tokens of each prompt that the decoder looks at; the rest fills up the array.

    A prompt that starts with a box has no padding token, loose points end in exactly one, as in
    the released inference code. Whatever padding lies beyond that is surplus, so that the number of
    columns of a batch never matters (docs/decisions/0100).

    Args:
        labels: [..., K] int64, of `Label`.

    Returns:
        [..., K] bool.
    """
    padding = labels == Label.PADDING
    first = padding & (padding.cumsum(-1) == 1)
    return ~padding | (first & (labels[..., :1] != Label.BOX_TOP_LEFT))


class PromptEncoder(nn.Module):
    """Labelled points -> tokens."""

    coord_matrix: Tensor

    def __init__(self, embed_dim: int, image_size: int, fourier_scale: float = 1.0) -> None:
        super().__init__()
        self.image_size = image_size
        self.register_buffer("coord_matrix", torch.randn(2, embed_dim // 2) * fourier_scale)
        self.point_embed = nn.Embedding(Label.COUNT, embed_dim)

    def forward(self, points: Tensor, labels: Tensor) -> Tensor:
        """Tokens of points; a box is two points, its corners.

        Args:
            points: [..., K, 2] (x, y) px in the model's square input; an integer is the centre of
                a pixel. Points off the image count as on its edge.
            labels: [..., K] int64, of `Label`; where PADDING, the point is not looked at.

        Returns:
            [..., K, C] float32.
        """
        code = self.position_code(((points.float() + 0.5) / self.image_size).clamp(0, 1))
        code = torch.where(labels.unsqueeze(-1) == Label.PADDING, 0.0, code)
        return code + self.point_embed(labels).float()

    def grid_code(self, grid_hw: tuple[int, int]) -> Tensor:
        """Position code of cell centres, [H, W, C] float32."""
        h, w = grid_hw
        device = self.coord_matrix.device
        y = (torch.arange(h, device=device) + 0.5) / h
        x = (torch.arange(w, device=device) + 0.5) / w
        centres = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], dim=-1)
        return self.position_code(centres)

    def position_code(self, positions: Tensor) -> Tensor:
        """[..., 2] (x, y) in [0, 1] -> [..., C]: sines, then cosines, of random phases."""
        x, y = ((2 * positions - 1) * (2 * math.pi)).split(1, dim=-1)
        # Written out and not as a matrix product, which autocast would do in half precision.
        phase = x * self.coord_matrix[0].float() + y * self.coord_matrix[1].float()
        return torch.cat([phase.sin(), phase.cos()], dim=-1)

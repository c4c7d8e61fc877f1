"""CLIP2SAM: a feature pyramid on frozen CLIP, and what it says of a box.

Source: Open-Vocabulary SAM paper, section 3.2. Details that the paper leaves open are those that
the released model's behaviour shows (docs/ovsam.md): one RoIAlign level for each box, a 1x1
convolution with ReLU, the mean of the grid; no MLP.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, roi_align

from tap_engine.model.ovsam.backbone import Levels
from tap_engine.model.ovsam.config import STRIDES, HeadConfig


class Pyramid(nn.Module):
    """Four CLIP levels -> four maps of equal width: 1x1 lateral, nearest top-down sum, 3x3."""

    def __init__(self, widths: tuple[int, ...], out: int) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(widths), out)

    def forward(self, levels: Levels) -> Levels:
        """[B, C_i, h_i, w_i] -> [B, out, h_i, w_i]."""
        named = {str(i): level for i, level in enumerate(levels)}
        return tuple(self.fpn(named).values())


class RegionEmbedding(nn.Module):
    """Boxes on a pyramid -> vectors in CLIP's space."""

    def __init__(self, config: HeadConfig, embed_dim: int) -> None:
        super().__init__()
        self.grid, self.finest = config.roi_grid, config.finest_scale
        self.project = nn.Conv2d(config.pyramid_dim, embed_dim, 1, bias=False)

    def forward(self, pyramid: Levels, rois: Tensor) -> Tensor:
        """[K, E] embeddings, not normalised.

        Args:
            pyramid: of `Pyramid`.
            rois: [K, 5]: image, then xyxy px of the input.
        """
        return F.relu(self.project(self.align(pyramid, rois))).mean((2, 3))

    def align(self, pyramid: Levels, rois: Tensor) -> Tensor:
        """[K, C, g, g]: each box sampled on its own level."""
        levels = roi_levels(rois[:, 1:], self.finest)
        grid = (self.grid, self.grid)
        out = pyramid[0].new_zeros(len(rois), pyramid[0].shape[1], *grid)
        for level, (features, stride) in enumerate(zip(pyramid, STRIDES, strict=True)):
            mine = levels == level
            if mine.any():
                # Adaptive sampling and half-pixel boxes; torchvision's own multi-scale pooler has
                # neither.
                picked = rois[mine].to(features.dtype)
                out[mine] = roi_align(
                    features, picked, grid, 1 / stride, sampling_ratio=0, aligned=True
                )
        return out


def roi_levels(boxes: Tensor, finest_scale: float) -> Tensor:
    """[K] int64 pyramid level of [K, 4] boxes: one more for every doubling of the side.

    Source: Lin et al., "Feature Pyramid Networks" (2017), equation 1, as mmdetection has it.
    """
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
    return torch.log2(side / finest_scale + 1e-6).floor().clamp(0, 3).long()

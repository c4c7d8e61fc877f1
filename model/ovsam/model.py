"""The network, put together: picture -> levels, embedding and pyramid; prompts -> masks and scores.

Shapes: B pictures, P prompts per picture, K boxes in all, S side of the input, C classes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tap_engine.model.ovsam.backbone import FrozenClip, Levels, resized_mask
from tap_engine.model.ovsam.clip2sam import Pyramid, RegionEmbedding
from tap_engine.model.ovsam.config import OvsamConfig
from tap_engine.model.ovsam.decoder import MaskDecoder
from tap_engine.model.ovsam.prompt_encoder import SamPromptEncoder
from tap_engine.model.ovsam.sam2clip import Sam2Clip


class Encoded(NamedTuple):
    """What prompts are answered from.

    Attributes:
        stage4: [B, C, S / 32, S / 32] of frozen CLIP.
        embedding: [B, out, S / 16, S / 16] of the adapter.
        pyramid: four maps of equal width, strides 4 to 32.
    """

    stage4: Tensor
    embedding: Tensor
    pyramid: Levels

    def image(self, index: int) -> "Encoded":
        """One picture of the batch, still with a leading axis."""
        one = slice(index, index + 1)
        levels = tuple(level[one] for level in self.pyramid)
        return Encoded(self.stage4[one], self.embedding[one], levels)  # type: ignore[arg-type]


class OvsamModel(nn.Module):
    """Open-Vocabulary SAM.

    Args:
        config: all sizes. Weights start at random: frozen CLIP's and SAM's are loaded.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: OvsamConfig) -> None:
        super().__init__()
        self.config = config
        head, widths, side = config.head, config.backbone.widths, config.image_size
        embed_dim = config.backbone.embed_dim
        self.backbone = FrozenClip(config.backbone)
        self.adapter = Sam2Clip(config.adapter, widths, (config.grid, config.grid))
        self.pyramid = Pyramid(widths, head.pyramid_dim)
        self.prompt_encoder = SamPromptEncoder(head.dim, (side, side))
        self.decoder = MaskDecoder(head, embed_dim)
        self.region_embedding = RegionEmbedding(head, embed_dim)
        for name in ("pixel_mean", "pixel_std"):
            values = torch.tensor(getattr(config, name)).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def normalise(self, images: Tensor, content_hw: Tensor) -> Tensor:
        """Pixels -> what the backbone takes; 0 beside the picture, as the released model has it.

        Args:
            images: [B, 3, S, S] uint8 RGB, the picture top left.
            content_hw: [B, 2] int64: the part of each that is picture, px.
        """
        x = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        places = torch.arange(images.shape[-1], device=x.device)
        rows = places < content_hw[:, :1].to(x.device)
        columns = places < content_hw[:, 1:].to(x.device)
        return x * (rows[:, None, :, None] & columns[:, None, None, :])

    def encode_image(self, x: Tensor) -> Encoded:
        """[B, 3, S, S] normalised pixels -> `Encoded`."""
        levels = self.backbone(x)
        return Encoded(levels[3], self.adapter(levels), self.pyramid(levels))

    def decode(
        self, embedding: Tensor, points: Tensor, labels: Tensor, *, recompute: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Prompts -> masks.

        Args:
            embedding: [B, out, h, w].
            points: [B, P, K, 2] (x, y) px of the input.
            labels: [B, P, K] of `prompt_encoder.Label`.
            recompute: make activations again in the backward pass.

        Returns:
            mask logits [B, P, S / 4, S / 4], label tokens [B, P, D].
        """
        grid = (embedding.shape[-2], embedding.shape[-1])
        prompts = self.prompt_encoder(points, labels).to(embedding.dtype)
        dense = self.prompt_encoder.dense(grid)
        dim = self.config.head.dim
        image = torch.cat([embedding[:, :dim] + dense, embedding[:, dim:]], dim=1)
        pos = self.prompt_encoder.grid_code(grid).to(embedding.dtype)
        return self.decoder(image, pos, prompts, recompute=recompute)

    def name_regions(self, pyramid: Levels, rois: Tensor, label_tokens: Tensor) -> Tensor:
        """[K, E] embeddings that the head's class scores are made of, not normalised.

        Args:
            pyramid: of `encode_image`.
            rois: [K, 5]: picture, then xyxy px of the input.
            label_tokens: [K, D] of `decode`; looked at by the label-token variant alone.
        """
        if self.config.head.classify_by == "label_token":
            return self.decoder.label_pred(label_tokens)
        return self.region_embedding(pyramid, rois)

    def clip_regions(
        self, stage4: Tensor, boxes: Tensor, mask_logits: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Frozen CLIP's own view of the regions of one picture.

        Args:
            stage4: [1, C, h, w].
            boxes: [K, 4] xyxy px of the input.
            mask_logits: [K, H, W].

        Returns:
            embeddings [K, E], and [K] bool: False where CLIP has seen nothing, since the mask is
            empty: for mask pooling, empty on this level's grid.
        """
        masks = mask_logits.float()
        inside = masks > 0
        if self.config.backbone.kind == "convnext":
            inside = resized_mask(masks, stage4.shape[-2:])
        return self.backbone.embed_regions(stage4, boxes, masks), inside.flatten(1).any(1)


def boxes_of_masks(mask_logits: Tensor, stride: int = 4) -> Tensor:
    """[K, 4] xyxy px of the input: boxes of [K, h, w] masks, the far side exclusive; 0 if empty."""
    inside = mask_logits > 0
    found = []
    for axis in (1, 2):  # rows are squeezed for x, columns for y
        line = inside.any(axis)
        size = line.shape[1]
        first = line.float().argmax(1)
        last = size - line.flip(1).float().argmax(1)
        found.append((first, last))
    (x1, x2), (y1, y2) = found
    boxes = torch.stack([x1, y1, x2, y2], dim=1).to(torch.float32) * stride
    return boxes * inside.flatten(1).any(1, keepdim=True)


def full_size_logits(
    mask_logits: Tensor,
    canvas_hw: tuple[int, int],
    content_hw: tuple[int, int],
    image_hw: tuple[int, int],
) -> Tensor:
    """[K, h, w] low-resolution logits -> [K, H, W] of the picture itself.

    Args:
        mask_logits: of `decode`.
        canvas_hw: size of the input, px.
        content_hw: the part of the input that is picture, px.
        image_hw: the picture's own size, px.
    """
    large = F.interpolate(mask_logits[:, None], canvas_hw, mode="bilinear")
    cut = large[:, :, : content_hw[0], : content_hw[1]]
    return F.interpolate(cut, image_hw, mode="bilinear")[:, 0]

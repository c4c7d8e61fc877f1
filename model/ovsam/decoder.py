"""SAM's mask decoder cut down to one mask and a label token.

Source: Open-Vocabulary SAM paper, section 3.2; the two-way transformer is SAM's, the same maths as
TAP's. Tokens are [label, mask, prompts]; there is no IoU token and no IoU head.
"""

import torch
from torch import Tensor, nn

from tap_engine.model.attention import run_block
from tap_engine.model.image_decoder import (
    Quarters,
    TokenMlp,
    TwoWayTransformer,
    cells_to_pixels,
    upscale,
)
from tap_engine.model.ovsam.config import HeadConfig


class MaskDecoder(nn.Module):
    """Prompt tokens and an image embedding -> one mask each, and the refined label token."""

    def __init__(self, config: HeadConfig, embed_dim: int) -> None:
        super().__init__()
        dim, decoder = config.dim, config.decoder
        self.dim = dim
        self.transformer = TwoWayTransformer(dim, decoder)
        self.label_token = nn.Embedding(1, dim)
        self.mask_token = nn.Embedding(1, dim)
        for token in (self.label_token, self.mask_token):
            nn.init.normal_(token.weight, std=decoder.token_std)
        self.output_conv = nn.Sequential(
            Quarters(dim, dim // 4),
            nn.LayerNorm(dim // 4, eps=1e-6),
            nn.GELU(),
            Quarters(dim // 4, dim // 8),
            nn.GELU(),
        )
        self.mask_pred = TokenMlp(dim, dim, dim // 8)
        self.mask_bias = nn.Parameter(torch.zeros(())) if decoder.mask_bias else None
        # The released model keeps this but multiplies what it says by 0 (docs/ovsam.md).
        self.label_pred = TokenMlp(dim, dim, embed_dim)

    def forward(
        self, image: Tensor, image_pos: Tensor, prompts: Tensor, *, recompute: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Masks and label tokens of all prompts.

        Args:
            image: [B, D or 4 D, h, w] embedding with the dense prompt added to its first D.
            image_pos: [h, w, D] the grid's position code.
            prompts: [B, P, K, D] prompt tokens.
            recompute: make activations again in the backward pass.

        Returns:
            mask logits [B, P, 4h, 4w], label tokens [B, P, D].
        """
        batch, count = prompts.shape[:2]
        image, fine = image[:, : self.dim], image[:, self.dim :]
        learned = torch.cat([self.label_token.weight, self.mask_token.weight])
        tokens = torch.cat([learned.expand(batch, count, -1, -1), prompts], dim=2)
        cells = image.flatten(2).transpose(1, 2).unsqueeze(1)
        tokens, cells = self.transformer(
            tokens, cells, image_pos.flatten(0, 1), recompute=recompute
        )
        logits = run_block(self._mask, tokens[:, :, 1], cells, fine, recompute=recompute)
        return cells_to_pixels(logits, image.shape[-2:])[:, :, 0], tokens[:, :, 0]

    def _mask(self, mask_token: Tensor, cells: Tensor, fine: Tensor) -> Tensor:
        kernel = self.mask_pred(mask_token).unsqueeze(2)
        features = upscale(self.output_conv, cells, fine)
        logits = kernel @ features.flatten(2, 4).transpose(2, 3)
        return logits if self.mask_bias is None else logits + self.mask_bias

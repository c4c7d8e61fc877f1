"""Two-way decoder: prompt tokens and image embedding -> masks, IoU, semantic tokens.

Source: TAP paper, section 3.1 and appendix A. Prompts of one image start from the same embedding,
so the first block projects it once per image and lets all prompts attend to it as one batch row;
only its output differs by prompt. That is the same arithmetic as a copy of the embedding per
prompt, at about four fifths of the work.

Shapes: B images, P prompts per image, Q = 1 before the image side differs by prompt and P after,
T tokens, N = h * w cells, D channels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tap_engine.model.attention import Mlp, attention, run_block
from tap_engine.model.config import DecoderConfig

NUM_OUTPUTS = 4
"""Masks per prompt, each with its own semantic token: 0 for boxes, 1-3 for points (appendix A)."""


@dataclass(frozen=True, slots=True)
class RegionOutput:
    """Output of the decoder per prompt, for each of its four candidate masks.

    Attributes:
        mask_logits: [B, P, 4, 4h, 4w]; above 0 is inside.
        iou_pred: [B, P, 4] estimate of each mask's IoU, not squashed.
        mask_tokens: [B, P, 4, D].
        sem_tokens: [B, P, 4, D], prompts of the text decoder.
        sem_embeds: [B, P, 4, E] visual embeddings in the teacher's space, not normalised.
    """

    mask_logits: Tensor
    iou_pred: Tensor
    mask_tokens: Tensor
    sem_tokens: Tensor
    sem_embeds: Tensor

    def select(self, index: Tensor) -> "RegionOutput":
        """One candidate per prompt, by its [B, P] index; every field loses its third axis."""

        def pick(x: Tensor) -> Tensor:
            where = index.view(*index.shape, *[1] * (x.ndim - 2)).expand(-1, -1, 1, *x.shape[3:])
            return x.gather(2, where).squeeze(2)

        return RegionOutput(
            pick(self.mask_logits),
            pick(self.iou_pred),
            pick(self.mask_tokens),
            pick(self.sem_tokens),
            pick(self.sem_embeds),
        )


class TokenMlp(nn.Module):
    """Three linear layers with ReLU between."""

    def __init__(self, dim: int, hidden: int, out_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(dim, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, out_dim)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., out_dim]."""
        first, second, third = self.layers
        return third(F.relu(second(F.relu(first(x)))))


class Attention(nn.Module):
    """Multi-head attention with separate projections, over [B, P, tokens, D]."""

    def __init__(self, dim: int, num_heads: int, inner: int, copy_init: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.proj = nn.Linear(inner, dim)
        if copy_init:
            nn.init.orthogonal_(self.v_proj.weight)
            with torch.no_grad():
                self.proj.weight.copy_(self.v_proj.weight.T)
            nn.init.zeros_(self.v_proj.bias)
            nn.init.zeros_(self.proj.bias)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        q_pos: Tensor | None = None,
        k_pos: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """Queries look at keys.

        Args:
            q: [B, P or 1, Nq, D]; 1 where all prompts ask the same.
            k: [B, P or 1, Nk, D]; 1 where all prompts look at the same.
            v: the values; shape as `k`.
            q_pos: [Nq, D] position code of the queries, where it is the same for all prompts.
            k_pos: [Nk, D] of the keys.
            seen: [B, P, Nk] bool, the keys that are looked at, where keys differ by prompt; None
                for all.

        Returns:
            [B, P, Nq, D].
        """
        q, k, v = _project(self.q_proj, q, q_pos), _project(self.k_proj, k, k_pos), self.v_proj(v)
        prompts = max(q.shape[1], k.shape[1])
        if k.shape[1] == 1 < prompts:
            # All prompts look at one image: one row of P * Nq queries, keys read once.
            out = self._attend(q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2))
            out = out.unflatten(1, (prompts, -1))
        else:
            q = q.expand(-1, prompts, -1, -1)
            rows = None if seen is None else seen.flatten(0, 1)
            out = self._attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), rows)
            out = out.unflatten(0, (-1, prompts))
        return self.proj(out)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)) for x in (q, k, v))
        return attention(q, k, v, seen=seen).flatten(2)


def _project(linear: nn.Linear, x: Tensor, pos: Tensor | None) -> Tensor:
    """linear(x + pos); for many prompts the code is projected alone, and no sum each is kept."""
    if pos is None or x.shape[1] == 1:
        return linear(x if pos is None else x + pos)
    return linear(x) + F.linear(pos, linear.weight)


class TwoWayBlock(nn.Module):
    """Tokens attend to each other, to the image, and the image attends to the tokens; post-norm."""

    def __init__(self, dim: int, config: DecoderConfig, *, first: bool) -> None:
        super().__init__()
        heads, copy_init = config.num_heads, config.copy_init
        inner = int(dim * config.attn_ratio)
        self.first = first
        self.first_residual = config.first_residual
        self.self_attn = Attention(dim, heads, dim, copy_init)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, heads, inner, copy_init)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, config.mlp_dim, nn.ReLU)
        self.norm3 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, heads, inner, copy_init)
        self.norm4 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        query_pos: Tensor,
        key_pos: Tensor,
        seen: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One round.

        Args:
            query: [B, P, T, D] tokens.
            key: [B, Q, N, D] image side.
            query_pos: [B, P, T, D] the tokens' position code: the tokens as they first came in.
            key_pos: [N, D] the grid's position code.
            seen: [B, P, T] bool, the tokens that tokens and image look at; None for all.

        Returns:
            New query [B, P, T, D] and key [B, P, N, D].
        """
        if self.first:
            # The query is its own position code here, so neither is added; officially the block
            # keeps no residual either.
            attended = self.self_attn(query, query, query, seen=seen)
            query = self.norm1(query + attended if self.first_residual else attended)
        else:
            q = query + query_pos
            query = self.norm1(query + self.dropout(self.self_attn(q, q, query, seen=seen)))
        attended = self.cross_attn_token_to_image(query + query_pos, key, key, k_pos=key_pos)
        query = self.norm2(query + self.dropout(attended))
        query = self.norm3(query + self.dropout(self.mlp(query)))
        attended = self.cross_attn_image_to_token(
            key, query + query_pos, query, q_pos=key_pos, seen=seen
        )
        return query, self.norm4(key + attended)


class TwoWayTransformer(nn.Module):
    """The blocks and a last look of the tokens at the image."""

    def __init__(self, dim: int, config: DecoderConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            TwoWayBlock(dim, config, first=index == 0) for index in range(config.depth)
        )
        self.final_attn_token_to_image = Attention(
            dim, config.num_heads, int(dim * config.attn_ratio), config.copy_init
        )
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        tokens: Tensor,
        image: Tensor,
        image_pos: Tensor,
        seen: Tensor | None = None,
        *,
        recompute: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """[B, P, T, D], [B, 1, N, D], [N, D] -> tokens [B, P, T, D], image [B, P, N, D].

        `seen` [B, P, T] bool are the tokens that count, all where it is None; what becomes of the
        others is of no meaning.
        """
        query, key = tokens, image
        for block in self.blocks:
            query, key = run_block(block, query, key, tokens, image_pos, seen, recompute=recompute)
        return run_block(self._look, query, key, tokens, image_pos, recompute=recompute), key

    def _look(self, query: Tensor, key: Tensor, query_pos: Tensor, key_pos: Tensor) -> Tensor:
        attended = self.final_attn_token_to_image(query + query_pos, key, key, k_pos=key_pos)
        return self.norm(query + self.dropout(attended))


class Quarters(nn.ConvTranspose2d):
    """A 2 x 2 stride-2 transposed convolution of cells that need not lie in a grid."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__(dim, out_dim, kernel_size=2, stride=2)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """[..., dim] -> [..., 4, out_dim]: top left, top right, bottom left, bottom right."""
        assert self.bias is not None
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)  # [4 * out_dim, dim]
        return F.linear(x, weight, self.bias.repeat(4)).unflatten(-1, (4, -1))


class ImageDecoder(nn.Module):
    """Image embedding and prompt tokens -> `RegionOutput`."""

    def __init__(self, dim: int, config: DecoderConfig) -> None:
        super().__init__()
        self.dim, self.detail = dim, config.detail
        self.sem_embed_dim = config.sem_embed_dim
        self.transformer = TwoWayTransformer(dim, config)
        self.iou_token = nn.Embedding(1, dim)
        self.sem_tokens = nn.Embedding(NUM_OUTPUTS, dim) if config.semantic else None
        self.mask_tokens = nn.Embedding(NUM_OUTPUTS, dim)
        for tokens in (self.iou_token, self.sem_tokens, self.mask_tokens):
            if tokens is not None:
                nn.init.normal_(tokens.weight, std=config.token_std)
        # Each transposed convolution maps one cell to 2 x 2, so both run as matrix products on
        # channels-last cells (see `Quarters`); names and shapes are those of the convolutions.
        self.output_conv = nn.Sequential(
            Quarters(dim, dim // 4),
            nn.LayerNorm(dim // 4),
            nn.GELU(),
            Quarters(dim // 4, dim // 8),
            nn.GELU(),
        )
        self.mask_pred = nn.ModuleList(TokenMlp(dim, dim, dim // 8) for _ in range(NUM_OUTPUTS))
        self.iou_pred = TokenMlp(dim, dim, NUM_OUTPUTS)
        self.sem_pred = (
            TokenMlp(dim, config.sem_hidden_dim, config.sem_embed_dim) if config.semantic else None
        )
        self.mask_bias = nn.Parameter(torch.zeros(())) if config.mask_bias else None
        self.activation_checkpointing = False

    def forward(
        self,
        image: Tensor,
        image_pos: Tensor,
        prompts: Tensor,
        attended: Tensor | None = None,
        *,
        masks: bool = True,
    ) -> RegionOutput:
        """All candidates of all prompts.

        Args:
            image: [B, D, h, w] image embeddings; [B, 4 * D, h, w] with `config.detail`.
            image_pos: [h, w, D] the grid's position code.
            prompts: [B, P, K, D] prompt tokens.
            attended: [B, P, K] bool, those that count (`prompt_encoder.attended`); None for all.
            masks: False gives `mask_logits` [B, P, 4, 0, 0].
        """
        batch, count = prompts.shape[:2]
        image, fine = image[:, : self.dim], image[:, self.dim :]
        grid_hw = image.shape[-2:]
        # Semantic tokens first, then IoU, then masks: the official order.
        parts = [t.weight for t in (self.sem_tokens, self.iou_token, self.mask_tokens) if t]
        learned = torch.cat(parts)
        tokens = torch.cat([learned.expand(batch, count, -1, -1), prompts], dim=2)
        seen = None if attended is None else F.pad(attended, (len(learned), 0), value=True)
        cells = image.flatten(2).transpose(1, 2).unsqueeze(1)
        recompute = self.activation_checkpointing
        tokens, cells = self.transformer(
            tokens, cells, image_pos.flatten(0, 1), seen, recompute=recompute
        )
        answers, _ = tokens.split([len(learned), prompts.shape[2]], dim=2)
        *first, iou_token, mask_tokens = answers.split([len(part) for part in parts], dim=2)
        sem_tokens = first[0] if first else torch.zeros_like(mask_tokens)
        if masks:
            logits = run_block(self._masks, mask_tokens, cells, fine, recompute=recompute)
            mask_logits = cells_to_pixels(logits, grid_hw)
        else:
            mask_logits = tokens.new_empty(batch, count, NUM_OUTPUTS, 0, 0)
        return RegionOutput(
            mask_logits=mask_logits,
            iou_pred=self.iou_pred(iou_token.squeeze(2)),
            mask_tokens=mask_tokens,
            sem_tokens=sem_tokens,
            sem_embeds=(
                self.sem_pred(sem_tokens)
                if self.sem_pred
                else mask_tokens.new_zeros(batch, count, NUM_OUTPUTS, self.sem_embed_dim)
            ),
        )

    def _masks(self, mask_tokens: Tensor, cells: Tensor, fine: Tensor) -> Tensor:
        """Logits, quarters of quarters last.

        Args:
            mask_tokens: [B, P, 4, D].
            cells: [B, P, N, D].
            fine: [B, 3 * D or 0, h, w].

        Returns:
            [B, P, 4, N * 16].
        """
        kernels = torch.stack(
            [mlp(mask_tokens[:, :, index]) for index, mlp in enumerate(self.mask_pred)], dim=2
        )
        features = upscale(self.output_conv, cells, fine)
        logits = kernels @ features.flatten(2, 4).transpose(2, 3)
        return logits if self.mask_bias is None else logits + self.mask_bias


def upscale(output_conv: nn.Sequential, cells: Tensor, fine: Tensor) -> Tensor:
    """Cells -> the pixels that a mask's kernel is applied to.

    Source of the detail: SAM 2's mask decoder adds features of stride 8 and 4 at these places.

    Args:
        output_conv: quarters, norm, activation, quarters, activation.
        cells: [B, P, N, D].
        fine: [B, 3 * D, h, w] of the encoder's finer levels, or [B, 0, h, w].

    Returns:
        [B, P, N, 4, 4, D / 8], quarters of quarters.
    """
    if not fine.shape[1]:
        return output_conv(cells)
    to_half, norm, act, to_quarter, last_act = output_conv
    dim = fine.shape[1] // 3
    half, quarter = fine.flatten(2).transpose(1, 2).unsqueeze(1).split((dim, 2 * dim), -1)
    # A cell's pixels, rows first, as quarters and as quarters of quarters.
    half = half.unflatten(-1, (-1, 4)).transpose(-1, -2)
    quarter = quarter.unflatten(-1, (-1, 2, 2, 2, 2)).permute(0, 1, 2, 4, 6, 5, 7, 3)
    x = act(norm(to_half(cells) + half))
    return last_act(to_quarter(x) + quarter.flatten(5, 6).flatten(3, 4))


def cells_to_pixels(x: Tensor, grid_hw: torch.Size) -> Tensor:
    """[B, P, M, N * 16], quarters of quarters last -> [B, P, M, 4h, 4w]."""
    h, w = grid_hw
    x = x.unflatten(-1, (h, w, 2, 2, 2, 2))
    # axes: h, w, (row, column) of the outer quarter, (row, column) of the inner
    x = x.permute(0, 1, 2, 3, 5, 7, 4, 6, 8)
    return x.flatten(6, 8).flatten(3, 5)

"""Causal transformer that writes a caption from a semantic token.

Sequence: projected semantic token at position 0, BOS at 1, words after it; rotary positions over
interleaved pairs of the whole head (TAP paper, section 3.3). Logits are read from BOS on.

Shapes: N regions, L ids, M positions, C channels, H heads of d channels, V vocabulary.
"""

import torch
from torch import Tensor, nn

from tap_engine.model.attention import FusedAttention, Mlp, attention
from tap_engine.model.config import TextConfig

ROTARY_THETA = 10000.0


class Cache:
    """Keys and values of the positions decoded so far, in one block."""

    def __init__(self, max_positions: int) -> None:
        self.max_positions = max_positions
        self.filled = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds [N, L, H, d] positions; returns all positions so far."""
        if self.keys is None or self.values is None:
            shape = (k.shape[0], self.max_positions, *k.shape[2:])
            self.keys, self.values = k.new_zeros(shape), v.new_zeros(shape)
        end = self.filled + k.shape[1]
        self.keys[:, self.filled : end] = k
        self.values[:, self.filled : end] = v
        self.filled = end
        return self.keys[:, :end], self.values[:, :end]


class CausalAttention(FusedAttention):
    """Self attention over the past, with rotary positions."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__(dim, num_heads)
        self.dropout = dropout

    def forward(self, x: Tensor, rotation: Tensor, cache: Cache | None) -> Tensor:
        """[N, L, C] new positions and their [L, d/2, 2] rotation -> [N, L, C]."""
        q, k, v = self.project(x)
        q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.extend(k, v)
        dropout = self.dropout if self.training else 0.0
        return self.proj(attention(q, k, v, causal=True, dropout=dropout).flatten(2))


class TextBlock(nn.Module):
    """Pre-norm block; dropout on both branches."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.attn = CausalAttention(dim, config.num_heads, config.dropout)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotation: Tensor, cache: Cache | None) -> Tensor:
        """[N, L, C] -> the same."""
        x = x + self.dropout(self.attn(self.norm1(x), rotation, cache))
        return x + self.dropout(self.mlp(self.norm2(x)))


class TextTransformer(nn.Module):
    """Embedded positions -> logits."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.embed_dim)
        self.blocks = nn.ModuleList(TextBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim)
        self.text_proj = nn.Linear(config.embed_dim, config.vocab_size, bias=False)

    def forward(self, x: Tensor, rotation: Tensor, caches: list[Cache] | None = None) -> Tensor:
        """[N, L, C] -> [N, L, C], normalised; project with `text_proj` what is needed."""
        for index, block in enumerate(self.blocks):
            x = block(x, rotation, caches[index] if caches is not None else None)
        return self.norm(x)


class TextDecoder(nn.Module):
    """Semantic token -> caption ids."""

    def __init__(self, config: TextConfig, prompt_dim: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.Linear(prompt_dim, config.embed_dim, bias=False)
        self.transformer = TextTransformer(config)

    def forward(self, sem_tokens: Tensor, ids: Tensor) -> Tensor:
        """Teacher-forced logits: row t predicts the id after `ids[:, t]`.

        Args:
            sem_tokens: [N, C_prompt].
            ids: [N, L] int64, BOS first; padding after EOS may be any valid id, causality keeps
                it from the past. L is at most `max_seq_len` - 1.

        Returns:
            [N, L, V].
        """
        prompt = self.encoder(sem_tokens).unsqueeze(1)
        x = torch.cat([prompt, self.transformer.tok_embeddings(ids)], dim=1)
        rotation = self._rotation(0, x.shape[1], x.device)
        return self.transformer.text_proj(self.transformer(x, rotation)[:, 1:])

    @torch.no_grad()
    def generate(
        self, sem_tokens: Tensor, *, bos_id: int, eos_id: int, max_new_tokens: int | None = None
    ) -> Tensor:
        """Greedy captions with cached keys and values.

        Args:
            sem_tokens: [N, C_prompt].
            bos_id: first id of every caption.
            eos_id: ends a caption; what follows it in a row is EOS too.
            max_new_tokens: longest caption; as long as `max_seq_len` allows by default.

        Returns:
            [N, L] int64, BOS first; L - 1 new tokens of the longest caption, EOS included.
        """
        room = self.config.max_seq_len - 2
        steps = room if max_new_tokens is None else min(max_new_tokens, room)
        rows, device = len(sem_tokens), sem_tokens.device
        ids = torch.full((rows, 1), bos_id, dtype=torch.int64, device=device)
        done = torch.zeros(rows, dtype=torch.bool, device=device)
        caches = [Cache(steps + 1) for _ in self.transformer.blocks]
        prompt = self.encoder(sem_tokens).unsqueeze(1)
        x = torch.cat([prompt, self.transformer.tok_embeddings(ids).to(prompt.dtype)], dim=1)
        for _ in range(steps):
            if done.all():
                break
            rotation = self._rotation(caches[0].filled, x.shape[1], device)
            hidden = self.transformer(x, rotation, caches)[:, -1]
            # Rows that ended keep their place in the batch and repeat EOS.
            next_id = self.transformer.text_proj(hidden).argmax(-1).masked_fill(done, eos_id)
            ids = torch.cat([ids, next_id[:, None]], dim=1)
            done |= next_id == eos_id
            x = self.transformer.tok_embeddings(next_id[:, None]).to(prompt.dtype)
        return ids

    def _rotation(self, start: int, length: int, device: torch.device) -> Tensor:
        head_dim = self.config.embed_dim // self.config.num_heads
        return rotary(start, length, head_dim, device)


def rotary(start: int, length: int, head_dim: int, device: torch.device) -> Tensor:
    """Cosine and sine of positions start .. start + length - 1: [length, head_dim / 2, 2]."""
    exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    positions = torch.arange(start, start + length, device=device, dtype=torch.float32)
    angles = torch.outer(positions, ROTARY_THETA**-exponents)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turns channel pairs (0, 1), (2, 3), ... of [N, L, H, d] by each position's angle.

    Source: RoFormer (Su et al. 2021), equation 34, in its original interleaved order.
    """
    cos, sin = rotation[:, None, :, 0], rotation[:, None, :, 1]
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def caption_lengths(ids: Tensor, eos_id: int) -> Tensor:
    """[N] ids of each row up to and including its first EOS; the whole row where there is none."""
    is_end = ids == eos_id
    first = is_end.int().argmax(-1) + 1
    return torch.where(is_end.any(-1), first, ids.shape[-1])

"""Attention kernels: torch's SDPA, or flash-attn where it is asked for and can.

Layout everywhere: [B, N, H, d] = batch, tokens, heads, channels of a head. All kernels give the
same numbers within the dtype's tolerance; none stores the [N, N] matrix on a GPU.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from tap_engine.model import attention_backends as backends

_FLASH_MAX_HEAD_DIM = 256

_WITHOUT_FLASH = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    seen: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v.

    Args:
        q: [B, N, H, d].
        k: [B, M, H, d].
        v: [B, M, H, d].
        bias: [H, N, M] added to the scaled logits of every batch row; flash-attn has no such
            input, so SDPA takes these.
        seen: [B, M] bool, the keys that every query of a row sees; at least one of each row. Not
            together with `bias` or `causal`; SDPA takes these, too.
        causal: token i sees keys up to i + M - N (the last query sees every key).
        dropout: rate on the probabilities.

    Returns:
        [B, N, H, d].
    """
    backend = backends.current()
    if backend == "flash2" and fits_flash(q, bias if seen is None else seen):
        from flash_attn import flash_attn_func

        return flash_attn_func(q, k, v, dropout_p=dropout, causal=causal)
    mask = None if bias is None else bias.to(q.dtype).unsqueeze(0)
    if seen is not None:
        mask = seen[:, None, None, :]
    if causal and q.shape[1] != k.shape[1]:
        # SDPA's own causal mask aligns the first query with the first key.
        n, m = q.shape[1], k.shape[1]
        mask = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
        causal = False
    inputs = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    if dropout and backend in backends.OF_TORCH:
        # These two raise an error at dropout instead of leaving it to another kernel.
        with sdpa_kernel(_WITHOUT_FLASH):
            out = F.scaled_dot_product_attention(*inputs, mask, dropout, causal)
    else:
        out = F.scaled_dot_product_attention(*inputs, mask, dropout, causal)
    return out.transpose(1, 2)


def fits_flash(q: Tensor, mask: Tensor | None) -> bool:
    """True if flash-attn 2 can take these inputs.

    Args:
        q: [B, N, H, d] queries.
        mask: a bias or mask of the logits; flash-attn takes none.
    """
    return (
        q.is_cuda
        and mask is None
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.shape[-1] <= _FLASH_MAX_HEAD_DIM
        and q.shape[-1] % 8 == 0
    )


class DropPath(nn.Module):
    """Drops a residual branch for whole rows of the batch while training.

    A row is what the branch sees as one: in the image encoder that is a window, not an image, and
    the attention and mlp branches draw separately (docs/model.md).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[R, ...] -> the same; kept rows are scaled by 1 / (1 - rate)."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep)
        return x * mask.div_(keep)


class FusedAttention(nn.Module):
    """The weights of self attention: one projection, rows ordered (q, k, v) x head x channel."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, C] -> q, k, v, each [B, N, H, d]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        return q, k, v


class SelfAttention(FusedAttention):
    """Plain self attention."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        q, k, v = self.project(x)
        return self.proj(attention(q, k, v).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, dim: int, hidden: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.activation = activation()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return self.fc2(self.activation(self.fc1(x)))


def run_block(block: Callable[..., Any], *inputs: Tensor | None, recompute: bool) -> Any:
    """`block(*inputs)`; with `recompute`, its activations are made again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)

"""The formula from an embedding to a distribution over concepts; both halves use it.

The data side uses it to write targets, the trainer for loss and targets, the predictor for names.
The logit scale is stated here and nowhere else: `concept_weights` multiplies it in.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def concept_weights(text_embeddings: Tensor, logit_scale: float) -> Tensor:
    """Projection weights [D, C] of unit text embeddings [C, D]: columns times the logit scale.

    The paper multiplies by 100, which is about what CLIP models learn. Give the scale that the
    teacher itself learned: a teacher that learned 22 gives nearly one-hot targets at 100.

    Source: TAP paper, appendix B, Algorithm 1.
    """
    return F.normalize(text_embeddings.float(), dim=-1).T.contiguous() * logit_scale


def concept_logits(embeddings: Tensor, weights: Tensor) -> Tensor:
    """Scaled cosine similarity to every concept.

    Args:
        embeddings: [..., D], any float dtype; normalised here, in float32.
        weights: [D, C] float32, of `concept_weights`.

    Returns:
        [..., C] float32.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        return F.normalize(embeddings.float(), dim=-1) @ weights.float()


def concept_log_probs(embeddings: Tensor, weights: Tensor) -> Tensor:
    """Log-distribution over concepts, [..., C] float32 (TAP-v2 paper, equations 1 and 2)."""
    return F.log_softmax(concept_logits(embeddings, weights), dim=-1)


def top_concepts(log_probs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most probable concepts: ids [..., k] int64 and probabilities [..., k] float32."""
    scores, ids = log_probs.topk(k, dim=-1)
    return ids, scores.exp()


def concept_entropy(log_probs: Tensor) -> Tensor:
    """Entropy [...] in nats; high where no concept fits, which users see as "unknown" (ours)."""
    return -(log_probs.exp() * log_probs).sum(-1)

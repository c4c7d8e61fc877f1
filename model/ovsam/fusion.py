"""The head's scores and frozen CLIP's, put together by a geometric mean.

Source: Open-Vocabulary SAM paper, section 3.2 ("Open Vocabulary"), after F-VLM (Kuo et al., 2023),
equation 4. The paper gives no weights; the released model has 0.1 and 0.9.
"""

import torch
from torch import Tensor

from tap_engine.model.ovsam.classes import BASE, NEITHER, NOVEL
from tap_engine.model.ovsam.config import FusionConfig

IMPOSSIBLE = -1000.0
"""Score of a class that is in neither split."""


def fuse(
    head_logits: Tensor,
    clip_logits: Tensor,
    kinds: Tensor,
    config: FusionConfig,
    seen: Tensor,
) -> Tensor:
    """[K, C + 1] logarithms of q^(1 - w) p^w, not normalised.

    Args:
        head_logits: [K, C + 1], background last; q is their softmax.
        clip_logits: [K, C + 1]; p is their softmax.
        kinds: [C] of `classes`: base classes and the background have w = alpha, novel ones beta.
        config: the weights. 0 leaves a score as the head has it, 1 as CLIP has it, exactly.
        seen: [K] bool: False where the mask is empty, so that CLIP has seen nothing: w = 0.
    """
    kinds = torch.cat([kinds, kinds.new_tensor([BASE])]).to(head_logits.device)
    weights = torch.where(kinds == NOVEL, config.beta, config.alpha)
    weights = torch.where(seen[:, None], weights, 0.0)
    q, p = head_logits.float().log_softmax(-1), clip_logits.float().log_softmax(-1)
    mixed = (1 - weights) * q + weights * p
    return mixed.masked_fill(kinds == NEITHER, IMPOSSIBLE)


def best_classes(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """([K, n] ids, [K, n] probabilities), best first, the background left out.

    Args:
        scores: [K, C + 1] logarithms, background last.
        count: how many; as many as there are classes at most.
    """
    probabilities = scores.softmax(-1)[:, :-1]
    found = probabilities.topk(min(count, probabilities.shape[1]))
    return found.indices, found.values

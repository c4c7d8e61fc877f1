"""Losses: pure functions that give one number per prompt.

Averages, weights and what to do with samples that lack a mask or a caption are objective.py's
business, so a new loss is one function here and one line there. Everything is computed in float32,
whatever precision the network ran in.

Shapes: P prompts, M masks per prompt, H x W mask pixels, C concepts, D embedding width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tap_engine.model.text_tokenizer import IGNORE

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
"""The values of the focal loss paper and of the released TAP code (`layers/loss.py`)."""


def focal_loss(
    mask_logits: Tensor, target: Tensor, alpha: float = FOCAL_ALPHA, gamma: float = FOCAL_GAMMA
) -> Tensor:
    """Focal loss, mean over the pixels of each mask.

    Args:
        mask_logits: [..., H, W], any float dtype.
        target: [..., H, W] in [0, 1]; fractions are shares of a pixel's area
            (`stream.soft_masks`).
        alpha: weight of the foreground; the background has 1 - alpha.
        gamma: strength with which well-classified pixels are discounted.

    Returns:
        [...] float32.

    Source: Lin et al., Focal loss for dense object detection; used at 20:1 with dice in the TAP
    paper, section 3.1. With 0/1 targets it equals the released code's. For soft targets (ours)
    p_t and alpha_t are the expectations over the target.
    """
    logits, target = mask_logits.float(), target.float()
    p = logits.sigmoid()
    cross_entropy = F.softplus(logits) - logits * target
    # 1 - p_t and alpha_t are affine in the target: two multiplications instead of four.
    missed = p + target * (1 - 2 * p)
    weight = (1 - alpha) + target * (2 * alpha - 1)
    discount = missed.square() if gamma == 2 else missed.pow(gamma)
    return (weight * discount * cross_entropy).flatten(-2).mean(-1)


def dice_loss(mask_logits: Tensor, target: Tensor) -> Tensor:
    """Soft dice loss of each mask.

    Args:
        mask_logits: [..., H, W], any float dtype.
        target: [..., H, W] in [0, 1].

    Returns:
        [...] float32 in [0, 1]; an empty target against an empty prediction gives about 0.

    Source: V-Net's dice with +1 smoothing, denominators not squared, as in the released TAP code.
    """
    p, target = mask_logits.float().sigmoid().flatten(-2), target.float().flatten(-2)
    overlap = (p * target).sum(-1)
    return 1 - (2 * overlap + 1) / (p.sum(-1) + target.sum(-1) + 1)


def balanced_bce_loss(mask_logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy with half of the weight on the foreground and half on the background.

    Args:
        mask_logits: [..., H, W], any float dtype.
        target: [..., H, W] in [0, 1].

    Returns:
        [...] float32.

    Source: ours. Small networks from scratch sit on "all background" for hundreds of steps under
    focal loss; this start, faded out, removes the plateau (docs/decisions/0053).
    """
    logits, target = mask_logits.float().flatten(-2), target.float().flatten(-2)
    inside = (F.softplus(-logits) * target).sum(-1) / target.sum(-1).clamp(min=1e-3)
    outside = (F.softplus(logits) * (1 - target)).sum(-1) / (1 - target).sum(-1).clamp(min=1e-3)
    return 0.5 * (inside + outside)


@torch.no_grad()
def mask_iou(mask_logits: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of predicted (logit > 0) and true (> 0.5) pixels.

    Args:
        mask_logits: [..., H, W].
        target: [..., H, W] in [0, 1].

    Returns:
        [...] float32; 0 where both are empty.
    """
    predicted, truth = (mask_logits > 0).flatten(-2), (target > 0.5).flatten(-2)
    both = (predicted & truth).sum(-1).float()
    either = predicted.sum(-1) + truth.sum(-1) - both
    return both / either.clamp(min=1)


def iou_loss(iou_pred: Tensor, iou: Tensor) -> Tensor:
    """Squared error of the predicted IoU.

    Args:
        iou_pred: [...] raw outputs of the IoU head.
        iou: [...] true values, of `mask_iou`.

    Returns:
        [...] float32.

    Source: Segment Anything, appendix A (mean squared error); the TAP papers are silent.
    """
    return (iou_pred.float() - iou.float()).square()


def concept_kl_loss(log_probs: Tensor, target_log_probs: Tensor) -> Tensor:
    """KL(target || predicted) over concepts: the usual direction of distillation.

    Args:
        log_probs: [P, C] float32, the student's.
        target_log_probs: [P, C] float32, the teacher's.

    Returns:
        [P] float32, nats.

    Source: TAP paper, section 3.1 ("KL divergence loss between the predicted distribution and the
    target distribution"); the direction is argued in docs/decisions/0050.
    """
    target = target_log_probs.exp()
    return (target * (target_log_probs - log_probs)).sum(-1)


def concept_reverse_kl_loss(log_probs: Tensor, target_log_probs: Tensor) -> Tensor:
    """KL(predicted || target): TAP-v2 paper, equation 3 taken literally; shapes as above."""
    return concept_kl_loss(target_log_probs, log_probs)


def concept_top_k_loss(log_probs: Tensor, target_ids: Tensor, target_probs: Tensor) -> Tensor:
    """KL(target || predicted) when only the teacher's K most probable concepts were kept.

    Args:
        log_probs: [P, C] float32.
        target_ids: [P, K] int64.
        target_probs: [P, K], of the full distribution; renormalised over the K here.

    Returns:
        [P] float32, nats.

    Source: ours.
    """
    target = target_probs.float()
    target = target / target.sum(-1, keepdim=True).clamp(min=1e-6)
    log_target = target.clamp(min=1e-12).log()
    return (target * (log_target - log_probs.gather(-1, target_ids))).sum(-1)


def feature_loss(embeddings: Tensor, target: Tensor) -> Tensor:
    """1 - cosine similarity of predicted and teacher's embedding.

    Args:
        embeddings: [P, D], any float dtype.
        target: [P, D].

    Returns:
        [P] float32 in [0, 2].

    Source: L_feat of the TAP-v2 paper, section 3.1, plus one: the ablation's loss.
    """
    return 1 - F.cosine_similarity(embeddings.float(), target.float(), dim=-1)


def caption_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy of the next word, summed over each caption's words.

    Args:
        logits: [N, L, V], any float dtype.
        targets: [N, L] int64, IGNORE where there is no word.
        label_smoothing: share of the target spread evenly over all words.

    Returns:
        [N] float32, nats; 0 for a row without words.

    Source: causal language modelling of the TAP paper, section 3.2.
    """
    found = F.cross_entropy(
        logits.float().transpose(1, 2),
        targets,
        ignore_index=IGNORE,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return found.sum(-1)

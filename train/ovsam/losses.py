"""The losses of both stages.

Source: Open-Vocabulary SAM paper, sections 3.2 and 4, for what is minimised; weights and the
normalisation of the class loss are the released model's (docs/ovsam.md).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tap_engine.schemas.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLossConfig:
    """What CLIP2SAM's stage minimises.

    Attributes:
        classes: weight of the class loss.
        mask: weight of the cross entropy on mask points.
        dice: weight of the dice loss on mask points.
        background: weight of the background class, which is no region's target.
        points: of a mask that are compared.
        oversample: so many times more are drawn, to take the uncertain ones of.
        importance: share of the points that are the uncertain ones.
    """

    classes: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    background: float = 0.1
    points: int = 12_544
    oversample: float = 3.0
    importance: float = 0.75

    def __post_init__(self) -> None:
        if self.points < 1 or self.oversample < 1 or not 0 <= self.importance <= 1:
            raise ConfigError(
                "loss.points and oversample must be at least 1 and importance in 0..1, got "
                f"{self.points}, {self.oversample}, {self.importance}"
            )


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """[B] mean squared error of each picture over all channels and cells, padding included."""
    return (student.float() - teacher.float()).square().flatten(1).mean(1)


def class_loss(logits: Tensor, labels: Tensor, background: float) -> tuple[Tensor, Tensor]:
    """Cross entropy of each region over the classes and the background.

    Args:
        logits: [K, C + 1], background last.
        labels: [K] int64; -1 has no loss, but counts in the divisor as class 0 does.
        background: weight of the background class.

    Returns:
        losses [K], already weighted, and [K] what each adds to the divisor.
    """
    weights = logits.new_ones(logits.shape[-1], dtype=torch.float32)
    weights[-1] = background
    target = labels.clamp(min=0)
    losses = F.cross_entropy(logits.float(), target, weight=weights, reduction="none")
    return losses * (labels >= 0), weights[target]


def sample_points(logits: Tensor, points: Tensor) -> Tensor:
    """[K, N] bilinear values of [K, h, w] maps at [K, N, 2] places, (x, y) in 0..1."""
    grid = 2 * points.unsqueeze(2) - 1
    found = F.grid_sample(logits.unsqueeze(1).float(), grid.float(), align_corners=False)
    return found[:, 0, :, 0]


@torch.no_grad()
def choose_points(
    logits: Tensor, config: HeadLossConfig, generator: torch.Generator | None = None
) -> Tensor:
    """[K, N, 2] places of each mask to compare: mostly where its logit is nearest to 0.

    Source: PointRend (Kirillov et al., 2020), section 3.1.

    Args:
        logits: [K, h, w].
        config: how many, and how they are drawn.
        generator: of the random places, on the CPU; torch's own by default.
    """
    count, device = len(logits), logits.device
    drawn = int(config.points * config.oversample)
    places = torch.rand(count, drawn, 2, generator=generator).to(device)
    uncertain = int(config.points * config.importance)
    doubt = -sample_points(logits, places).abs()
    best = doubt.topk(uncertain, dim=1).indices
    chosen = places.gather(1, best.unsqueeze(-1).expand(-1, -1, 2))
    rest = torch.rand(count, config.points - uncertain, 2, generator=generator).to(device)
    return torch.cat([chosen, rest], dim=1)


def mask_losses(logits: Tensor, targets: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """([K] cross entropy, [K] dice) of masks, each on its own points.

    Args:
        logits: [K, h, w].
        targets: [K, H, W] in 0..1, of any size.
        points: [K, N, 2], (x, y) in 0..1.
    """
    found, wanted = sample_points(logits, points), sample_points(targets, points)
    entropy = F.binary_cross_entropy_with_logits(found, wanted, reduction="none").mean(1)
    inside = found.sigmoid()
    overlap = 2 * (inside * wanted).sum(1) + 1
    return entropy, 1 - overlap / (inside.sum(1) + wanted.sum(1) + 1)

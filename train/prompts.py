"""Training prompts in two stages: a first click or box, then clicks that correct.

Stage 1 gives a box or one point. Stage 2 either adds 1 to 8 points where the prediction is wrong,
or, half of the time, forgets stage 1 and gives 1 to 9 points of the true mask at once (the
non-interactive prompts, which stand for sketches and masks). A prompt rule is one function from
seeds and masks to `PromptBatch`; everything is vectorised over P prompts and seeded by region.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tap_engine.model.prompt_encoder import Label
from tap_engine.schemas.errors import ConfigError
from tap_engine.train.data.noise import uniform


class PromptBatch(NamedTuple):
    """P prompts of the same length, padded.

    Attributes:
        points: [P, N, 2] float32 (x, y), image px.
        labels: [P, N] int64, of `Label`.
    """

    points: Tensor
    labels: Tensor

    @property
    def is_box(self) -> Tensor:
        """[P] bool: prompts that start with a box; they use output 0, the others 1 to 3."""
        return self.labels[..., 0] == Label.BOX_TOP_LEFT


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptConfig:
    """Settings by which prompts are drawn; the defaults are the papers'.

    Attributes:
        per_image: prompts per image and stage, at most ("up to 64 sampled prompts per GPU").
        box_share: probability of a box in stage 1, else one point.
        point_area: share of the image below which a region gets a point less often, in proportion
            to its area; a pixel's regions are then asked for equally often, where else the
            smallest of them would be. 0 gives all regions the same share.
        stages: 2, or 1 for boxes and single points alone.
        free_share: probability that stage 2 is non-interactive.
        correct: whose mistakes stage 2 corrects: "routed", the mask that a user would see
            (`tap.route`), or "supervised", the candidate that learns. The loss is the same.
        max_points: points of a prompt at most.
        box_jitter: standard deviation of the noise on each box side, as a share of that side.
        box_jitter_px: the noise's limit, px of the network's input.
    """

    per_image: int = 64
    box_share: float = 0.5
    point_area: float = 0.0
    stages: int = 2
    free_share: float = 0.5
    correct: str = "routed"
    max_points: int = 9
    box_jitter: float = 0.1
    box_jitter_px: float = 20.0

    def __post_init__(self) -> None:
        for name in ("box_share", "point_area", "free_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"prompts.{name} must be in [0, 1], got {getattr(self, name)}")
        if self.stages not in (1, 2):
            raise ConfigError(f"prompts.stages must be 1 or 2, got {self.stages}")
        if self.correct not in ("routed", "supervised"):
            raise ConfigError(f"prompts.correct must be routed or supervised, got {self.correct!r}")
        if self.per_image < 1 or self.max_points < 2:
            raise ConfigError(
                "prompts.per_image must be at least 1 and prompts.max_points at least 2, got "
                f"{self.per_image} and {self.max_points}"
            )
        if self.box_jitter < 0 or self.box_jitter_px < 0:
            raise ConfigError("prompts.box_jitter and box_jitter_px must not be negative")


def first_prompts(
    seeds: Tensor,
    inside: Tensor,
    boxes_xyxy: Tensor,
    has_mask: Tensor,
    image_px: int,
    config: PromptConfig,
) -> PromptBatch:
    """Stage 1: a box, or one point of the mask.

    Args:
        seeds: [P] int64.
        inside: [P, H, W] bool, the true masks (`Batch.inside`).
        boxes_xyxy: [P, 4] float32, image px.
        has_mask: [P] bool; regions without a mask always get their box.
        image_px: side of the network's input.
        config: shares and noise.

    Returns:
        PromptBatch of length 2; a point is followed by padding, as at inference.
    """
    corners = jitter_boxes(seeds, boxes_xyxy, image_px, config).view(-1, 2, 2)
    point = pick_points(seeds, inside, 1, image_px, stream=1)
    points_share = torch.full_like(boxes_xyxy[:, 0], 1 - config.box_share)
    if config.point_area:
        area = inside.flatten(1).float().mean(1)
        points_share = points_share * (area / config.point_area).clamp(max=1)
    boxed = (uniform(seeds, 0, 1)[:, 0] < 1 - points_share) | ~has_mask
    single = torch.cat([point, torch.zeros_like(point)], 1)
    labels = torch.where(
        boxed[:, None],
        torch.tensor([Label.BOX_TOP_LEFT, Label.BOX_BOTTOM_RIGHT], device=seeds.device),
        torch.tensor([Label.FOREGROUND, Label.PADDING], device=seeds.device),
    )
    return PromptBatch(torch.where(boxed[:, None, None], corners, single), labels)


def next_prompts(
    seeds: Tensor,
    first: PromptBatch,
    mask_logits: Tensor,
    inside: Tensor,
    has_mask: Tensor,
    image_px: int,
    config: PromptConfig,
) -> PromptBatch:
    """Stage 2: corrections of the prediction, or a fresh set of points of the mask.

    Args:
        seeds: [P] int64, the same as in stage 1.
        first: the prompts of stage 1.
        mask_logits: [P, H, W], the answers that are corrected.
        inside: [P, H, W] bool, the true masks.
        has_mask: [P] bool; regions without a mask get 1 to 9 points of the predicted mask, as TAP
            v1.1 does for Visual Genome: there is no error to correct. Where the prediction is
            empty, they keep the prompts of stage 1 (docs/decisions/0055).
        image_px: side of the network's input.
        config: shares and counts.

    Returns:
        PromptBatch of length max_points + 1: a box counts as one point. At least one padding
        follows points, as at inference.
    """
    extra = config.max_points - 1
    predicted = mask_logits > 0
    truth = torch.where(has_mask[:, None, None], inside, predicted)
    more, more_labels = _error_points(seeds, predicted, truth, extra, image_px)
    count = (1 + (uniform(seeds, 2, 1) * extra).floor()) * has_mask[:, None]
    corrected = _joined(first, PromptBatch(more, _keep(more_labels, count)))

    free = pick_points(seeds, truth, config.max_points, image_px, stream=5)
    count = 1 + (uniform(seeds, 6, 1) * config.max_points).floor()
    free_labels = _keep(torch.full_like(free[..., 0], Label.FOREGROUND, dtype=torch.int64), count)
    pad = PromptBatch(
        torch.zeros_like(free[:, :1]), torch.full_like(free_labels[:, :1], Label.PADDING)
    )
    fresh = _joined(PromptBatch(free, free_labels), pad)

    chosen = (uniform(seeds, 7, 1)[:, 0] < config.free_share) | ~has_mask
    chosen &= has_mask | predicted.flatten(1).any(1)
    return PromptBatch(
        torch.where(chosen[:, None, None], fresh.points, corrected.points),
        torch.where(chosen[:, None], fresh.labels, corrected.labels),
    )


def jitter_boxes(seeds: Tensor, boxes_xyxy: Tensor, image_px: int, config: PromptConfig) -> Tensor:
    """Boxes whose sides moved outwards by half-normal noise; never inwards, never off the image.

    A draw that would move a side inwards leaves it: half of the sides stay where they are.

    Args:
        seeds: [P] int64.
        boxes_xyxy: [P, 4] float32, px.
        image_px: side of the image.
        config: `box_jitter` (share of the side) and `box_jitter_px` (limit).

    Returns:
        [P, 4] float32.
    """
    a, b = uniform(seeds, 8, 4), uniform(seeds, 9, 4)
    normal = (-2 * torch.log1p(-a)).sqrt() * torch.cos(2 * torch.pi * b)  # Box-Muller
    sides = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).repeat(1, 2)
    outwards = (normal * config.box_jitter * sides).clamp(0, config.box_jitter_px)
    signs = boxes_xyxy.new_tensor([-1, -1, 1, 1])
    return (boxes_xyxy + signs * outwards).clamp(0, image_px)


def pick_points(seeds: Tensor, inside: Tensor, count: int, image_px: int, *, stream: int) -> Tensor:
    """Points drawn uniformly, with repetition, from the true pixels of each mask.

    Args:
        seeds: [P] int64.
        inside: [P, H, W] bool; a mask without true pixels gives its first pixel.
        count: points per mask.
        image_px: side of the image that the mask covers.
        stream: which draw this is.

    Returns:
        [P, count, 2] float32 (x, y) in image px, the pixel's centre: (v + 0.5) * ratio - 0.5.
    """
    height, width = inside.shape[-2:]
    upto = inside.flatten(1).cumsum(1, dtype=torch.int32)
    total = upto[:, -1:].to(torch.float64)
    rank = (uniform(seeds, stream, count).to(torch.float64) * total).floor().to(torch.int32)
    index = torch.searchsorted(upto, rank, right=True).clamp(max=height * width - 1)
    cell = torch.stack([index % width, index // width], -1).float()
    ratio = torch.tensor([image_px / width, image_px / height], device=inside.device)
    return (cell + 0.5) * ratio - 0.5


def _error_points(
    seeds: Tensor, predicted: Tensor, truth: Tensor, count: int, image_px: int
) -> tuple[Tensor, Tensor]:
    # Misses get label 1, false positives 0; where nothing is wrong the mask itself is clicked.
    wrong = predicted ^ truth
    source = torch.where(wrong.flatten(1).any(1)[:, None, None], wrong, truth)
    points = pick_points(seeds, source, count, image_px, stream=3)
    scale = truth.shape[-1] / image_px
    cell = ((points + 0.5) * scale - 0.5).round().long()
    flat = cell[..., 1] * truth.shape[-1] + cell[..., 0]
    return points, truth.flatten(1).gather(1, flat).long()


def _keep(labels: Tensor, count: Tensor) -> Tensor:
    # The first `count` labels of each row; the rest becomes padding.
    position = torch.arange(labels.shape[1], device=labels.device)
    return torch.where(position < count, labels, Label.PADDING)


def _joined(first: PromptBatch, second: PromptBatch) -> PromptBatch:
    # Valid tokens first, so that a point's padding does not stand between points.
    points = torch.cat([first.points, second.points], 1)
    labels = torch.cat([first.labels, second.labels], 1)
    order = (labels == Label.PADDING).long().argsort(dim=1, stable=True)
    return PromptBatch(
        points.gather(1, order[..., None].expand_as(points)), labels.gather(1, order)
    )

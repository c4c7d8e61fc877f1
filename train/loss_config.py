"""Which losses a run has, and their weights."""

from dataclasses import dataclass

from tap_engine.schemas.errors import ConfigError
from tap_engine.train.concepts import CONCEPT_LOSSES


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Weights and choices of the losses; docs/decisions/0050 to 0056 give the reasons.

    A part whose weight is 0 is not computed, and its columns are not read.

    Attributes:
        concept: weight of L_concept.
        segmentation: alpha, weight of L_seg = focal * F + dice * D + iou * I.
        focal, dice: 20 and 1 in the papers.
        iou: weight of the IoU head's squared error.
        focal_alpha, focal_gamma: parameters of the focal loss.
        concept_loss: "kl" (target || predicted, exact target), "reverse_kl", "top_k" (the stored
            concepts) or "feature" (cosine).
        logit_scale: logit scale of both concept distributions; 0 takes the teacher's own.
        supervise: "routed": boxes train output 0, points the best of 1 to 3, as outputs are chosen
            at inference; "best": the best of all four.
        balanced_steps: number of steps in which a balanced cross entropy fades into the focal loss.
        balanced: weight of that cross entropy at the start, in the place of `focal`.
        auxiliary: weight of the concept loss on mask-pooled image features (training only).
        pooled_regions: regions an image that this loss takes; it costs next to nothing, so they may
            be more than get prompts. 0 takes those.
        caption: beta, weight of L_cap; 0 in stage 1.
        label_smoothing: share of the target of L_cap that is spread evenly over all words.
    """

    concept: float = 1.0
    segmentation: float = 1.0
    focal: float = 20.0
    dice: float = 1.0
    iou: float = 1.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    concept_loss: str = "kl"
    logit_scale: float = 0.0
    supervise: str = "routed"
    balanced_steps: int = 0
    balanced: float = 2.0
    auxiliary: float = 0.0
    pooled_regions: int = 0
    caption: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.concept_loss not in CONCEPT_LOSSES:
            raise ConfigError(
                f"loss.concept_loss must be one of {', '.join(CONCEPT_LOSSES)}, got "
                f"{self.concept_loss!r}"
            )
        if self.supervise not in ("routed", "best"):
            raise ConfigError(f"loss.supervise must be routed or best, got {self.supervise!r}")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                f"loss.label_smoothing must be in [0, 1), got {self.label_smoothing!r}"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of `regions` that hold training targets other than masks and boxes."""
        learns_concepts = self.concept > 0 or self.auxiliary > 0
        return (
            *(CONCEPT_LOSSES[self.concept_loss].columns if learns_concepts else ()),
            *(("caption",) if self.caption > 0 else ()),
        )

"""What a step minimises: prompts, forward passes, and the weighted sum of the losses.

L = L_concept + alpha L_seg (+ beta L_cap), TAP-v2 paper, section 3.1. Every term is a number per
prompt with a flag that says whether this prompt has the term: a region without a mask has no
segmentation loss, one without a caption no caption loss. A term is averaged over the prompts that
have it, in the whole step over all processes, so the split over processes changes nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tap_engine.model.image_decoder import RegionOutput
from tap_engine.model.prompt_encoder import Label
from tap_engine.model.tap import TapModel, route
from tap_engine.schemas.errors import ConfigError
from tap_engine.train.concepts import CONCEPT_LOSSES, ConceptSpace
from tap_engine.train.losses import balanced_bce_loss, dice_loss, focal_loss, iou_loss, mask_iou
from tap_engine.train.prompts import PromptConfig, Prompts, first_prompts, next_prompts
from tap_engine.train.samples import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Weights and choices of the losses; docs/decisions/0050 to 0053 give the reasons.

    Attributes:
        concept: weight of L_concept.
        segmentation: alpha, weight of L_seg = focal * F + dice * D + iou * I.
        focal, dice: 20 and 1 in the papers.
        iou: weight of the IoU head's squared error.
        focal_alpha, focal_gamma: of the focal loss.
        concept_loss: "kl" (target || predicted, exact target), "reverse_kl", "top_k" (the stored
            concepts) or "feature" (cosine).
        logit_scale: of the concept distributions; 0 takes the teacher's own.
        supervise: "routed": boxes train output 0, points the best of 1 to 3, as outputs are chosen
            at inference; "best": the best of all four.
        balanced_steps: over so many steps a balanced cross entropy fades into the focal loss.
        balanced: weight of that cross entropy at the start, in the place of `focal`.
        auxiliary: weight of the concept loss on mask-pooled image features (training only).
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

    def __post_init__(self) -> None:
        if self.concept_loss not in CONCEPT_LOSSES:
            raise ConfigError(
                f"loss.concept_loss must be one of {', '.join(CONCEPT_LOSSES)}, got "
                f"{self.concept_loss!r}"
            )
        if self.supervise not in ("routed", "best"):
            raise ConfigError(f"loss.supervise must be routed or best, got {self.supervise!r}")


Figures = dict[str, tuple[Tensor, Tensor]]
"""Name -> (sum, count): what adds up over passes and processes before it is divided."""


class Term(NamedTuple):
    """One loss of every prompt.

    Attributes:
        name: as it is logged.
        weight: in the sum.
        values: [B, R] float32.
        group: which prompts have it, of `groups`.
    """

    name: str
    weight: float
    values: Tensor
    group: str


def groups(batch: Batch) -> dict[str, Tensor]:
    """Which regions have which kinds of terms, [B, R] bool each."""
    return {"regions": batch.valid, "masks": batch.valid & batch.has_mask}


def count(batches: Iterable[Batch]) -> dict[str, Tensor]:
    """How many regions each group has in all these batches, 0-d float32 each."""
    totals: dict[str, Tensor] = {}
    for batch in batches:
        for name, members in groups(batch).items():
            totals[name] = totals.get(name, 0) + members.sum(dtype=torch.float32)
    return totals


class Objective(nn.Module):
    """The model with what only training needs; DDP wraps this.

    Args:
        model: the network.
        space: concepts of the store.
        losses: weights.
        prompts: how prompts are drawn.

    Raises:
        ConfigError: the model's semantic embedding is not as wide as the teacher's.
    """

    def __init__(
        self, model: TapModel, space: ConceptSpace, losses: LossConfig, prompts: PromptConfig
    ) -> None:
        super().__init__()
        width = model.config.decoder.sem_embed_dim
        if width != space.embed_dim:
            raise ConfigError(
                f"model.decoder.sem_embed_dim is {width}, the store's teacher has embeddings of "
                f"{space.embed_dim}; --set model.decoder.sem_embed_dim={space.embed_dim}"
            )
        self.model = model
        self.space = space
        self.losses = losses
        self.prompts = prompts
        self.auxiliary = (
            nn.Linear(model.config.embed_dim, space.embed_dim) if losses.auxiliary else None
        )

    def forward(
        self, batch: Batch, counts: Mapping[str, Tensor], step: int
    ) -> tuple[Tensor, Figures]:
        """This pass's part of the step's loss.

        Args:
            batch: on the model's device.
            counts: of `count` over the whole step, all passes and processes.
            step: for what fades.

        Returns:
            A scalar that sums, over passes and processes, to the loss of the step; and figures.
        """
        members, truth = groups(batch), batch.masks.float() / 255
        features = self.model.encode_image(batch.images)
        loss, figures = features.new_zeros((), dtype=torch.float32), Figures()
        terms = self.auxiliary_terms(features, truth, batch)
        prompts = self.first_prompts(batch)
        for stage in range(self.prompts.stages):
            output = self.model.decode(features, prompts.points, prompts.labels)
            chosen = output.select(self.choose(output, truth, batch.has_mask, prompts))
            terms += self.stage_terms(output, chosen, truth, batch, step)
            self.watch(figures, stage, chosen, truth, prompts, members["masks"], batch)
            if stage + 1 < self.prompts.stages:
                prompts = self.next_prompts(batch, prompts, chosen.mask_logits)
        for term in terms:
            values = torch.where(members[term.group], term.values, 0.0)
            times = 1 if term.name == "auxiliary" else self.prompts.stages
            loss = loss + term.weight / times * values.sum() / counts[term.group].clamp(min=1)
            add_figure(figures, term.name, values, members[term.group])
        return loss, figures

    def stage_terms(
        self, output: RegionOutput, chosen: RegionOutput, truth: Tensor, batch: Batch, step: int
    ) -> list[Term]:
        """The losses of one round of prompts.

        Args:
            output: all four candidates.
            chosen: the supervised one of each prompt.
            truth: [B, R, H, W] in [0, 1].
            batch: for the targets.
            step: the balanced start fades with it.
        """
        w, logits = self.losses, chosen.mask_logits
        fade = min(step / w.balanced_steps, 1.0) if w.balanced_steps else 1.0
        alpha = w.segmentation
        focal = focal_loss(logits, truth, w.focal_alpha, w.focal_gamma)
        iou = mask_iou(output.mask_logits, truth.unsqueeze(2))
        concept = CONCEPT_LOSSES[w.concept_loss].loss(self.space, chosen.sem_embeds, batch)
        terms = [
            Term("focal", alpha * w.focal * fade, focal, "masks"),
            Term("dice", alpha * w.dice, dice_loss(logits, truth), "masks"),
            Term("iou", alpha * w.iou, iou_loss(output.iou_pred, iou).mean(-1), "masks"),
            Term("concept", w.concept, concept, "regions"),
        ]
        if fade < 1:
            balanced = balanced_bce_loss(logits, truth)
            terms.append(Term("balanced", alpha * w.balanced * (1 - fade), balanced, "masks"))
        return terms

    def auxiliary_terms(self, features: Tensor, truth: Tensor, batch: Batch) -> list[Term]:
        """The concept loss on image features averaged under each true mask (ours)."""
        if self.auxiliary is None:
            return []
        share = F.adaptive_avg_pool2d(truth, (features.shape[-2], features.shape[-1])).flatten(2)
        share = share / share.sum(-1, keepdim=True).clamp(min=1e-6)
        pooled = share @ features.float().flatten(2).transpose(1, 2)
        values = CONCEPT_LOSSES[self.losses.concept_loss].loss(
            self.space, self.auxiliary(pooled), batch
        )
        return [Term("auxiliary", self.losses.auxiliary, values, "masks")]

    @torch.no_grad()
    def choose(
        self, output: RegionOutput, truth: Tensor, has_mask: Tensor, prompts: Prompts
    ) -> Tensor:
        """[B, R] which candidate learns: see `LossConfig.supervise` and docs/decisions/0051."""
        first = 1 if self.losses.supervise == "routed" else 0
        logits, target = output.mask_logits[:, :, first:], truth.unsqueeze(2)
        cost = self.losses.focal * focal_loss(
            logits, target, self.losses.focal_alpha, self.losses.focal_gamma
        ) + self.losses.dice * dice_loss(logits, target)
        best = cost.argmin(-1) + first
        routed = route(output.iou_pred, prompts.labels)
        if self.losses.supervise == "routed":
            best = torch.where(prompts.labels[..., 0] == Label.BOX_TOP_LEFT, routed, best)
        return torch.where(has_mask, best, routed)

    @torch.no_grad()
    def first_prompts(self, batch: Batch) -> Prompts:
        """Stage 1 for every region of the batch."""
        flat = first_prompts(
            batch.seeds.flatten(),
            batch.masks.flatten(0, 1),
            batch.boxes_xyxy.flatten(0, 1),
            batch.has_mask.flatten(),
            self.model.config.image_size,
            self.prompts,
        )
        return _by_image(flat, batch)

    @torch.no_grad()
    def next_prompts(self, batch: Batch, prompts: Prompts, mask_logits: Tensor) -> Prompts:
        """Stage 2, after the masks that stage 1 gave."""
        flat = next_prompts(
            batch.seeds.flatten(),
            Prompts(prompts.points.flatten(0, 1), prompts.labels.flatten(0, 1)),
            mask_logits.flatten(0, 1),
            batch.masks.flatten(0, 1),
            batch.has_mask.flatten(),
            self.model.config.image_size,
            self.prompts,
        )
        return _by_image(flat, batch)

    @torch.no_grad()
    def watch(
        self,
        figures: Figures,
        stage: int,
        chosen: RegionOutput,
        truth: Tensor,
        prompts: Prompts,
        members: Tensor,
        batch: Batch,
    ) -> None:
        """Adds what a person wants to see: IoU by kind of prompt, agreement with the teacher."""
        iou = mask_iou(chosen.mask_logits, truth)
        if stage:
            return add_figure(figures, "iou_next", iou, members)
        is_box = prompts.labels[..., 0] == Label.BOX_TOP_LEFT
        add_figure(figures, "iou_box", iou, members & is_box)
        add_figure(figures, "iou_point", iou, members & ~is_box)
        top = self.space.student_log_probs(chosen.sem_embeds).argmax(-1)
        add_figure(figures, "agree", (top == self.space.teacher_top(batch)).float(), batch.valid)


def add_figure(figures: Figures, name: str, values: Tensor, members: Tensor) -> None:
    """Adds values [B, R] where `members` [B, R] to a figure."""
    total, number = figures.get(name, (values.new_zeros(()), values.new_zeros(())))
    picked = torch.where(members, values.detach(), 0.0)
    figures[name] = (total + picked.sum(), number + members.sum())


def _by_image(flat: Prompts, batch: Batch) -> Prompts:
    shape = batch.valid.shape
    return Prompts(flat.points.unflatten(0, shape), flat.labels.unflatten(0, shape))

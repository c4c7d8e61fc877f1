"""The objective of a step: prompts, forward passes, weighted sum of the losses.

L = L_concept + alpha L_seg + beta L_cap, TAP-v2 paper, section 3.1. Every term is a number per
prompt with a weight that says whether this prompt has the term: a region without a mask has no
segmentation loss, one that no teacher saw no concept loss, one without a caption no caption loss.
A term is averaged over the prompts that have it (L_cap over their words), in the whole step over
all processes, so the split over processes changes nothing.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tap_engine.model.image_decoder import RegionOutput
from tap_engine.model.tap import TapModel, route
from tap_engine.model.text_tokenizer import IGNORE
from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.keys import SOURCES, unpack_image_id
from tap_engine.train.concepts import CONCEPT_LOSSES, ConceptSpace
from tap_engine.train.data.examples import Batch
from tap_engine.train.loss_config import LossConfig
from tap_engine.train.losses import (
    balanced_bce_loss,
    caption_loss,
    dice_loss,
    focal_loss,
    iou_loss,
    mask_iou,
)
from tap_engine.train.prompts import PromptBatch, PromptConfig, first_prompts, next_prompts
from tap_engine.train.terms import Figures, Term, add_figure, groups

_OWN_CELLS = 8
"""Cells of the image embedding from which on a region counts fully in the auxiliary loss; ours."""


class Objective(nn.Module):
    """The model with what only training needs; DDP wraps this.

    Args:
        model: the network.
        space: concepts of the stores; None where none has any, as for captions alone.
        losses: weights.
        prompts: the rule by which prompts are drawn.
        by_source: report the losses of each data source, too: "vg/caption".

    Raises:
        ConfigError: the model's semantic embedding is not as wide as the teacher's, or there is
            none to learn concepts with.
    """

    def __init__(
        self,
        model: TapModel,
        space: ConceptSpace | None,
        losses: LossConfig,
        prompts: PromptConfig,
        *,
        by_source: bool = False,
    ) -> None:
        super().__init__()
        width = model.config.decoder.sem_embed_dim
        if losses.concept and not model.config.decoder.semantic:
            raise ConfigError(
                "a decoder without semantic tokens predicts no concepts: --set loss.concept=0"
            )
        learned = losses.concept or losses.auxiliary
        if space is not None and learned and width != space.embed_dim:
            raise ConfigError(
                f"model.decoder.sem_embed_dim is {width}, the store's teacher has embeddings of "
                f"{space.embed_dim}; --set model.decoder.sem_embed_dim={space.embed_dim}"
            )
        self.model = model
        self.space = space
        self.losses = losses
        self.prompts = prompts
        self.by_source = by_source
        self.auxiliary = nn.Linear(model.config.embed_dim, width) if losses.auxiliary else None

    def train(self, mode: bool = True) -> "Objective":
        """Training mode for what trains.

        What is frozen stays as it is used: no dropout, no drop path, no batch statistics.
        """
        super().train(mode)
        if mode:
            _rest(self)
        return self

    def unused(self) -> tuple[str, ...]:
        """Name prefixes of parameters that none of the losses depends on.

        They get no gradient, so they must not be trained: processes would wait for each other's.
        """
        w = self.losses
        without = {
            "model.image_decoder.sem_pred.": w.concept > 0,
            "model.image_decoder.mask_pred.": w.segmentation > 0,
            "model.image_decoder.mask_bias": w.segmentation > 0,
            "model.image_decoder.output_conv.": w.segmentation > 0,
            "model.image_decoder.iou_pred.": w.segmentation > 0,
            "model.image_encoder.detail.": w.segmentation > 0,
            "model.text_decoder.": w.caption > 0,
        }
        return tuple(prefix for prefix, used in without.items() if not used)

    def forward(
        self, batch: Batch, counts: Mapping[str, Tensor], step: int
    ) -> tuple[Tensor, Figures]:
        """This pass's part of the step's loss.

        Args:
            batch: the batch, on the model's device.
            counts: what `count` gives over the whole step, all passes and processes.
            step: the number of the step; some weights fade with it.

        Returns:
            A scalar that sums, over passes and processes, to the loss of the step; and figures.
        """
        members = groups(batch)
        features = self.model.encode_image(batch.images)
        loss, figures = features.new_zeros((), dtype=torch.float32), Figures()
        terms = self.auxiliary_terms(features, batch)
        batch = batch.asked()
        truth = batch.cover()
        sources = self.sources(batch)
        prompts = self.first_prompts(batch)
        for stage in range(self.prompts.stages):
            last = stage + 1 == self.prompts.stages
            masks = self.losses.segmentation > 0 or not last
            output = self.model.decode(features, prompts.points, prompts.labels, masks=masks)
            chosen = output.select(self.choose(output, truth, batch.has_mask, prompts))
            terms += self.stage_terms(output, chosen, truth, batch, step)
            self.watch(figures, stage, chosen, truth, prompts, members["masks"], batch)
            if not last:
                shown = self.shown(output, chosen, prompts)
                prompts = self.next_prompts(batch, prompts, shown.mask_logits)
        for term in terms:
            weights = members[term.group]
            values = torch.where(weights > 0, term.values, 0.0)
            times = 1 if term.name == "auxiliary" else self.prompts.stages
            loss = loss + term.weight / times * values.sum() / counts[term.group].clamp(min=1)
            add_figure(figures, term.name, values, weights)
            for source, images in sources.items():
                add_figure(figures, f"{source}/{term.name}", values, weights * images)
        return loss, figures

    def sources(self, batch: Batch) -> dict[str, Tensor]:
        """Data source -> which images of the batch are of it, [B, 1] bool.

        All sources that there are: every process has to report the same figures.
        """
        if not self.by_source:
            return {}
        found = [unpack_image_id(image_id)[0] for image_id in batch.image_ids]
        device = batch.images.device
        return {
            source: torch.tensor([name == source for name in found], device=device)[:, None]
            for source in SOURCES
        }

    def stage_terms(
        self, output: RegionOutput, chosen: RegionOutput, truth: Tensor, batch: Batch, step: int
    ) -> list[Term]:
        """The losses of one round of prompts.

        Args:
            output: all four candidates.
            chosen: the supervised one of each prompt.
            truth: [B, R, H, W] in [0, 1].
            batch: holds the targets.
            step: the balanced start fades with it.
        """
        w, terms = self.losses, []
        if w.segmentation > 0:
            terms += self.mask_terms(output, chosen.mask_logits, truth, step)
        if w.concept > 0:
            concept = self.concept_loss(chosen.sem_embeds, batch)
            terms.append(Term("concept", w.concept, concept, "concepts"))
        if w.caption > 0:
            terms += self.caption_terms(chosen, batch)
        return terms

    def mask_terms(
        self, output: RegionOutput, logits: Tensor, truth: Tensor, step: int
    ) -> list[Term]:
        """L_seg; `logits` [B, R, H, W] are the supervised candidate's."""
        w, alpha = self.losses, self.losses.segmentation
        fade = min(step / w.balanced_steps, 1.0) if w.balanced_steps else 1.0
        focal = focal_loss(logits, truth, w.focal_alpha, w.focal_gamma)
        iou = mask_iou(output.mask_logits, truth.unsqueeze(2))
        terms = [
            Term("focal", alpha * w.focal * fade, focal, "masks"),
            Term("dice", alpha * w.dice, dice_loss(logits, truth), "masks"),
            Term("iou", alpha * w.iou, iou_loss(output.iou_pred, iou).mean(-1), "masks"),
        ]
        if fade < 1:
            balanced = balanced_bce_loss(logits, truth)
            terms.append(Term("balanced", alpha * w.balanced * (1 - fade), balanced, "masks"))
        return terms

    def concept_loss(self, embeds: Tensor, batch: Batch) -> Tensor:
        """[B, R] the concept loss of predicted embeddings [B, R, D].

        In a batch without targets it is 0, yet a function of the embeddings: every process has the
        same gradients to exchange.
        """
        assert self.space is not None, "stores with concepts are checked for when a run is opened"
        if batch.embeddings is None and batch.concept_ids is None:
            return 0 * embeds.sum(-1)
        return CONCEPT_LOSSES[self.losses.concept_loss].loss(self.space, embeds, batch)

    def caption_terms(self, chosen: RegionOutput, batch: Batch) -> list[Term]:
        """L_cap of the captioned regions, and the share of next words that are right.

        Only captioned regions are decoded; in a batch without any, one that counts nothing, for
        the same reason as in `concept_loss`.
        """
        tokens = self.model.caption_tokens(chosen).flatten(0, 1)
        values, right = tokens.new_zeros(2, len(tokens), dtype=torch.float32)
        if batch.words is None:
            words = torch.full((1, 2), IGNORE, device=tokens.device)
            rows = torch.zeros(1, dtype=torch.int64, device=tokens.device)
        else:
            words = batch.words.flatten(0, 1)
            rows = (words[:, 0] != IGNORE).nonzero().flatten()
            rows = rows if len(rows) else rows.new_zeros(1)
            longest = int((words[rows] != IGNORE).sum(-1).max().clamp(min=2))
            words = words[rows, :longest]
        ids, targets = words[:, :-1].clamp(min=0), words[:, 1:]
        logits = self.model.caption_logits(tokens[rows], ids)
        loss = caption_loss(logits, targets, self.losses.label_smoothing)
        hits = ((logits.argmax(-1) == targets) & (targets != IGNORE)).sum(-1).float()
        shape = batch.valid.shape
        return [
            Term(
                "caption",
                self.losses.caption,
                values.index_copy(0, rows, loss).view(shape),
                "words",
            ),
            Term("next_word", 0.0, right.index_copy(0, rows, hits).view(shape), "words"),
        ]

    def auxiliary_terms(self, features: Tensor, batch: Batch) -> list[Term]:
        """The concept loss on image features averaged under each true mask (ours).

        A region that covers few cells of the image embedding has little there that is its own, and
        scenes have more small regions than large ones: it counts by the cells it covers.
        """
        if self.auxiliary is None:
            return []
        truth = batch.cover()
        share = F.adaptive_avg_pool2d(truth, (features.shape[-2], features.shape[-1])).flatten(2)
        cells = share.sum(-1, keepdim=True)
        share = share / cells.clamp(min=1e-6)
        embedding = features[:, : self.model.config.embed_dim].float()
        pooled = share @ embedding.flatten(2).transpose(1, 2)
        values = self.concept_loss(self.auxiliary(pooled), batch)
        values = values * (cells.squeeze(-1) / _OWN_CELLS).clamp(max=1)
        return [Term("auxiliary", self.losses.auxiliary, values, "pooled")]

    @torch.no_grad()
    def choose(
        self, output: RegionOutput, truth: Tensor, has_mask: Tensor, prompts: PromptBatch
    ) -> Tensor:
        """[B, R] which candidate learns: see `LossConfig.supervise` and docs/decisions/0051.

        Without a mask, or where masks are not learned, the one that is used at inference.
        """
        if self.losses.segmentation == 0:
            return route(output.iou_pred, prompts.labels)
        first = 1 if self.losses.supervise == "routed" else 0
        logits, target = output.mask_logits[:, :, first:], truth.unsqueeze(2)
        cost = self.losses.focal * focal_loss(
            logits, target, self.losses.focal_alpha, self.losses.focal_gamma
        ) + self.losses.dice * dice_loss(logits, target)
        best = cost.argmin(-1) + first
        routed = route(output.iou_pred, prompts.labels)
        if self.losses.supervise == "routed":
            best = torch.where(prompts.is_box, routed, best)
        return torch.where(has_mask, best, routed)

    @torch.no_grad()
    def shown(
        self, output: RegionOutput, chosen: RegionOutput, prompts: PromptBatch
    ) -> RegionOutput:
        """The candidate that stage 2 corrects: see `PromptConfig.correct`."""
        if self.prompts.correct == "supervised":
            return chosen
        return output.select(route(output.iou_pred, prompts.labels))

    @torch.no_grad()
    def first_prompts(self, batch: Batch) -> PromptBatch:
        """Stage 1 for every region of the batch."""
        flat = first_prompts(
            batch.seeds.flatten(),
            batch.inside().flatten(0, 1),
            batch.boxes_xyxy.flatten(0, 1),
            batch.has_mask.flatten(),
            self.model.config.image_size,
            self.prompts,
        )
        return _by_image(flat, batch)

    @torch.no_grad()
    def next_prompts(self, batch: Batch, prompts: PromptBatch, mask_logits: Tensor) -> PromptBatch:
        """Stage 2, after the masks that stage 1 gave."""
        flat = next_prompts(
            batch.seeds.flatten(),
            PromptBatch(prompts.points.flatten(0, 1), prompts.labels.flatten(0, 1)),
            mask_logits.flatten(0, 1),
            batch.inside().flatten(0, 1),
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
        prompts: PromptBatch,
        members: Tensor,
        batch: Batch,
    ) -> None:
        """Adds what a person wants to see: IoU by kind of prompt, agreement with the teacher."""
        if self.losses.segmentation > 0:
            iou = mask_iou(chosen.mask_logits, truth)
            by_kind = {"iou_box": members & prompts.is_box, "iou_point": members & ~prompts.is_box}
            for name, mine in ({"iou_next": members} if stage else by_kind).items():
                add_figure(figures, name, iou, mine)
        if self.losses.concept > 0 and self.space is not None and not stage:
            top = self.space.student_log_probs(chosen.sem_embeds).argmax(-1)
            known = batch.valid & batch.has_concepts
            teacher = self.space.teacher_top(batch) if known.any() else top
            add_figure(figures, "agree", (top == teacher).float(), known)


def _rest(module: nn.Module) -> None:
    # Evaluation mode for every part that has parameters, none of which trains.
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        module.eval()
        return
    for child in module.children():
        _rest(child)


def _by_image(flat: PromptBatch, batch: Batch) -> PromptBatch:
    shape = batch.valid.shape
    return PromptBatch(flat.points.unflatten(0, shape), flat.labels.unflatten(0, shape))

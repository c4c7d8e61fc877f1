"""The two stages: model, targets and losses; DDP wraps one of them.

Both add up over passes and processes before they are divided (train/terms.py), so neither changes
a figure.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tap_engine.model.ovsam.classes import ClassTable, class_logits
from tap_engine.model.ovsam.model import OvsamModel
from tap_engine.model.prompt_encoder import Label
from tap_engine.train.data.examples import Batch
from tap_engine.train.ovsam.config import OvsamPromptConfig
from tap_engine.train.ovsam.labels import RegionLabels
from tap_engine.train.ovsam.losses import (
    HeadLossConfig,
    choose_points,
    class_loss,
    distillation_loss,
    mask_losses,
)
from tap_engine.train.ovsam.teachers import FeatureTeacher, StoredFeatures
from tap_engine.train.terms import Figures

TRAINED = {"s2c": ("adapter.",), "c2s": ("pyramid.", "decoder.", "region_embedding.")}
"""Which parameters of the model each stage trains; the rest is frozen."""


class Distillation(nn.Module):
    """Stage 1: the adapter learns the teacher's features.

    Args:
        model: the student.
        teacher: computes the features of a batch; None with a dump.
        stored: reads them from a dump; None without.
    """

    def __init__(
        self,
        model: OvsamModel,
        teacher: FeatureTeacher | None,
        stored: StoredFeatures | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        # In a tuple, so that the teacher is no part of this module: not saved, not trained.
        self._sources = (teacher, stored)
        self.auxiliary = None

    def train(self, mode: bool = True) -> "Distillation":
        """Training mode for the adapter."""
        super().train(mode)
        return self

    def count(self, batch: Batch) -> dict[str, Tensor]:
        """What this pass adds to the divisor: its pictures."""
        return {"images": torch.tensor(float(len(batch.image_ids)))}

    def forward(
        self, batch: Batch, counts: Mapping[str, Tensor], step: int
    ) -> tuple[Tensor, Figures]:
        """This pass's part of the step's loss; see `Objective.forward`."""
        x = self.model.normalise(batch.images, batch.content_hw)
        student = self.model.adapter(self.model.backbone(x))
        losses = distillation_loss(student, self.target(batch))
        figures = {"distill": (losses.detach().sum(), losses.new_tensor(float(len(losses))))}
        return losses.sum() / counts["images"].to(losses.device), figures

    def target(self, batch: Batch) -> Tensor:
        """[B, out, h, w] what the student should say."""
        teacher, stored = self._sources
        if stored is not None:
            return stored.read(batch.image_ids).to(batch.images.device)
        assert teacher is not None, "a run without a teacher is refused when it is opened"
        return teacher.features(batch.images, batch.content_hw)


@dataclass(frozen=True, slots=True)
class Asked:
    """P prompts for each of B pictures, and what they are about.

    Attributes:
        points: [B, P, 2, 2] (x, y) px of the input.
        point_labels: [B, P, 2] of `prompt_encoder.Label`.
        region: [B, P] int64: which region of the batch.
        classes: [B, P] int64, -1 where nobody says.
        counts: [B, P] bool: False where a picture has nothing to ask about.
    """

    points: Tensor
    point_labels: Tensor
    region: Tensor
    classes: Tensor
    counts: Tensor


class Naming(nn.Module):
    """Stage 2: decoder, pyramid and region embedding learn masks and classes.

    Args:
        model: its CLIP, adapter and prompt encoder are frozen.
        classes: those that are learned; ids are places in it.
        labels: which class each region is.
        losses: weights and points.
        prompts: how pictures are asked about.
    """

    prototypes: Tensor

    def __init__(
        self,
        model: OvsamModel,
        classes: ClassTable,
        labels: RegionLabels,
        losses: HeadLossConfig,
        prompts: OvsamPromptConfig,
    ) -> None:
        super().__init__()
        self.model, self.losses, self.prompts = model, losses, prompts
        self.labels = labels
        self.register_buffer("prototypes", classes.prototypes.float(), persistent=False)
        self.auxiliary = None

    def count(self, batch: Batch) -> dict[str, Tensor]:
        """What this pass adds to the divisors: prompts, and those with a mask."""
        asked = self.ask(batch)
        masked = asked.counts & batch.has_mask.gather(1, asked.region)
        # A label of -1 counts as class 0 does; the background is no region's label.
        return {"classes": asked.counts.sum().float(), "masks": masked.sum().float()}

    def forward(
        self, batch: Batch, counts: Mapping[str, Tensor], step: int
    ) -> tuple[Tensor, Figures]:
        """This pass's part of the step's loss; see `Objective.forward`."""
        asked = self.ask(batch)
        with torch.no_grad():
            levels = self.model.backbone(self.model.normalise(batch.images, batch.content_hw))
            embedding = self.model.adapter(levels)
        pyramid = self.model.pyramid(levels)
        masks, tokens = self.model.decode(embedding, asked.points, asked.point_labels)
        boxes = gather_regions(batch.boxes_xyxy, asked.region)
        rois = torch.cat([_picture_numbers(asked.region).unsqueeze(-1), boxes], dim=-1)
        embeddings = self.model.name_regions(pyramid, rois.flatten(0, 1), tokens.flatten(0, 1))
        logits = class_logits(embeddings, self.prototypes, self.model.config.head.log_scale)
        weight, figures = self.losses, Figures()
        counted = asked.counts.flatten()
        each, _ = class_loss(logits, asked.classes.flatten(), weight.background)
        named = counted & (asked.classes.flatten() >= 0)
        loss = weight.classes * (each * counted).sum() / counts["classes"].clamp(min=1)
        _add(figures, "class", each, counted)
        right = (logits[:, :-1].argmax(-1) == asked.classes.flatten()).float()
        _add(figures, "right", right, named)

        masked = (asked.counts & batch.has_mask.gather(1, asked.region)).flatten()
        picked = masked.nonzero().flatten()
        # Pyramid levels that no box is read from, the label MLP, and a decoder without a mask have
        # gradients of 0: every process has the same tensors to exchange.
        corners = torch.stack([level[..., 0, 0].sum() for level in pyramid])
        label = self.model.decoder.label_pred(tokens[:, 0])
        loss = loss + 0 * (masks.sum() + corners.sum() + label.sum())
        if len(picked):
            chosen = masks.flatten(0, 1)[picked]
            wanted = gather_regions(batch.masks, asked.region).flatten(0, 1)[picked].float() / 255
            points = choose_points(chosen.float(), weight)
            entropy, dice = mask_losses(chosen, wanted, points)
            number = counts["masks"].clamp(min=1)
            loss = loss + weight.mask * entropy.sum() / number
            loss = loss + weight.dice * dice.sum() / number
            _add(figures, "mask", entropy, torch.ones_like(entropy))
            _add(figures, "dice", dice, torch.ones_like(dice))
        else:
            for name in ("mask", "dice"):
                figures[name] = (loss.new_zeros(()), loss.new_zeros(()))
        return loss, figures

    @torch.no_grad()
    def ask(self, batch: Batch) -> Asked:
        """The prompts of a batch: boxes first, then one point each; a function of region seeds.

        Regions without a class are not asked about. Where a picture has fewer instances than
        prompts they come again, with other points.
        """
        classes = self.labels.look_up(batch.keys)
        usable = batch.valid & (classes >= 0)
        count = usable.sum(1)
        # Usable regions first, in the batch's order, which is random.
        order = torch.argsort((~usable).to(torch.int8), dim=1, stable=True)
        number = self.prompts.per_image
        turn = torch.arange(number, device=count.device) % count.clamp(min=1)[:, None]
        region = order.gather(1, turn)
        boxes = gather_regions(batch.boxes_xyxy, region)
        has_mask = batch.has_mask.gather(1, region)
        as_box = (torch.arange(number, device=count.device) < self.prompts.boxes) | ~has_mask
        corners = boxes.unflatten(-1, (2, 2))
        inside = self._points(batch, region)
        loose = torch.stack([inside, torch.zeros_like(inside)], dim=2)
        points = torch.where(as_box[..., None, None], corners, loose)
        box_label = points.new_tensor([Label.BOX_TOP_LEFT, Label.BOX_BOTTOM_RIGHT]).long()
        point_label = points.new_tensor([Label.FOREGROUND, Label.PADDING]).long()
        labels = torch.where(as_box[..., None], box_label, point_label)
        counts = (count > 0)[:, None].expand(-1, number)
        return Asked(points, labels, region, classes.gather(1, region), counts)

    def _points(self, batch: Batch, region: Tensor) -> Tensor:
        # [B, P, 2] px of the input: a uniform pixel of each mask, drawn from region and turn.
        masks = gather_regions(batch.masks, region).flatten(2) > 127
        seeds = batch.seeds.gather(1, region)
        turn = torch.arange(region.shape[1], device=region.device)
        draw = ((seeds >> 8) * 0x9E3779B1 + turn * 0x85EBCA77) % (1 << 24)
        area = masks.sum(-1).clamp(min=1)
        nth = (draw.double() / (1 << 24) * area).long() + 1
        place = torch.searchsorted(masks.cumsum(-1, dtype=torch.int64), nth.unsqueeze(-1)).squeeze(
            -1
        )
        side = batch.masks.shape[-1]
        place = place.clamp(max=side * side - 1)
        xy = torch.stack([place % side, place // side], dim=-1).float()
        ratio = batch.images.shape[-1] / side
        return (xy + 0.5) * ratio - 0.5


def gather_regions(values: Tensor, region: Tensor) -> Tensor:
    """[B, R, ...] values of regions -> [B, P, ...] of prompts, by [B, P] region."""
    pictures = torch.arange(len(values), device=values.device)[:, None]
    return values[pictures, region]


def _picture_numbers(region: Tensor) -> Tensor:
    pictures = torch.arange(len(region), device=region.device, dtype=torch.float32)
    return pictures[:, None].expand(-1, region.shape[1])


def _add(figures: Figures, name: str, values: Tensor, members: Tensor) -> None:
    members = members.to(values.dtype)
    figures[name] = ((values.detach() * members).sum(), members.sum())

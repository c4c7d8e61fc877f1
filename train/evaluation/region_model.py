"""The interface that an evaluation needs of a model, and TAP behind it.

A view of `predictor.Candidates`, as `Region` is another: arrays over prompts, embeddings instead of
names, and only what a protocol asks for, so that 300 boxes on a large image cost no more than 64.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tap_engine.model.concept_projector import concept_log_probs
from tap_engine.model.concepts import ConceptTable
from tap_engine.model.image_input import Rgb
from tap_engine.model.predictor import Tap
from tap_engine.model.prompt_encoder import Label
from tap_engine.model.region import Candidates
from tap_engine.schemas.boxes import xywh_to_xyxy
from tap_engine.schemas.errors import ConfigError

CHUNK = 64
"""Prompts decoded at a time; the official scripts take 256 on a 40 GB GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to compute besides IoU estimates: `mask` the chosen candidate's, `masks` all four."""

    mask: bool = False
    masks: bool = False
    embedding: bool = False
    caption: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """A chunk of P prompts.

    Attributes:
        iou: [P, 4] float32, the model's estimates, not squashed.
        chosen: [P] int64, the candidate that routing takes: 0 for boxes, 1 to 3 for points.
        masks: [P, C, H, W] bool at the image's own size; C = 4 candidates, or 1, the chosen; or
            C = 0.
        embeddings: [P, E] float32 of the chosen, not normalised; E = 0 if not asked for.
        captions: captions of the chosen candidates; empty if not asked for.
    """

    iou: npt.NDArray[np.float32]
    chosen: npt.NDArray[np.int64]
    masks: npt.NDArray[np.bool_]
    embeddings: npt.NDArray[np.float32]
    captions: list[str]

    @property
    def chosen_iou(self) -> npt.NDArray[np.float32]:
        """[P] the estimate for the chosen candidate."""
        return self.iou[np.arange(len(self.chosen)), self.chosen]


_Array = npt.NDArray[np.float32]


@runtime_checkable
class RegionModel(Protocol):
    """One image at a time, prompts as labelled points."""

    def set_image(self, rgb: Rgb) -> None:
        """Take an image [H, W, 3] uint8."""

    def prompt(
        self, points: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], wanted: Wanted
    ) -> Iterator[Predicted]:
        """Answer prompts: points [P, K, 2] (x, y) image px, labels [P, K] of `Label`."""


@runtime_checkable
class Classifier(Protocol):
    """One image at a time, boxes to names: a model with class names, or a teacher on crops."""

    def set_image(self, rgb: Rgb) -> None:
        """Take an image [H, W, 3] uint8."""

    def classify(
        self, boxes_xywh: npt.NDArray[np.float64], rles: Sequence[bytes | None]
    ) -> tuple[_Array, _Array]:
        """Boxes [P, 4] px and their true masks -> [P, C] probabilities, [P] IoU estimates."""


def box_prompts(
    boxes_xyxy: npt.NDArray[np.floating],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Boxes [P, 4] as labelled corners, neither clipped nor checked: as the official scripts do."""
    labels = np.array([Label.BOX_TOP_LEFT, Label.BOX_BOTTOM_RIGHT], np.int64)
    corners = np.asarray(boxes_xyxy, np.float32).reshape(-1, 2, 2)
    return corners, np.tile(labels, (len(corners), 1))


@dataclass
class TapRegions:
    """A `Tap` as `RegionModel`; see `Tap` for device and precision.

    Attributes:
        tap: the model, with a tokenizer if captions are asked for.
        chunk: prompts decoded at a time.
        classes: the names of the data set, in category order; the model's own by default.
    """

    tap: Tap
    chunk: int = CHUNK
    classes: ConceptTable | None = None

    def set_image(self, rgb: Rgb) -> None:
        """Encode an image."""
        self.tap.set_image(rgb)

    def prompt(
        self, points: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], wanted: Wanted
    ) -> Iterator[Predicted]:
        """Decode prompts, a chunk at a time.

        Raises:
            ConfigError: captions wanted of a model without a tokenizer.
        """
        if wanted.caption and self.tap.tokenizer is None:
            raise ConfigError(
                "captions need a tokenizer beside the checkpoint (tokenizer.json or .model)"
            )
        for found in self.tap.candidates(points, labels, chunk=self.chunk):
            yield self._view(found, wanted)

    def classify(
        self, boxes_xywh: npt.NDArray[np.float64], rles: Sequence[bytes | None]
    ) -> tuple[_Array, _Array]:
        """Class probabilities of boxes: the model sees the box and not the true mask.

        Args:
            boxes_xywh: [P, 4] px.
            rles: not used.

        Returns:
            [P, C] probabilities of `classes`, [P] predicted IoU.

        Raises:
            ConfigError: no class names.
        """
        del rles
        prompts = box_prompts(xywh_to_xyxy(boxes_xywh))
        parts = list(self.prompt(*prompts, Wanted(embedding=True)))
        iou = [part.chosen_iou for part in parts]
        probabilities = self.probabilities([part.embeddings for part in parts])
        return probabilities, np.concatenate(iou) if iou else np.empty(0, np.float32)

    def probabilities(self, embeddings: Sequence[_Array]) -> _Array:
        """Chunks of embeddings [P, E] -> probabilities [P, C] of `classes`, in float32."""
        weights = self._weights
        if not embeddings:
            return np.empty((0, weights.shape[1]), np.float32)
        joined = torch.from_numpy(np.concatenate(embeddings))
        return concept_log_probs(joined, weights).exp().numpy()

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names of `classes`, in the order of probabilities."""
        return self._classes.names

    @property
    def names_classes(self) -> bool:
        """Whether there are class names."""
        return self.classes is not None or self.tap.concepts is not None

    @property
    def _classes(self) -> ConceptTable:
        classes = self.classes or self.tap.concepts
        if classes is None:
            raise ConfigError("this model has no class names: give it a concept table")
        return classes

    @cached_property
    def _weights(self) -> Tensor:
        return self._classes.weights()

    def _view(self, found: Candidates, wanted: Wanted) -> Predicted:
        routed = found.routed()
        if wanted.masks:
            logits = found.mask_logits
        else:
            logits = routed.mask_logits[0].unsqueeze(1)[:, : int(wanted.mask)]
        width_wanted = None if wanted.embedding else 0
        captions = self.tap.captions(routed) if wanted.caption else []
        return Predicted(
            iou=found.iou.cpu().numpy(),
            chosen=found.chosen.cpu().numpy(),
            masks=self.tap.masks(logits, found.image),
            embeddings=routed.sem_embeds[0].float().cpu().numpy()[:, :width_wanted],
            captions=[text or "" for text in captions],
        )

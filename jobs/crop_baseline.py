"""The CLIP teacher as a classifier of boxes, for the papers' "image-level CLIP" rows.

Every ground truth box is cropped and embedded by the CLIP model, one forward pass per box; the
distribution over the data set's class names is the prediction. It is the upper bound that a model
distilled from this teacher is measured against.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from tap_engine.model.concept_projector import concept_log_probs, concept_weights
from tap_engine.model.image_input import Rgb
from tap_engine.pipeline.concepts import TARGET_TEMPLATES, embed_concepts
from tap_engine.pipeline.config import CropOptions
from tap_engine.pipeline.crop import crop_regions
from tap_engine.pipeline.teacher import Teacher, TeacherConfig
from tap_engine.schemas import rle
from tap_engine.schemas.vocabulary import readable_names
from tap_engine.train.evaluation.ground_truth import GroundTruth


class CropClassifier:
    """Class probabilities of the boxes of one image after the other.

    Args:
        truth: its category names become the prompts "a photo of a {}.".
        teacher: name of the CLIP model; see `TeacherConfig.name`.
        fill: what stands outside the true mask of a crop: `keep` shows the whole box; `mean` and
            `black` fill it, as the data engine does.
        device: see `TeacherConfig.device`.
    """

    def __init__(self, truth: GroundTruth, teacher: str, fill: str, device: str) -> None:
        self._teacher = Teacher(TeacherConfig(name=teacher, device=device))
        crop = CropOptions(fill=cast(Any, fill))
        labels = [category.name for category in truth.categories.values()]
        texts = embed_concepts(self._teacher, readable_names(labels), TARGET_TEMPLATES)
        self._weights = concept_weights(texts, self._teacher.info.logit_scale)
        self._config = crop.for_teacher(self._teacher.info)
        self._keep = fill == "keep"
        self.settings = {"teacher": self._teacher.info.weights_sha256, "crop": fill}

    def set_image(self, rgb: Rgb) -> None:
        """Take an image."""
        self._pixels = rgb

    def classify(
        self, boxes_xywh: npt.NDArray[np.float64], rles: Sequence[bytes | None]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """[P, C] probabilities, and [P] ones in place of an IoU estimate.

        A box of less than a pixel, or off the image, gets the distribution of its nearest pixel.
        """
        size_hw = (self._pixels.shape[0], self._pixels.shape[1])
        masks: list[rle.Runs | None] = [
            None if counts is None or self._keep else rle.runs(counts, size_hw) for counts in rles
        ]
        crops = crop_regions(self._pixels, masks, _whole_pixels(boxes_xywh, size_hw), self._config)
        embeddings = self._teacher.encode_crops(crops).float().cpu()
        with torch.inference_mode():
            probabilities = concept_log_probs(embeddings, self._weights).exp()
        return probabilities.numpy(), np.ones(len(boxes_xywh), np.float32)


def _whole_pixels(
    boxes_xywh: npt.NDArray[np.float64], size_hw: tuple[int, int]
) -> npt.NDArray[np.int64]:
    """Boxes widened to whole pixels inside the image, never empty."""
    limits = np.array([size_hw[1], size_hw[0]])
    low = np.floor(boxes_xywh[:, :2]).clip(0, limits - 1)
    high = np.ceil(boxes_xywh[:, :2] + boxes_xywh[:, 2:]).clip(low + 1, limits)
    return np.concatenate([low, high - low], axis=1).astype(np.int64)

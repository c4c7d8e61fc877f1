"""The teacher itself as a classifier of boxes: the papers' "image-level CLIP" rows.

Every ground truth box is cropped and embedded by the CLIP model, one forward pass a box; the
distribution over the data set's class names is the prediction. It is the upper bound that a model
distilled from this teacher is measured against.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from tap_engine.model.concept_projector import concept_log_probs, concept_weights
from tap_engine.model.image_input import Rgb
from tap_engine.pipeline.concepts import TARGET_TEMPLATES, embed_concepts
from tap_engine.pipeline.config import CropOptions
from tap_engine.pipeline.crop import crop_regions
from tap_engine.pipeline.teacher import Teacher
from tap_engine.schemas import rle
from tap_engine.schemas.vocabulary import readable_names
from tap_engine.train.evaluation.data_sets import EvalSet


@dataclass
class CropClassifier:
    """Class probabilities of the boxes of one image after the other.

    Attributes:
        teacher: the CLIP model.
        data: the evaluation set; its category names become the prompts "a photo of a {}.".
        crop: how a box becomes a crop. Fill `keep` shows the whole box; with another, pixels
            outside the true mask are filled, as the data engine does.
    """

    teacher: Teacher
    data: EvalSet
    crop: CropOptions
    _image_id: int = field(default=-1, init=False)
    _pixels: Rgb = field(init=False)

    def __post_init__(self) -> None:
        """Embed the class names."""
        labels = [category.name for category in self.data.truth.categories.values()]
        texts = embed_concepts(self.teacher, readable_names(labels), TARGET_TEMPLATES)
        self._weights = concept_weights(texts, self.teacher.info.logit_scale)
        self._config = self.crop.for_teacher(self.teacher.info)

    def set_image(self, image_id: int) -> None:
        """Load an image."""
        self._image_id, self._pixels = image_id, self.data.pixels(image_id)

    def classify(
        self, boxes_xywh: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """[P, C] probabilities, and [P] ones in place of an IoU estimate.

        A box of less than a pixel, or off the image, gets the distribution of its nearest pixel.
        """
        size_hw = (self._pixels.shape[0], self._pixels.shape[1])
        regions = self.data.truth.regions_of(self._image_id)
        masks: list[rle.Runs | None] = [
            None if counts is None or self.crop.fill == "keep" else rle.runs(counts, size_hw)
            for counts in regions["rle"].to_pylist()
        ]
        crops = crop_regions(self._pixels, masks, _whole_pixels(boxes_xywh, size_hw), self._config)
        embeddings = self.teacher.encode_crops(crops).float().cpu()
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

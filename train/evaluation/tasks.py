"""Tasks of an evaluation: which protocol answers which image, from which boxes and masks."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor

from tap_engine.schemas import rle
from tap_engine.train.evaluation import clicks, protocols
from tap_engine.train.evaluation.data_sets import EvalSet
from tap_engine.train.evaluation.detector_boxes import DetectorBoxes
from tap_engine.train.evaluation.evaluate import (
    CAPTIONING,
    CLASSIFICATION,
    NAMES,
    PROMPTING,
    SEGMENTATION,
    PredictRows,
    Task,
)
from tap_engine.train.evaluation.ground_truth import GroundTruth
from tap_engine.train.evaluation.predictions import PROMPTED
from tap_engine.train.evaluation.region_model import RegionModel

Array = npt.NDArray[np.float32]

Classifier = Callable[[npt.NDArray[np.float64]], tuple[Array, Array]]
"""Boxes [P, 4] xywh of the image that was set -> class probabilities [P, C], IoU estimates [P]."""


def model_tasks(
    names: Sequence[str],
    model: RegionModel,
    data: EvalSet,
    settings: Mapping[str, Any],
    *,
    weights: Tensor | None = None,
    detector: DetectorBoxes | None = None,
) -> list[Task]:
    """Tasks of a promptable model.

    Args:
        names: of `SCHEMAS`.
        model: the model.
        data: the evaluation set.
        settings: the model's identity: weights' hash, precision and so on.
        weights: [E, C] of the data set's class names, for classification and names.
        detector: boxes for segmentation; ground truth boxes, ranked by predicted IoU, by default.
    """
    truth = data.truth
    if SEGMENTATION in names:
        truth.require_masks()

    def segment(image_id: int) -> pa.RecordBatch:
        if detector is not None:
            found = detector.of(image_id)
            return protocols.segment(
                model, image_id, found.boxes_xywh, found.category_ids.tolist(), found.scores
            )
        regions = truth.regions_of(image_id)
        categories = regions["category_id"].to_pylist()
        return protocols.segment(model, image_id, boxes_xywh_of(regions), categories, None)

    def describe(image_id: int) -> pa.RecordBatch:
        regions = truth.regions_of(image_id)
        return protocols.caption_boxes(
            model, image_id, regions["region_id"].to_pylist(), boxes_xywh_of(regions)
        )

    def prompt(image_id: int) -> pa.RecordBatch:
        regions = truth.regions_of(image_id)
        size_hw = truth.images[image_id].size_hw
        masked = [
            row
            for row, counts in enumerate(regions["rle"].to_pylist())
            if counts is not None and not regions["crowd"][row].as_py()
        ]
        if not masked:
            return pa.RecordBatch.from_pylist([], PROMPTED)
        regions = regions.take(masked)
        masks = np.stack([rle.decode(counts.as_py(), size_hw) > 0 for counts in regions["rle"]])
        seen = masks.any(axis=(1, 2))
        regions, masks = regions.filter(pa.array(seen)), masks[seen]
        ids = regions["region_id"].to_pylist()
        return clicks.prompted(model, image_id, ids, boxes_xywh_of(regions), masks)

    rows: dict[str, PredictRows] = {SEGMENTATION: segment, CAPTIONING: describe, PROMPTING: prompt}
    own: dict[str, dict[str, Any]] = {
        SEGMENTATION: {"boxes": detector.fingerprint if detector else "ground truth"}
    }
    tasks = [
        Task(name, rows[name], {**settings, **own.get(name, {}), "data": truth.fingerprint})
        for name in names
        if name in rows
    ]
    if weights is not None:

        def classifier(boxes: npt.NDArray[np.float64]) -> tuple[Array, Array]:
            return protocols.classify(model, boxes, weights)

        tasks += classification_tasks(names, classifier, truth, settings)
    return tasks


def classification_tasks(
    names: Sequence[str],
    classifier: Classifier,
    truth: GroundTruth,
    settings: Mapping[str, Any],
) -> list[Task]:
    """Classification of ground truth boxes, for anything that gives class probabilities.

    Args:
        names: of `SCHEMAS`; those that are not of classification are left alone.
        classifier: boxes [P, 4] xywh of the image that was set -> probabilities [P, C] in the order
            of the truth's categories, and IoU estimates [P].
        truth: the ground truth.
        settings: the classifier's identity.
    """
    if {CLASSIFICATION, NAMES} & set(names):
        truth.require_categories()
    category_ids = np.array(list(truth.categories), np.int32)

    @lru_cache(maxsize=1)  # two tasks ask for the same image, one after the other
    def answer(image_id: int) -> tuple[Array, Array]:
        return classifier(boxes_xywh_of(truth.regions_of(image_id)))

    def detect(image_id: int) -> pa.RecordBatch:
        boxes = boxes_xywh_of(truth.regions_of(image_id))
        return protocols.detections_of(image_id, boxes, *answer(image_id), category_ids)

    def name(image_id: int) -> pa.RecordBatch:
        regions = truth.regions_of(image_id)
        return protocols.rank_names(
            image_id,
            regions["region_id"].to_pylist(),
            regions["category_id"].to_numpy(),
            answer(image_id)[0],
            category_ids,
        )

    rows = {CLASSIFICATION: detect, NAMES: name}
    settings = {**settings, "data": truth.fingerprint}
    return [Task(key, rows[key], settings) for key in names if key in rows]


def boxes_xywh_of(regions: pa.Table) -> npt.NDArray[np.float64]:
    """[P, 4] xywh boxes of rows of ground_truth.REGIONS."""
    return regions["bbox_xywh"].combine_chunks().flatten().to_numpy().reshape(-1, 4)

"""The papers' protocols, one function each: model and prompts of one image -> prediction rows.

Source: the official scripts eval_seg.py, eval_cls.py and eval_cap.py, as docs/evaluation.md
describes them; promptable segmentation is in clicks.py.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torchvision
from torch import Tensor

from tap_engine.model.concept_projector import concept_log_probs
from tap_engine.schemas import rle
from tap_engine.schemas.boxes import xywh_to_xyxy
from tap_engine.train.evaluation.predictions import CAPTIONS, INSTANCES, NAMED
from tap_engine.train.evaluation.region_model import Predicted, RegionModel, Wanted, box_prompts

MIN_PROBABILITY = 0.001
NMS_IOU = 0.5
MAX_DETECTIONS = 300
"""Classification keeps p > 0.001, suppresses within a class at IoU 0.5, and keeps what scores at
least as high as the image's 300th best (official eval_cls.py; the same 300 for COCO)."""

Boxes = npt.NDArray[np.float64]


def segment(
    model: RegionModel,
    image_id: int,
    boxes_xywh: Boxes,
    category_ids: Sequence[int],
    scores: npt.NDArray[np.float64] | None,
) -> pa.RecordBatch:
    """Zero-shot instance segmentation: the mask of every box, with the box's class and score.

    Args:
        model: with its image set.
        image_id: for the rows.
        boxes_xywh: [P, 4] px.
        category_ids: P classes, the detector's.
        scores: [P], the detector's own (not a product with the predicted IoU); None for ground
            truth boxes, which have none: then the predicted IoU ranks them.

    Returns:
        P rows of predictions.INSTANCES; no suppression.
    """
    rows: list[dict[str, object]] = []
    for predicted in model.prompt(*box_prompts(xywh_to_xyxy(boxes_xywh)), Wanted(mask=True)):
        for mask, iou in zip(predicted.masks[:, 0], predicted.chosen_iou.tolist(), strict=True):
            place = len(rows)
            rows.append(
                {
                    "image_id": image_id,
                    "category_id": category_ids[place],
                    "score": iou if scores is None else scores[place],
                    "bbox_xywh": boxes_xywh[place],
                    "height": mask.shape[0],
                    "width": mask.shape[1],
                    "rle": rle.encode(mask),
                }
            )
    return pa.RecordBatch.from_pylist(rows, INSTANCES)


def classify(
    model: RegionModel, boxes_xywh: Boxes, weights: Tensor
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Class probabilities and IoU estimates of boxes.

    Args:
        model: with its image set.
        boxes_xywh: [P, 4] px, all ground truth boxes of the image, crowds included.
        weights: [E, C] of the data set's own class names (`ConceptTable.weights`).

    Returns:
        [P, C] probabilities in float32, [P] predicted IoU.
    """
    parts: list[Predicted] = list(
        model.prompt(*box_prompts(xywh_to_xyxy(boxes_xywh)), Wanted(embedding=True))
    )
    if not parts:
        return np.empty((0, weights.shape[1]), np.float32), np.empty(0, np.float32)
    embeddings = torch.from_numpy(np.concatenate([part.embeddings for part in parts]))
    probabilities = concept_log_probs(embeddings, weights.cpu()).exp().numpy()
    return probabilities, np.concatenate([part.chosen_iou for part in parts])


def detections_of(
    image_id: int,
    boxes_xywh: Boxes,
    probabilities: npt.NDArray[np.float32],
    iou: npt.NDArray[np.float32],
    category_ids: npt.NDArray[np.int32],
) -> pa.RecordBatch:
    """Class probabilities of boxes as scored detections, by the official rule.

    Args:
        image_id: for the rows.
        boxes_xywh: [P, 4] px.
        probabilities: [P, C].
        iou: [P]; clipped to 0..1. Score = sqrt(p * iou).
        category_ids: [C], of the columns.

    Returns:
        Rows of predictions.INSTANCES, boxes only.
    """
    box, place = np.nonzero(probabilities > MIN_PROBABILITY)
    scores = np.sqrt(probabilities[box, place].astype(np.float64) * np.clip(iou, 0, 1)[box])
    corners = xywh_to_xyxy(boxes_xywh)[box]
    # batched_nms separates classes by moving their boxes apart: float64, or that rounds them.
    kept = torchvision.ops.batched_nms(
        torch.from_numpy(np.ascontiguousarray(corners, np.float64)),
        torch.from_numpy(scores),
        torch.from_numpy(place),
        NMS_IOU,
    ).numpy()
    box, place, scores = box[kept], place[kept], scores[kept]
    if len(scores) > MAX_DETECTIONS:
        best = scores >= np.sort(scores)[-MAX_DETECTIONS]
        box, place, scores = box[best], place[best], scores[best]
    return pa.RecordBatch.from_pydict(
        {
            "image_id": np.full(len(box), image_id, np.int64),
            "category_id": category_ids[place],
            "score": scores,
            "bbox_xywh": list(np.asarray(boxes_xywh, np.float64)[box]),
            "height": pa.nulls(len(box), pa.int32()),
            "width": pa.nulls(len(box), pa.int32()),
            "rle": pa.nulls(len(box), pa.binary()),
            "area": pa.nulls(len(box), pa.float64()),
        },
        schema=INSTANCES,
    )


def rank_names(
    image_id: int,
    region_ids: Sequence[int],
    true_category_ids: npt.NDArray[np.int32],
    probabilities: npt.NDArray[np.float32],
    category_ids: npt.NDArray[np.int32],
) -> pa.RecordBatch:
    """Where the true name came among all names: rows of predictions.NAMED.

    Args:
        image_id: for the rows.
        region_ids: P regions.
        true_category_ids: [P].
        probabilities: [P, C].
        category_ids: [C], of the columns.
    """
    places = {category: place for place, category in enumerate(category_ids.tolist())}
    true = np.array([places[category] for category in true_category_ids.tolist()], np.int64)
    mine = np.take_along_axis(probabilities, true[:, None], axis=1)
    return pa.RecordBatch.from_pydict(
        {
            "image_id": np.full(len(true), image_id, np.int64),
            "region_id": list(region_ids),
            "category_id": true_category_ids,
            "rank": (probabilities > mine).sum(axis=1).astype(np.int32),
            "probability": mine[:, 0],
        },
        schema=NAMED,
    )


def caption_boxes(
    model: RegionModel, image_id: int, region_ids: Sequence[int], boxes_xywh: Boxes
) -> pa.RecordBatch:
    """Region captioning: one greedy caption a ground truth box; rows of predictions.CAPTIONS."""
    captions: list[str] = []
    for predicted in model.prompt(*box_prompts(xywh_to_xyxy(boxes_xywh)), Wanted(caption=True)):
        captions += predicted.captions
    return pa.RecordBatch.from_pydict(
        {
            "image_id": np.full(len(captions), image_id, np.int64),
            "region_id": list(region_ids),
            "caption": captions,
        },
        schema=CAPTIONS,
    )

"""Zero-shot classification of ground truth boxes, scored as COCO or LVIS box AP.

Source: the official eval_cls.py, as docs/evaluation.md describes it.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torchvision

from tap_engine.schemas.boxes import xywh_to_xyxy
from tap_engine.train.evaluation.evaluation import (
    Boxes,
    Evaluation,
    Part,
    Question,
    Scored,
    ScoreOptions,
)
from tap_engine.train.evaluation.ground_truth import GroundTruth
from tap_engine.train.evaluation.predictions import INSTANCES
from tap_engine.train.evaluation.scoring_coco import score_detections

MIN_PROBABILITY = 0.001
NMS_IOU = 0.5
MAX_DETECTIONS = 300
"""Classification keeps p > 0.001, suppresses within a class at IoU 0.5, and keeps what scores at
least as high as the image's 300th best (official eval_cls.py; the same 300 for COCO)."""


class Classification(Evaluation):
    """Class names of true boxes, crowds included: AP of COCO or LVIS."""

    name = "classification"
    schema = INSTANCES
    data = frozenset({Part.CLASSES})
    model = frozenset({Part.CLASSES})
    protocols = ("coco-bbox", "lvis-bbox")

    def check(self, truth: GroundTruth) -> None:
        """Every region needs a class."""
        truth.require_categories()

    def rows(self, question: Question) -> pa.RecordBatch:
        """Detections by the official rule."""
        return detections_of(
            question.image_id, question.boxes_xywh, *question.classes, question.category_ids
        )

    def score(
        self, truth: GroundTruth, rows: Iterable[pa.RecordBatch], options: ScoreOptions
    ) -> Scored:
        """Box AP."""
        found = score_detections(
            truth,
            rows,
            "bbox",
            lvis=options.protocol == "lvis-bbox",
            progress=options.progress,
            spill_folder=options.spill_folder,
        )
        return Scored(found.metrics, found.per_category, found.notes)

    def protocol(self, truth: GroundTruth) -> str:
        """LVIS's rules where the truth allows them."""
        return self.protocols[int(truth.is_lvis)]


def detections_of(
    image_id: int,
    boxes_xywh: Boxes,
    probabilities: npt.NDArray[np.float32],
    iou: npt.NDArray[np.float32],
    category_ids: npt.NDArray[np.int32],
) -> pa.RecordBatch:
    """Class probabilities of boxes as scored detections, by the official rule.

    Args:
        image_id: id that the rows get.
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

"""Zero-shot instance segmentation: the mask of every box, scored as COCO or LVIS mask AP.

Source: the official eval_seg.py, as docs/evaluation.md describes it.
"""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from tap_engine.schemas import rle
from tap_engine.schemas.boxes import xywh_to_xyxy
from tap_engine.train.evaluation.evaluation import (
    Asked,
    Evaluation,
    Part,
    Question,
    Scored,
    ScoreOptions,
)
from tap_engine.train.evaluation.ground_truth import GroundTruth
from tap_engine.train.evaluation.predictions import INSTANCES
from tap_engine.train.evaluation.region_model import Wanted, box_prompts
from tap_engine.train.evaluation.scoring_coco import score_detections


class Segmentation(Evaluation):
    """Masks of boxes, the detector's where there is one: AP of COCO or LVIS."""

    name = "segmentation"
    schema = INSTANCES
    data = frozenset({Part.MASKS, Part.CLASSES})
    protocols = ("coco-segm", "lvis-segm")

    def check(self, truth: GroundTruth) -> None:
        """Every region needs a mask."""
        truth.require_masks()

    def rows(self, question: Question) -> pa.RecordBatch:
        """A mask for each box, with the box's class and score; no suppression.

        The score is the detector's own (not a product with the predicted IoU). Ground truth boxes
        have none: then the predicted IoU ranks them.
        """
        found = question.detected
        boxes = question.boxes_xywh if found is None else found.boxes_xywh
        categories = (
            question.regions["category_id"].to_pylist() if found is None else found.category_ids
        )
        rows: list[dict[str, object]] = []
        prompts = box_prompts(xywh_to_xyxy(boxes))
        for answer in question.prompted(*prompts, Wanted(mask=True)):
            for mask, iou in zip(answer.masks[:, 0], answer.chosen_iou.tolist(), strict=True):
                place = len(rows)
                rows.append(
                    {
                        "image_id": question.image_id,
                        "category_id": categories[place],
                        "score": iou if found is None else found.scores[place],
                        "bbox_xywh": boxes[place],
                        "height": mask.shape[0],
                        "width": mask.shape[1],
                        "rle": rle.encode(mask),
                    }
                )
        return pa.RecordBatch.from_pylist(rows, INSTANCES)

    def score(
        self, truth: GroundTruth, rows: Iterable[pa.RecordBatch], options: ScoreOptions
    ) -> Scored:
        """Mask AP; the stamp counts the detections as box prompts."""
        found = score_detections(
            truth,
            rows,
            "segm",
            lvis=options.protocol == "lvis-segm",
            progress=options.progress,
            spill_folder=options.spill_folder,
        )
        boxes = {"boxes": found.predictions}
        return Scored(found.metrics, found.per_category, found.notes, boxes)

    def protocol(self, truth: GroundTruth) -> str:
        """LVIS's rules where the truth allows them."""
        return self.protocols[int(truth.is_lvis)]

    def settings(self, asked: Asked) -> dict[str, Any]:
        """Other boxes are other predictions."""
        return {"boxes": asked.detector.fingerprint if asked.detector else "ground truth"}

"""Promptable segmentation: mask IoU after a box, a sketch, and one to nine clicks (clicks.py)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tap_engine.model.prompt_encoder import Label
from tap_engine.model.prompts import points_from_mask
from tap_engine.schemas.boxes import xywh_to_xyxy
from tap_engine.train.evaluation.clicks import next_click
from tap_engine.train.evaluation.evaluation import (
    Evaluation,
    Masks,
    Part,
    Question,
    Scored,
    ScoreOptions,
    region_schema,
)
from tap_engine.train.evaluation.ground_truth import GroundTruth
from tap_engine.train.evaluation.region_model import Predicted, Wanted, box_prompts
from tap_engine.train.evaluation.scoring_regions import score_prompted

CLICKS = 9

PROMPTED = region_schema(
    prompt=pa.string(),
    routed_iou=pa.float32(),
    oracle_iou=pa.float32(),
    predicted_iou=pa.float32(),
)
"""A prompted mask: IoU with the truth of the mask the model chose, of the best of its masks, and
what the model itself expected."""

_Points = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class Prompts(Evaluation):
    """Masks after a box, a sketch and clicks: mean IoU of the chosen and the best candidate."""

    name = "prompts"
    schema = PROMPTED
    data = frozenset({Part.MASKS})

    def rows(self, question: Question) -> pa.RecordBatch:
        """A row for each region and kind of prompt."""
        asked = question.masked()
        return (
            prompted(asked) if len(asked.region_ids) else pa.RecordBatch.from_pylist([], PROMPTED)
        )

    def score(
        self, truth: GroundTruth, rows: Iterable[pa.RecordBatch], options: ScoreOptions
    ) -> Scored:
        """Means over regions."""
        del options
        return Scored(score_prompted(truth, rows))


def prompted(question: Question, clicks: int = CLICKS) -> pa.RecordBatch:
    """IoU of the model's masks with the true ones, for every kind of prompt.

    Args:
        question: about regions with masks, none empty.
        clicks: number of clicks, at most.

    Returns:
        Rows of PROMPTED with prompts "box", "sketch", "click 1" .. "click 9".
    """
    masks = question.masks
    sketches = np.stack([points_from_mask(mask) for mask in masks])
    kinds: list[tuple[str, _Points, Labels]] = [
        ("box", *box_prompts(xywh_to_xyxy(question.boxes_xywh))),
        ("sketch", *with_padding(sketches, np.full(sketches.shape[:2], Label.FOREGROUND))),
    ]
    rows: list[dict[str, object]] = []
    for kind, points, labels in kinds:
        rows += _rows(question, kind, answers(question, points, labels))
    points = np.empty((len(masks), 0, 2), np.float32)
    labels = np.empty((len(masks), 0), np.int64)
    chosen = np.zeros_like(masks)
    for number in range(1, clicks + 1):
        found = [next_click(mask, guess) for mask, guess in zip(masks, chosen, strict=True)]
        points = np.concatenate([points, np.array([[xy] for xy, _ in found], np.float32)], axis=1)
        labels = np.concatenate([labels, np.array([[label] for _, label in found])], axis=1)
        given = answers(question, *with_padding(points, labels))
        for place, answer in enumerate(given):
            chosen[place] = answer.mask
        rows += _rows(question, f"click {number}", given)
    return pa.RecordBatch.from_pylist(rows, PROMPTED)


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The answer to one prompt, held against the true mask.

    Attributes:
        mask: [H, W] bool, the one that routing took.
        routed_iou: its IoU with the truth.
        oracle_iou: the best of all candidates' IoUs.
        predicted_iou: what the model expected of the chosen mask.
    """

    mask: Masks
    routed_iou: float
    oracle_iou: float
    predicted_iou: float


def answers(question: Question, points: _Points, labels: Labels) -> list[Answer]:
    """What the model says to one prompt for each of the question's masked regions."""
    parts = question.prompted(points, labels, Wanted(masks=True))
    return list(held_against(question.masks, parts))


def held_against(masks: Masks, parts: Iterable[Predicted]) -> Iterator[Answer]:
    """Answers with all candidates, beside the true masks [P, H, W]."""
    place = 0
    for part in parts:
        for candidates, index, estimates in zip(
            part.masks, part.chosen.tolist(), part.iou, strict=True
        ):
            ious = mask_iou(candidates, masks[place])
            yield Answer(
                candidates[index], float(ious[index]), float(ious.max()), float(estimates[index])
            )
            place += 1


def mask_iou(candidates: Masks, mask: Masks) -> npt.NDArray[np.float64]:
    """[C] IoU of masks [C, H, W] with one mask [H, W], or with one each."""
    both = (candidates & mask).sum(axis=(1, 2))
    return both / np.maximum((candidates | mask).sum(axis=(1, 2)), 1)


def _rows(question: Question, kind: str, given: list[Answer]) -> Iterator[dict[str, object]]:
    for region_id, answer in zip(question.region_ids, given, strict=True):
        yield {
            "image_id": question.image_id,
            "region_id": region_id,
            "prompt": kind,
            "routed_iou": answer.routed_iou,
            "oracle_iou": answer.oracle_iou,
            "predicted_iou": answer.predicted_iou,
        }


def with_padding(points: _Points, labels: Labels) -> tuple[_Points, Labels]:
    """Loose points end with a padding point, as the released model always saw them."""
    count = len(points)
    return (
        np.concatenate([points, np.zeros((count, 1, 2), np.float32)], axis=1),
        np.concatenate([labels, np.full((count, 1), Label.PADDING)], axis=1).astype(np.int64),
    )

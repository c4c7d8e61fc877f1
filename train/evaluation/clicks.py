"""Promptable segmentation: mask IoU after a box, a sketch, and one to nine clicks.

A click goes where a person who wants the region would put it: into the middle of the thickest
mistake, which before the first click is the whole region. The middle is the pixel farthest from
the mistake's edge. That is the usual rule of interactive segmentation (SAM's evaluation, RITM);
it draws nothing at random.
"""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tap_engine.model.prompt_encoder import Label
from tap_engine.model.prompts import points_from_mask
from tap_engine.schemas.boxes import xywh_to_xyxy
from tap_engine.train.evaluation.predictions import PROMPTED
from tap_engine.train.evaluation.region_model import RegionModel, Wanted, box_prompts

CLICKS = 9

Masks = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def prompted(
    model: RegionModel,
    image_id: int,
    region_ids: Sequence[int],
    boxes_xywh: npt.NDArray[np.float64],
    masks: Masks,
    clicks: int = CLICKS,
) -> pa.RecordBatch:
    """IoU of the model's masks with the true ones, for every kind of prompt.

    Args:
        model: with its image set.
        image_id: for the rows.
        region_ids: P regions.
        boxes_xywh: [P, 4] px.
        masks: [P, H, W] the true masks, none empty.
        clicks: how many clicks, at most.

    Returns:
        Rows of predictions.PROMPTED with prompts "box", "sketch", "click 1" .. "click 9".
    """
    kinds: list[tuple[str, Points, Labels]] = [("box", *box_prompts(xywh_to_xyxy(boxes_xywh)))]
    sketches = np.stack([points_from_mask(mask) for mask in masks])
    kinds.append(("sketch", *_padded(sketches, np.full(sketches.shape[:2], Label.FOREGROUND))))
    rows: list[dict[str, object]] = []
    for kind, points, labels in kinds:
        chosen = np.empty_like(masks)
        rows += _answers(model, image_id, region_ids, kind, points, labels, masks, chosen)
    points = np.empty((len(masks), 0, 2), np.float32)
    labels = np.empty((len(masks), 0), np.int64)
    chosen = np.zeros_like(masks)
    for number in range(1, clicks + 1):
        found = [next_click(mask, guess) for mask, guess in zip(masks, chosen, strict=True)]
        points = np.concatenate([points, np.array([[xy] for xy, _ in found], np.float32)], axis=1)
        labels = np.concatenate([labels, np.array([[label] for _, label in found])], axis=1)
        kind = f"click {number}"
        prompts = _padded(points, labels)
        rows += _answers(model, image_id, region_ids, kind, *prompts, masks, chosen)
    return pa.RecordBatch.from_pylist(rows, PROMPTED)


def next_click(mask: Masks, guess: Masks) -> tuple[tuple[float, float], int]:
    """Where a person clicks next.

    Args:
        mask: [H, W] what he wants, not empty.
        guess: [H, W] what he sees; nothing before the first click.

    Returns:
        (x, y) pixel indices, and the label: FOREGROUND in the middle of what is missing, or
        BACKGROUND in the middle of what is too much, whichever is thicker; the middle of the region
        where nothing is wrong.
    """
    missing_at, missing = _middle(mask & ~guess)
    surplus_at, surplus = _middle(guess & ~mask)
    if missing == surplus == 0:
        return _middle(mask)[0], int(Label.FOREGROUND)
    if missing >= surplus:
        return missing_at, int(Label.FOREGROUND)
    return surplus_at, int(Label.BACKGROUND)


def _middle(area: Masks) -> tuple[tuple[float, float], float]:
    """The pixel farthest from the edge of an area, and how far; 0 where it is empty."""
    rows, columns = np.flatnonzero(area.any(axis=1)), np.flatnonzero(area.any(axis=0))
    if not len(rows):
        return (0.0, 0.0), 0.0
    top, left = int(rows[0]), int(columns[0])
    window = area[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    framed = np.pad(window, 1)  # the image's own border is an edge like any other
    distance = cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return (float(left + x), float(top + y)), float(distance[y, x])


def _padded(points: Points, labels: Labels) -> tuple[Points, Labels]:
    """Loose points end with a padding point, as the released model always saw them."""
    count = len(points)
    return (
        np.concatenate([points, np.zeros((count, 1, 2), np.float32)], axis=1),
        np.concatenate([labels, np.full((count, 1), Label.PADDING)], axis=1).astype(np.int64),
    )


def _answers(
    model: RegionModel,
    image_id: int,
    region_ids: Sequence[int],
    kind: str,
    points: Points,
    labels: Labels,
    masks: Masks,
    chosen: Masks,
) -> Iterator[dict[str, object]]:
    """Rows of one kind of prompt; `chosen` is filled with the masks the model took."""
    place = 0
    for predicted in model.prompt(points, labels, Wanted(masks=True)):
        for candidates, index, estimates in zip(
            predicted.masks, predicted.chosen.tolist(), predicted.iou, strict=True
        ):
            ious = _iou(candidates, masks[place])
            chosen[place] = candidates[index]
            yield {
                "image_id": image_id,
                "region_id": region_ids[place],
                "prompt": kind,
                "routed_iou": float(ious[index]),
                "oracle_iou": float(ious.max()),
                "predicted_iou": float(estimates[index]),
            }
            place += 1


def _iou(candidates: Masks, mask: Masks) -> npt.NDArray[np.float64]:
    """[C] IoU of candidates [C, H, W] with a mask [H, W]."""
    both = (candidates & mask).sum(axis=(1, 2))
    return both / np.maximum((candidates | mask).sum(axis=(1, 2)), 1)

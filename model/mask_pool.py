"""Masks that everything mode has found in a picture, and which of them stay."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from tap_engine.schemas import boxes, rle

Window = tuple[int, int, int, int]
"""left, top, right, bottom px of the image; right and bottom exclusive."""


@dataclass(slots=True)
class MaskPool:
    """Masks that may stay: one entry of every list per mask, all of one picture."""

    counts: list[bytes]
    box: npt.NDArray[np.float64]
    iou: npt.NDArray[np.float64]
    stability: npt.NDArray[np.float64]
    point: npt.NDArray[np.float64]
    crop: npt.NDArray[np.int64]
    candidate: npt.NDArray[np.int64]
    tokens: Tensor
    """[N, 3, D'] mask token, semantic token, embedding, padded to one width."""

    def __len__(self) -> int:
        return len(self.counts)

    def at(self, places: npt.NDArray[np.int64]) -> "MaskPool":
        """The masks of these places, in their order."""
        return MaskPool(
            [self.counts[place] for place in places],
            self.box[places],
            self.iou[places],
            self.stability[places],
            self.point[places],
            self.crop[places],
            self.candidate[places],
            self.tokens[torch.from_numpy(places)],
        )


def joined(pools: list[MaskPool]) -> MaskPool:
    """The masks of several pools in one."""

    def all_of(name: str) -> Any:
        return np.concatenate([getattr(pool, name) for pool in pools])

    return MaskPool(
        counts=[one for pool in pools for one in pool.counts],
        box=all_of("box"),
        iou=all_of("iou"),
        stability=all_of("stability"),
        point=all_of("point"),
        crop=all_of("crop"),
        candidate=all_of("candidate"),
        tokens=torch.cat([pool.tokens for pool in pools]),
    )


def distinct(
    pool: MaskPool, size_hw: tuple[int, int], box_thresh: float, mask_thresh: float
) -> MaskPool:
    """Without what is nearly the same as something better; the best first."""
    best_first = np.argsort(-pool.iou, kind="stable")
    pool = pool.at(apart(pool.box, best_first, box_thresh))
    whole = [{"size": list(size_hw), "counts": counts} for counts in pool.counts]
    if len(whole) < 2:
        return pool
    overlap = np.asarray(coco_mask.iou(whole, whole, [0] * len(whole)))
    kept: list[int] = []
    for place in range(len(whole)):
        if not (overlap[place, kept] > mask_thresh).any():
            kept.append(place)
    return pool.at(np.array(kept, np.int64))


def apart(
    box: npt.NDArray[np.float64], order: npt.NDArray[np.int64], thresh: float
) -> npt.NDArray[np.int64]:
    """Places of the boxes that overlap no earlier kept one by more than `thresh`, in `order`."""
    kept = []
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(first)
        order = rest[_box_iou(box[first], box[rest]) <= thresh]
    return np.array(kept, np.int64)


def _box_iou(
    one: npt.NDArray[np.float64], others: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """[N] intersection over union of a box [4] and boxes [N, 4], xyxy; none is empty."""
    low, high = np.maximum(one[:2], others[:, :2]), np.minimum(one[2:], others[:, 2:])
    inter = (high - low).clip(0).prod(-1)
    union = boxes.area_xyxy(one) + boxes.area_xyxy(others) - inter
    found: npt.NDArray[np.float64] = inter / union
    return found


def cleaned(pool: MaskPool, size_hw: tuple[int, int], least: int) -> MaskPool:
    """Masks without small pieces and holes; without masks that are small themselves.

    SAM's generator keeps the largest piece of a mask however small; here the area is that of masks,
    too. A mask that was changed has no better claim than before: its score is unchanged.
    """
    kept: list[int] = []
    for place, counts in enumerate(pool.counts):
        mask = rle.decode(counts, size_hw)
        for inside in (0, 1):  # holes first, then pieces
            area_map = (mask == inside).astype(np.uint8)
            count, part, stats, _ = cv2.connectedComponentsWithStats(area_map, connectivity=8)
            small = stats[:, cv2.CC_STAT_AREA] < least
            small[0] = False
            if count > 1 and small.any():
                mask[small[part]] = 1 - inside
        if int(mask.sum()) < least:
            continue
        kept.append(place)
        pool.counts[place] = rle.encode(mask)
        pool.box[place] = tight_box(mask > 0, (0, 0, size_hw[1], size_hw[0]))
    return pool.at(np.array(kept, np.int64))


def tight_box(mask: npt.NDArray[np.bool_], window: Window) -> tuple[float, ...]:
    """Tight xyxy box of a mask of a window, px of the picture."""
    xs, ys = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    left, top = window[:2]
    return (left + xs[0], top + ys[0], left + xs[-1] + 1, top + ys[-1] + 1)

"""Boxes in pixel-edge coordinates: conversion and clipping, which no other file does.

xywh is (left, top, width, height), xyxy is (left, top, right, bottom); the right and bottom
edges are exclusive, so a one-pixel box has width 1. SA-1B's own `bbox` is one less in width
and height than this: boxes are taken from masks, never from its json.
"""

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.floating]


def xywh_to_xyxy(boxes: Boxes) -> Boxes:
    """[..., 4] xywh -> [..., 4] xyxy, same dtype."""
    boxes = np.asarray(boxes)
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def xyxy_to_xywh(boxes: Boxes) -> Boxes:
    """[..., 4] xyxy -> [..., 4] xywh, same dtype."""
    boxes = np.asarray(boxes)
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def clip_xyxy(boxes: Boxes, size_hw: tuple[int, int]) -> Boxes:
    """Boxes cut to the image; one wholly outside gets width or height 0.

    Args:
        boxes: [..., 4] xyxy, px.
        size_hw: image height and width, px.
    """
    height, width = size_hw
    limits = np.asarray([width, height, width, height], dtype=np.asarray(boxes).dtype)
    return np.clip(boxes, 0, limits)


def area_xyxy(boxes: Boxes) -> Boxes:
    """[...] areas in px^2; 0 for a box with a negative side."""
    sides = np.clip(np.asarray(boxes)[..., 2:] - np.asarray(boxes)[..., :2], 0, None)
    return sides[..., 0] * sides[..., 1]

"""Turns boxes, points and masks of people into the labelled points that the model takes."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tap_engine.model.prompt_encoder import Label
from tap_engine.schemas.errors import ConfigError

Points = npt.NDArray[np.float32]

MASK_POINTS = 9
"""Points that stand for a mask or sketch; the most that training ever shows (TAP paper, 3.1)."""


def points_from_mask(mask: npt.NDArray[np.generic]) -> Points:
    """Nine foreground points spread over a mask or sketch.

    Its pixels, row by row, are numbered 0 to N - 1; taken are floor(i * N / 10) for i = 1..9. A
    mask of fewer than nine pixels repeats some.

    Args:
        mask: [H, W], non-zero is inside.

    Returns:
        [9, 2] float32 (x, y), pixel indices.

    Raises:
        ValueError: the mask is empty.
    """
    ys, xs = np.nonzero(mask)
    if len(ys) == 0:
        raise ValueError("the mask is empty: a prompt needs at least one pixel inside")
    chosen = np.linspace(0, len(ys), MASK_POINTS + 2).astype(np.int64)[1:-1]
    return np.stack([xs[chosen], ys[chosen]], axis=-1).astype(np.float32)


def box_from_mask(mask: npt.NDArray[np.generic]) -> Points:
    """[4] float32 x1, y1, x2, y2 of the outermost pixels inside, both inclusive; 0 where empty.

    Prompt coordinates name pixel centres, so this is one less on the right and bottom than the
    pixel-edge boxes of `schemas.boxes`.
    """
    ys, xs = np.nonzero(mask)
    if len(ys) == 0:
        return np.zeros(4, np.float32)
    return np.array([xs.min(), ys.min(), xs.max(), ys.max()], np.float32)


@dataclass(frozen=True, slots=True)
class Prompts:
    """P prompts on one image, in its own pixels.

    Attributes:
        points: [P, K, 2] float32 (x, y); box corners first.
        labels: [P, K] int64 of `prompt_encoder.Label`.
    """

    points: Points
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.points)


def make_prompts(
    image_hw: tuple[int, int],
    *,
    boxes: npt.ArrayLike | None = None,
    points: npt.ArrayLike | None = None,
    point_labels: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
) -> Prompts:
    """Turns what a person says about regions into the points that the model takes.

    A box and points given together describe the same region, box first. Points without a box get a
    padding point at the end, as the released model always saw them, unless they have one. A mask or
    sketch becomes nine points on it.

    Args:
        image_hw: size of the image, px.
        boxes: [P, 4] or [4] xyxy px; may reach over the edge.
        points: [P, K, 2] or [K, 2] (x, y) px: K points of each of P regions.
        point_labels: [P, K] or [K]: 1 in the region, 0 not in it, 4 no point; all 1 by default.
        mask: [P, H, W] or [H, W], of the image's size, non-zero is inside; floats are 0 or 1.

    Raises:
        ConfigError: nothing given, shapes disagree, not numbers, or a prompt off the image.
    """
    if boxes is None and points is None and mask is None:
        raise ConfigError("nothing to predict: give boxes, points or a mask")
    if mask is not None and points is not None:
        raise ConfigError("give points or a mask, not both: a mask is turned into points")
    if point_labels is not None and points is None:
        raise ConfigError("point_labels without points")
    parts: list[tuple[Points, npt.NDArray[np.int64]]] = []
    if boxes is not None:
        parts.append(_corners(boxes, image_hw))
    if mask is not None:
        parts.append(_mask_points(mask, image_hw))
    if points is not None:
        parts.append(_loose_points(points, point_labels, image_hw))
    counts = {len(xy) for xy, _ in parts}
    if len(counts) > 1:
        raise ConfigError(
            f"boxes and points given together describe the same regions, found {sorted(counts)} of "
            "them; call twice for different regions"
        )
    padded = (parts[-1][1][:, -1] == Label.PADDING).all()
    if boxes is None and not padded:
        count = counts.pop()
        end = np.zeros((count, 1, 2), np.float32)
        parts.append((end, np.full((count, 1), Label.PADDING, np.int64)))
    return Prompts(
        np.concatenate([xy for xy, _ in parts], axis=1),
        np.concatenate([labels for _, labels in parts], axis=1),
    )


def _corners(
    boxes: npt.ArrayLike, image_hw: tuple[int, int]
) -> tuple[Points, npt.NDArray[np.int64]]:
    xyxy = _numbers(boxes, "boxes")
    if xyxy.ndim == 1 and xyxy.size:
        xyxy = xyxy[None]
    xyxy = xyxy.reshape(0, 4) if xyxy.size == 0 else xyxy
    if xyxy.ndim != 2 or xyxy.shape[1] != 4:
        raise ConfigError(f"boxes must be [P, 4] xyxy, got shape {list(xyxy.shape)}")
    height, width = image_hw
    x1, y1, x2, y2 = xyxy.T
    bad = (x2 <= x1) | (y2 <= y1)
    _refuse(xyxy, bad, "box", "has no area: expected left, top, right, bottom")
    bad = (x2 <= 0) | (y2 <= 0) | (x1 >= width) | (y1 >= height)
    _refuse(xyxy, bad, "box", f"is off the image of {width} x {height} px")
    labels = np.array([Label.BOX_TOP_LEFT, Label.BOX_BOTTOM_RIGHT], np.int64)
    return xyxy.reshape(-1, 2, 2), np.tile(labels, (len(xyxy), 1))


def _loose_points(
    points: npt.ArrayLike, point_labels: npt.ArrayLike | None, image_hw: tuple[int, int]
) -> tuple[Points, npt.NDArray[np.int64]]:
    xy = _numbers(points, "points")
    if xy.ndim == 2:
        xy = xy[None]
    if xy.ndim != 3 or xy.shape[2] != 2 or xy.shape[1] == 0:
        raise ConfigError(f"points must be [P, K, 2] or [K, 2] (x, y), got shape {list(xy.shape)}")
    if point_labels is None:
        labels = np.full(xy.shape[:2], Label.FOREGROUND, np.int64)
    else:
        labels = np.asarray(point_labels)
        labels = labels[None] if labels.ndim == 1 else labels
        if labels.shape != xy.shape[:2]:
            raise ConfigError(
                f"{list(xy.shape[:2])} points need as many labels, got {list(labels.shape)}"
            )
        known = (Label.BACKGROUND, Label.FOREGROUND, Label.PADDING)
        if not np.isin(labels, known).all():
            raise ConfigError(
                f"point labels are 1 (in), 0 (out) or 4 (none), got {labels.tolist()}"
            )
        labels = labels.astype(np.int64)
    height, width = image_hw
    off = (xy < 0).any(-1) | (xy[..., 0] >= width) | (xy[..., 1] >= height)
    _refuse(
        xy, off & (labels != Label.PADDING), "point", f"is off the image of {width} x {height} px"
    )
    return xy, labels


def _mask_points(
    mask: npt.ArrayLike, image_hw: tuple[int, int]
) -> tuple[Points, npt.NDArray[np.int64]]:
    masks = np.asarray(mask)
    if masks.dtype.kind == "f" and not np.isin(masks, (0, 1)).all():
        raise ConfigError(
            "a mask of floats must be 0 or 1: whether others are probabilities or logits is not "
            "known. Give mask > 0.5, or mask > 0 for logits"
        )
    masks = masks[None] if masks.ndim == 2 else masks
    if masks.ndim != 3 or masks.shape[1:] != image_hw:
        raise ConfigError(
            f"the mask must be of the image's size {list(image_hw)}, got shape {list(masks.shape)}"
        )
    try:
        points = [points_from_mask(one) for one in masks]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    xy = np.stack(points) if points else np.zeros((0, MASK_POINTS, 2), np.float32)
    return xy, np.full(xy.shape[:2], Label.FOREGROUND, np.int64)


def _numbers(values: npt.ArrayLike, name: str) -> Points:
    try:
        array = np.asarray(values, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name} must be numbers in a regular array: {error}") from error
    if not np.isfinite(array).all():
        raise ConfigError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    return array


def _refuse(values: Points, bad: npt.NDArray[np.bool_], name: str, problem: str) -> None:
    if bad.any():
        where = tuple(np.argwhere(bad)[0].tolist())
        index = where[0] if len(where) == 1 else list(where)
        raise ConfigError(f"{name} {index} {values[where].tolist()} {problem}")

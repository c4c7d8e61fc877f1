"""Outlines of regions: every number is checked before a C library sees it, then they are filled.

pycocotools walks along an outline in fifths of a pixel, so a coordinate of 1e8 ends the process,
and it reads four numbers as a box, drops an odd last one and fails on pairs. What it is given here
is finite, near the image and at least a triangle. Filled as pycocotools fills: several outlines of
a region are united (COCO has no holes), a self-crossing one is filled by the even-odd rule.
"""

import json
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from tap_engine.schemas.errors import SchemaError

Outline = npt.NDArray[np.float64]
"""[N, 2] corners x, y; px, pixel edges at whole numbers."""

_FAR_PX = 1000
_MOST_STEPS_PX = 2_000_000
"""Longest outline that is walked along (ours: 10 M steps of a fifth, 160 MB in pycocotools)."""


def outlines(segmentation: Any) -> list[Outline]:
    """Outlines of a COCO polygon segmentation, and of the forms that people write instead.

    Besides `[[x, y, x, y, ...], ...]` these are read, as each has one meaning only: one level too
    few (`[x, y, ...]`), one too many (`[[x, y], ...]` and `[[[x, y], ...], ...]`), numbers as text,
    and empty parts. An outline of fewer than three corners is left out where another is good.

    Raises:
        SchemaError: no list of numbers, an odd count of them, a number that is not finite, or no
            outline of three corners.
    """
    if isinstance(segmentation, str):
        try:
            segmentation = json.loads(segmentation)
        except ValueError as error:
            raise SchemaError(f"expected a polygon, found text: {segmentation[:40]!r}") from error
    if not isinstance(segmentation, list | tuple):
        raise SchemaError(f"expected a polygon as a list, found {kind(segmentation)}")
    found: list[Outline] = []
    shortest = None
    for part in _parts(segmentation):
        flat = _numbers(part)
        if len(flat) % 2:
            raise SchemaError(f"a polygon of {len(flat)} numbers: an odd count gives no x, y pairs")
        if len(flat) >= 6:
            found.append(flat.reshape(-1, 2))
        elif len(flat):
            shortest = len(flat) // 2
    if not found:
        if shortest is None:
            raise SchemaError("the polygon is empty: a list without numbers")
        points = "1 point" if shortest == 1 else f"{shortest} points"
        raise SchemaError(f"a polygon of {points} has no inside; it needs three")
    return found


def fill(shapes: Sequence[Outline], size_hw: tuple[int, int]) -> bytes:
    """Compressed counts of the union of outlines, cut at the image's border.

    Args:
        shapes: of `outlines`.
        size_hw: the image's size, px.

    Raises:
        SchemaError: a coordinate far from the image, fractions of 0..1 in place of pixels, or an
            outline too long to walk along.
    """
    height, width = size_hw
    far = 10 * max(height, width) + _FAR_PX
    largest = max(float(np.abs(shape).max()) for shape in shapes)
    if not largest <= far:
        raise SchemaError(
            f"coordinate {_extreme(shapes):g} is out of range for an image of {width} x {height} px"
        )
    low = min(float(shape.min()) for shape in shapes)
    whole = all((shape == np.round(shape)).all() for shape in shapes)
    if low >= 0 and largest <= 1 and not whole and max(height, width) > 2:
        raise SchemaError(
            "all coordinates lie in 0..1: fractions of the picture (normalised), expected pixels"
        )
    steps = sum(np.abs(np.diff(shape, axis=0, append=shape[:1])).max(1).sum() for shape in shapes)
    if steps > _MOST_STEPS_PX:
        raise SchemaError(f"the outline is {steps:,.0f} px long, more than {_MOST_STEPS_PX:,}")
    parts = coco_mask.frPyObjects([shape.ravel().tolist() for shape in shapes], height, width)
    return cast(bytes, coco_mask.merge(parts)["counts"])


def kind(value: object) -> str:
    """What a json value is, in json's words."""
    if value is None:
        return "null"
    words = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        dict: "an object",
        list: "a list",
    }
    return next((word for form, word in words.items() if type(value) is form), "a value")


def _parts(segmentation: Sequence[Any]) -> list[Any]:
    """The outlines in a segmentation of any depth, each a flat list or a list of pairs."""
    if segmentation and not isinstance(segmentation[0], list | tuple):
        return [segmentation]
    if len(segmentation) >= 3 and all(_is_pair(item) for item in segmentation):
        return [segmentation]
    return list(segmentation)


def _is_pair(item: object) -> bool:
    return (
        isinstance(item, list | tuple)
        and len(item) == 2
        and not any(isinstance(value, list | tuple) for value in item)
    )


def _numbers(part: object) -> Outline:
    if not isinstance(part, list | tuple):
        raise SchemaError(f"expected an outline as a list of numbers, found {kind(part)}")
    if part and all(_is_pair(item) for item in part):
        part = [value for pair in part for value in pair]
    return np.array([number(value) for value in part], np.float64)


def number(value: Any) -> float:
    """A finite number, also where it was written as text.

    Raises:
        SchemaError: no number, or not finite.
    """
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError as error:
            raise SchemaError(f"expected a number, found text {value[:40]!r}") from error
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SchemaError(f"expected a number, found {kind(value)}")
    try:
        found = float(value)
    except OverflowError as error:
        raise SchemaError("coordinate is not finite: a number of more than 308 digits") from error
    if not np.isfinite(found):
        raise SchemaError(f"coordinate {found} is not finite")
    return found


def _extreme(shapes: Sequence[Outline]) -> float:
    return max((float(v) for shape in shapes for v in (shape.min(), shape.max())), key=abs)

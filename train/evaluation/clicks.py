"""Places the next click where an imitated person would: in the largest error.

A click goes where a person who wants the region would put it: into the middle of the thickest
mistake, which before the first click is the whole region. The middle is the pixel farthest from
the mistake's edge. That is the usual rule of interactive segmentation (SAM's evaluation, RITM);
it draws nothing at random.
"""

import cv2
import numpy as np
import numpy.typing as npt

from tap_engine.model.prompt_encoder import Label

_Masks = npt.NDArray[np.bool_]


def next_click(mask: _Masks, guess: _Masks) -> tuple[tuple[float, float], int]:
    """Places the next click: in the middle of the largest error.

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


def _middle(area: _Masks) -> tuple[tuple[float, float], float]:
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

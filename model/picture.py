"""Draws masks with their names on an image; every picture of this package is made here.

A mask is tinted and outlined in the colour of its name, so one name has one colour everywhere.
Labels never cover each other: a label that finds its place taken moves, with a line back to its
mask, and is left out where the whole picture is full. Small images are enlarged before drawing.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from tap_engine.model.image_input import Rgb
from tap_engine.model.prompt_encoder import Label
from tap_engine.model.region import Region

UNKNOWN_ABOVE = 3.0
"""Entropy in nats, over a large vocabulary, from which a name is shown as unknown."""

PANEL_PX = 560
"""Longer side of one panel: three panels side by side fit a screen."""

PAIR_PX = 440
"""The same where two pairs of panels stand in a row."""

_SMALL_PX = 1120
"""A picture of one image is enlarged until its longer side has this."""

_INSIDE = 0.9
"""A mask with this share of its area inside a larger one is a part of that one."""

_SURFACE = 0.12
"""A mask that covers this share of the image is tinted lightly: it would drown what lies on it."""

_GAP_PX = 10
_PAPER = (250, 250, 248)
_GREY = (110, 110, 110)
_WRONG = (178, 34, 34)
_POSITIVE, _NEGATIVE = (20, 150, 60), (200, 30, 30)

_Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
Cover = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A person's box or clicks, in px of the image.

    Attributes:
        box_xyxy: corners of a box.
        points: (x, y) of every click.
        labels: for every click 1 if it is on the region, 0 if it is outside.
    """

    box_xyxy: Sequence[float] | None = None
    points: Sequence[Sequence[float]] = ()
    labels: Sequence[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mark:
    """A mask and what is written on it.

    Attributes:
        mask: [H, W] bool, or 0 and 1.
        name: decides the colour.
        text: the label; empty for none.
        unknown: draw it grey: the name is a guess.
        wrong: write it red: the name is not the true one.
        prompt: what the mask was asked with.
    """

    mask: npt.NDArray[np.bool_] | npt.NDArray[np.uint8]
    name: str
    text: str
    unknown: bool = False
    wrong: bool = False
    prompt: Prompt | None = None


def region_mark(region: Region, prompt: Prompt | None = None, *, number: int = 0) -> Mark:
    """A prediction as a mark.

    Args:
        region: what `Tap.predict` returned.
        prompt: what it was asked with.
        number: decides the colour where the model has no names.
    """
    if not region.concepts:
        return Mark(
            mask=region.mask, name=f"{number}", text=region.caption or "region", prompt=prompt
        )
    best = region.concepts[0].name
    unknown = region.entropy > UNKNOWN_ABOVE
    text = f"unknown ({best}?)" if unknown else f"{best} {region.concepts[0].probability:.2f}"
    text = f"{text}: {region.caption}" if region.caption else text
    return Mark(mask=region.mask, name=best, text=text, unknown=unknown, prompt=prompt)


def describe(region: Region) -> str:
    """One line for a terminal: the best name with its probability, and the caption."""
    name = "region"
    if region.concepts:
        name = f"{region.concepts[0].name} {region.concepts[0].probability:.2f}"
    return f"{name}: {region.caption}" if region.caption else name


def draw_marks(
    rgb: Rgb, marks: Sequence[Mark], *, side_px: int | None = None, parts: bool = True
) -> Image.Image:
    """Draws masks on their image.

    Args:
        rgb: [H, W, 3] uint8.
        marks: masks of the image's own size.
        side_px: the longer side of the result. Without it a small image is enlarged and a large one
            keeps its size.
        parts: tint and name a mask that lies inside a larger one as well; else it is outlined only.
    """
    side = side_px or max(_SMALL_PX, *rgb.shape[:2])
    zoom = side / max(rgb.shape[:2])
    size = (max(round(rgb.shape[1] * zoom), 1), max(round(rgb.shape[0] * zoom), 1))
    picture = _resized(rgb, size).astype(np.float32)
    covers = [_resized(mark.mask.astype(np.float32), size) for mark in marks]
    order = _largest_first([cover > 0.5 for cover in covers])  # small ones come on top
    named = order if parts else top_level([cover > 0.5 for cover in covers])
    unit = max(1.0, side / PANEL_PX)  # lines and letters grow with the picture, but slower
    unit = unit**0.7
    for k in order:
        colour, cover = np.asarray(_colour(marks[k]), np.float32), covers[k]
        if k in named:
            strength = 0.08 if cover.mean() > _SURFACE else 0.26
            picture += (strength * cover)[..., None] * (colour - picture)
            _outline(picture, cover, colour, 0.95, round(2 * unit))
        else:
            _outline(picture, cover, np.full(3, 255, np.float32), 0.35, round(unit))
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    taken = [place for mark in marks for place in _draw_prompt(draw, mark, zoom, unit)]
    labels = [(marks[k], _anchor(marks[k], covers[k], zoom)) for k in named]
    _write_labels(draw, image.size, labels, taken, unit)
    return image


def draw_sheet(
    panels: Sequence[Image.Image],
    *,
    columns: int = 3,
    title: str = "",
    heads: Sequence[str] = (),
) -> Image.Image:
    """Lays panels out in rows.

    Args:
        panels: at least one; none is larger than `PANEL_PX`.
        columns: number of panels per row.
        title: a line above everything; empty for none.
        heads: a line above every column; empty for none.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    panel_px = max(max(panel.size) for panel in panels)
    height = max(panel.height for panel in panels)
    top = _GAP_PX + (35 if title else 0) + (25 if heads else 0)
    across, down = panel_px + _GAP_PX, height + _GAP_PX
    sheet = Image.new("RGB", (columns * across + _GAP_PX, top + rows * down), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_GAP_PX, _GAP_PX + 4), title, fill=(40, 40, 40), font=_font(21))
    for column, head in enumerate(heads[:columns]):
        place = (_GAP_PX + column * across, top - 27)
        draw.text(place, head, fill=(40, 40, 40), font=_font(17))
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        left = _GAP_PX + column * across + (panel_px - panel.width) // 2
        sheet.paste(panel, (left, top + row * down))
    return sheet


def top_level(masks: Sequence[npt.NDArray[np.bool_]]) -> list[int]:
    """Positions of the masks that do not lie inside a larger one, the largest first.

    Args:
        masks: each [H, W] bool.
    """
    tops: list[int] = []
    for k in _largest_first(masks):
        area = max(int(masks[k].sum()), 1)
        if not any(masks[top][masks[k]].sum() > _INSIDE * area for top in tops):
            tops.append(k)
    return tops


def _largest_first(masks: Sequence[npt.NDArray[np.bool_]]) -> list[int]:
    return sorted(range(len(masks)), key=lambda k: -int(masks[k].sum()))


def _resized(values: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    larger = size[0] > values.shape[1]
    enlarge = cv2.INTER_CUBIC if values.dtype == np.uint8 else cv2.INTER_LINEAR
    method = enlarge if larger else cv2.INTER_AREA
    return cv2.resize(np.ascontiguousarray(values), size, interpolation=method)


def _outline(picture: Cover, cover: Cover, colour: Cover, strength: float, width_px: int) -> None:
    inside = (cover > 0.5).astype(np.uint8)
    contours, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    line = np.zeros(cover.shape, np.uint8)
    cv2.drawContours(line, contours, -1, 255, width_px, cv2.LINE_AA)
    picture += (line.astype(np.float32) / 255 * strength)[..., None] * (colour - picture)


def _draw_prompt(draw: ImageDraw.ImageDraw, mark: Mark, zoom: float, unit: float) -> list[Box]:
    """Draws box and clicks; returns the places that labels must leave free."""
    taken: list[Box] = []
    prompt = mark.prompt
    if prompt is None:
        return taken
    if prompt.box_xyxy is not None:
        left, top, right, bottom = (zoom * value for value in prompt.box_xyxy)
        place = (left, top, max(left, right), max(top, bottom))
        draw.rectangle(place, outline="black", width=round(3 * unit))
        draw.rectangle(place, outline=_colour(mark), width=round(2 * unit))
    radius = 6 * unit
    for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
        x, y = zoom * x, zoom * y
        positive = label == Label.FOREGROUND
        place = (x - radius, y - radius, x + radius, y + radius)
        fill = _POSITIVE if positive else _NEGATIVE
        draw.ellipse(place, fill=fill, outline="white", width=max(round(1.5 * unit), 1))
        arm, width = 0.5 * radius, max(round(1.5 * unit), 1)
        draw.line((x - arm, y, x + arm, y), fill="white", width=width)
        if positive:  # a plus for "this", a minus for "not this"
            draw.line((x, y - arm, x, y + arm), fill="white", width=width)
        taken.append(place)
    return taken


def _write_labels(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    marks: Sequence[tuple[Mark, tuple[int, int] | None]],
    taken: list[Box],
    unit: float,
) -> None:
    """Names on surfaces and at the feet of things, moved aside where they would meet."""
    font, margin = _font(15 * unit), 4 * unit
    placed: list[tuple[Mark, str, Box, tuple[float, float]]] = []
    for mark, centre in marks:
        if not mark.text or centre is None:
            continue
        text = "\n".join(wrap(mark.text, 34))
        left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=font)
        wanted = (right - left + 2.5 * margin, bottom - top + 2 * margin)
        box = _free_box(centre, wanted, size, taken)
        if box is None:
            continue
        taken.append(box)
        placed.append((mark, text, box, (box[0] + 1.25 * margin - left, box[1] + margin - top)))
        near = (min(max(centre[0], box[0]), box[2]), min(max(centre[1], box[1]), box[3]))
        if abs(near[0] - centre[0]) + abs(near[1] - centre[1]) > 2:
            draw.line((*centre, *near), fill=_label_colours(mark)[0], width=round(1.5 * unit))
    for mark, text, box, place in placed:  # after all lines, so that none crosses a label
        fill, ink = _label_colours(mark)
        border = round(2 * unit) if mark.wrong else 0
        draw.rounded_rectangle(box, radius=5 * unit, fill=fill, outline=ink, width=border)
        draw.multiline_text(place, text, fill=ink, font=font)


def _free_box(
    centre: tuple[int, int],
    size: tuple[float, float],
    bounds: tuple[int, int],
    taken: Sequence[Box],
) -> Box | None:
    """The free place nearest to a point; None where there is none."""
    width, height = size
    if width + 4 > bounds[0] or height + 4 > bounds[1]:
        return None
    steps = [(dx * width / 2, dy * height / 2) for dx in range(-6, 7) for dy in range(-24, 25)]
    for dx, dy in sorted(steps, key=lambda step: abs(step[0]) + abs(step[1])):
        left = min(max(centre[0] - width / 2 + dx, 2), bounds[0] - width - 2)
        top = min(max(centre[1] - height / 2 + dy, 2), bounds[1] - height - 2)
        box = (left, top, left + width, top + height)
        if not any(_meet(box, other) for other in taken):
            return box
    return None


def _meet(one: Box, other: Box) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _anchor(mark: Mark, cover: Cover, zoom: float) -> tuple[int, int] | None:
    """(x, y) where a label belongs; None for a mark that shows nothing."""
    if (cover > 0.5).any():
        return _innermost(cover) if cover.mean() > _SURFACE else _foot(cover)
    if mark.prompt is not None and mark.prompt.box_xyxy is not None:
        left, _, right, bottom = (zoom * value for value in mark.prompt.box_xyxy)
        return round((left + right) / 2), round(bottom)
    return None


def _innermost(cover: Cover) -> tuple[int, int]:
    """(x, y) of a mask's point farthest from its edge."""
    padded = np.pad((cover > 0.5).astype(np.uint8), 1)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)


def _foot(cover: Cover) -> tuple[int, int]:
    """(x, y) on the lower edge of a mask, where a label hides least of it."""
    rows, columns = np.nonzero(cover > 0.5)
    lowest = int(rows.max())
    return int(np.median(columns[rows == lowest])), lowest


def _label_colours(mark: Mark) -> tuple[_Colour, _Colour]:
    """The colour behind a label, and of its letters."""
    if mark.wrong:
        return _PAPER, _WRONG
    red, green, blue = (round(0.55 * value) for value in _colour(mark))
    return (_GREY if mark.unknown else (red, green, blue)), _PAPER


def _colour(mark: Mark) -> _Colour:
    """The same colour for the same name everywhere; neighbours in the alphabet differ."""
    if mark.unknown:
        return _GREY
    hue = (sum(ord(c) * 31**k for k, c in enumerate(mark.name)) * 0.618033988749895) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 0.98)
    return round(255 * red), round(255 * green), round(255 * blue)


def _font(size_px: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)

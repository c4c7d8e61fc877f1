"""Predictions drawn on their image, for people."""

import colorsys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from tap_engine.model.image_input import Rgb
from tap_engine.model.predictor import Region

_FILL = 0.45
"""Share of a mask's colour inside it."""

_SURFACE, _SURFACE_FILL = 0.12, 0.1
"""A mask that covers this share of the image is tinted lightly: it would drown what lies on it."""

_GOLDEN = 0.618034
"""Steps of this round the colour circle keep neighbours apart, however many there are."""


def draw_regions(
    rgb: Rgb, regions: Sequence[Region], *, min_probability: float = 0.0, zoom: int = 1
) -> Image.Image:
    """The image with every mask tinted and outlined, and its name and caption above it.

    Args:
        rgb: [H, W, 3] uint8.
        regions: of `Tap.predict` on this image.
        min_probability: names below this are not written: the region is "unknown".
        zoom: pixels along a side for each of the image; names on a small image need room.
    """
    large = (zoom * rgb.shape[1], zoom * rgb.shape[0])
    pixels = np.array(Image.fromarray(rgb).resize(large, Image.Resampling.BICUBIC), np.float32)
    masks = [r.mask.repeat(zoom, axis=0).repeat(zoom, axis=1) for r in regions]
    colours = [_colour(index) for index in range(len(regions))]
    # Large ones first, so that small ones stay visible.
    order = sorted(range(len(regions)), key=lambda i: -int(masks[i].sum()))
    for index in order:
        mask = masks[index]
        fill = _SURFACE_FILL if mask.mean() > _SURFACE else _FILL
        pixels[mask] = (1 - fill) * pixels[mask] + fill * np.asarray(colours[index])
        pixels[_outline(mask)] = colours[index]
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(11, min(picture.size) // 36))
    for index in order:
        if masks[index].any():
            text = describe(regions[index], min_probability)
            _write(draw, font, text, masks[index], colours[index])
    return picture


def describe(region: Region, min_probability: float = 0.0) -> str:
    """One line: best name with its probability, and the caption."""
    name = "region"
    if region.concepts:
        best = region.concepts[0]
        known = best.probability >= min_probability
        name = f"{best.name} {best.probability:.2f}" if known else "unknown"
    return f"{name}: {region.caption}" if region.caption else name


def _write(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    text: str,
    mask: npt.NDArray[np.bool_],
    colour: tuple[int, int, int],
) -> None:
    ys, xs = np.nonzero(mask)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    x = max(0, min(int(xs.min()), mask.shape[1] - int(right)))
    y = max(0, int(ys.min()) - int(bottom) - 3)  # above the region, where there is room
    draw.rectangle((x + left - 2, y + top - 2, x + right + 2, y + bottom + 2), fill=colour)
    dark = sum(colour) > 3 * 140
    draw.text((x, y), text, font=font, fill="black" if dark else "white")


def _outline(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Pixels of the mask with a neighbour outside it."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _colour(index: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN % 1, 0.75, 0.95)
    return int(255 * red), int(255 * green), int(255 * blue)

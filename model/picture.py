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

_GOLDEN = 0.618034
"""Steps of this round the colour circle keep neighbours apart, however many there are."""


def draw_regions(
    rgb: Rgb, regions: Sequence[Region], *, min_probability: float = 0.0
) -> Image.Image:
    """The image with every mask tinted and outlined, and its name and caption above it.

    Args:
        rgb: [H, W, 3] uint8.
        regions: of `Tap.predict` on this image.
        min_probability: names below this are not written: the region is "unknown".
    """
    pixels = rgb.astype(np.float32)
    colours = [_colour(index) for index in range(len(regions))]
    # Large ones first, so that small ones stay visible.
    order = sorted(range(len(regions)), key=lambda i: -int(regions[i].mask.sum()))
    for index in order:
        mask = regions[index].mask
        pixels[mask] = (1 - _FILL) * pixels[mask] + _FILL * np.asarray(colours[index])
        pixels[_outline(mask)] = colours[index]
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(11, min(picture.size) // 36))
    for index in order:
        if regions[index].mask.any():
            _write(draw, font, regions[index], colours[index], picture.width, min_probability)
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
    region: Region,
    colour: tuple[int, int, int],
    width: int,
    min_probability: float,
) -> None:
    ys, xs = np.nonzero(region.mask)
    text = describe(region, min_probability)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    x = max(0, min(int(xs.min()), width - int(right)))
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

"""Turns any picture into RGB uint8 and into the square canvas that the encoder sees.

The released model was trained on images scaled so that the longest side fills the canvas (small
ones are enlarged), with Pillow's antialiased bilinear filter, put top-left; the rest of the canvas
is the mean colour cut to whole numbers, so the padding is nearly but not exactly 0 after
normalisation (docs/model.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from tap_engine.schemas.errors import SourceError

Rgb = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class FittedImage:
    """An image in the model's canvas.

    Attributes:
        canvas: [S, S, 3] uint8 RGB.
        scale: canvas px per image px, the same for both axes.
        content_hw: the part of the canvas that is image, px.
        image_hw: size of the image itself, px.
    """

    canvas: Rgb
    scale: float
    content_hw: tuple[int, int]
    image_hw: tuple[int, int]


def fit_image(rgb: Rgb, size: int, fill_rgb: tuple[int, int, int]) -> FittedImage:
    """Scales an image to the canvas.

    Args:
        rgb: [H, W, 3] uint8, of `to_rgb`.
        size: side of the canvas, px.
        fill_rgb: colour of what the image does not cover; `TapModel.fill_rgb`.
    """
    image_hw = (rgb.shape[0], rgb.shape[1])
    scale = size / max(image_hw)
    height, width = (max(1, int(side * scale + 0.5)) for side in image_hw)
    if image_hw != (height, width):
        resized = Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR)
        rgb = np.asarray(resized)
    canvas = np.full((size, size, 3), fill_rgb, np.uint8)
    canvas[:height, :width] = rgb
    return FittedImage(canvas, scale, (height, width), image_hw)


def open_image(path: str | Path) -> Rgb:
    """[H, W, 3] uint8 RGB of an image file, turned as its camera says.

    Raises:
        SourceError: missing, cut off, of no known format, or of a size that is rather an attack.
    """
    with _opened(path) as image:
        return to_rgb(image)


def open_mask(path: str | Path) -> npt.NDArray[np.bool_]:
    """[H, W] bool of a mask or sketch: True where the picture is neither black nor transparent.

    Raises:
        SourceError: as `open_image`.
    """
    with _opened(path) as image:
        rgba = np.asarray(image.convert("RGBA"))
    return rgba[:, :, :3].any(axis=2) & (rgba[:, :, 3] > 0)


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise SourceError(f"no image {str(path)!r}") from error
    except (OSError, Image.DecompressionBombError, SyntaxError) as error:
        raise SourceError(f"{path}: not a readable image: {error}") from error


def to_rgb(image: Any) -> Rgb:
    """[H, W, 3] uint8 RGB of a picture in any usual form.

    Args:
        image: a Pillow image of any mode, or an array: [H, W] or [H, W, 1] grey, [H, W, 3] RGB,
            [H, W, 4] RGBA, of uint8, bool, or uint16 (full range 0..65535). Transparent parts come
            out over white.

    Raises:
        SourceError: another shape or type; says what was found. Floats are refused, since 0..1 and
            0..255 are both common and one of them would be silently wrong.
    """
    if isinstance(image, Image.Image):
        return _from_pillow(image)
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise SourceError(
            f"expected an image [H, W], [H, W, 3] RGB or [H, W, 4] RGBA, found shape "
            f"{list(array.shape)}"
            + (
                "; move the channels last"
                if array.ndim == 3 and array.shape[0] in (1, 3, 4)
                else ""
            )
        )
    if 0 in array.shape:
        raise SourceError(f"the image is empty: shape {list(array.shape)}")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint16:
        array = (array.astype(np.float32) * (255 / 65535) + 0.5).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise SourceError(
            f"expected a uint8 image (0..255), found {array.dtype}; convert it, for values in "
            "0..1 with (image * 255).round().astype('uint8')"
        )
    if array.ndim == 2:
        return np.repeat(array[:, :, None], 3, axis=2)
    if array.shape[2] == 4:
        return _from_pillow(Image.fromarray(array, "RGBA"))
    return np.ascontiguousarray(array)


def _from_pillow(image: Image.Image) -> Rgb:
    if 0 in image.size:
        raise SourceError(f"the image is empty: {image.size[0]} x {image.size[1]} px")
    if image.mode.startswith("I;16"):
        return to_rgb(np.asarray(image).astype(np.uint16))
    if image.mode in ("I", "F"):
        # 16-bit PNGs come as 32-bit integers; nothing says what the range of other such files is.
        array = np.asarray(image)
        if image.mode == "I" and array.min() >= 0 and array.max() <= 65535:
            return to_rgb(array.astype(np.uint16))
        raise SourceError(
            f"image mode {image.mode!r} with values {array.min()} to {array.max()}: expected 8 or "
            "16 bits a channel"
        )
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    return np.asarray(image.convert("RGB"))

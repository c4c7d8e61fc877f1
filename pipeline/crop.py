"""Cuts the square crops that a teacher sees from a JPEG and its masks.

Pure functions on arrays; what is set aside and why is the caller's business. The papers leave
open fill, padding and order of resampling: `CropConfig` names each choice and is part of a
store's settings (docs/decisions/0040-crops.md). The arithmetic is in resample.py.
"""

import io
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from tap_engine.pipeline import resample
from tap_engine.schemas import rle
from tap_engine.schemas.errors import SchemaError
from tap_engine.schemas.store_settings import CropConfig

ImageRgb = npt.NDArray[np.uint8]

MAX_IMAGE_PX = 200_000_000
"""Larger images are refused as decompression bombs (ours: 600 MB decoded, 60 SA-1B images)."""

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN = 0xDA
_KERNELS = {"bicubic": resample.BICUBIC, "bilinear": resample.BILINEAR}


_MAX_SCANS = 100
"""The limit of libjpeg-turbo's own fuzzers."""


def decode_image(jpeg: bytes) -> ImageRgb:
    """[H, W, 3] uint8 RGB of a JPEG, in its stored orientation (masks are drawn on that).

    A PNG or WebP, as people's own photos may be, is decoded by Pillow.

    Raises:
        SchemaError: none of these, cut short, damaged beyond decoding, or above MAX_IMAGE_PX.
    """
    if jpeg.startswith((b"\x89PNG", b"RIFF")):
        return _decode_other(jpeg)
    height, width, channels, scan = _read_header(jpeg)
    if height * width > MAX_IMAGE_PX:
        raise SchemaError(f"JPEG of {width} x {height} px is above the limit of {MAX_IMAGE_PX} px")
    # The bytes of a start of scan cannot stand inside one. Each scan goes over all pixels, so some
    # kB of empty ones keep a decoder busy for minutes.
    if (scans := jpeg.count(b"\xff\xda")) > _MAX_SCANS:
        raise SchemaError(f"JPEG has {scans} scans, more than {_MAX_SCANS}; files have 1 to 10")
    # Decoders fill a cut file with grey; in a scan 0xFF is escaped, so this can only be the end.
    if jpeg.find(b"\xff\xd9", scan) < 0:
        raise SchemaError(f"JPEG is cut short: no end marker in its {len(jpeg)} bytes")
    if channels == 4:  # CMYK: only Pillow knows that Adobe stores it inverted
        try:
            return np.array(Image.open(io.BytesIO(jpeg)).convert("RGB"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise SchemaError(f"JPEG cannot be decoded: {error}") from error
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flags)
    except cv2.error as error:
        raise SchemaError(f"JPEG cannot be decoded: {error}") from error
    if image is None or image.shape != (height, width, 3):
        raise SchemaError(f"JPEG of {width} x {height} px cannot be decoded")
    return image  # type: ignore[return-value]


def _decode_other(data: bytes) -> ImageRgb:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "WEBP")) as image:
            if image.width * image.height > MAX_IMAGE_PX:
                raise SchemaError(
                    f"image of {image.width} x {image.height} px is above the limit of "
                    f"{MAX_IMAGE_PX} px"
                )
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise SchemaError(f"image is damaged or cut short: {error}") from error


def crop_regions(
    image_rgb: ImageRgb,
    masks: Sequence[rle.Runs | None],
    boxes_xywh: Sequence[Sequence[int]] | npt.NDArray[np.integer],
    config: CropConfig,
    out: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """Crops of an image's regions, ready for a teacher; releases the GIL.

    Args:
        image_rgb: [H, W, 3] uint8.
        masks: N run lengths of `rle.runs`, each of the image's size; None shows the whole box.
        boxes_xywh: [N, 4] int, px; a mask's own box is `rle.bbox_xywh`.
        config: the rule.
        out: [N, S, S, 3] uint8, C-contiguous, written and returned; a new array without it.

    Returns:
        [N, S, S, 3] uint8 RGB.

    Raises:
        SchemaError: a mask of another size than the image; an empty box, or one off the image.
    """
    height, width = image_rgb.shape[:2]
    count, size = len(masks), config.size_px
    shape = (count, size, size, 3)
    if out is None:
        out = np.empty(shape, np.uint8)
    elif out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise SchemaError(f"out must be C-contiguous uint8 {shape}, got {out.dtype} {out.shape}")
    if not count:
        return out
    boxes = np.asarray(boxes_xywh, np.int64).reshape(count, 4)
    windows, canvases = _lay_out(boxes, (height, width), config)
    whole = np.array([0, height * width], np.int64)
    shown = [whole if mask is None else mask for mask in masks]
    runs, offsets = _join(shown)
    areas = np.add.reduceat(runs, offsets[:-1])
    if (areas != height * width).any():
        index = int((areas != height * width).argmax())
        raise SchemaError(
            f"mask {index} is of {areas[index]} px, its image of {height} x {width} "
            f"= {height * width}"
        )
    keep = config.fill == "keep"
    if keep or config.order == "resize":
        runs, offsets = _join([whole] * count)
    image = np.ascontiguousarray(image_rgb)
    kernel = _KERNELS[config.resampling]
    resample.crop_batch(
        image.ctypes.data,
        (height, width),
        runs,
        offsets,
        windows,
        canvases,
        config.fill_rgb,
        kernel,
        out,
    )
    if config.order == "resize" and not keep:
        for index, mask in enumerate(shown):
            inside = _resized_mask(mask, (height, width), windows[index], canvases[index], config)
            out[index][~inside] = config.fill_rgb
    return out


def _join(masks: list[rle.Runs]) -> tuple[rle.Runs, npt.NDArray[np.int64]]:
    """All runs one after the other, and [N + 1] where each mask's begin."""
    return np.concatenate(masks), np.cumsum([0, *(mask.size for mask in masks)], dtype=np.int64)


def _lay_out(
    boxes_xywh: npt.NDArray[np.int64], size_hw: tuple[int, int], config: CropConfig
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Windows [N, 4] xyxy of the image; canvases [N, 4]: width, height, the window's x and y."""
    margins = np.round(boxes_xywh[:, 2:] * config.margin).astype(np.int64)
    low, sides = boxes_xywh[:, :2] - margins, boxes_xywh[:, 2:] + 2 * margins
    windows = np.concatenate(
        [np.maximum(low, 0), np.minimum(low + sides, [size_hw[1], size_hw[0]])], axis=1
    )
    empty = (boxes_xywh[:, 2:] < 1).any(1) | (windows[:, 2:] <= windows[:, :2]).any(1)
    if empty.any():
        index = int(empty.argmax())
        raise SchemaError(
            f"box {index} is empty or off the image of {size_hw[0]} x {size_hw[1]} (h x w): "
            f"{boxes_xywh[index].tolist()} (xywh)"
        )
    canvas = np.repeat(sides.max(1, keepdims=True), 2, 1) if config.fit == "pad" else sides
    origin = low - (canvas - sides) // 2
    return windows, np.concatenate([canvas, windows[:, :2] - origin], axis=1)


def _resized_mask(
    mask: rle.Runs,
    size_hw: tuple[int, int],
    window_xyxy: npt.NDArray[np.int64],
    canvas: npt.NDArray[np.int64],
    config: CropConfig,
) -> npt.NDArray[np.bool_]:
    """[S, S], true where at least half of the resampled mask covers the pixel."""
    left, top, right, bottom = window_xyxy.tolist()
    window = rle.decode_window(mask, size_hw, (left, top, right, bottom))
    picture = np.repeat(window[..., None] * np.uint8(255), 3, 2)
    resized = np.empty((1, config.size_px, config.size_px, 3), np.uint8)
    resample.crop_batch(
        picture.ctypes.data,
        window.shape,
        np.array([0, window.size], np.int64),
        np.array([0, 2], np.int64),
        np.array([[0, 0, right - left, bottom - top]], np.int64),
        canvas[None],
        np.zeros(3, np.uint8),
        _KERNELS[config.resampling],
        resized,
    )
    return resized[0, :, :, 0] >= 128


def _read_header(jpeg: bytes) -> tuple[int, int, int, int]:
    """Height, width, channels and the position of the first scan, by hopping over segments."""
    if jpeg[:2] != b"\xff\xd8":
        raise SchemaError(f"not a JPEG: begins with {bytes(jpeg[:4])!r}")
    frame: tuple[int, int, int] | None = None
    at = 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF:
        marker = jpeg[at + 1]
        if marker == 0xFF:  # a fill byte before a marker
            at += 1
            continue
        if marker == _SCAN:
            if frame is None:
                break
            return *frame, at
        if marker in _FRAMES and at + 10 <= len(jpeg):
            frame = (
                int.from_bytes(jpeg[at + 5 : at + 7], "big"),
                int.from_bytes(jpeg[at + 7 : at + 9], "big"),
                jpeg[at + 9],
            )
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    raise SchemaError(f"JPEG is cut short or damaged in its header, at byte {at} of {len(jpeg)}")

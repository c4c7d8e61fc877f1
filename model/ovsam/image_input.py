"""Any picture -> the square input, as the released model saw it: OpenCV's bilinear filter.

Pillow's filter, which TAP takes, averages where it makes pictures smaller; OpenCV's does not. The
difference is one grey level where a picture is enlarged and far more where it shrinks.
"""

import cv2
import numpy as np
import numpy.typing as npt

from tap_engine.model.image_input import FittedImage, Rgb


def fit_picture(rgb: Rgb, size: int) -> FittedImage:
    """Scales a picture so that its longest side fills the input, top left, zeros beside it.

    Args:
        rgb: [H, W, 3] uint8, of `image_input.to_rgb`.
        size: side of the input, px.

    Returns:
        The picture in its canvas; `OvsamModel.normalise` takes the canvas and `content_hw`.
    """
    height, width = rgb.shape[:2]
    scale = size / max(height, width)
    content_hw = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
    if content_hw != (height, width):
        resized = cv2.resize(rgb, content_hw[::-1], interpolation=cv2.INTER_LINEAR)
        rgb = np.asarray(resized, np.uint8)
    canvas = np.zeros((size, size, 3), np.uint8)
    canvas[: content_hw[0], : content_hw[1]] = rgb
    return FittedImage(canvas, scale, content_hw, (height, width))


def axis_scales(fitted: FittedImage) -> npt.NDArray[np.float32]:
    """[2] float32 (x, y): input px per picture px; rounding makes them differ a little."""
    (content_h, content_w), (image_h, image_w) = fitted.content_hw, fitted.image_hw
    return np.array([content_w / image_w, content_h / image_h], np.float32)

"""Large-scale jitter, flip and colour; image, masks and boxes move together.

A `View` says which window of the source image the network's square input shows. Images are
resized into it, masks are decoded from their run lengths straight into it at the mask resolution:
nothing is ever decoded at full size and then shrunk.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from tap_engine.schemas import boxes
from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.rle import Runs, SizeHw, decode_scaled

_Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """Settings of augmentation; the defaults vary nothing.

    Attributes:
        scale: range of the size relative to "longest side fills the input", drawn uniformly.
        flip: probability of a horizontal flip.
        brightness: pixels are multiplied by 1 +- up to this.
        channel_shift: each channel moves by +- up to this share of 255.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    brightness: float = 0.0
    channel_shift: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high:
            raise ConfigError(f"augment.scale must be 0 < low <= high, got {self.scale}")
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"augment.flip must be in [0, 1], got {self.flip}")
        if not 0 <= self.brightness < 1 or not 0 <= self.channel_shift < 1:
            raise ConfigError("augment.brightness and channel_shift must be in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The part of an image that the square input shows.

    Attributes:
        size_hw: size of the source image, px.
        canvas_px: side of the input.
        window_xyxy: what the canvas covers, px of the (flipped) source; it reaches beyond the
            right and bottom of an image that does not fill the canvas.
        content_hw: canvas px that show the image; the rest is filling.
        flip: mirrored left to right before the window is cut.
    """

    size_hw: SizeHw
    canvas_px: int
    window_xyxy: tuple[float, float, float, float]
    content_hw: SizeHw
    flip: bool = False

    def image(
        self, image_rgb: Image.Image, fill_rgb: tuple[int, int, int], *, opencv: bool = False
    ) -> _Pixels:
        """[S, S, 3] uint8: the window, resized as at inference.

        Args:
            image_rgb: the source image.
            fill_rgb: colour of what the image does not cover.
            opencv: OpenCV's bilinear filter; else Pillow's, which averages where it shrinks.
        """
        left, top, right, bottom = self.window_xyxy
        height, width = self.size_hw
        right, bottom = min(right, width), min(bottom, height)
        if self.flip:
            left, right = width - right, width - left
        content_h, content_w = self.content_hw
        if (left, top, right, bottom) == (0, 0, content_w, content_h) == (0, 0, width, height):
            part = np.asarray(image_rgb)
        elif opencv:
            part = self._resized_by_opencv(np.asarray(image_rgb), left, top)
        else:
            box = (left, top, right, bottom)
            part = np.asarray(
                image_rgb.resize((content_w, content_h), Image.Resampling.BILINEAR, box=box)
            )
        out = np.empty((self.canvas_px, self.canvas_px, 3), np.uint8)
        out[content_h:] = fill_rgb
        out[:, content_w:] = fill_rgb
        out[:content_h, :content_w] = part[:, ::-1] if self.flip else part
        return out

    def _resized_by_opencv(self, image: _Pixels, left: float, top: float) -> _Pixels:
        # The whole picture, then a window of whole pixels: what inference sees, cut.
        x1, y1, x2, y2 = self.window_xyxy
        height, width = self.size_hw
        down, across = self.canvas_px / (y2 - y1), self.canvas_px / (x2 - x1)
        size = (max(1, round(width * across)), max(1, round(height * down)))
        resized = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        row, column = round(top * down), round(left * across)
        content_h, content_w = self.content_hw
        return np.asarray(resized, np.uint8)[row : row + content_h, column : column + content_w]

    def mask(self, runs: Runs, mask_px: int) -> npt.NDArray[np.float32]:
        """[M, M] float32: how much of each cell of the mask grid the region covers."""
        left, top, right, bottom = self.window_xyxy
        if self.flip:
            left, right = self.size_hw[1] - right, self.size_hw[1] - left
        window = (left, top, right, bottom)
        cover = decode_scaled(runs, self.size_hw, (mask_px, mask_px), window)
        return cover[:, ::-1] if self.flip else cover

    def boxes(self, boxes_xyxy: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Source boxes [R, 4] on the canvas, cut to what it shows of the image."""
        moved = np.array(boxes_xyxy, np.float64)
        if self.flip:
            moved[:, [0, 2]] = self.size_hw[1] - moved[:, [2, 0]]
        left, top, right, bottom = self.window_xyxy
        scale = np.array([self.canvas_px / (right - left), self.canvas_px / (bottom - top)] * 2)
        moved = (moved - [left, top, left, top]) * scale
        return boxes.clip_xyxy(moved, self.content_hw).astype(np.float32)


def draw_view(
    size_hw: SizeHw, canvas_px: int, config: AugmentConfig, rng: np.random.Generator
) -> View:
    """A random view: scaled, cropped at random where larger than the canvas, maybe flipped.

    Smaller images lie top-left, as at inference.

    Source: large-scale jitter (Ghiasi et al., 2021) in the range of the TAP paper, section 4.1.
    """
    scale = rng.uniform(*config.scale) * canvas_px / max(size_hw)
    flip = rng.random() < config.flip
    start, end, content = [], [], []
    for side in size_hw:
        scaled = max(1, int(side * scale + 0.5))
        shown = min(scaled, canvas_px)
        offset = int(rng.integers(0, scaled - shown + 1))
        ratio = side / scaled
        start.append(offset * ratio)
        end.append((offset + canvas_px) * ratio)
        content.append(shown)
    return View(
        size_hw=size_hw,
        canvas_px=canvas_px,
        window_xyxy=(start[1], start[0], end[1], end[0]),
        content_hw=(content[0], content[1]),
        flip=flip,
    )


def vary_colour(pixels: _Pixels, config: AugmentConfig, rng: np.random.Generator) -> _Pixels:
    """[..., 3] uint8 with another brightness and a shift of each channel; a new array."""
    if config.brightness == 0 and config.channel_shift == 0:
        return pixels
    gain = 1 + rng.uniform(-config.brightness, config.brightness)
    out = np.empty_like(pixels)
    for channel in range(3):
        shift = 255 * rng.uniform(-config.channel_shift, config.channel_shift)
        table = (np.arange(256) * gain + shift).clip(0, 255).round().astype(np.uint8)
        out[..., channel] = table[pixels[..., channel]]
    return out

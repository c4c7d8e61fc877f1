"""Image, masks and boxes must show the same part of the world after every augmentation."""

import cv2
import numpy as np
import pytest
from PIL import Image

from tap_engine.model.image_input import fit_image
from tap_engine.model.ovsam.image_input import fit_picture
from tap_engine.schemas import rle
from tap_engine.schemas.errors import ConfigError
from tap_engine.train.data.augment import AugmentConfig, draw_view, vary_colour

FILL = (9, 9, 9)


def scene(size_hw=(90, 120)):
    """A white rectangle on black, its mask and its box."""
    pixels = np.zeros((*size_hw, 3), np.uint8)
    mask = np.zeros(size_hw, np.uint8)
    mask[20:61, 30:91] = 1
    pixels[mask > 0] = 255
    return Image.fromarray(pixels), mask, np.array([[30.0, 20, 91, 61]])


@pytest.mark.parametrize("seed", range(25))
def test_image_mask_and_box_agree(seed):
    image, mask, boxes = scene()
    rng = np.random.default_rng(seed)
    view = draw_view((90, 120), 64, AugmentConfig(scale=(0.5, 2.0), flip=0.5), rng)
    shown = view.image(image, FILL)[..., 0] / 255.0
    content = np.zeros((64, 64), bool)
    content[: view.content_hw[0], : view.content_hw[1]] = True
    assert (shown[~content] == 9 / 255).all()
    cover = view.mask(rle.runs(rle.encode(mask), (90, 120)), 64)
    # The white rectangle is its mask, but for the resize's blur at the edge.
    difference = np.abs(shown - cover)[content]
    assert difference.mean() < 0.02
    assert (difference > 0.6).mean() < 0.002
    (left, top, right, bottom) = view.boxes(boxes)[0]
    ys, xs = np.nonzero(cover > 0.5)
    if len(xs):
        assert abs(left - xs.min()) <= 1 and abs(right - xs.max() - 1) <= 1
        assert abs(top - ys.min()) <= 1 and abs(bottom - ys.max() - 1) <= 1
    else:
        assert right - left < 1 or bottom - top < 1 or cover.max() < 0.6


@pytest.mark.parametrize("size_hw", [(90, 120), (120, 90), (64, 64), (7, 300), (1, 1), (500, 333)])
def test_without_augmentation_it_is_the_view_of_inference(size_hw):
    pixels = np.random.default_rng(0).integers(0, 255, (*size_hw, 3), np.uint8)
    fitted = fit_image(pixels, 64, FILL)
    view = draw_view(size_hw, 64, AugmentConfig(), np.random.default_rng(0))
    assert view.content_hw == fitted.content_hw
    np.testing.assert_array_equal(view.image(Image.fromarray(pixels), FILL), fitted.canvas)


def test_scales_cover_the_range_and_large_views_are_cropped_everywhere():
    config = AugmentConfig(scale=(0.5, 2.0), flip=0.5)
    rng = np.random.default_rng(0)
    views = [draw_view((100, 100), 64, config, rng) for _ in range(500)]
    widths = np.array([v.window_xyxy[2] - v.window_xyxy[0] for v in views])
    assert widths.min() < 52 and widths.max() > 195
    assert 200 < sum(v.flip for v in views) < 300
    lefts = np.array([v.window_xyxy[0] for v, w in zip(views, widths, strict=True) if w < 60])
    assert lefts.min() < 3 and lefts.max() > 37
    # Smaller than the canvas: top-left, as at inference.
    assert all(v.window_xyxy[:2] == (0, 0) for v, w in zip(views, widths, strict=True) if w > 101)


def test_colour_moves_all_pixels_of_a_channel_alike():
    pixels = np.full((4, 4, 3), 100, np.uint8)
    config = AugmentConfig(brightness=0.2, channel_shift=0.1)
    varied = vary_colour(pixels, config, np.random.default_rng(0))
    assert varied.dtype == np.uint8 and (varied == varied[0, 0]).all()
    assert (varied[0, 0] != 100).any() and (np.abs(varied[0, 0].astype(int) - 100) <= 46).all()
    assert vary_colour(pixels, AugmentConfig(), np.random.default_rng(0)) is pixels


@pytest.mark.parametrize("bad", [{"scale": (2.0, 1.0)}, {"flip": 2.0}, {"brightness": 1.0}])
def test_settings_are_checked(bad):
    with pytest.raises(ConfigError):
        AugmentConfig(**bad)


@pytest.mark.parametrize("size_hw", [(50, 80), (200, 130), (64, 64)])
def test_opencvs_filter_shows_what_inference_sees(size_hw) -> None:

    rgb = np.random.default_rng(0).integers(0, 255, (*size_hw, 3), np.uint8)
    fitted = fit_picture(rgb, 64)
    view = draw_view(size_hw, 64, AugmentConfig(), np.random.default_rng(0))
    found = view.image(Image.fromarray(rgb), (0, 0, 0), opencv=True)
    assert view.content_hw == fitted.content_hw
    assert np.array_equal(found, fitted.canvas)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_opencvs_window_is_a_part_of_the_whole(flip) -> None:

    rgb = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    config = AugmentConfig(scale=(2.0, 2.0), flip=flip)
    for seed in range(5):
        view = draw_view((40, 60), 64, config, np.random.default_rng(seed))
        found = view.image(Image.fromarray(rgb), (0, 0, 0), opencv=True)
        whole = cv2.resize(rgb, (128, 85), interpolation=cv2.INTER_LINEAR)
        whole = whole[:, ::-1] if flip else whole
        x, y = (round(v * 128 / 60) for v in view.window_xyxy[:2])
        h, w = view.content_hw
        assert np.array_equal(found[:h, :w], whole[y : y + h, x : x + w])

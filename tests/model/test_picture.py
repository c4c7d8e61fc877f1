import numpy as np
import pytest

from tap_engine.model.picture import describe, draw_regions
from tap_engine.model.predictor import Concept, Region


def region(mask: np.ndarray, caption: str | None = None) -> Region:
    nothing = np.zeros(1, np.float32)
    return Region(mask, 0.9, 0, (Concept("dog", 0.7),), 1.0, caption, nothing, nothing)


def test_masks_are_tinted_and_the_rest_is_left_alone() -> None:
    rgb = np.full((120, 160, 3), 100, np.uint8)
    mask = np.zeros((120, 160), bool)
    mask[60:110, 20:70] = True
    picture = np.asarray(draw_regions(rgb, [region(mask)]))
    assert picture.shape == rgb.shape
    assert (picture[mask] != 100).any(axis=-1).all()
    below = np.zeros_like(mask)
    below[60:] = True
    assert (picture[below & ~mask] == 100).all()
    assert (picture[40:60, 20:70] != 100).any()  # the label stands above it
    assert (rgb == 100).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 400)])
def test_small_pictures_and_empty_masks_do_not_fail(size) -> None:
    rgb = np.zeros((*size, 3), np.uint8)
    regions = [region(np.ones(size, bool), "a dog"), region(np.zeros(size, bool))]
    assert draw_regions(rgb, regions).size == size[::-1]


def test_a_zoomed_picture_keeps_its_masks_in_place() -> None:
    rgb = np.full((120, 160, 3), 100, np.uint8)
    mask = np.zeros((120, 160), bool)
    mask[60:110, 20:70] = True
    picture = np.asarray(draw_regions(rgb, [region(mask)], zoom=3))
    assert picture.shape == (360, 480, 3)
    changed = (picture != 100).any(axis=-1)
    large = np.kron(mask, np.ones((3, 3))) > 0
    assert changed[large].all()
    assert not (changed & ~large)[180:].any()


def test_a_surface_is_tinted_lightly() -> None:
    rgb = np.full((100, 100, 3), 100, np.uint8)
    small, large = np.zeros((2, 100, 100), bool)
    small[60:90, 60:90] = True
    large[20:, :] = True
    tints = []
    for mask in (small, large):
        picture = np.asarray(draw_regions(rgb, [region(mask)])).astype(int)
        tints.append(np.abs(picture[75, 75] - 100).max())
    assert 0 < tints[1] < tints[0] / 2


def test_lines_for_people() -> None:
    mask = np.ones((2, 2), bool)
    assert describe(region(mask)) == "dog 0.70"
    assert describe(region(mask, "a small dog")) == "dog 0.70: a small dog"
    assert describe(region(mask), min_probability=0.8) == "unknown"

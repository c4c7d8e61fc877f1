import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from tap_engine.schemas import rle
from tap_engine.schemas.errors import SchemaError


def random_mask(seed: int) -> np.ndarray:
    """Noise, a rectangle, full or empty: the shapes where run arithmetic goes wrong."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 48, 2)
    kind = seed % 4
    if kind == 0:
        return (rng.random((height, width)) < rng.random()).astype(np.uint8)
    mask = np.full((height, width), int(kind == 1), np.uint8)
    if kind == 2:
        top, bottom = np.sort(rng.integers(0, height + 1, 2))
        left, right = np.sort(rng.integers(0, width + 1, 2))
        mask[top:bottom, left:right] = 1
    return mask


@pytest.mark.parametrize("seed", range(60))
def test_everything_agrees_with_pycocotools(seed: int) -> None:
    mask = random_mask(seed)
    size = mask.shape
    counts = rle.encode(mask)
    reference = {"size": list(size), "counts": counts}
    mask_runs = rle.runs(counts, size)
    assert (rle.decode(counts, size) == coco_mask.decode(reference)).all()
    assert rle.area(mask_runs) == coco_mask.area(reference)
    assert rle.bbox_xywh(mask_runs, size) == tuple(coco_mask.toBbox(reference))


@pytest.mark.parametrize("seed", range(60))
def test_a_window_is_a_slice_of_the_padded_mask(seed: int) -> None:
    mask = random_mask(seed)
    height, width = mask.shape
    rng = np.random.default_rng(seed)
    left, top = int(rng.integers(-9, width + 9)), int(rng.integers(-9, height + 9))
    right, bottom = left + int(rng.integers(1, 40)), top + int(rng.integers(1, 40))
    padded = np.pad(mask, 60)
    window = rle.decode_window(
        rle.runs(rle.encode(mask), mask.shape), mask.shape, (left, top, right, bottom)
    )
    assert (window == padded[60 + top : 60 + bottom, 60 + left : 60 + right]).all()


@pytest.mark.parametrize("seed", range(60))
def test_scaled_decode_is_the_area_average(seed: int) -> None:
    mask = random_mask(seed)
    height, width = mask.shape
    out_h, out_w = 1 + seed % 7, 1 + seed % 5
    # Area averaging by a whole-number grid: enlarge each pixel so that cells divide evenly.
    fine = mask.repeat(out_h, 0).repeat(out_w, 1).astype(np.float64)
    expected = fine.reshape(out_h, height, out_w, width).mean((1, 3))
    found = rle.decode_scaled(rle.runs(rle.encode(mask), mask.shape), mask.shape, (out_h, out_w))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_scaled_decode_of_a_window_beyond_the_mask() -> None:
    mask = np.ones((4, 4), np.uint8)
    found = rle.decode_scaled(rle.runs(rle.encode(mask), (4, 4)), (4, 4), (2, 2), (-2, 1, 6, 9))
    # cells are 4 x 4 px: half of each upper cell's width and 3 of its 4 rows lie on the mask
    np.testing.assert_allclose(found, [[2 * 3 / 16, 2 * 3 / 16], [0, 0]], atol=1e-6)


@given(st.binary(max_size=40))
@settings(max_examples=400)
def test_garbage_is_refused_or_is_a_mask(counts: bytes) -> None:
    size = (7, 5)
    try:
        mask = rle.decode(counts, size)
    except SchemaError:
        return
    assert mask.shape == size
    assert (mask <= 1).all()


@pytest.mark.parametrize("counts", [b"", b"\xff\x00", b"ooo", "1", b"oooooooooooo1"])
def test_known_garbage_is_refused(counts: bytes) -> None:
    with pytest.raises(SchemaError, match="RLE"):
        rle.runs(counts, (5, 5))


def test_coco_masks_of_every_form_become_compressed_counts() -> None:
    square = [1.0, 1.0, 1.0, 3.0, 4.0, 3.0, 4.0, 1.0]
    mask = np.zeros((5, 6), np.uint8)
    mask[1:3, 1:4] = 1
    counts = rle.encode(mask)
    plain = {"size": [5, 6], "counts": rle.runs(counts, (5, 6)).tolist()}
    text = {"size": [5, 6], "counts": counts.decode()}
    for form in ([square], plain, text, {"counts": counts}):
        assert rle.from_coco(form, (5, 6)) == counts
    two_parts = rle.from_coco([square, [x + 2 for x in square]], (5, 6))
    assert rle.area(rle.runs(two_parts, (5, 6))) > 6
    with pytest.raises(SchemaError, match=r"size \[5, 6\] for an image of \[6, 5\]"):
        rle.from_coco(text, (6, 5))
    with pytest.raises(SchemaError, match="polygons or as RLE"):
        rle.from_coco("1234", (5, 6))


SQUARE = [1.0, 1.0, 1.0, 3.0, 4.0, 3.0]


@pytest.mark.parametrize(
    "form",
    [
        [],
        [[]],
        [[1.0, 2.0, 3.0]],
        [[1.0, 2.0, 3.0, 4.0]],
        [SQUARE, [*SQUARE, 5.0]],
        [[*SQUARE, 1e8, 2.0]],
        [[*SQUARE, -1e18, 2.0]],
        [[*SQUARE, float("nan"), 2.0]],
        [[*SQUARE, "four", 2.0]],
        {"counts": "04", "size": [5, 6]},
        {"counts": "", "size": [5, 6]},
        {"counts": "o" * 40, "size": [5, 6]},
        {"counts": [30, 1], "size": [5, 6]},
        {"counts": [-1, 31], "size": [5, 6]},
        {"counts": [15.5, 14.5], "size": [5, 6]},
        {"counts": [], "size": [5, 6]},
        {"counts": None, "size": [5, 6]},
        {"counts": [30], "size": 5},
        {"counts": [30], "size": [None, 6]},
    ],
)
def test_what_is_no_mask_never_reaches_the_library(form) -> None:
    """It would loop for ever, take all memory or kill the process."""
    with pytest.raises(SchemaError):
        rle.from_coco(form, (5, 6))


def test_a_polygon_may_reach_a_little_beyond_the_image() -> None:
    beyond = [[-5.0, -5.0, -5.0, 20.0, 20.0, 20.0, 20.0, -5.0]]
    assert rle.area(rle.runs(rle.from_coco(beyond, (5, 6)), (5, 6))) == 30


def test_many_masks_are_measured_as_one_by_one() -> None:
    masks = [random_mask(seed) for seed in range(40)]
    counts = [rle.encode(mask) for mask in masks] + [b"", b"04", b"\0" * 5]
    sizes = np.array([mask.shape for mask in masks] + [(5, 5)] * 3, np.int64)
    offsets = np.cumsum([0, *map(len, counts)])
    areas, boxes = rle.measure(np.frombuffer(b"".join(counts), np.uint8), offsets, sizes)
    assert areas.tolist() == [int(mask.sum()) for mask in masks] + [-1] * 3
    for row, mask in enumerate(masks):
        assert tuple(boxes[row]) == rle.bbox_xywh(rle.runs(counts[row], mask.shape), mask.shape)

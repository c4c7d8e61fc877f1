import numpy as np
import pytest

from tap_engine.model.prompts import make_prompts, points_from_mask
from tap_engine.schemas.errors import ConfigError

SIZE = (40, 60)


def test_a_box_is_its_two_corners() -> None:
    prompts = make_prompts(SIZE, boxes=[[1, 2, 30, 20], [0, 0, 60, 40]])
    assert prompts.points.tolist() == [[[1, 2], [30, 20]], [[0, 0], [60, 40]]]
    assert prompts.labels.tolist() == [[2, 3], [2, 3]]
    assert len(make_prompts(SIZE, boxes=[1, 2, 30, 20])) == 1


def test_loose_points_end_in_a_padding_point() -> None:
    prompts = make_prompts(SIZE, points=[[5, 6], [7, 8]], point_labels=[1, 0])
    assert prompts.points.tolist() == [[[5, 6], [7, 8], [0, 0]]]
    assert prompts.labels.tolist() == [[1, 0, 4]]
    assert make_prompts(SIZE, points=[[[5, 6]], [[7, 8]]]).labels.tolist() == [[1, 4], [1, 4]]


def test_points_of_unlike_number_are_padded_once() -> None:
    points, labels = [[[5, 6], [7, 8]], [[9, 9], [0, 0]]], [[1, 4], [1, 4]]
    assert make_prompts(SIZE, points=points, point_labels=labels).labels.tolist() == labels


def test_a_box_comes_before_its_points() -> None:
    prompts = make_prompts(SIZE, boxes=[1, 2, 30, 20], points=[[5, 6]], point_labels=[0])
    assert prompts.labels.tolist() == [[2, 3, 0]]
    assert prompts.points.tolist() == [[[1, 2], [30, 20], [5, 6]]]


def test_a_mask_is_nine_points_on_it() -> None:
    mask = np.zeros(SIZE, np.uint8)
    mask[10:20, 30:40] = 255
    prompts = make_prompts(SIZE, mask=mask)
    assert prompts.labels.tolist() == [[1] * 9 + [4]]
    for x, y in prompts.points[0, :9].astype(int):
        assert mask[y, x]
    assert prompts.points[0, 0].tolist() == [30, 11]  # pixel 10 of 100, row by row
    assert len(make_prompts(SIZE, mask=np.stack([mask, mask > 0]))) == 2


def test_small_masks_repeat_points() -> None:
    mask = np.zeros(SIZE, bool)
    mask[3, 4] = True
    assert points_from_mask(mask).tolist() == [[4, 3]] * 9


def test_no_boxes_are_no_prompts() -> None:
    for empty in ([], np.zeros((0, 4))):
        assert len(make_prompts(SIZE, boxes=empty)) == 0


def test_boxes_over_the_edge_stay() -> None:
    assert make_prompts(SIZE, boxes=[-5, -5, 70, 50]).points.min() == -5


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "nothing to predict"),
        ({"boxes": [1, 2, 3]}, r"boxes must be \[P, 4\]"),
        ({"boxes": [[30, 2, 1, 20]]}, r"box 0 \[30\.0, 2\.0, 1\.0, 20\.0\] has no area"),
        ({"boxes": [[0, 0, 9, 9], [70, 2, 80, 20]]}, "box 1 .* is off the image of 60 x 40 px"),
        ({"boxes": [[0, 0, float("nan"), 1]]}, "must be finite"),
        ({"boxes": [[0, 0, float("inf"), 1]]}, "must be finite"),
        ({"boxes": "box"}, "must be numbers"),
        ({"boxes": [[1, 2, 3, 4], [1, 2]]}, "regular array"),
        ({"points": [60, 3]}, r"points must be"),
        ({"points": [[60, 3]]}, r"point \[0, 0\] \[60\.0, 3\.0\] is off the image"),
        ({"points": [[3, -1]]}, "is off the image"),
        ({"points": np.zeros((1, 0, 2))}, "points must be"),
        ({"points": [[3, 3]], "point_labels": [2]}, r"1 \(in\), 0 \(out\) or 4"),
        ({"points": [[3, 3]], "point_labels": [1, 1]}, r"need as many labels, got \[1, 2\]"),
        ({"point_labels": [1], "boxes": [0, 0, 1, 1]}, "point_labels without points"),
        ({"mask": np.zeros(SIZE)}, "the mask is empty"),
        ({"mask": np.ones((3, 3))}, r"of the image's size \[40, 60\], got shape \[1, 3, 3\]"),
        ({"mask": np.ones(SIZE), "points": [[1, 1]]}, "not both"),
        ({"boxes": [[0, 0, 9, 9]] * 2, "points": [[1, 1]]}, "describe the same regions"),
    ],
)
def test_prompts_that_cannot_be_meant(prompts, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make_prompts(SIZE, **prompts)


def test_a_soft_mask_is_refused_and_a_float_one_of_0_and_1_is_a_mask() -> None:
    hard = np.zeros(SIZE)
    hard[10:20, 30:40] = 1
    same = make_prompts(SIZE, mask=hard > 0).points
    assert np.array_equal(make_prompts(SIZE, mask=hard).points, same)
    for soft in (hard * 0.97 + 0.01, (hard - 0.5) * 20, np.where(hard, 1, np.nan)):
        with pytest.raises(ConfigError, match="floats must be 0 or 1"):
            make_prompts(SIZE, mask=soft)

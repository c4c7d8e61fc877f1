import subprocess
import sys

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tap_engine.schemas import polygons, rle
from tap_engine.schemas.errors import SchemaError

SIZE = (40, 60)
SQUARE = [5, 6, 15, 6, 15, 18, 5, 18]
PAIRS = [[5, 6], [15, 6], [15, 18], [5, 18]]


@pytest.mark.parametrize(
    "form",
    [
        [SQUARE],
        SQUARE,
        PAIRS,
        [PAIRS],
        [[str(value) for value in SQUARE]],
        [SQUARE, []],
        [[1, 1, 2, 2], SQUARE],
        "[[5, 6, 15, 6, 15, 18, 5, 18]]",
    ],
    ids=["coco", "flat", "pairs", "nested", "text", "empty part", "line part", "json in text"],
)
def test_forms_of_one_meaning_are_one_mask(form) -> None:
    runs = rle.runs(rle.from_coco(form, SIZE), SIZE)
    assert rle.area(runs) == 120 and rle.bbox_xywh(runs, SIZE) == (5, 6, 10, 12)


def test_filling_is_that_of_pycocotools() -> None:
    rng = np.random.default_rng(5)
    for _ in range(30):
        parts = [rng.uniform(-10, 70, 2 * rng.integers(3, 12)).tolist() for _ in range(3)]
        expected = coco_mask.merge(coco_mask.frPyObjects(parts, *SIZE))["counts"]
        assert rle.from_coco(parts, SIZE) == expected


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ([[5, 6, 15, 6, 15, 18, 5]], "7 numbers"),
        ([[5, 6, 15, 6]], "2 points has no inside"),
        ([[]], "empty"),
        ([[5, 6, float("nan"), 6, 15, 18]], "not finite"),
        ([[5, 6, 1e9, 6, 15, 18]], "out of range"),
        ([[5, 6, -1e30, 6, 15, 18]], "out of range"),
        ([[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]], "fractions"),
        ([[5, 6, None, 6, 15, 18]], "found null"),
        ([[5, 6, True, 6, 15, 18]], "true or false"),
        ([[5, 6, 10**400, 6, 15, 18]], "not finite"),
        ("a square", "found text"),
    ],
)
def test_what_is_no_polygon_is_refused_in_words(form, words) -> None:
    with pytest.raises(SchemaError, match=words):
        rle.from_coco(form, SIZE)


def test_a_coordinate_of_1e8_does_not_end_the_process() -> None:
    code = (
        "from tap_engine.schemas import rle\n"
        "try: rle.from_coco([[5, 6, 1e8, 6, 15, 18]], (40, 60))\n"
        "except Exception as error: print(type(error).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "SchemaError")


def test_an_outline_too_long_to_walk_along_is_refused() -> None:
    zigzag = np.tile([[-300.0, 0.0], [300.0, 40.0]], (4000, 1))
    with pytest.raises(SchemaError, match="px long"):
        polygons.fill([zigzag], SIZE)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"size": [60, 40], "counts": [0, 2400]}, "size"),
        ({"size": [40, 60], "counts": [0, 2399]}, "sum to 2399"),
        ({"size": [40, 60], "counts": [2401, -1]}, "negative"),
        ({"size": [40, 60], "counts": [12.5, 2387.5]}, "fraction"),
        ({"size": [40, 60], "counts": []}, "sum to 0"),
        ({"size": [40, 60], "counts": ""}, "empty"),
        ({"size": [40, 60], "counts": "b'abc'"}, "bytes"),
        ({"size": [40, 60]}, "counts"),
        ({"size": "40 x 60", "counts": "x"}, "height, width"),
        ([], "empty list"),
        (None, "null"),
        (5, "a number"),
    ],
)
def test_run_lengths_that_are_no_mask_are_refused(form, words) -> None:
    with pytest.raises(SchemaError, match=words):
        rle.from_coco(form, SIZE)


def test_run_lengths_in_all_lawful_forms() -> None:
    mask = np.zeros(SIZE, np.uint8)
    mask[6:18, 5:15] = 1
    counts = rle.encode(mask)
    plain = rle.runs(counts, SIZE).tolist()
    for form in (
        {"size": [40, 60], "counts": counts.decode()},
        {"size": [40.0, 60.0], "counts": counts},
        {"counts": counts.decode()},
        {"size": [40, 60], "counts": plain},
        {"size": [40, 60], "counts": [float(run) for run in plain]},
        {"size": [40, 60], "counts": [str(run) for run in plain]},
        [{"size": [40, 60], "counts": plain}],
    ):
        assert rle.from_coco(form, SIZE) == counts
    other = np.zeros(SIZE, np.uint8)
    other[0:4, 0:4] = 1
    both = [{"size": [40, 60], "counts": counts}, {"size": [40, 60], "counts": rle.encode(other)}]
    assert rle.area(rle.runs(rle.from_coco(both, SIZE), SIZE)) == 136

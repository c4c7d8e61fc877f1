from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from tap_engine.schemas import rle
from tap_engine.train.evaluation.clicks import next_click
from tap_engine.train.evaluation.evaluation import Question
from tap_engine.train.evaluation.region_model import Predicted, TapRegions, Wanted
from tap_engine.train.evaluation.tasks.prompts import prompted
from tests.train.evaluation.eval_world import small_tap


def square(top: int, left: int, side: int, size: int = 40) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_the_first_click_is_in_the_middle_of_the_region() -> None:
    assert next_click(square(10, 20, 9), np.zeros((40, 40), bool)) == ((24.0, 14.0), 1)


def test_the_image_border_is_an_edge() -> None:
    assert next_click(np.ones((9, 9), bool), np.zeros((9, 9), bool)) == ((4.0, 4.0), 1)


def test_the_next_click_corrects_the_thickest_mistake() -> None:
    wanted = square(5, 5, 10) | square(25, 5, 5)
    assert next_click(wanted, square(5, 5, 10)) == ((7.0, 27.0), 1), "the small square is missing"
    surplus = wanted | square(20, 20, 15)
    at, label = next_click(wanted, surplus)
    assert (at, label) == ((27.0, 27.0), 0)
    at, label = next_click(wanted, square(20, 20, 15))
    assert label == 0, "15 pixels too many are thicker than 10 missing"
    assert next_click(wanted, wanted)[1] == 1, "nothing wrong: say so again"


def test_where_both_mistakes_are_equally_thick_the_missing_part_is_shown() -> None:
    at, label = next_click(square(5, 5, 9), square(25, 25, 9))
    assert (at, label) == ((9.0, 9.0), 1)


def question(
    model: object, ids: list[int], boxes: list[list[float]], masks: np.ndarray
) -> Question:
    size_hw = masks.shape[1:]
    columns = {"region_id": ids, "bbox_xywh": pa.array(boxes, pa.list_(pa.float64(), 4))}
    table = pa.table({**columns, "rle": pa.array([rle.encode(m) for m in masks], pa.binary())})
    return Question(3, size_hw, table, model)


class Scripted:
    """Answers with given candidates and remembers the prompts."""

    def __init__(self, candidates: np.ndarray, chosen: int) -> None:
        self.candidates, self.chosen = candidates, chosen
        self.asked: list[tuple[np.ndarray, np.ndarray]] = []

    def set_image(self, rgb: np.ndarray) -> None: ...

    def prompt(self, points: np.ndarray, labels: np.ndarray, wanted: Wanted) -> Iterator[Predicted]:
        self.asked.append((points, labels))
        count = len(points)
        yield Predicted(
            iou=np.full((count, 4), 0.25, np.float32),
            chosen=np.full(count, self.chosen),
            masks=np.repeat(self.candidates[None], count, axis=0),
            embeddings=np.empty((count, 0), np.float32),
            captions=[],
        )


def test_iou_of_the_chosen_and_of_the_best_candidate() -> None:
    region = square(10, 10, 10)
    half = region.copy()
    half[15:] = False
    candidates = np.stack([half, region, square(30, 30, 5), ~region])
    model = Scripted(candidates, chosen=0)
    batch = prompted(question(model, [77], [[10.0, 10, 10, 10]], region[None]), clicks=3)
    rows = {row["prompt"]: row for row in batch.to_pylist()}
    assert list(rows) == ["box", "sketch", "click 1", "click 2", "click 3"]
    for row in rows.values():
        assert (row["routed_iou"], row["oracle_iou"]) == pytest.approx((0.5, 1.0))
        assert (row["image_id"], row["region_id"], row["predicted_iou"]) == (3, 77, 0.25)
    (box, box_labels), (sketch, sketch_labels), first, second, third = model.asked
    assert box.tolist() == [[[10, 10], [20, 20]]] and box_labels.tolist() == [[2, 3]]
    assert sketch.shape == (1, 10, 2) and sketch_labels.tolist() == [[1] * 9 + [4]]
    assert first[1].tolist() == [[1, 4]]
    assert second[1].tolist() == [[1, 1, 4]], "the lower half is missing"
    assert second[0][0, 1].tolist() == [12.0, 17.0]
    assert third[1].shape == (1, 4)


def test_a_real_model_answers_every_prompt() -> None:
    model = TapRegions(small_tap(), chunk=2)
    rgb = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    model.set_image(rgb)
    masks = np.stack([square(2, 3, 12), square(20, 20, 15), square(0, 0, 1)])
    boxes = [[3.0, 2, 12, 12], [20, 20, 15, 15], [0, 0, 1, 1]]
    rows = prompted(question(model, [1, 2, 3], boxes, masks)).to_pylist()
    assert len(rows) == 3 * 11
    assert all(0 <= row["routed_iou"] <= row["oracle_iou"] <= 1 for row in rows)
    again = prompted(question(model, [1, 2, 3], boxes, masks)).to_pylist()
    assert rows == again, "nothing is drawn at random"

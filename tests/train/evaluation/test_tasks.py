import numpy as np
import pyarrow as pa
import pytest
import torch
from torchvision.ops import box_iou

from tap_engine.model.concepts import ConceptTable
from tap_engine.schemas import rle
from tap_engine.schemas.boxes import xywh_to_xyxy
from tap_engine.schemas.errors import ConfigError
from tap_engine.train.evaluation.detector_boxes import Detected
from tap_engine.train.evaluation.evaluation import Question
from tap_engine.train.evaluation.region_model import TapRegions
from tap_engine.train.evaluation.tasks import classification, task
from tap_engine.train.evaluation.tasks.classification import detections_of
from tests.train.evaluation.eval_world import small_tap

RGB = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
BOXES = np.array([[5, 6, 55, 44], [30, 10, 80, 70], [0, 0, 20, 20]], np.float64)


def question(model: TapRegions, boxes: np.ndarray = BOXES, **more: object) -> Question:
    regions = {"region_id": [8, 9, 10][: len(boxes)], "category_id": [3, 1, 2][: len(boxes)]}
    boxes_xywh = pa.array(boxes.tolist(), pa.list_(pa.float64(), 4))
    rles = pa.nulls(len(boxes), pa.binary())
    table = pa.table({**regions, "bbox_xywh": boxes_xywh, "rle": rles})
    return Question(7, (90, 120), table, model, **more)


@pytest.fixture(scope="module")
def model() -> TapRegions:
    model = TapRegions(small_tap())
    model.set_image(RGB)
    return model


def test_segmentation_keeps_the_detectors_class_and_score(model: TapRegions) -> None:
    scores = np.array([0.9, 0.1, 0.5])
    given = Detected(BOXES, np.array([3, 1, 2], np.int32), scores)
    batch = task("segmentation").rows(question(model, detected=given))
    assert batch["score"].to_pylist() == scores.tolist()
    assert batch["category_id"].to_pylist() == [3, 1, 2]
    assert set(batch["image_id"].to_pylist()) == {7}
    theirs = model.tap.predict(boxes=xywh_to_xyxy(BOXES), captions=False)
    for counts, region in zip(batch["rle"].to_pylist(), theirs, strict=True):
        np.testing.assert_array_equal(rle.decode(counts, (90, 120)), region.mask)


def test_ground_truth_boxes_are_ranked_by_the_models_own_estimate(model: TapRegions) -> None:
    batch = task("segmentation").rows(question(model))
    assert batch["category_id"].to_pylist() == [3, 1, 2]
    theirs = [region.iou for region in model.tap.predict(boxes=xywh_to_xyxy(BOXES), captions=False)]
    assert batch["score"].to_pylist() == pytest.approx(theirs, abs=1e-5)


def test_probabilities_are_those_of_the_class_names(model: TapRegions) -> None:
    table = ConceptTable(tuple("abcdef"), torch.randn(6, 16), 20.0)
    model = TapRegions(model.tap, classes=table)
    probabilities, iou = question(model).classes
    assert probabilities.shape == (3, 6) and iou.shape == (3,)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    embeds = [r.sem_embed for r in model.tap.predict(boxes=xywh_to_xyxy(BOXES), captions=False)]
    unit = torch.from_numpy(np.stack(embeds))
    unit = unit / unit.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(
        probabilities, (unit @ table.weights()).softmax(1).numpy(), atol=1e-5
    )
    none, _ = question(model, np.empty((0, 4))).classes
    assert none.shape == (0, 6)


def test_detections_follow_the_official_rule() -> None:
    """Against the rule written out: p > 0.001, sqrt(p * clipped IoU), NMS by class at 0.5."""
    rng = np.random.default_rng(3)
    boxes = np.concatenate([rng.uniform(0, 60, (40, 2)), rng.uniform(10, 60, (40, 2))], axis=1)
    logits = rng.normal(0, 4, (40, 9))
    probabilities = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    iou = rng.uniform(-0.2, 1.3, 40).astype(np.float32)
    category_ids = np.arange(9, dtype=np.int32) * 5 + 5
    found = {
        (row["category_id"], tuple(row["bbox_xywh"])): row["score"]
        for row in detections_of(1, boxes, probabilities, iou, category_ids).to_pylist()
    }
    expected = {}
    corners = torch.from_numpy(xywh_to_xyxy(boxes))
    overlap = box_iou(corners, corners).numpy()
    for column, category in enumerate(category_ids.tolist()):
        score = np.sqrt(probabilities[:, column].astype(np.float64) * np.clip(iou, 0, 1))
        left = [i for i in np.argsort(-score, kind="stable") if probabilities[i, column] > 0.001]
        while left:
            best, *left = left
            expected[category, tuple(boxes[best].tolist())] = score[best]
            left = [i for i in left if overlap[best, i] <= 0.5]
    assert found.keys() == expected.keys()
    assert [found[key] for key in expected] == pytest.approx(list(expected.values()), abs=1e-12)


def test_the_300th_best_and_its_equals_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification, "MAX_DETECTIONS", 3)
    boxes = np.array([[100.0 * i, 0, 10, 10] for i in range(6)])
    probabilities = np.array([[0.9], [0.5], [0.4], [0.4], [0.4], [0.1]], np.float32)
    ids = np.array([1], np.int32)
    kept = detections_of(1, boxes, probabilities, np.ones(6, np.float32), ids)
    assert kept.num_rows == 5, "three are equal at the third place"
    few = detections_of(1, boxes[:2], probabilities[:2], np.ones(2, np.float32), ids)
    assert few.num_rows == 2


class Fixed:
    """Names every box alike."""

    def set_image(self, rgb: np.ndarray) -> None: ...

    def classify(self, boxes: np.ndarray, rles: list) -> tuple[np.ndarray, np.ndarray]:
        return np.array([[0.2, 0.5, 0.3]] * len(boxes), np.float32), np.ones(len(boxes), "f4")


def test_ranks_of_the_true_names() -> None:
    ids = np.array([1, 3, 2], np.int32)  # categories of the columns; true are 3, 1, 2
    batch = task("names").rows(question(Fixed(), category_ids=ids))
    assert batch["rank"].to_pylist() == [0, 2, 1]
    assert batch["probability"].to_pylist() == pytest.approx([0.5, 0.2, 0.3])
    assert batch["region_id"].to_pylist() == [8, 9, 10]


def test_what_a_model_cannot_do_is_said(model: TapRegions) -> None:
    with pytest.raises(ConfigError, match="answers no prompts"):
        task("captions").rows(question(Fixed()))
    with pytest.raises(ConfigError, match="unknown task 'nothing'; there are captions, "):
        task("nothing")


def test_one_caption_a_region(model: TapRegions) -> None:
    batch = task("captions").rows(question(model))
    theirs = [region.caption for region in model.tap.predict(boxes=xywh_to_xyxy(BOXES))]
    assert batch["caption"].to_pylist() == theirs
    assert batch["region_id"].to_pylist() == [8, 9, 10]

"""The interactive protocol: figures by hand, and a run that cannot see ground truth."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tap_engine.model.ovsam.classes import ClassTable
from tap_engine.model.ovsam.predictor import OpenVocabularySam
from tap_engine.schemas import rle
from tap_engine.schemas.errors import ConfigError, SchemaError, SourceError
from tap_engine.train.evaluation.class_splits import COCO_BASE, COCO_NOVEL, lvis_split
from tap_engine.train.evaluation.interactive import centre_point, score_answers
from tap_engine.train.ovsam.interactive_run import InteractiveRequest, evaluate_interactive
from tests.model.ovsam.small import small_model

CATEGORIES = {1: "person", 2: "bicycle", 5: "airplane", 10: "traffic light"}
"""COCO's own ids: two base classes, one novel, one in neither list."""


def square(x, y, size, hw=(40, 60)):
    mask = np.zeros(hw, np.uint8)
    mask[y : y + size, x : x + size] = 1
    return mask


def coded(mask):
    return {"size": list(mask.shape), "counts": rle.encode(mask).decode()}


def made_truth():
    truth = {"images": [], "annotations": []}
    truth["categories"] = [{"id": i, "name": name} for i, name in CATEGORIES.items()]
    places = [(2, 3, 12, 1), (20, 10, 20, 5), (40, 2, 15, 10), (5, 22, 14, 2)]
    for image in (7, 8):
        truth["images"].append(
            {"id": image, "height": 40, "width": 60, "file_name": f"{image}.png"}
        )
        for number, (x, y, size, category) in enumerate(places):
            truth["annotations"].append(
                {
                    "id": 10 * image + number,
                    "image_id": image,
                    "category_id": category,
                    "bbox": [x, y, size, size],
                    "iscrowd": 0,
                    "segmentation": coded(square(x, y, size)),
                }
            )
    return truth


@pytest.fixture
def data(tmp_path):
    truth = made_truth()
    for image in truth["images"]:
        pixels = np.random.default_rng(image["id"]).integers(0, 255, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / image["file_name"])
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return tmp_path


@pytest.fixture
def model():
    torch.set_num_threads(1)
    prototypes = torch.randn(4, 1, 24, generator=torch.Generator().manual_seed(1))
    prototypes = torch.nn.functional.normalize(prototypes, dim=-1)
    table = ClassTable(tuple(CATEGORIES.values()), prototypes, torch.full((4,), 2))
    return OpenVocabularySam(small_model(), classes=table)


def request(data, out, **changes):
    return InteractiveRequest(
        annotations=data / "truth.json", images=data, out=data / out, **changes
    )


def test_the_splits_are_the_published_ones() -> None:
    assert len(COCO_BASE) == 48 and len(COCO_NOVEL) == 17 and not COCO_BASE & COCO_NOVEL
    categories = [{"id": 1, "frequency": "f"}, {"id": 2, "frequency": "r"}]
    assert lvis_split([*categories, {"id": 3, "frequency": "c"}]) == ({1, 3}, {2})
    with pytest.raises(ConfigError, match="expected f, c or r"):
        lvis_split([{"id": 1}])


def test_the_centre_is_the_deepest_pixel_and_the_pictures_edge_is_outside() -> None:
    assert centre_point(square(0, 0, 9)).tolist() == [4, 4]
    assert centre_point(square(10, 5, 3)).tolist() == [11, 6]
    with pytest.raises(ConfigError, match="empty mask"):
        centre_point(np.zeros((4, 4), np.uint8))


def test_figures_are_those_worked_out_by_hand() -> None:
    truth = made_truth()
    truth["annotations"] = truth["annotations"][:4]
    truth["images"] = truth["images"][:1]
    half = square(2, 3, 12)
    half[3:9] = 0
    masks = [half, square(20, 10, 20), square(40, 2, 15), np.zeros((40, 60), np.uint8)]
    scores = [[1, 0, 0, 9], [0, 2, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]]  # of classes 1, 2, 5, 10
    answers = {
        "score_category_ids": [1, 2, 5, 10],
        "predictions": [
            {"annotation_id": 70 + i, "segmentation": coded(masks[i]), "scores": scores[i]}
            for i in (2, 0, 3, 1)
        ],
    }
    score = score_answers(truth, answers, COCO_BASE, COCO_NOVEL)
    figures = score.figures()
    assert figures["others"] == 1 and figures["instances"] == 4
    assert figures["IoU_b"] == pytest.approx((0.5 + 0.0) / 2)  # an empty answer is 0
    assert figures["IoU_n"] == pytest.approx(1.0)
    assert figures["IoU_listed"] == pytest.approx(0.5)
    # The class in neither list has the highest score of instance 70, and cannot win.
    assert figures["Acc_b"] == 100 and figures["Acc_n"] == 0
    assert figures["Acc_listed"] == pytest.approx(200 / 3)
    answers["predictions"].pop()
    with pytest.raises(SchemaError, match="annotation 71 has no answer"):
        score_answers(truth, answers, COCO_BASE, COCO_NOVEL)


def test_a_run_goes_on_and_refuses_other_settings(data, model) -> None:
    whole = evaluate_interactive(model, request(data, "whole"))
    assert whole["figures"]["instances"] == 6 and whole["instances_of_other_classes"] == 2
    evaluate_interactive(model, request(data, "parts"))
    file = data / "parts" / "answers.jsonl"
    first, second = file.read_text().splitlines()
    file.write_text(first + "\n" + second[:40])  # killed while writing
    again = evaluate_interactive(model, request(data, "parts"))
    assert again["figures"] == whole["figures"]
    assert file.read_text() == (data / "whole" / "answers.jsonl").read_text()
    with pytest.raises(ConfigError, match="other settings"):
        evaluate_interactive(model, request(data, "parts", prompt="point"))


def test_points_never_see_ground_truth_boxes_unless_asked(data, model) -> None:
    def answers(out, **changes):
        evaluate_interactive(model, request(data, out, prompt="point", **changes))
        return (data / out / "answers.jsonl").read_text()

    plain, leaked = answers("a"), answers("b", leak=True)
    truth = json.loads((data / "truth.json").read_text())
    for instance in truth["annotations"]:
        instance["bbox"] = [0, 0, 5, 5]
    (data / "truth.json").write_text(json.dumps(truth))
    assert answers("c") == plain
    assert answers("d", leak=True) != leaked
    report = json.loads((data / "d" / "report.json").read_text())
    assert report["ground_truth_boxes_leak"] is True


def test_what_is_missing_is_said(data, model) -> None:
    model.set_concepts(["person"])
    with pytest.raises(ConfigError, match="lacks 2 of 3 classes, first 'bicycle'"):
        evaluate_interactive(model, request(data, "a"))
    model.set_concepts(ClassTable(("x",), torch.zeros(1, 1, 24), torch.ones(1)))
    with pytest.raises(ConfigError, match="lacks 3"):
        evaluate_interactive(model, request(data, "a"))


def test_a_missing_picture_stops_the_run(data, model) -> None:
    (data / "8.png").unlink()
    with pytest.raises(SourceError, match=r"8\.png"):
        evaluate_interactive(model, request(data, "a"))

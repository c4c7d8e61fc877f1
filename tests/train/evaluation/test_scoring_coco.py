import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tap_engine.schemas import rle
from tap_engine.schemas.errors import SchemaError
from tap_engine.train.evaluation import scoring_coco
from tap_engine.train.evaluation.ground_truth import GroundTruth, read_coco_layout
from tap_engine.train.evaluation.predictions import INSTANCES, read_predictions
from tap_engine.train.evaluation.scoring_coco import score_detections
from tests.support import GOLDEN, shared_data

LVIS = GOLDEN / "lvis_small"


@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_published_coco_numbers_come_out(kind: scoring_coco.Kind) -> None:
    folder = shared_data("oracles/coco")
    expected = json.loads((folder / "expected.json").read_text())
    truth = read_coco_layout(str(folder / "instances_val2014_100.json"))
    results = str(folder / f"instances_val2014_fake{kind}100_results.json")
    found = score_detections(truth, read_predictions(results, INSTANCES), kind)
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    assert [found.metrics[name] for name in names] == pytest.approx(expected[kind], abs=1e-6)


@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_lvis_numbers_are_those_of_the_official_scorer(kind: scoring_coco.Kind) -> None:
    expected = json.loads((LVIS / "expected.json").read_text())["metrics"][kind]
    truth = read_coco_layout(str(LVIS / "truth.json"))
    found = score_detections(
        truth, read_predictions(str(LVIS / f"{kind}.json"), INSTANCES), kind, lvis=True
    )
    assert found.metrics == pytest.approx(expected, abs=1e-9)
    assert (found.predictions, found.scored) == (605, 575), "one image has more than 300"


@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_coco_protocol_equals_pycocotools_on_the_same_data(
    kind: scoring_coco.Kind,
) -> None:
    path = LVIS / f"{kind}.json"
    assert _ours(path, kind, crowds=True) == pytest.approx(
        _pycocotools(path, kind, crowds=True), abs=1e-9
    )


def test_order_of_images_in_the_file_and_spilling_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    truth = read_coco_layout(str(LVIS / "truth.json"))
    table = pa.Table.from_batches(read_predictions(str(LVIS / "segm.json"), INSTANCES))
    whole = score_detections(truth, table.to_batches(), "segm", lvis=True)
    by_image = [table.filter(pa.compute.equal(table["image_id"], i)) for i in truth.images]
    shuffled = [batch for part in reversed(by_image) for batch in part.to_batches(max_chunksize=7)]
    monkeypatch.setattr(scoring_coco, "_SPILLS", 2)
    again = score_detections(truth, shuffled, "segm", lvis=True)
    assert again.metrics == whole.metrics
    assert again.per_category == whole.per_category


def test_ground_truth_given_as_detections_scores_one(tmp_path: Path) -> None:
    folder = shared_data("oracles/coco")
    truth = read_coco_layout(str(folder / "instances_val2014_100.json"))
    for kind in ("segm", "bbox"):
        found = score_detections(truth, [_as_detections(truth)], kind)
        assert found.metrics["AP"] == pytest.approx(1.0, abs=1e-12)
        assert set(found.per_category.values()) == {1.0}


def test_ground_truth_given_as_detections_scores_one_in_lvis() -> None:
    truth = read_coco_layout(str(LVIS / "truth.json"))
    found = score_detections(truth, [_as_detections(truth)], "segm", lvis=True)
    assert found.metrics["AP"] == pytest.approx(1.0, abs=1e-12)
    assert [found.metrics[f"AP{f}"] for f in "rcf"] == pytest.approx([1.0] * 3, abs=1e-12)


def test_no_predictions_score_zero_and_no_truth_is_minus_one() -> None:
    truth = read_coco_layout(str(LVIS / "truth.json"))
    found = score_detections(truth, [], "segm", lvis=True)
    assert found.metrics["AP"] == 0
    nothing = GroundTruth("none", truth.images, truth.categories, truth.regions.slice(0, 0))
    assert score_detections(nothing, [], "bbox").metrics["AP"] == -1


def test_area_of_a_predicted_mask_is_its_own_unless_the_row_says_otherwise() -> None:
    """A thin diagonal has a large box."""
    row = {
        "image_id": 1,
        "category_id": 1,
        "bbox_xywh": [0.0, 0.0, 120.0, 120.0],
        "rle": rle.encode(np.eye(120, dtype=bool)),
        "height": 120,
        "width": 120,
        "score": 1.0,
    }
    table = pa.Table.from_pylist([row, row | {"area": 14400.0}], INSTANCES)
    entries = scoring_coco._annotations(table, {1: [120, 120]}, "segm")
    assert [entry["area"] for entry in entries] == [120, 14400]


def test_results_with_box_and_mask_score_as_with_pycocotools(tmp_path: Path) -> None:
    boxes = json.loads((LVIS / "bbox.json").read_text())
    results = json.loads((LVIS / "segm.json").read_text())
    results = [one | {"bbox": box["bbox"]} for one, box in zip(results, boxes, strict=True)]
    path = tmp_path / "both.json"
    path.write_text(json.dumps(results))
    assert _ours(path, "segm") == pytest.approx(_pycocotools(path, "segm"), abs=1e-9)
    assert _ours(path, "segm") != _ours(LVIS / "segm.json", "segm"), "S, M and L differ"


def test_polygons_of_results_need_the_images_sizes(tmp_path: Path) -> None:
    truth = read_coco_layout(str(LVIS / "truth.json"))
    square = [[10.0, 10.0, 10.0, 60.0, 60.0, 60.0, 60.0, 10.0]]
    row = {"image_id": 1, "category_id": 1, "score": 1, "segmentation": square}
    path = tmp_path / "polygons.json"
    path.write_text(json.dumps([row]))
    sizes = {image_id: image.size_hw for image_id, image in truth.images.items()}
    (batch,) = read_predictions(str(path), INSTANCES, sizes)
    assert rle.area(rle.runs(batch["rle"][0].as_py(), (150, 200))) == 2500
    with pytest.raises(SchemaError, match="image 1 is not in the truth"):
        list(read_predictions(str(path), INSTANCES))


def test_other_categories_are_left_out_and_counted() -> None:
    truth = read_coco_layout(str(LVIS / "truth.json"))
    batch = _as_detections(truth)
    other = batch.set_column(1, "category_id", pa.array([77] * batch.num_rows, pa.int32()))
    found = score_detections(truth, [batch, other], "segm")
    assert found.unknown == batch.num_rows
    assert found.metrics["AP"] == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_id": 99}, "name image 99"),
        ({"category_id": 0}, "numbered contiguously"),
        ({"height": 75}, "masks must be of the original size"),
        ({"rle": None}, "have no 'rle'"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(change: dict[str, object], said: str) -> None:
    truth = read_coco_layout(str(LVIS / "truth.json"))
    row = _as_detections(truth).slice(0, 1).to_pylist()[0] | change
    batch = pa.RecordBatch.from_pylist([row], schema=INSTANCES)
    with pytest.raises(SchemaError, match=said):
        score_detections(truth, [batch], "segm")


def test_lvis_rules_need_lvis_truth(tmp_path: Path) -> None:
    content = json.loads((LVIS / "truth.json").read_text())
    for image in content["images"]:
        del image["neg_category_ids"]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    with pytest.raises(SchemaError, match="LVIS scoring needs"):
        score_detections(read_coco_layout(str(path)), [], "bbox", lvis=True)
    content = json.loads((LVIS / "truth.json").read_text())
    del content["categories"][0]["frequency"]
    path.write_text(json.dumps(content))
    with pytest.raises(SchemaError, match="LVIS scoring needs"):
        score_detections(read_coco_layout(str(path)), [], "bbox", lvis=True)


def _as_detections(truth: GroundTruth) -> pa.RecordBatch:
    rows = [
        {
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "score": 1.0,
            "bbox_xywh": row["bbox_xywh"],
            "height": truth.images[row["image_id"]].size_hw[0],
            "width": truth.images[row["image_id"]].size_hw[1],
            "rle": row["rle"],
        }
        for row in truth.regions.to_pylist()
        if not row["crowd"]
    ]
    return pa.RecordBatch.from_pylist(rows, schema=INSTANCES)


def _with_crowds(truth: GroundTruth) -> GroundTruth:
    crowd = pa.array([i % 7 == 0 for i in truth.regions["region_id"].to_pylist()])
    index = truth.regions.schema.get_field_index("crowd")
    field = truth.regions.schema.field(index)
    regions = truth.regions.set_column(index, field, crowd)
    return GroundTruth(truth.name, truth.images, truth.categories, regions)


def _ours(results: Path, kind: scoring_coco.Kind, *, crowds: bool = False) -> list[float]:
    truth = read_coco_layout(str(LVIS / "truth.json"))
    truth = _with_crowds(truth) if crowds else truth
    batches = read_predictions(str(results), INSTANCES)
    return list(score_detections(truth, batches, kind).metrics.values())


def _pycocotools(results: Path, kind: str, *, crowds: bool = False) -> list[float]:
    truth = COCO()
    truth.dataset = json.loads((LVIS / "truth.json").read_text())
    for entry in truth.dataset["annotations"]:
        entry["iscrowd"] = int(crowds and entry["id"] % 7 == 0)
    truth.createIndex()
    run = COCOeval(truth, truth.loadRes(str(results)), kind)
    run.evaluate()
    run.accumulate()
    run.summarize()
    return run.stats.tolist()

"""Files that are not what they claim to be: one line with file and place, never a traceback."""

import gzip
import json
from pathlib import Path

import pytest

from tap_engine.schemas import rle, values
from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.train.evaluation.ground_truth import GroundTruth, read_coco_layout
from tap_engine.train.evaluation.score_files import ScoreConfig, score_files

IMAGE = {"id": 1, "height": 10, "width": 20, "file_name": "1.jpg"}
CATEGORY = {"id": 1, "name": "wolf"}
POLYGON = [[2.0, 2.0, 12.0, 2.0, 12.0, 8.0, 2.0, 8.0]]
REGION = {
    "id": 1,
    "image_id": 1,
    "category_id": 1,
    "bbox": [2, 2, 10, 6],
    "area": 60,
    "iscrowd": 0,
    "segmentation": POLYGON,
}
RESULT = {"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [2, 2, 10, 6]}


def write(path: Path, content: object) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def truth(path: Path, *annotations: dict, images=(IMAGE,), categories=(CATEGORY,)) -> str:
    content = {"images": images, "categories": categories, "annotations": annotations}
    return write(path, content)


def score(protocol: str, truth_path: str, predictions: str) -> dict:
    return score_files(ScoreConfig(protocol=protocol), truth_path, predictions).metrics


@pytest.mark.parametrize(
    "change",
    [
        {"segmentation": [[1.0, 2.0, 3.0]]},
        {"segmentation": [[2.0, 2.0, 1e8, 2.0, 12.0, 8.0]]},
        {"segmentation": {"size": [10, 20], "counts": "04"}},
        {"bbox": [2, 2, 10]},
        {"bbox": "2, 2"},
        {"image_id": 7},
        {"image_id": "1.jpg"},
        {"category_id": 1 << 40},
        {"category_id": 1.5},
        {"area": "60"},
        {"id": None},
        {"caption": 5},
    ],
    ids=str,
)
def test_a_garbled_annotation_is_named(tmp_path, change) -> None:
    path = truth(tmp_path / "gt.json", REGION, {**REGION, "id": 2, **change})
    with pytest.raises(SchemaError, match=r"gt.json: annotation 1: "):
        read_coco_layout(path)


@pytest.mark.parametrize("change", [{"id": 1.5}, {"height": "10"}, {"width": 1 << 40}], ids=str)
def test_a_garbled_image_is_named(tmp_path, change) -> None:
    path = truth(tmp_path / "gt.json", REGION, images=[IMAGE, {**IMAGE, "id": 2, **change}])
    with pytest.raises(SchemaError, match=r"gt.json: image 1: "):
        read_coco_layout(path)


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": 2.7},
        {"category_id": 1 << 33},
        {"score": None},
        {"score": float("1e999")},
        {"bbox": [1, 2, 3, 4, 5]},
        {"segmentation": []},
        {"segmentation": {"size": [10, 20], "counts": "04"}},
        {"segmentation": {"size": [10, 20], "counts": ""}},
        {"segmentation": {"size": [10], "counts": [200]}},
        {"segmentation": [[2.0, 2.0, 1e9, 2.0, 12.0, 8.0]]},
        {"segmentation": "mask"},
    ],
    ids=str,
)
def test_a_garbled_result_is_named(tmp_path, change) -> None:
    gt = truth(tmp_path / "gt.json", REGION)
    path = tmp_path / "dt.json"
    path.write_text(json.dumps([RESULT, {**RESULT, **change}]).replace("Infinity", "1e999"))
    with pytest.raises((SchemaError, SourceError), match=r"dt.json: (result 1|not readable)"):
        score("coco-bbox", gt, str(path))


@pytest.mark.parametrize("content", [{"annotations": [RESULT]}, 5, "text"], ids=str)
def test_results_that_are_no_list_are_not_no_results(tmp_path, content) -> None:
    gt = truth(tmp_path / "gt.json", REGION)
    with pytest.raises(SchemaError, match="expected a list of results"):
        score("coco-bbox", gt, write(tmp_path / "dt.json", content))


def test_good_files_score_as_before(tmp_path) -> None:
    gt = truth(tmp_path / "gt.json", REGION)
    mask = {"size": [10, 20], "counts": rle.from_coco(POLYGON, (10, 20)).decode()}
    dt = write(tmp_path / "dt.json", [{**RESULT, "segmentation": mask}])
    assert score("coco-segm", gt, dt)["AP"] == pytest.approx(1)
    assert score("coco-bbox", gt, dt)["AP"] == pytest.approx(1)


def test_regions_of_one_number_are_refused(tmp_path) -> None:
    with pytest.raises(SchemaError, match="region 1 is there twice"):
        read_coco_layout(truth(tmp_path / "gt.json", REGION, REGION))


@pytest.mark.parametrize("bare", [{"segmentation": []}, {"segmentation": None}])
def test_truth_with_boxes_among_the_masks_is_told_before_anything_is_done(tmp_path, bare) -> None:
    gt = truth(tmp_path / "gt.json", REGION, {**REGION, "id": 2, **bare})
    dt = write(tmp_path / "dt.json", [{**RESULT, "segmentation": POLYGON}])
    with pytest.raises(SchemaError, match="1 of 2 annotations have no mask, such as 2"):
        score("coco-segm", gt, dt)
    score("coco-bbox", gt, dt)


def test_categories_that_are_not_listed_are_told(tmp_path) -> None:
    gt = read_coco_layout(truth(tmp_path / "gt.json", {**REGION, "category_id": 9}))
    with pytest.raises(SchemaError, match="annotation 1 is of category 9"):
        gt.require_categories()
    empty: GroundTruth = read_coco_layout(truth(tmp_path / "gt.json"))
    with pytest.raises(SchemaError, match="no annotations"):
        empty.require_categories()


def test_null_is_no_caption(tmp_path) -> None:
    said = {"id": 1, "image_id": 1, "bbox": [1, 1, 5, 5], "caption": "a wolf"}
    gt = truth(tmp_path / "gt.json", said, categories=[])
    dt = write(tmp_path / "dt.json", [{"image_id": 1, "region_id": 1, "caption": None}])
    with pytest.raises(SchemaError, match=r"result 0: .*expected a text, found None"):
        score("captions", gt, dt)
    plain = write(tmp_path / "plain-gt.json", {"1": "a wolf"})
    null = write(tmp_path / "plain-dt.json", {"1": None})
    with pytest.raises(SchemaError, match=r"plain-dt.json: expected a text, found None"):
        score("captions", plain, null)


def test_half_a_surrogate_is_scored_as_an_unknown_character() -> None:
    assert values.text("a wolf \ud83d runs") == "a wolf \ufffd runs"
    assert values.text("\U0001f43a") == "\U0001f43a"


@pytest.mark.parametrize("name", ["dt.json.gz", "dt.jsonl", "dt.JSON"])
def test_files_of_other_endings_are_named(tmp_path, name) -> None:
    gt = truth(tmp_path / "gt.json", REGION)
    (tmp_path / name).write_bytes(gzip.compress(json.dumps([RESULT]).encode()))
    with pytest.raises(SourceError, match=r"expected predictions as .json"):
        score("coco-bbox", gt, str(tmp_path / name))


def test_what_is_not_there_is_not_an_unfinished_run(tmp_path) -> None:
    gt = truth(tmp_path / "gt.json", REGION)
    for name in ("nosuch.jsonl", "nosuchdir", "nosuch.lance"):
        with pytest.raises(SourceError, match="no such file"):
            score("coco-bbox", gt, str(tmp_path / name))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no predictions in this folder"):
        score("coco-bbox", gt, str(tmp_path / "empty"))


def test_a_parquet_file_that_is_cut_off_is_named(tmp_path) -> None:
    gt = truth(tmp_path / "gt.json", REGION)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(SchemaError, match=r"cut.parquet: cannot be read"):
        score("coco-bbox", gt, str(tmp_path / "cut.parquet"))

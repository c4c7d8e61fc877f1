import json
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.train.evaluation.ground_truth import read_coco_layout
from tests.support import GOLDEN, shared_data

TRUTH = GOLDEN / "lvis_small" / "truth.json"


def test_masks_of_every_form_are_those_of_pycocotools() -> None:
    path = shared_data("oracles/coco") / "instances_val2014_100.json"
    theirs = COCO(str(path))
    truth = read_coco_layout(str(path))
    assert truth.regions.num_rows == 839
    forms = set()
    for row in truth.regions.to_pylist():
        entry = theirs.anns[row["region_id"]]
        forms.add(type(entry["segmentation"]))
        assert row["rle"] == theirs.annToRLE(entry)["counts"]
        assert row["area"] == entry["area"]
        assert row["bbox_xywh"] == entry["bbox"]
        assert row["crowd"] == bool(entry["iscrowd"])
    assert forms == {list, dict}


def test_lvis_fields_and_lookups() -> None:
    truth = read_coco_layout(str(TRUTH))
    assert truth.images[1].file_name == "val2017/000000000001.jpg", "of the coco_url"
    assert truth.categories[1].frequency == "r"
    content = json.loads(TRUTH.read_text())
    assert truth.images[3].negative == tuple(content["images"][2]["neg_category_ids"])
    ids = [row["id"] for row in content["annotations"] if row["image_id"] == 3]
    assert truth.regions_of(3)["region_id"].to_pylist() == ids
    ids = [row["id"] for row in content["annotations"] if row["category_id"] == 2]
    assert truth.regions_of_category(2)["region_id"].to_pylist() == ids
    assert truth.regions_of(12345).num_rows == 0


def test_the_fingerprint_is_of_the_content_not_of_its_order(tmp_path: Path) -> None:
    content = json.loads(TRUTH.read_text())
    first = read_coco_layout(str(TRUTH)).fingerprint
    content["annotations"].reverse()
    content["images"].reverse()
    path = tmp_path / "t.json"
    path.write_text(json.dumps(content))
    assert read_coco_layout(str(path)).fingerprint == first
    content["annotations"][0]["bbox"][2] += 1
    path.write_text(json.dumps(content))
    moved = read_coco_layout(str(path)).fingerprint
    content["annotations"][0]["caption"] = "text"
    path.write_text(json.dumps(content))
    assert len({first, moved, read_coco_layout(str(path)).fingerprint}) == 3
    part = read_coco_layout(str(TRUTH)).restricted_to([1, 2])
    assert len(part.images) == 2
    assert set(part.regions["image_id"].to_pylist()) <= {1, 2}
    assert part.fingerprint != first


def test_region_captions_and_image_captions(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    images = [{"id": 5, "height": 10, "width": 20}]
    regions = [
        {"id": 900100184613, "image_id": 5, "bbox": [1, 2, 3, 4], "caption": "a"},
        {"id": 2, "image_id": 5, "bbox": [1, 2, 3, 4], "caption": "b"},
    ]
    path.write_text(json.dumps({"images": images, "annotations": regions}))
    truth = read_coco_layout(str(path))
    assert truth.regions["region_id"].to_pylist() == [900100184613, 2], "beyond 32 bit in GRiT's"
    assert truth.references(truth.regions) == [["a"], ["b"]]
    assert truth.regions["area"].to_pylist() == [12.0, 12.0]
    texts = [{"id": i, "image_id": 5, "caption": text} for i, text in enumerate("xyz")]
    path.write_text(json.dumps({"images": images, "annotations": texts}))
    (row,) = read_coco_layout(str(path)).regions.to_pylist()
    assert (row["region_id"], row["captions"]) == (5, ["x", "y", "z"])
    assert row["bbox_xywh"] == [0, 0, 20, 10]


def test_files_of_another_layout_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(SourceError, match="no such file"):
        read_coco_layout(str(path))
    path.write_text("[]")
    with pytest.raises(SchemaError, match="is it a results file"):
        read_coco_layout(str(path))
    images = [{"id": 1, "height": 4, "width": 4}]
    path.write_text(json.dumps({"images": images, "annotations": [{"image_id": 2, "bbox": []}]}))
    with pytest.raises(SchemaError, match="annotation 0: KeyError"):
        read_coco_layout(str(path))
    entry = {"image_id": 1, "segmentation": {"size": [5, 4], "counts": "0"}}
    path.write_text(json.dumps({"images": images, "annotations": [entry]}))
    with pytest.raises(SchemaError, match=r"mask of size \[5, 4\] for an image of \[4, 4\]"):
        read_coco_layout(str(path))

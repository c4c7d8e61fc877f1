import json
import pickle
from pathlib import Path

import pytest

from tap_engine.schemas.errors import CheckpointError, SchemaError
from tap_engine.train.evaluation.refcocog import read_refcocog


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    images = [
        {"id": i, "height": 50, "width": 60, "file_name": f"COCO_train2014_{i:012d}.jpg"}
        for i in (5, 6)
    ]
    annotations = [
        {"id": 100 + i, "image_id": 5 + i % 2, "category_id": 3, "bbox": [i, 1, 10, 10], "area": 60}
        for i in range(3)
    ]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "car"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    refs = [
        {
            "ref_id": 9 - i,
            "ann_id": 100 + i,
            "image_id": 5 + i % 2,
            "split": "train" if i == 2 else "val",
            "file_name": f"COCO_train2014_{5 + i % 2:012d}_{100 + i}.jpg",
            "sentences": [
                {"sent_id": 10 * i + j, "sent": f"the car {j}", "raw": f"The car {j}."}
                for j in range(2)
            ],
        }
        for i in range(3)
    ]
    # Protocol 2, as Python 2 wrote it.
    (tmp_path / "refs(umd).p").write_bytes(pickle.dumps(refs, protocol=2))
    return str(tmp_path / "refs(umd).p"), str(tmp_path / "instances.json")


def test_a_region_with_all_its_sentences(files: tuple[str, str]) -> None:
    truth = read_refcocog(*files, grouping="region")
    assert truth.regions["region_id"].to_pylist() == [9, 8]
    assert truth.references(truth.regions) == [["The car 0.", "The car 1."]] * 2
    assert truth.regions["bbox_xywh"].to_pylist() == [[0, 1, 10, 10], [1, 1, 10, 10]]
    assert truth.images[5].file_name == "COCO_train2014_000000000005.jpg"
    assert list(truth.images) == [5, 6]


def test_a_sentence_with_itself(files: tuple[str, str]) -> None:
    truth = read_refcocog(*files, grouping="sentence", text="sent")
    assert truth.regions["region_id"].to_pylist() == [0, 1, 10, 11]
    assert truth.references(truth.regions) == [
        ["the car 0"],
        ["the car 1"],
        ["the car 0"],
        ["the car 1"],
    ]
    assert read_refcocog(*files).fingerprint != truth.fingerprint


def test_other_splits_and_files_are_refused(files: tuple[str, str], tmp_path: Path) -> None:
    assert read_refcocog(*files, split="train").regions.num_rows == 1
    with pytest.raises(SchemaError, match="no split 'testA'; it has train, val"):
        read_refcocog(*files, split="testA")
    bad = tmp_path / "bad.p"
    bad.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(SchemaError, match="expected a list of references"):
        read_refcocog(str(bad), files[1])
    bad.write_bytes(pickle.dumps([{"split": "val", "ref_id": 1, "ann_id": 4, "sentences": []}]))
    with pytest.raises(SchemaError, match="no annotation 4"):
        read_refcocog(str(bad), files[1])


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, files: tuple[str, str]) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("owned",)

    path = tmp_path / "evil.p"
    path.write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(CheckpointError, match="refused, nothing was run"):
        read_refcocog(str(path), files[1])

import json
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tap_engine.pipeline.store import Store
from tap_engine.schemas.errors import ConfigError, SchemaError, SourceError, StoreError
from tap_engine.schemas.keys import pack_image_id, region_key
from tap_engine.schemas.provenance import Provenance
from tap_engine.schemas.tables import (
    CONCEPTS,
    IMAGES,
    REGIONS,
    concepts_schema,
    images_schema,
    regions_schema,
)
from tap_engine.schemas.truth import truth_schema
from tap_engine.train.evaluation import data_sets as eval_sets
from tap_engine.train.evaluation.data_choice import DataChoice, evaluation_set
from tap_engine.train.evaluation.data_sets import EvalSet, from_store, with_folder
from tap_engine.train.evaluation.ground_truth import read_coco_layout
from tests.scenes import draw_scene
from tests.train.evaluation.eval_world import coco_set, write_coco
from tests.train.small_store import make_store


def test_images_are_found_under_path_coco_folder_or_flat(tmp_path: Path) -> None:
    path = write_coco(tmp_path, images=3)
    content = json.loads(path.read_text())
    places = {1: "deep/down/1.jpg", 2: "val2017/2.jpg", 3: "3.jpg"}
    for number, place in places.items():
        target = tmp_path / "root" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / f"{number}.jpg").rename(target)
    content["images"][0]["file_name"] = "deep/down/1.jpg"
    del content["images"][1]["file_name"]
    content["images"][1]["coco_url"] = "http://images.example/val2017/2.jpg"
    content["images"][2]["file_name"] = "vg/images/3.jpg"
    path.write_text(json.dumps(content))
    data = with_folder(read_coco_layout(str(path)), str(tmp_path / "root"))
    for number in places:
        assert data.pixels(number).shape == (120, 160, 3)
    (tmp_path / "root" / "3.jpg").unlink()
    with pytest.raises(SourceError, match=r"image 3 is not there as vg/images/3.jpg or images/3"):
        data.pixels(3)
    with pytest.raises(SourceError, match="no such image folder"):
        with_folder(data.truth, str(tmp_path / "none"))


def test_resized_or_broken_pictures_are_refused(tmp_path: Path) -> None:
    path = write_coco(tmp_path, images=2)
    (tmp_path / "images" / "1.jpg").write_bytes(draw_scene(1, (60, 80))[0])
    (tmp_path / "images" / "2.jpg").write_bytes(b"no picture")
    data = with_folder(read_coco_layout(str(path)), str(tmp_path / "images"))
    with pytest.raises(SchemaError, match=r"the picture is \(60, 80\)"):
        data.pixels(1)
    with pytest.raises(SourceError, match="not a readable picture"):
        data.pixels(2)


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Two scenes of the sample source with five regions each, and one of Visual Genome."""
    images, regions = [], []
    for source, number in (("sample", 1), ("sample", 2), ("vg", 7)):
        jpeg, scene = draw_scene(number)
        image_id = pack_image_id(source, number)
        size = {"width": 160, "height": 120}
        images.append(
            {"image_id": image_id, "source": source, "unit": 1, "file_name": f"{number}.jpg"}
            | {"jpeg": jpeg, "region_count": 5, **size}
        )
        for ordinal, entry in enumerate(scene["annotations"]):
            left, top, width, height = entry["bbox"]
            regions.append(
                {
                    "key": region_key(image_id, ordinal),
                    "image_id": image_id,
                    "region_id": entry["id"],
                    "source": source,
                    "unit": 1,
                    "bbox_xywh": [left, top, width + 1, height + 1],
                    "area": entry["area"],
                    "rle": None if source == "vg" else entry["segmentation"]["counts"].encode(),
                    "caption": f"text {ordinal}" if source == "vg" else None,
                }
            )
    found = Store(str(tmp_path / "store"))
    made = Provenance({})
    found.create(IMAGES, pa.Table.from_pylist(images, images_schema()), made)
    found.create(REGIONS, pa.Table.from_pylist(regions, regions_schema(0, 0)), made)
    concepts = [
        {"concept_id": i, "name": name, "sources": []}
        | {"source_embedding": [1.0, 0.0], "target_embedding": [1.0, 0.0]}
        for i, name in enumerate(("cat", "dog", "tree"))
    ]
    found.create(CONCEPTS, pa.Table.from_pylist(concepts, concepts_schema(2)), made)
    return found.uri


def test_a_store_brings_its_masks_captions_and_pixels(store: str) -> None:
    data = from_store(store)
    assert len(data.truth.images) == 3 and data.truth.categories == {}
    vg = pack_image_id("vg", 7)
    assert data.truth.references(data.truth.regions_of(vg)) == [[f"text {i}"] for i in range(5)]
    sample = data.truth.regions_of(2 + pack_image_id("sample", 0))
    assert sample["rle"].null_count == 0
    assert sample["captions"].null_count == 5
    for image_id in data.truth.images:
        assert data.pixels(image_id).shape == (120, 160, 3)
    assert not np.array_equal(data.pixels(vg), data.pixels(pack_image_id("sample", 1)))


def test_a_split_is_image_numbers_of_the_source(store: str) -> None:
    assert list(from_store(store, image_numbers=[7]).truth.images) == [pack_image_id("vg", 7)]
    with pytest.raises(SourceError, match="none of the wanted images"):
        from_store(store, image_numbers=[8])
    with pytest.raises(SchemaError, match="these numbers from sample and vg"):
        from_store(store, image_numbers=[1, 7])
    first = from_store(store, first=2).truth
    assert list(first.images) == [pack_image_id("sample", 1), pack_image_id("sample", 2)]
    assert first.regions.num_rows == 10
    with pytest.raises(StoreError, match="no readable table"):
        from_store(store + "-other")


def test_many_images_are_chosen_as_few_are(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few = from_store(store, first=2).truth
    monkeypatch.setattr(eval_sets, "_FEW", 0)
    assert from_store(store, first=2).truth.regions == few.regions


def test_the_truth_table_names_the_objects(store: str, tmp_path: Path) -> None:
    image_id = pack_image_id("sample", 1)
    rows = [
        {
            "image_id": image_id,
            "region_id": 1000 + i,
            "kind": kind,
            "concept": concept,
            "tint": None,
        }
        for i, (kind, concept) in enumerate(
            [("object", "tree"), ("part", "tree"), ("object", "cat"), ("stuff", "dog")]
        )
    ]
    table = tmp_path / "truth"
    table.mkdir()
    columns = pa.schema([truth_schema().field(name) for name in rows[0]])
    pq.write_table(pa.Table.from_pylist(rows, schema=columns), table / "a.parquet")
    truth = from_store(store, truth_table=str(table)).truth
    assert truth.regions["region_id"].to_pylist() == [1000, 1002]
    names = {category.category_id: category.name for category in truth.categories.values()}
    assert [names[i] for i in truth.regions["category_id"].to_pylist()] == ["tree", "cat"]
    assert list(names.values()) == ["cat", "dog", "tree"], "the whole vocabulary, in its order"
    pq.write_table(
        pa.Table.from_pylist([rows[0] | {"concept": "x"}], schema=columns), table / "a.parquet"
    )
    with pytest.raises(SchemaError, match="concept 'x' is not in the store's vocabulary"):
        from_store(store, truth_table=str(table))
    pq.write_table(
        pa.Table.from_pylist([rows[0] | {"image_id": 5}], schema=columns), table / "a.parquet"
    )
    with pytest.raises(SchemaError, match="was it built from these scenes"):
        from_store(store, truth_table=str(table))
    with pytest.raises(SourceError, match="expected a truth table"):
        from_store(store, truth_table=str(tmp_path / "none"))


def test_a_limit_takes_the_first_images_whatever_holds_them(tmp_path: Path) -> None:
    path = str(write_coco(tmp_path, images=3))
    folder = str(tmp_path / "images")
    asked: list[int] = []

    def draw(scenes: int) -> EvalSet:
        asked.append(scenes)
        return coco_set(tmp_path / "drawn", images=2)

    choice = DataChoice(name=path, images=folder, references="region", limit=2)
    assert list(evaluation_set(choice, draw).truth.images) == [1, 2] and not asked
    evaluation_set(DataChoice(name="sample", references="region", limit=2), draw)
    assert asked == [2]
    store = make_store(tmp_path / "store", 4)
    every = evaluation_set(DataChoice(name=str(store), references="region"), draw).truth
    first = evaluation_set(DataChoice(name=str(store), references="region", limit=2), draw).truth
    assert list(first.images) == list(every.images)[:2] and len(every.images) == 4
    with pytest.raises(ConfigError, match="must be region or box for a store"):
        evaluation_set(DataChoice(name=str(store), references="sentence"), draw)


def test_phrases_of_one_box_are_one_question_if_wanted(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", 1, source="vg", captions=True, boxes=True, first_id=2)
    path = str(store / "regions.lance")
    table = lance.dataset(path).to_table()
    at = table.column_names.index("bbox_xywh")
    boxes = table["bbox_xywh"].combine_chunks()
    same = boxes.take(pa.array([0, 1, 0, *range(3, len(table))]))
    lance.write_dataset(table.set_column(at, table.schema.field(at), same), path, mode="overwrite")
    each, joined = (from_store(str(store), by_box=by_box).truth for by_box in (False, True))
    assert [len(texts) for texts in each.references(each.regions)] == [1] * len(table)
    texts = table["caption"].to_pylist()
    expected = [[texts[0], texts[2]], [texts[1]], *([text] for text in texts[3:])]
    assert joined.references(joined.regions) == expected

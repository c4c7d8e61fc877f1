import json
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tap_engine.pipeline.sources.detect import find_annotations, open_folder
from tap_engine.pipeline.sources.photo_folder import PhotoFolderSource
from tap_engine.schemas import rle
from tap_engine.schemas.errors import SourceError
from tap_engine.schemas.keys import unpack_image_id
from tests.pipeline.sources.own_photos import (
    HEIGHT,
    SQUARE,
    WIDTH,
    encoded,
    pixels,
    put,
    read,
    rectangle,
)

CATEGORIES = [{"id": 1, "name": "kite"}, {"id": 7, "name": "boat"}]


def image(number, name="a.png", **over):
    return {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT} | over


def annotation(number, of, segmentation=(SQUARE,), category=1, **over):
    found = {"id": number, "image_id": of, "category_id": category}
    return found | {"segmentation": list(segmentation), "iscrowd": 0} | over


def folder(tmp_path, images, annotations, photos=("a.png",), categories=CATEGORIES, **more):
    content = {"images": images, "annotations": annotations, "categories": categories} | more
    put(tmp_path / "annotations.json", content)
    for number, name in enumerate(photos):
        put(tmp_path / name, encoded(pixels(seed=number)))
    return tmp_path


def test_polygons_runs_crowds_and_boxes_become_labelled_regions(tmp_path) -> None:
    mask = rectangle(20, 4, 8, 9)
    plain = {"size": [HEIGHT, WIDTH], "counts": rle.runs(rle.encode(mask), mask.shape).tolist()}
    rows = [
        annotation(1, 5, area=3, bbox=[0, 0, 1, 1]),
        annotation(2, 5, category=7) | {"segmentation": plain, "iscrowd": 1},
        annotation(3, 5, (), bbox=[30, 10, 12, 6]),
        annotation(4, 5, (), bbox=[50, 30, 100, 100], category=7),
    ]
    found = read(folder(tmp_path, [image(5)], rows))
    assert found.of("a.png") == [("kite", 120), ("boat", 72), ("kite", 72), ("boat", 100)]
    regions = found.images["a.png"].regions
    assert [region.rle is None for region in regions] == [False, False, True, True]
    assert regions[0].bbox_xywh == (5, 6, 10, 12) and regions[3].bbox_xywh == (50, 30, 10, 10)
    assert np.array_equal(rle.decode(regions[1].rle, mask.shape), mask)
    assert not found.lost and len(found.notes) == 2  # area and box of the first
    assert found.source.labels() == ("kite", "boat")


@pytest.mark.parametrize(
    ("listed", "asked"),
    [
        (0, 0),
        ("x", "x"),
        (5.0, 5),
        (2**70, 2**70),
        (-3, -3),
        ("81", 81),
        (81, "81"),
        (9007199254740993, 9007199254740993),
    ],
)
def test_ids_are_names_of_any_kind(tmp_path, listed, asked) -> None:
    images = [image(listed), image(9007199254740992, "b.png"), image("00081", "c.png")]
    rows = [annotation(2**90, asked), annotation("two", asked), annotation(2.5, asked)]
    found = read(folder(tmp_path, images, rows, ("a.png", "b.png", "c.png")))
    assert [len(found.of(name)) for name in ("a.png", "b.png", "c.png")] == [3, 0, 0]
    assert [region.region_id for region in found.images["a.png"].regions] == [0, 1, 2]


def test_one_id_of_two_photos_is_refused_for_both(tmp_path) -> None:
    images = [image(5), image(5, "b.png")]
    found = read(folder(tmp_path, images, [annotation(1, 5)], ("a.png", "b.png")))
    assert found.of("a.png") == found.of("b.png") == []
    assert any("a.png and b.png" in text for text in found.lost)


def test_rows_that_cannot_be_read_are_named_with_their_line(tmp_path) -> None:
    rows = [None, "x", [1], annotation(11, 5), annotation(12, 99), {"id": 13}]
    found = read(folder(tmp_path, [None, image(5)], rows))
    assert found.of("a.png") == [("kite", 120)]
    text = (tmp_path / "annotations.json").read_text().splitlines()
    assert len(found.lost) == 6
    for problem in found.lost:
        name, line = problem.split(":")[:2]
        assert name == "annotations.json" and text[int(line) - 1].strip()[0] in '{["n'
    of_unknown = next(problem for problem in found.lost if "image 99" in problem)
    assert '"id": 12' in text[int(of_unknown.split(":")[1])]


def test_a_photo_listed_twice_or_in_two_files_is_one_image(tmp_path) -> None:
    folder(tmp_path, [image(1), image(2)], [annotation(1, 1), annotation(2, 2, category=7)])
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["annotations"] = [annotation(1, 1, category=7)]
    put(tmp_path / "more.json", content)
    found = read(tmp_path)
    assert sorted(found.of("a.png")) == [("boat", 120), ("boat", 120), ("kite", 120)]


def test_captions_and_keypoints_of_the_same_photos_are_left_aside(tmp_path) -> None:
    folder(tmp_path, [image(1)], [annotation(1, 1)])
    put(tmp_path / "captions.json", {"images": [image(1)], "annotations": [{"caption": "a"}]})
    row = annotation(9, 1, keypoints=[1, 2, 2])
    put(tmp_path / "person.json", {"images": [image(1)], "annotations": [row], "categories": []})
    found = read(tmp_path)
    assert found.of("a.png") == [("kite", 120)]
    assert sum("not read" in line for line in found.source.found.said) == 2
    (tmp_path / "annotations.json").unlink()
    (tmp_path / "person.json").unlink()
    with pytest.raises(SourceError, match="captions only"):
        read(tmp_path)


def test_results_of_a_detector_are_boxes_on_the_listed_photos(tmp_path) -> None:
    folder(tmp_path, [image(1), image(2, "b.png")], [], ("a.png", "b.png"))
    row = {"image_id": 2, "category_id": 7, "bbox": [5, 6, 10, 12], "score": 0.9}
    put(tmp_path / "results.json", [row, row | {"category_id": 1}, row | {"image_id": 9}])
    found = read(tmp_path)
    assert found.of("a.png") == [] and found.of("b.png") == [("boat", 120), ("kite", 120)]
    assert all(region.rle is None for region in found.images["b.png"].regions)
    assert len(found.lost) == 1 and found.lost[0].startswith("results.json:")
    folder(tmp_path, [image(1), image(2, "b.png")], [annotation(1, 1)], ("a.png", "b.png"))
    assert read(tmp_path).of("b.png") == []  # a file with annotations is not mixed with results


def test_categories_give_labels_or_say_why_not(tmp_path) -> None:
    categories = [
        {"id": 0, "name": "sea", "supercategory": "none"},
        {"id": 1, "name": " shark ", "supercategory": "sea"},
        {"id": 2, "name": "cafe\u0301", "supercategory": "sea"},
        {"id": 3, "name": "", "supercategory": "sea"},
        {"id": 4, "name": "x", "supercategory": "sea"},
        {"id": 4, "name": "y", "supercategory": "sea"},
        None,
    ]
    rows = [annotation(n, 5, category=n) for n in (1, 2, 3, 4, 77)]
    found = read(folder(tmp_path, [image(5)], rows, categories=categories))
    assert [label for label, _ in found.of("a.png")] == ["shark", "caf\u00e9", None, None, None]
    said = " ".join(found.notes)
    assert "category 77" in said and "two names, 'x' and 'y'" in said and "no name" in said


def test_the_root_of_a_roboflow_export_is_no_label(tmp_path) -> None:
    categories = [
        {"id": 0, "name": "sea", "supercategory": "none"},
        {"id": 1, "name": "shark", "supercategory": "sea"},
        {"id": 2, "name": "fish", "supercategory": "sea"},
    ]
    found = read(folder(tmp_path, [image(5)], [annotation(1, 5)], categories=categories))
    assert found.source.labels() == ("shark", "fish")


def test_missing_photos_are_said_and_none_at_all_is_an_error(tmp_path) -> None:
    images = [image(1), image(2, "gone.png")]
    found = read(folder(tmp_path, images, [annotation(1, 1), annotation(2, 2)], ("a.png", "x.png")))
    assert len(found.lost) == 1 and "gone.png" in found.lost[0]
    assert any("x.png" in text and "not listed" in text for text in found.notes)
    (tmp_path / "a.png").unlink()
    put(tmp_path / "photos.zip", b"PK")
    with pytest.raises(SourceError, match=r"none of the 2 photos.*photos.zip"):
        read(tmp_path)


def test_a_unit_travels_to_a_worker_and_reads_the_same(tmp_path) -> None:
    images = [image(n, f"{n}.png") for n in range(5)]
    rows = [annotation(10 * n, n, category=7) for n in range(5)]
    folder(tmp_path, images, rows, [f"{n}.png" for n in range(5)])
    opened = open_folder([str(tmp_path)])
    source = PhotoFolderSource(opened, find_annotations(opened))
    (unit,), _ = source.index(source.shards()[0], 512)
    drop = np.array([True, False, False, True, False])
    sent, at = pickle.loads(pickle.dumps((unit.without(drop), source)))
    assert sent.file_names == ["1.png", "2.png", "4.png"]
    for index, number in enumerate((1, 2, 4)):
        record, rejects = at.load(sent, index)
        assert record.file_name == f"{number}.png" and not rejects
        assert [region.region_id for region in record.regions] == [10 * number]
        assert unpack_image_id(record.image_id)[0] == "photos"


def test_other_annotations_are_another_store(tmp_path) -> None:
    first = read(folder(tmp_path, [image(5)], [annotation(1, 5)])).source.settings()
    assert first == read(tmp_path).source.settings()
    second = read(folder(tmp_path, [image(5)], [annotation(2, 5)])).source.settings()
    assert first["annotations"] != second["annotations"]


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ([0.1, 0.2, 0.5, 0.6], "fractions"),
        ([5, 6, 10], "4 numbers"),
        ([5, 6, 10, 12, 0.3], "rotated"),
        ([5, 6, 10, -12], "empty"),
        ([5, 6, 10, float("nan")], "not finite"),
        ([70, 6, 10, 12], "outside"),
        ("box", "found text"),
        (None, "neither a mask nor a box"),
    ],
)
def test_boxes_alone_that_are_none_are_refused(tmp_path, box, words) -> None:
    rows = [annotation(1, 5), annotation(2, 5, (), bbox=box)]
    found = read(folder(tmp_path, [image(5)], rows))
    assert found.of("a.png") == [("kite", 120)]
    assert len(found.lost) == 1 and words in found.lost[0] and "annotation 2" in found.lost[0]


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from([2**70, 1e8, "1e8", "[[1,2]]", [SQUARE], {"counts": [1], "size": [2, 3]}]),
    lambda inner: (
        st.lists(inner, max_size=7)
        | st.dictionaries(st.sampled_from(["counts", "size", "id", "name", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_json_value_anywhere_ends_the_reading(tmp_path_factory, data) -> None:
    """Whatever stands in a row costs that row at most: its neighbour is built."""
    tmp_path = tmp_path_factory.mktemp("fuzz")
    bad_image, bad_row = image(2, "b.png"), annotation(8, 2)
    bad_category = {"id": 3, "name": "x"}
    for row in (bad_image, bad_row, bad_category):
        key = data.draw(st.sampled_from([*sorted(row), "bbox", "area", "supercategory"]))
        row[key] = data.draw(JSON_VALUES)
    rows = [annotation(1, "good"), data.draw(st.just(bad_row) | JSON_VALUES)]
    images = [image("good"), data.draw(st.just(bad_image) | JSON_VALUES)]
    categories = [*CATEGORIES, data.draw(st.just(bad_category) | JSON_VALUES)]
    found = read(folder(tmp_path, images, rows, ("a.png", "b.png"), categories))
    assert ("kite", 120) in found.of("a.png") or bad_category["id"] == 1

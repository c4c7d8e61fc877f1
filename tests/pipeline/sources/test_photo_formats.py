"""Every format but COCO's: what it gives, and what it refuses in words."""

import base64
import json

import numpy as np
import pytest

from tap_engine.schemas import rle
from tap_engine.schemas.errors import SourceError
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

A, B = rectangle(5, 6, 10, 12), rectangle(30, 20, 9, 7)
CORNERS = [[5, 6], [15, 6], [15, 18], [5, 18]]


def white(mask, inside=255):
    return encoded(np.where(mask, inside, 0).astype(np.uint8))


def shape(label="kite", points=CORNERS, kind="polygon", **over):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None} | over


def labelme(tmp_path, shapes, name="a", **over):
    put(tmp_path / f"{name}.png", encoded(pixels()))
    content = {"version": "5.2.1", "shapes": shapes, "imagePath": f"{name}.png", "imageData": None}
    put(tmp_path / f"{name}.json", content | {"imageWidth": WIDTH, "imageHeight": HEIGHT} | over)
    return tmp_path


def test_labelme_shapes(tmp_path) -> None:
    ring = np.ones((6, 8), bool)
    ring[2:4, 2:6] = False
    text = base64.b64encode(white(ring)).decode()
    shapes = [
        shape(),
        shape("box", [[15, 18], [5, 6]], "rectangle"),
        shape("disc", [[30, 20], [36, 28]], "circle"),
        shape("ring", [[40, 10], [47, 15]], "mask", mask=text),
        shape("boat", group_id=0),
        shape("boat", [[30, 20], [39, 20], [39, 27], [30, 27]], group_id=0),
        shape("sail", group_id=0),
        shape("__ignore__"),
    ]
    found = read(labelme(tmp_path, shapes))
    areas = dict(found.of("a.png"))
    assert areas.pop("disc") == pytest.approx(np.pi * 100, rel=0.05)
    assert areas == {"kite": 120, "box": 120, "ring": 40, "boat": 183, "sail": 120}
    region = next(r for r in found.images["a.png"].regions if r.label == "ring")
    assert region.bbox_xywh == (40, 10, 8, 6) and not found.lost


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (shape(kind="point", points=[[1, 2]]), "point has no inside"),
        (shape(kind="linestrip"), "linestrip has no inside"),
        (shape(kind="ellipsoid"), "ellipsoid"),
        (shape(points=[[1, 2], [3, 4]]), "2 points"),
        (shape(points=[[1, 2], [float("nan"), 4], [1, 1]]), "not finite"),
        (shape(points=[[1, 2], [1e30, 4], [1, 1]]), "out of range"),
        (shape(kind="mask", mask="???"), "base64"),
        (shape(kind="mask", mask=None), "missing"),
        (shape(kind="circle", points=[[1, 2], [1, 2]]), "radius is 0"),
        (shape(kind="rectangle", points=[[1, 2], [1, 2]]), "empty"),
        (None, "found null"),
    ],
)
def test_labelme_shapes_without_inside_are_named_with_their_line(tmp_path, bad, words) -> None:
    found = read(labelme(tmp_path, [shape(), bad]))
    assert found.of("a.png") == [("kite", 120)]
    (problem,) = found.lost
    text = (tmp_path / "a.json").read_text().splitlines()
    assert words in problem and problem.startswith("a.json:")
    assert text[int(problem.split(":")[1]) - 1].strip() in ("{", "null")


def test_labelme_photos_that_are_inside_or_called_otherwise(tmp_path) -> None:
    data = base64.b64encode(encoded(pixels())).decode()
    labelme(tmp_path, [shape()], "b", imagePath="..\\old\\b.png")
    labelme(tmp_path, [shape()], "c", imagePath="gone.png")
    labelme(tmp_path, [shape()], "d", imagePath="d.json", imageData=data)
    labelme(tmp_path, [shape()], "e")
    for name in ("d", "e"):
        (tmp_path / f"{name}.png").unlink()
    put(tmp_path / "package.json", {"name": "x", "shapes": 3})
    put(tmp_path / "f.json", b'{"version": "5", "shapes": [{')
    found = read(tmp_path)
    assert sorted(found.images) == ["b.png", "c.png", "d.png"]
    assert any("gone.png" in text for text in found.notes)
    assert any("package.json" in text for text in found.notes)
    assert len(found.lost) == 2 and any("f.json" in text for text in found.lost)


def sam(mask, **over):
    packed = {"size": [HEIGHT, WIDTH], "counts": rle.encode(mask).decode()}
    return {"segmentation": packed, "predicted_iou": 0.9, "stability_score": 0.8} | over


def test_sam_masks_in_all_modes(tmp_path) -> None:
    plain = {"size": [HEIGHT, WIDTH], "counts": rle.runs(rle.encode(B), B.shape).tolist()}
    contents = {
        "list": [sam(A), sam(B, label="boat")],
        "plain": [sam(A), sam(B, segmentation=plain)],
        "bitmap": [sam(A), sam(B, segmentation=B.astype(int).tolist())],
        "object": {"annotations": [sam(A), sam(B)]},
        "numbers": {"0": sam(A), "1": sam(B)},
        "blank": [],
    }
    for name, content in contents.items():
        put(tmp_path / f"{name}.png", encoded(pixels()))
        put(tmp_path / f"{name}.json", content)
    put(tmp_path / "alone.png", encoded(pixels()))
    put(tmp_path / "list_masks.json", [None, sam(A, predicted_iou=float("nan"))])
    found = read(tmp_path)
    for name in contents.keys() - {"blank", "list"}:
        assert [area for _, area in found.of(f"{name}.png")] == [120, 63]
    assert found.of("blank.png") == found.of("alone.png") == []
    assert found.of("list.png") == [(None, 120), ("boat", 63), (None, 120)]
    scores = [region.predicted_iou for region in found.images["list.png"].regions]
    assert scores == [0.9, 0.9, None] and len(found.lost) == 1


def yolo(tmp_path, lines, names="names: [kite, no, 1.0]\n"):
    put(tmp_path / "images/train/a.png", encoded(pixels()))
    put(tmp_path / "labels/train/a.txt", lines)
    put(tmp_path / "data.yaml", "path: /srv/else\n" + names)
    return read(tmp_path)


OUTLINE = " ".join(
    f"{x / WIDTH} {y / HEIGHT}" for x, y in zip(SQUARE[::2], SQUARE[1::2], strict=True)
)


def test_yolo_lines_stand_for_themselves(tmp_path) -> None:
    box = f"{10 / WIDTH} {12 / HEIGHT} {10 / WIDTH} {12 / HEIGHT}"
    lines = f"0 {OUTLINE}\r\n1 {OUTLINE} .9\r\n2 {box}\r\n\r\n1.0 {box} .7\r\n7 {OUTLINE}"
    found = yolo(tmp_path, lines)
    labels = ["kite", "no", "1.0", "no", None]
    assert found.of("images/train/a.png") == [(label, 120) for label in labels]
    assert [r.rle is None for r in found.images["images/train/a.png"].regions] == [
        False,
        False,
        True,
        True,
        False,
    ]
    for region in found.images["images/train/a.png"].regions:
        assert region.bbox_xywh == pytest.approx((5, 6, 10, 12))
    assert not found.lost and "class 7" in found.notes[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0", "found 0 numbers"),
        ("0 .1 .2 x .2 .4 .5", "found 'x'"),
        ("0 .1 .2 nan .2 .4 .5", "not finite"),
        ("0 10 16 40 16 40 36", "pixels"),
        ("-1 .1 .2 .3 .4", "0 or more"),
        ("kitten .1 .2 .3 .4", "class number"),
    ],
)
def test_yolo_lines_that_cannot_be_read_are_named(tmp_path, line, words) -> None:
    found = yolo(tmp_path, f"0 {OUTLINE}\n{line}\n")
    assert found.of("images/train/a.png") == [("kite", 120)]
    assert len(found.lost) == 1 and words in found.lost[0]
    assert found.lost[0].startswith("labels/train/a.txt:2:")


def test_masks_of_one_region_each(tmp_path) -> None:
    put(tmp_path / "images/a.png", encoded(pixels()))
    put(tmp_path / "images/a_1.png", encoded(pixels()))
    soft = np.zeros((HEIGHT, WIDTH), np.uint8)
    soft[A], soft[rectangle(4, 6, 1, 12)] = 255, 100
    cut = np.dstack([pixels(), np.where(A, 255, 0).astype(np.uint8)])
    full = np.dstack([*[np.where(B, 255, 0)] * 3, np.full(B.shape, 255)]).astype(np.uint8)
    files = {
        "a_0": white(A),
        "a_02": white(A, 1),
        "a_3": encoded(soft),
        "a_4": encoded(cut),
        "a_5": encoded(full),
        "a_6": white(A & B),
        "a_7": white(A)[:60],
        "a_8": white(A.T.copy()),
        "a_1_0": white(B),
        "z_0": white(A),
    }
    for name, data in files.items():
        put(tmp_path / f"masks/{name}.png", data)
    found = read(tmp_path)
    assert [area for _, area in found.of("images/a.png")] == [120] * 4 + [63]
    assert [area for _, area in found.of("images/a_1.png")] == [63]
    lost = " ".join(found.lost)
    for words in ("a_6.png", "a_7.png", "40 x 60", "z_0.png"):
        assert words in lost
    assert len(found.lost) == 4


def test_masks_in_folders_of_labels_and_of_photos(tmp_path) -> None:
    put(tmp_path / "one/images/a.png", encoded(pixels()))
    put(tmp_path / "one/masks/kite/a.png", white(A))
    put(tmp_path / "one/masks/boat/a.png", white(B))
    assert sorted(read(tmp_path / "one").of("images/a.png")) == [("boat", 63), ("kite", 120)]
    put(tmp_path / "two/a.png", encoded(pixels()))
    for number, mask in enumerate([A, B] * 6):
        put(tmp_path / f"two/a/{number}.png", white(mask))
    put(tmp_path / "two/a/metadata.csv", "id,predicted_iou,stability_score\n0,.5,.6\n11,.7,.8\n")
    regions = read(tmp_path / "two").images["a.png"].regions
    assert [region.area for region in regions] == [120, 63] * 6
    assert [region.predicted_iou for region in regions] == [0.5, *[None] * 10, 0.7]


def test_a_mask_beside_its_photo_and_a_photo_among_masks(tmp_path) -> None:
    put(tmp_path / "a.jpg", encoded(pixels(), "JPEG"))
    put(tmp_path / "a.png", white(A))
    put(tmp_path / "b.jpg", encoded(pixels(), "JPEG"))
    put(tmp_path / "b_mask.png", white(B))
    grey = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH), dtype=np.uint8)
    put(tmp_path / "b_mask_2.png", encoded(grey))
    found = read(tmp_path)
    assert found.of("a.jpg") == [(None, 120)] and found.of("b.jpg") == [(None, 63)]
    assert len(found.lost) == 1 and "neither dark nor bright" in found.lost[0]


def label_map(tmp_path, values, table=None, data=None):
    put(tmp_path / "images/a.png", encoded(pixels()))
    put(tmp_path / "labels/a.png", encoded(values) if data is None else data)
    for name, content in (table or {}).items():
        put(tmp_path / name, content)
    return read(tmp_path)


def painted(inside, dtype=np.uint8):
    values = np.zeros((HEIGHT, WIDTH), dtype)
    for mask, value in inside:
        values[mask] = value
    return values


TABLES = [
    {"classes.txt": "0 background\n1 road\n2 tree\n"},
    {"classes.txt": "background\r\nroad\r\ntree\r\n"},
    {"classes.csv": "id,name\n1,road\n2,tree\n"},
    {"id2label.json": '{"0": "background", "1": "road", "2": "tree"}'},
    {"label2id.json": '{"background": 0, "road": 1, "tree": 2}'},
]


@pytest.mark.parametrize("table", TABLES)
def test_label_maps_of_ids(tmp_path, table) -> None:
    found = label_map(tmp_path, painted([(rectangle(0, 36, 60, 4), 255), (A, 1), (B, 2)]), table)
    assert found.of("images/a.png") == [("road", 120), ("tree", 63)]
    assert found.source.labels() == ("road", "tree")


def test_label_maps_of_colours_objects_and_no_table(tmp_path) -> None:
    colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colours[A], colours[B], colours[0, 0] = (128, 0, 0), (0, 128, 0), (9, 9, 1)
    table = {"labelmap.txt": "# label:color\nbackground:0,0,0::\nroad:128,0,0::\ntree:0,128,0::\n"}
    found = label_map(tmp_path / "colours", colours, table)
    assert found.of("images/a.png") == [("road", 120), ("tree", 63)] and "1 px" in found.notes[0]
    deep = painted([(A, 26000), (B, 26001), (rectangle(0, 36, 60, 4), 7)], np.uint16)
    found = label_map(tmp_path / "deep", deep, {"c.csv": "id,name\n26,car\n7,road\n"})
    assert sorted(found.of("images/a.png")) == [("car", 63), ("car", 120), ("road", 240)]
    found = label_map(tmp_path / "none", painted([(A, 1), (B, 2)]))
    assert found.of("images/a.png") == [(None, 120), (None, 63)]
    assert "no table" in found.source.found.said[0]


def test_a_label_map_saved_as_jpeg_is_refused(tmp_path) -> None:
    values = painted([(A, 40), (B, 200)])
    put(tmp_path / "classes.txt", "0 background\n40 road\n200 tree\n")
    put(tmp_path / "images/a.png", encoded(pixels()))
    put(tmp_path / "labels/a.jpg", encoded(values, "JPEG"))
    found = read(tmp_path)
    assert not found.images and "JPEG" in found.lost[0] and "a.png" in found.lost[0]


def test_panoptic_segments(tmp_path) -> None:
    numbers = painted([(A, 3_226_956), (B, 70_000)], np.int64)
    colours = np.dstack([numbers % 256, numbers // 256 % 256, numbers // 65_536]).astype(np.uint8)
    segments = [{"id": n, "category_id": c} for n, c in ((3_226_956, 1), (70_000, 2), (12, 2))]
    content = {
        "images": [{"id": 5, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": [{"image_id": 5, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": 1, "name": "road"}, {"id": 2, "name": "tree"}],
    }
    put(tmp_path / "val.json", json.dumps(content))
    put(tmp_path / "images/a.png", encoded(pixels()))
    put(tmp_path / "val/a.png", encoded(colours))
    found = read(tmp_path)
    assert found.of("images/a.png") == [("road", 120), ("tree", 63)]
    assert len(found.lost) == 1 and "segment 12" in found.lost[0]


def test_ade20k_objects_are_what_is_seen_of_them(tmp_path) -> None:
    put(tmp_path / "street/ADE_1.jpg", encoded(pixels(), "JPEG"))
    hidden = np.where(A, 255, np.where(B, 128, 0)).astype(np.uint8)
    put(tmp_path / "street/ADE_1/instance_000_ADE_1.png", encoded(hidden))
    put(tmp_path / "street/ADE_1/instance_001_ADE_1.png", white(B))
    objects = [
        {"id": n, "name": f"caf\u00e9 {n}", "parts": {"part_level": n}, "instance_mask": name}
        for n, name in enumerate(("ADE_1/instance_000_ADE_1.png", "ADE_1/instance_001_ADE_1.png"))
    ]
    text = json.dumps({"annotation": {"object": objects}}, ensure_ascii=False)
    put(tmp_path / "street/ADE_1.json", text.encode("latin-1"))
    assert read(tmp_path).of("street/ADE_1.jpg") == [("caf\u00e9 0", 120)]


def test_voc_and_cityscapes_are_known_by_their_folders(tmp_path) -> None:
    voc = tmp_path / "voc"
    put(voc / "JPEGImages/7.jpg", encoded(pixels(), "JPEG"))
    put(voc / "SegmentationClass/7.png", encoded(painted([(A, 12), (B, 9), (A[::-1], 255)])))
    put(voc / "SegmentationObject/7.png", encoded(painted([(A, 1), (B, 2), (A[::-1], 255)])))
    put(voc / "Annotations/7.xml", "<annotation></annotation>")
    assert read(voc).of("JPEGImages/7.jpg") == [("dog", 120), ("chair", 63)]
    city = tmp_path / "city"
    put(city / "leftImg8bit/val/x/x_1_leftImg8bit.png", encoded(pixels()))
    ids = painted([(A, 24_001), (B, 7), (rectangle(0, 36, 60, 4), 3)], np.uint16)
    put(city / "gtFine/val/x/x_1_gtFine_instanceIds.png", encoded(ids))
    put(city / "gtFine/val/x/x_1_gtFine_labelIds.png", encoded(painted([(A, 24)])))
    found = read(city)
    assert found.of("leftImg8bit/val/x/x_1_leftImg8bit.png") == [("road", 63), ("person", 120)]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "empty"),
        ({"a.png": encoded(pixels())}, "no annotations"),
        ({"notes.txt": "x"}, "no photo"),
        ({"a.png": encoded(pixels()), "a.xml": "<annotation></annotation>"}, "VOC"),
        ({"a.png": encoded(pixels()), "a.xml": "<annotations><image/></annotations>"}, "CVAT"),
        ({"a.png": encoded(pixels()), "v.json": {"x": {"filename": "", "regions": []}}}, "VIA"),
        ({"a.png": encoded(pixels()), "t.json": [{"id": 1, "data": {}}]}, "Label Studio"),
        ({"a.png": encoded(pixels()), "r.json": [{"image_id": 1, "bbox": []}]}, "images"),
        ({"a.png": encoded(pixels()), "t.parquet": b"PAR1"}, "parquet"),
    ],
)
def test_what_cannot_be_built_says_what_is_there(tmp_path, files, words) -> None:
    for name, content in files.items():
        put(tmp_path / name, content)
    with pytest.raises(SourceError, match=words):
        read(tmp_path)


def test_two_formats_take_the_first_and_name_the_other(tmp_path) -> None:
    labelme(tmp_path, [shape("boat")])
    row = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [SQUARE]}
    put(
        tmp_path / "annotations.json",
        {
            "images": [{"id": 1, "file_name": "a.png"}],
            "annotations": [row],
            "categories": [{"id": 1, "name": "kite"}],
        },
    )
    found = read(tmp_path)
    assert found.of("a.png") == [("kite", 120)]
    assert any("labelme" in line for line in found.source.found.said)
    assert read(tmp_path, "labelme").of("a.png") == [("boat", 120)]

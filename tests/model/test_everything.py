"""Everything mode: the grid, the filters, what is the same twice, and the files it writes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from tap_engine.model.concepts import ConceptTable
from tap_engine.model.everything import (
    EverythingConfig,
    crop_windows,
    grid_points,
    stability_scores,
)
from tap_engine.model.everything_files import run_everything
from tap_engine.model.mask_pool import MaskPool, cleaned, distinct
from tap_engine.model.predictor import Tap
from tap_engine.schemas import rle
from tap_engine.schemas.errors import ConfigError
from tests.model.small import small_model

RGB = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
ALL = EverythingConfig(
    points_per_side=4,
    pred_iou_thresh=-9,
    stability_score_thresh=0,
    box_nms_thresh=1.0,
    mask_nms_thresh=1.0,
    top_k=2,
)


@pytest.fixture(scope="module")
def tap() -> Tap:
    torch.manual_seed(0)
    table = ConceptTable(("cat", "dog", "tree", "sky"), torch.randn(4, 16), 22.0)
    return Tap(small_model(), concept_table=table)


def changed(config: EverythingConfig, **settings) -> EverythingConfig:
    from dataclasses import replace

    return replace(config, **settings)


def pool_of(masks, iou) -> MaskPool:
    boxes = []
    for mask in masks:
        ys, xs = np.nonzero(mask)
        boxes.append((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
    n = len(masks)
    return MaskPool(
        [rle.encode(mask) for mask in masks],
        np.array(boxes, float),
        np.array(iou, float),
        np.ones(n),
        np.zeros((n, 2)),
        np.tile([0, 0, 80, 48], (n, 1)),
        np.ones(n, np.int64),
        torch.zeros(n, 3, 4),
    )


def square(left, top, side) -> np.ndarray:
    mask = np.zeros((48, 80), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_the_grid_is_the_centres_of_cells() -> None:
    grid = grid_points(2, (10, 0, 50, 20))
    assert grid.tolist() == [[10, 5], [30, 5], [10, 15], [30, 15]]


def test_stability_is_inner_over_outer_area() -> None:
    logits = torch.tensor([[[2.0, 0.5], [-0.5, -2.0]]])
    assert stability_scores(logits, 1.0).tolist() == pytest.approx([1 / 3])
    assert stability_scores(torch.full((1, 2, 2), -9.0), 1.0).tolist() == [0]


def test_crops_cover_the_picture_and_overlap() -> None:
    windows = list(crop_windows((90, 150), EverythingConfig(crop_n_layers=2)))
    assert [layer for layer, _ in windows] == [0] + [1] * 4 + [2] * 16
    for layer in (1, 2):
        seen = np.zeros((90, 150), int)
        for left, top, right, bottom in (w for found, w in windows if found == layer):
            seen[top:bottom, left:right] += 1
        assert seen.min() >= 1 and seen.max() > 1


def test_the_better_of_two_nearly_equal_masks_stays() -> None:
    config = EverythingConfig()
    masks = [square(0, 0, 20), square(1, 0, 20), square(40, 10, 12)]
    kept = distinct(
        pool_of(masks, [0.9, 0.95, 0.8]), (48, 80), config.box_nms_thresh, config.mask_nms_thresh
    )
    assert kept.iou.tolist() == [0.95, 0.8]


def test_masks_are_compared_where_boxes_differ() -> None:
    config, spoilt = EverythingConfig(), square(0, 0, 20).copy()
    spoilt[47, 79] = True  # one stray pixel makes the box the whole picture
    pool = pool_of([square(0, 0, 20), spoilt], [0.9, 0.95])
    assert len(distinct(pool, (48, 80), config.box_nms_thresh, config.mask_nms_thresh)) == 1
    assert len(distinct(pool, (48, 80), config.box_nms_thresh, 1.0)) == 2


def test_minimal_area_removes_specks_holes_and_small_masks_only() -> None:
    holed = square(5, 5, 20)
    holed[10:12, 10:12] = False
    holed[40, 70] = True
    untouched = square(40, 10, 12)
    pool = cleaned(pool_of([holed, square(60, 40, 2), untouched], [1, 1, 1]), (48, 80), 10)
    masks = [rle.decode(counts, (48, 80)) > 0 for counts in pool.counts]
    assert [mask.tolist() for mask in masks] == [square(5, 5, 20).tolist(), untouched.tolist()]
    assert pool.box.tolist() == [[5, 5, 25, 25], [40, 10, 52, 22]]


def test_everything_is_filtered_sorted_and_described(tap) -> None:
    found = tap.everything(RGB, ALL)
    assert len(found) > 1
    ious = [one.region.iou for one in found]
    assert ious == sorted(ious, reverse=True)
    for one in found:
        assert one.region.mask.shape == (48, 80) and one.region.candidate in (1, 2, 3)
        assert one.area == one.region.mask.sum()
        again = tap.predict(points=[[one.point_xy]], image=tap.set_image(RGB), top_k=2)[0]
        if again.candidate == one.region.candidate:  # the same answer as asked by hand
            assert np.mean(again.mask == one.region.mask) > 0.999
            assert again.concepts[0].name == one.region.concepts[0].name
            np.testing.assert_allclose(again.sem_embed, one.region.sem_embed, atol=1e-4)
    half = float(np.median(ious))
    kept = tap.everything(RGB, changed(ALL, pred_iou_thresh=half))
    assert len(kept) > 0 and all(one.region.iou >= half - 1e-4 for one in kept)
    stable = tap.everything(RGB, changed(ALL, stability_score_thresh=0.99999))
    assert len(stable) < len(found)


def test_batches_change_nothing_and_the_callers_image_stays(tap) -> None:
    tap.set_image(RGB[:, :40])
    before = tap.predict(boxes=[[1, 1, 20, 20]])[0].mask
    one, many = (tap.everything(RGB, changed(ALL, points_per_batch=n)) for n in (1, 256))
    assert [(a.counts, a.point_xy, a.name) for a in one] == [
        (a.counts, a.point_xy, a.name) for a in many
    ]
    assert (tap.predict(boxes=[[1, 1, 20, 20]])[0].mask == before).all()


def test_unknown_above_the_entropy(tap) -> None:
    assert {one.name for one in tap.everything(RGB, changed(ALL, unknown_above=-1))} == {"unknown"}
    assert "unknown" not in {one.name for one in tap.everything(RGB, changed(ALL, unknown_above=9))}


def test_nothing_found_is_an_empty_list_with_and_without_crops(tap) -> None:
    for layers in (0, 1):
        config = EverythingConfig(points_per_side=2, pred_iou_thresh=99, crop_n_layers=layers)
        assert tap.everything(np.zeros((48, 80, 3), np.uint8), config) == []
    assert tap.everything(np.zeros((1, 1, 3), np.uint8), ALL) is not None


def test_crops_give_masks_in_the_pictures_own_pixels(tap) -> None:
    config = changed(ALL, crop_n_layers=1, points_per_side=2, crop_nms_thresh=1.0)
    found = tap.everything(np.tile(RGB, (4, 4, 1)), config)
    assert all(one.region.mask.shape == (192, 320) for one in found)
    for one in found:
        left, top, width, height = one.crop_xywh
        x, y, w, h = one.bbox_xywh
        assert left <= x and top <= y and x + w <= left + width and y + h <= top + height


def test_a_setting_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="points_per_side must be at least 1, got 0"):
        EverythingConfig(points_per_side=0)


def test_files_open_in_the_tools_they_are_for(tap, tmp_path) -> None:
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    Image.fromarray(RGB).save(photos / "a b.png")
    Image.fromarray(RGB[::-1]).save(photos / "more" / "turned.PNG")
    (photos / "no.png").write_bytes(b"x")
    lines = list(run_everything(photos, tap, tmp_path / "out", ALL))
    assert sum("left out" in line for line in lines) == 1
    coco = COCO(str(tmp_path / "out" / "coco.json"))
    found = tap.everything(RGB, ALL)
    (image,) = (row for row in coco.imgs.values() if row["file_name"] == "a b.png")
    rows = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
    assert [coco.annToMask(row).tolist() for row in rows] == [
        one.region.mask.astype(int).tolist() for one in found
    ]
    assert [coco.cats[row["category_id"]]["name"] for row in rows] == [one.name for one in found]
    sam = json.loads((tmp_path / "out" / "sam" / "more" / "turned.PNG.json").read_text())
    assert all(row["predicted_iou"] and row["stability_score"] is not None for row in sam)
    assert (tmp_path / "out" / "pictures" / "a b.png.png").is_file()
    labelme = json.loads((tmp_path / "out" / "labelme" / "a b.png.json").read_text())
    assert {shape["shape_type"] for shape in labelme["shapes"]} == {"mask"}

"""A stored image becomes an example: what a view cuts."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tap_engine.schemas import rle
from tap_engine.train.data.augment import AugmentConfig
from tap_engine.train.data.examples import ExampleConfig, collate, make_example
from tap_engine.train.data.store_reader import StoredImage

SIDE = 64


def stored(masks: list[np.ndarray]) -> StoredImage:
    """A grey image of 64 px with these masks and the boxes of their pixels."""
    file = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE, 3), 128, np.uint8)).save(file, "JPEG")
    boxes = np.array([rle.bbox_xywh(rle.runs(rle.encode(m), m.shape), m.shape) for m in masks])
    flat = pa.array(boxes.astype(np.float32).ravel())
    table = pa.table(
        {
            "key": pa.array(range(len(masks)), pa.int64()),
            "bbox_xywh": pa.FixedSizeListArray.from_arrays(flat, 4),
            "rle": pa.array([rle.encode(m) for m in masks], pa.binary()),
        }
    )
    return StoredImage(image_id=1 << 43, size_hw=(SIDE, SIDE), jpeg=file.getvalue(), regions=table)


def config(**changes) -> ExampleConfig:
    values = {
        "image_px": SIDE,
        "mask_px": 16,
        "regions": 8,
        "soft_masks": True,
        "fill_rgb": (122, 122, 122),
        "columns": (),
        "augment": AugmentConfig(),
        "seed": 0,
    }
    return ExampleConfig(**(values | changes))


def test_boxes_of_cut_regions_are_those_of_what_is_left():
    # An L: a thin bar along the top and one down the left side. A view that cuts the left bar away
    # leaves the bar on top; the L's own box, cut to the view, would still reach to the bottom.
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:8, :] = 1
    mask[:, :8] = 1
    cut = 0
    for seed in range(30):
        found = make_example(
            stored([mask]), 0, config(augment=AugmentConfig(scale=(2.0, 2.0)), seed=seed)
        )
        if not len(found.keys):
            continue
        (box,), (cover,) = found.boxes_xyxy, found.masks
        ys, xs = np.nonzero(cover)
        cells = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) * SIDE / 16
        assert (box[:2] >= cells[:2] - 1e-4).all() and (box[2:] <= cells[2:] + 1e-4).all()
        cut += cells[2] < SIDE or cells[3] < SIDE
    assert cut > 5  # views without one of the two bars are among them


@pytest.mark.parametrize("soft", [True, False])
def test_cover_and_inside_of_a_batch(soft):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:, :10] = 1  # two whole cells of 4 px and half of a third
    faint = np.zeros((SIDE, SIDE), np.uint8)
    faint[20:22, 41:45] = 1  # six sixteenths of a cell and two of its neighbour
    both = [mask, faint] if soft else [mask]  # hard masks have nothing of such a region
    batch = collate([make_example(stored(both), 0, config(soft_masks=soft))])
    at = {int(key): k for k, key in enumerate(batch.keys[0])}
    cover, inside = batch.cover()[0], batch.inside()[0]
    assert cover.shape[1:] == (16, 16) and cover.dtype.is_floating_point
    assert cover[at[0], 3, :4].tolist() == pytest.approx([1, 1, 0.5 * soft, 0], abs=0.01)
    # 128 of 255 is more than half.
    assert inside[at[0], 3, :4].tolist() == [True, True, soft, False]
    if soft:
        assert cover[at[1]].sum() == pytest.approx(0.5, abs=0.01)
        assert inside[at[1]].nonzero().tolist() == [[5, 10]]
    assert not collate([make_example(stored([]), 0, config())]).inside().any()

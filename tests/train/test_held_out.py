"""Figures on unseen images, against counting by hand."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tap_engine.model.prompt_encoder import Label
from tap_engine.schemas import rle
from tap_engine.schemas.errors import SourceError
from tap_engine.schemas.truth import Truth
from tap_engine.train import held_out
from tap_engine.train.concepts import ConceptSpace
from tap_engine.train.evaluation.region_model import Predicted
from tap_engine.train.held_out import HeldOutConfig, measure, report_checkpoint
from tap_engine.train.held_out_data import open_measured, stored_images
from tap_engine.train.held_out_picture import pair
from tap_engine.train.opening import open_run
from tests.train.small_run import small_config
from tests.train.small_store import CONCEPTS, make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("held") / "store", 6)


class Oracle:
    """Answers a box with the box itself, a point with one pixel, and names what it is told to."""

    class_names = tuple(f"concept {k}" for k in range(CONCEPTS))
    names_classes = True

    def __init__(self, name):
        self.name = name

    def set_image(self, rgb):
        self.size = rgb.shape[:2]

    def prompt(self, points, labels, wanted):
        masks = np.zeros((len(points), 1, *self.size), bool)
        for mask, xy, label in zip(masks, points.astype(int), labels, strict=True):
            (x1, y1), (x2, y2) = xy
            if label[0] == Label.BOX_TOP_LEFT:
                mask[0, y1:y2, x1:x2] = True
            else:
                mask[0, y1, x1] = True
        yield Predicted(
            iou=np.ones((len(points), 4), np.float32),
            chosen=np.zeros(len(points), np.int64),
            masks=masks,
            embeddings=np.empty((len(points), 0), np.float32),
            captions=[""] * len(points),
        )

    def probabilities(self, embeddings):
        rows = sum(map(len, embeddings))
        sure = np.array([name == self.name for name in self.class_names], np.float32)
        return np.tile(sure, (rows, 1))


def test_figures_equal_counting_by_hand(store, tmp_path):
    reader = open_measured(str(store))
    space = ConceptSpace.of_store(reader)
    rows = []
    ious, areas, named = [], [], 0
    for stored in stored_images(reader, 6):
        for i, row in enumerate(stored.regions.to_pylist()):
            mask = rle.decode(row["rle"], stored.size_hw)
            ious.append(mask.sum() / (row["bbox_xywh"][2] * row["bbox_xywh"][3]))
            areas.append(1 / mask.sum())
            kind = "object" if i % 2 else "part"
            concept = "concept 3" if i % 3 else "no such concept"
            named += concept == "concept 3"
            rows.append((stored.image_id, row["region_id"], kind, concept, "red"))
    columns = ["image_id", "region_id", "kind", "concept", "tint"]
    (tmp_path / "truth").mkdir()
    pq.write_table(
        pa.table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))),
        tmp_path / "truth" / "a.parquet",
    )
    truth = Truth.read(tmp_path / "truth")
    figures = measure(Oracle("concept 3"), space, reader, images=6, truth=truth)
    found = figures.summary()
    assert found["box_iou/all"] == pytest.approx(np.mean(ious))
    assert found["filled_iou/all"] == pytest.approx(np.mean(ious))
    assert found["point_iou/all"] == pytest.approx(np.mean(areas))
    assert found["top1_box/all"] == found["top1_point/all"] == 1.0
    assert np.isfinite(figures.values["top1_box"]).sum() == named
    assert 0 < found["ellipse_iou/all"] < 1 and found["ellipse_iou/all"] != found["filled_iou/all"]
    objects = figures.kinds == "object"
    assert found["box_iou/object"] == pytest.approx(np.array(ious)[objects].mean())
    assert "mask IoU, box prompts" in figures.table() and "part" in figures.table()
    wrong = measure(Oracle("concept 4"), space, reader, images=6, truth=truth).summary()
    assert wrong["top1_box/all"] == 0.0
    # The teacher's own top concept, by hand.
    stored = next(stored_images(reader, 6))
    embedding = np.array(stored.regions["embedding"].to_pylist()[0], np.float32)
    weights = space.target_weights.numpy()
    top = f"concept {int((embedding @ weights).argmax())}"
    agreeing = measure(Oracle(top), space, reader, images=1)
    assert agreeing.values["agree_box"][0] == 1.0
    assert "top1_box/all" not in agreeing.summary()


def test_a_checkpoint_is_measured_and_drawn(store, tmp_path):
    run = open_run(small_config(store), tmp_path / "run")
    run.save()
    config = HeldOutConfig(store=str(store), images=3)
    (figures,) = report_checkpoint(tmp_path / "run", config, tmp_path / "pairs.png")
    assert figures.images == 3 and len(figures.kinds) > 5
    tap, reader, space = held_out._opened(tmp_path / "run", str(store))
    expected = np.asarray(held_out.draw(tap, space, reader, 4))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "pairs.png")), expected)
    # Truth stands on the left and does not follow the model; the prediction on the right does.
    stored = next(stored_images(reader, 1))
    before = [np.asarray(side) for side in pair(tap, space, stored)]
    with torch.no_grad():
        for parameter in tap.model.image_decoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    after = [np.asarray(side) for side in pair(tap, space, stored)]
    assert np.array_equal(before[0], after[0]) and not np.array_equal(before[1], after[1])
    assert not np.array_equal(before[0], before[1])


def test_a_missing_truth_table_is_named(tmp_path):
    with pytest.raises(SourceError, match="tap-data sample"):
        Truth.read(tmp_path / "none")

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tap_engine.model.concepts import ConceptTable
from tap_engine.model.image_input import Rgb
from tap_engine.schemas.errors import SchemaError
from tap_engine.train.evaluation.data_sets import EvalSet
from tap_engine.train.evaluation.detector_boxes import DetectorBoxes
from tap_engine.train.evaluation.evaluate import ImageShare, folder_of, run, wait_for_ranks
from tap_engine.train.evaluation.evaluation import Asked, Evaluation
from tap_engine.train.evaluation.predictions import open_folder, read_predictions
from tap_engine.train.evaluation.region_model import TapRegions
from tap_engine.train.evaluation.score_files import ScoreConfig, score
from tap_engine.train.evaluation.tasks import task, task_names
from tap_engine.train.evaluation.tasks.prompts import PROMPTED
from tests.train.evaluation.eval_world import NAMES, coco_set, detector_results, small_tap


@pytest.fixture
def data(tmp_path: Path) -> EvalSet:
    return coco_set(tmp_path)


class Counting(TapRegions):
    """Counts the images it sees, and stops a run by a key press after some."""

    def __init__(self, stop_after: int) -> None:
        embeddings = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
        super().__init__(small_tap(), classes=ConceptTable(NAMES, embeddings, 1.0))
        self.left = stop_after

    def set_image(self, rgb: Rgb) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        super().set_image(rgb)


def asked_of(
    data: EvalSet, stop_after: int = 99, weights: str = "w", boxes: DetectorBoxes | None = None
) -> tuple[list[int], Asked]:
    """The images that are loaded, in order, and what a run takes."""
    seen: list[int] = []

    def pixels(image_id: int) -> Rgb:
        seen.append(image_id)
        return data.pixels(image_id)

    watched = EvalSet(data.truth, pixels)
    model = Counting(stop_after)
    return seen, Asked(data=watched, model=model, settings={"weights": weights}, detector=boxes)


def tasks_of(*names: str) -> list[Evaluation]:
    return [task(name) for name in names or task_names()]


def rows_of(out: Path, name: str) -> list[dict[str, object]]:
    batches = read_predictions(folder_of(str(out), name), task(name).schema)
    rows = [row for batch in batches for row in batch.to_pylist()]
    return sorted(rows, key=lambda row: [str(value) for value in row.values()])


def go(data: EvalSet, out: Path, *names: str, rank: int = 0, world: int = 1, count: int = 99):
    seen, asked = asked_of(data, count)
    share = ImageShare(out=str(out), rank=rank, world=world)
    summary = run(asked, tasks_of(*names), share)
    return seen, summary


def test_every_task_answers_and_scores(tmp_path: Path, data: EvalSet) -> None:
    seen, summary = go(data, tmp_path / "out")
    assert seen == [1, 2, 3, 4], "an image is encoded once for all tasks"
    assert (summary.predicted, summary.before) == (4, 0)
    metrics = {
        "segmentation": ("coco-segm", "AP"),
        "classification": ("coco-bbox", "AP"),
        "names": ("names", "top-1"),
        "prompts": ("prompts", "click 9 oracle"),
    }
    for name, (protocol, metric) in metrics.items():
        config = ScoreConfig(protocol=protocol, box_source="gt")
        found = score(config, data.truth, folder_of(str(tmp_path / "out"), name))
        assert 0 <= found.metrics[metric] <= 1
        assert found.stamp.images == 4 and found.stamp.regions == 20
    assert len(rows_of(tmp_path / "out", "captions")) == 20
    assert len(rows_of(tmp_path / "out", "prompts")) == 20 * 11


def test_an_interrupted_run_continues_and_ends_the_same(tmp_path: Path, data: EvalSet) -> None:
    go(data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(data, tmp_path / "cut", count=2)
    seen, summary = go(data, tmp_path / "cut")
    assert seen == [3, 4] and summary.before == 2
    for name in task_names():
        assert rows_of(tmp_path / "cut", name) == rows_of(tmp_path / "whole", name)


def test_a_task_added_later_predicts_only_itself(tmp_path: Path, data: EvalSet) -> None:
    go(data, tmp_path / "out", "names")
    before = os.listdir(tmp_path / "out" / "names")
    seen, _ = go(data, tmp_path / "out", "names", "captions")
    assert seen == [1, 2, 3, 4]
    assert os.listdir(tmp_path / "out" / "names") == before
    assert len(rows_of(tmp_path / "out", "captions")) == 20


def test_ranks_share_the_images_whatever_their_number(tmp_path: Path, data: EvalSet) -> None:
    go(data, tmp_path / "one", "segmentation")
    first, _ = go(data, tmp_path / "many", "segmentation", rank=1, world=3)
    assert first == [2]
    later = [go(data, tmp_path / "many", "segmentation", rank=r, world=2)[0] for r in (0, 1)]
    assert later == [[1, 3], [4]], "image 2 was there"
    assert rows_of(tmp_path / "many", "segmentation") == rows_of(tmp_path / "one", "segmentation")
    wait_for_ranks(
        [1, 2, 3, 4], tasks_of("segmentation"), ImageShare(out=str(tmp_path / "many")), print
    )


def test_other_data_or_weights_do_not_mix(tmp_path: Path, data: EvalSet) -> None:
    go(data, tmp_path / "out", "names")
    part = EvalSet(data.truth.restricted_to([1, 2]), data.pixels)
    with pytest.raises(SchemaError, match="data: "):
        go(part, tmp_path / "out", "names")
    go(data, tmp_path / "out", "captions")
    _, asked = asked_of(data, weights="other")
    with pytest.raises(SchemaError, match="weights: 'other' against 'w'"):
        run(asked, tasks_of("captions"), ImageShare(out=str(tmp_path / "out")))


def test_detector_boxes_bring_class_and_score(tmp_path: Path, data: EvalSet) -> None:
    path = detector_results(tmp_path)
    detector = DetectorBoxes(str(path), data.truth)
    assert len(detector) == 20
    segmentation = task("segmentation")
    _, asked = asked_of(data, boxes=detector)
    assert asked.settings_of(segmentation)["boxes"] == detector.fingerprint
    rows = segmentation.rows(asked.question(2)).to_pylist()
    found = detector.of(2)
    assert [row["score"] for row in rows] == found.scores.tolist()
    assert [row["category_id"] for row in rows] == found.category_ids.tolist()
    assert len(detector.of(77).scores) == 0
    part = data.truth.restricted_to([1])
    with pytest.raises(SchemaError, match="boxes of image 2"):
        DetectorBoxes(str(path), part)


def test_an_unfinished_run_is_not_scored_as_whole(tmp_path: Path, data: EvalSet) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(data, tmp_path / "out", "names", count=2)
    folder = folder_of(str(tmp_path / "out"), "names")
    with pytest.raises(SchemaError, match="covers 2 of 4 images"):
        score(ScoreConfig(protocol="names"), data.truth, folder)
    found = score(ScoreConfig(protocol="names", partial=True), data.truth, folder)
    assert found.stamp.images == 2


def test_images_without_regions_are_done(tmp_path: Path) -> None:
    whole = coco_set(tmp_path)
    mostly_empty = replace(whole.truth, regions=whole.truth.regions.slice(0, 5))
    go(EvalSet(mostly_empty, whole.pixels), tmp_path / "out")
    assert open_folder(folder_of(str(tmp_path / "out"), "prompts")).done == {1, 2, 3, 4}
    rows = rows_of(tmp_path / "out", "prompts")
    assert {row["image_id"] for row in rows} == {1}
    assert PROMPTED.names == list(rows[0])

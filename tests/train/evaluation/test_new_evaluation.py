"""CONTRIBUTING's example of a new evaluation: as it stands there, in a file that nothing lists."""

from pathlib import Path

import numpy as np
import pytest

from tap_engine.schemas import rle
from tap_engine.train.evaluation import tasks
from tap_engine.train.evaluation.evaluate import ImageShare, folder_of, run
from tap_engine.train.evaluation.evaluation import Asked
from tap_engine.train.evaluation.region_model import TapRegions, Wanted
from tap_engine.train.evaluation.score_files import ScoreConfig, score
from tests.train.evaluation.eval_world import coco_set, small_tap

CONTRIBUTING = Path(__file__).parents[3] / "CONTRIBUTING.md"


def test_the_example_of_contributing_is_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, rest = CONTRIBUTING.read_text().partition("```python\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "size.py").write_text(rest.partition("```")[0])
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path / "folder")])
    assert "size" in tasks.task_names()

    data = coco_set(tmp_path, images=2)
    model = TapRegions(small_tap())
    asked = Asked(data=data, model=model, settings={})
    share = ImageShare(out=str(tmp_path / "out"))
    run(asked, [tasks.task("size")], share)
    found = score(ScoreConfig(protocol="size"), data.truth, folder_of(share.out, "size"))

    ratios = []
    for image_id in data.truth.images:
        question = asked.question(image_id)
        true = [
            rle.decode(row["rle"], question.size_hw).sum() for row in question.regions.to_pylist()
        ]
        said = [m.sum() for part in question.boxed(Wanted(mask=True)) for m in part.masks]
        ratios += [a / b for a, b in zip(said, true, strict=True)]
    assert len(ratios) == 10 == found.stamp.regions
    assert found.metrics == {"ratio": pytest.approx(np.mean(ratios))}

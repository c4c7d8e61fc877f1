"""`measure` and `eval` on one store: the same question has the same number, to the last bit."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tap_engine.model.predictor import Tap
from tap_engine.schemas.truth import Truth
from tap_engine.train.concepts import ConceptSpace
from tap_engine.train.evaluation.data_sets import EvalSet, from_store
from tap_engine.train.evaluation.evaluate import ImageShare, folder_of, run
from tap_engine.train.evaluation.evaluation import Asked
from tap_engine.train.evaluation.region_model import TapRegions
from tap_engine.train.evaluation.score_files import ScoreConfig, score
from tap_engine.train.evaluation.tasks import task
from tap_engine.train.held_out import measure
from tap_engine.train.held_out_captions import measure_captions
from tap_engine.train.held_out_data import open_measured
from tests.train.evaluation.eval_world import small_tap
from tests.train.small_store import CONCEPTS, make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with masks and embeddings; its truth table lies beside it."""
    root = make_store(tmp_path_factory.mktemp("one") / "store", 5)
    rows = []
    for stored in open_measured(str(root)).first(5):
        for row in stored.regions.to_pylist():
            concept = f"concept {len(rows) % CONCEPTS}"
            rows.append((stored.image_id, row["region_id"], "object", concept, None))
    names = ["image_id", "region_id", "kind", "concept", "tint"]
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    pq.write_table(table.set_column(4, "tint", table["tint"].cast(pa.string())), truth_of(root))
    return root


def truth_of(store: Path) -> Path:
    return store.parent / "truth.parquet"


@pytest.fixture(scope="module")
def tap(store: Path) -> Tap:
    tap = small_tap()
    tap.set_concepts(ConceptSpace.of_store(open_measured(str(store))).table)
    return tap


def evaluated(data: EvalSet, tap: Tap, out: Path, name: str) -> dict[str, float]:
    classes = None
    if data.truth.categories:
        classes = tap.concepts.subset([found.name for found in data.truth.categories.values()])
    asked = Asked(data=data, model=TapRegions(tap, classes=classes), settings={})
    run(asked, [task(name)], ImageShare(out=str(out)))
    return score(ScoreConfig(protocol=name), data.truth, folder_of(str(out), name)).metrics


def test_mask_iou_and_top_1_agree(store: Path, tap: Tap, tmp_path: Path) -> None:
    reader = open_measured(str(store))
    space, truth = ConceptSpace.of_store(reader), Truth.read(truth_of(store))
    measured = measure(TapRegions(tap), space, reader, images=5, truth=truth).summary()
    data = from_store(str(store), truth_table=str(truth_of(store)))
    assert data.truth.regions.num_rows > 15
    assert measured["box_iou/all"] == evaluated(data, tap, tmp_path, "prompts")["box"]
    assert measured["top1_box/all"] == evaluated(data, tap, tmp_path, "names")["top-1"]
    assert 0 < measured["box_iou/all"] < 1


def test_cider_agrees_and_says_how_words_are_cut(tap: Tap, tmp_path: Path) -> None:
    store = make_store(tmp_path / "captioned", 5, captions=True)
    figures = measure_captions(TapRegions(tap), open_measured(str(store)), images=5)
    data = from_store(str(store), by_box=True)
    found = evaluated(data, tap, tmp_path, "captions")
    measured = figures.summary()
    for name in ("CIDEr", "BLEU@4", "ROUGE-L"):
        assert measured[f"caption_{name}"] == found[name]
    assert figures.scores is not None
    assert f"caption CIDEr ({figures.scores.text_processing})" in figures.table()

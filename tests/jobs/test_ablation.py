import json
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from tap_engine.jobs.train_cli import main
from tap_engine.schemas.tables import concepts_schema
from tap_engine.schemas.vocabulary import DEFAULT_VOCABULARY, load_vocabulary
from tests.train.small_run import SETTINGS
from tests.train.small_store import EMBEDDING_DIM, make_store, vectors


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A made-up store with the shipped vocabulary, which the sample world's names are of."""
    root = make_store(tmp_path / "store", 6)
    names = load_vocabulary(DEFAULT_VOCABULARY).names
    text = np.random.default_rng(0).standard_normal((len(names), EMBEDDING_DIM))
    unit = vectors((text / np.linalg.norm(text, axis=1, keepdims=True)).astype("f4"), pa.float32())
    ids = np.arange(len(names), dtype=np.int32)
    columns = [ids, list(names), [[]] * len(names), unit, unit]
    table = pa.table(columns, schema=concepts_schema(EMBEDDING_DIM))
    lance.write_dataset(table, str(root / "concepts.lance"), mode="overwrite")
    return root


@pytest.mark.slow
def test_variants_are_trained_measured_and_set_side_by_side(tmp_path: Path, store: Path) -> None:
    sets = [part for setting in (*SETTINGS, "train.steps=2") for part in ("--set", setting)]
    arguments = ["ablate", "--store", str(store), "--out", str(tmp_path / "out"), "--limit", "1"]
    arguments += ["--recipe", "smoke", *sets]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    (report,) = (tmp_path / "out").glob("report.json")
    tables = {table["stamp"]["protocol"]: table for table in json.loads(report.read_text())}
    assert tables.keys() == {"coco-segm", "coco-bbox", "names"}
    for table in tables.values():
        names = [row["name"] for row in table["rows"]]
        assert names == ["concept prediction", "feature prediction"]
    settings = [
        json.loads((tmp_path / "out" / name / "run" / "config.json").read_text())["loss"]
        for name in ("concept", "feature")
    ]
    assert [loss["concept_loss"] for loss in settings] == ["kl", "feature"]
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 0, again.output
    assert "predicted 0 images" in again.output, "a second call only reports"

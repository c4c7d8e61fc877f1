from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from typer import Typer
from typer.testing import CliRunner

from tap_engine.jobs import sample_commands
from tap_engine.pipeline.sample.accuracy import accuracy_rows, measure_store
from tap_engine.pipeline.sample.world import SampleConfig, write_sample_world
from tap_engine.schemas.errors import ConfigError, SchemaError, SourceError, StoreError
from tap_engine.schemas.keys import region_key
from tap_engine.schemas.tables import (
    CONCEPTS,
    REGIONS,
    concepts_schema,
    regions_schema,
    table_uri,
)
from tap_engine.schemas.truth import read_truth
from tap_engine.schemas.vocabulary import load_vocabulary

VOCABULARY = load_vocabulary("merged-2560")
DIM, TOP = 4, 5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("accuracy") / "world"
    config = SampleConfig(scenes=6, validation=4, captioned=2, size=128)
    write_sample_world(out, config, workers=1)
    return out


def write_store(folder: Path, rows: list[dict[str, Any]], wrong: set[int], top: int = TOP) -> str:
    """A store of the truth's own regions whose top concept is right but for the rows in `wrong`."""
    store = str(folder)
    other = VOCABULARY.ids["zucchini"]
    regions = []
    for number, row in enumerate(rows):
        right = VOCABULARY.ids[row["concept"]]
        ids = [right, other, 0, 1, 2] if number not in wrong else [other, right, 0, 1, 2]
        concepts = {
            "concept_ids": ids[:top],
            "concept_probs": [0.5] * top,
            "concept_entropy": 0.25,
        }
        regions.append(
            {
                "key": region_key(row["image_id"], number % 100),
                "image_id": row["image_id"],
                "region_id": row["region_id"],
                "source": "sample",
                "unit": 0,
                "bbox_xywh": [0, 0, 1, 1],
                "area": row["area"],
                "rle": b"",
                "predicted_iou": 1.0,
                "stability_score": 1.0,
                "embedding": np.zeros(DIM, np.float16),
                "caption": None,
            }
            | (concepts if top else {})
        )
    table = pa.Table.from_pylist(regions, regions_schema(DIM, top))
    lance.write_dataset(table, table_uri(store, REGIONS))
    embedding = np.zeros(DIM, np.float32)
    concepts_table = [
        {
            "concept_id": number,
            "name": name,
            "sources": [],
            "source_embedding": embedding,
            "target_embedding": embedding,
        }
        for number, name in enumerate(VOCABULARY.names)
    ]
    lance.write_dataset(
        pa.Table.from_pylist(concepts_table, concepts_schema(DIM)), table_uri(store, CONCEPTS)
    )
    return store


def rows_of(world: Path, **wanted: str) -> list[dict[str, Any]]:
    rows = read_truth(world / "truth").to_pylist()
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_a_store_is_measured_by_kind_visibility_and_group(world: Path, tmp_path: Path) -> None:
    rows = rows_of(world, source="sample")
    objects = [number for number, row in enumerate(rows) if row["kind"] == "object"]
    wrong = set(objects[::4])
    found = measure_store(write_store(tmp_path / "store", rows, wrong), world / "truth")
    assert (found.without_truth, found.not_in_store) == (0, 0)
    lines = {(row.facet, row.value): row for row in found.rows}
    assert found.objects_top1 == pytest.approx(1 - len(wrong) / len(objects))
    assert lines["kind", "object"].regions == len(objects)
    assert lines["kind", "object"].top5 == 1
    assert lines["kind", "object"].entropy == pytest.approx(0.25)
    assert lines["kind", "part"].top1 == lines["kind", "stuff"].top1 == 1
    for facet in ("visibility", "group", "tint"):
        parts = [row for row in found.rows if row.facet == facet]
        assert sum(row.regions for row in parts) == len(objects)
        hits = sum(row.top1 * row.regions for row in parts)
        assert hits == pytest.approx(len(objects) - len(wrong))


def test_lines_by_hand() -> None:
    rows = accuracy_rows(
        top_ids=np.array([[1, 2], [2, 1], [1, 3], [7, 8]]),
        entropy=np.array([0.0, 1.0, 2.0, 3.0]),
        concept=np.array([1, 1, 1, -1]),
        facets={"kind": ["object", "object", "stuff", "object"]},
        visibility=np.array([1.0, 0.5, 1.0, 0.7]),
    )
    assert [(r.facet, r.value, r.regions, round(r.top1, 3), r.entropy) for r in rows] == [
        ("kind", "object", 3, 0.333, pytest.approx(4 / 3)),
        ("kind", "stuff", 1, 1.0, 2.0),
        ("visibility", "0.00-0.60", 1, 0.0, 1.0),
        ("visibility", "0.60-0.80", 1, 0.0, 3.0),
        ("visibility", "0.95-1.00", 1, 1.0, 0.0),
    ]
    assert {row.top5 for row in rows} == {None}


def test_one_split_and_what_is_missing(world: Path, tmp_path: Path) -> None:
    rows = rows_of(world, source="sample")
    kept = [row for number, row in enumerate(rows) if number % 5]
    found = measure_store(write_store(tmp_path / "store", kept, set()), world / "truth")
    assert found.not_in_store == len(rows) - len(kept)
    held_out = measure_store(str(tmp_path / "store"), world / "truth", split="val")
    assert 0 < held_out.rows[0].regions < found.rows[0].regions
    assert held_out.without_truth == sum(row["split"] == "train" for row in kept)
    with pytest.raises(ConfigError, match="split must be train, val, test, got 'dev'"):
        measure_store(str(tmp_path / "store"), world / "truth", split="dev")


def test_a_store_of_other_scenes_is_an_error(world: Path, tmp_path: Path) -> None:
    rows = [row | {"image_id": row["image_id"] + 1} for row in rows_of(world, split="train")[:3]]
    store = write_store(tmp_path / "store", rows, set())
    with pytest.raises(SourceError, match="--source sample"):
        measure_store(store, world / "truth", split="val")


def test_no_store_and_no_concepts_are_errors(world: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no table 'concepts'"):
        measure_store(str(tmp_path / "nothing"), world / "truth")
    store = write_store(tmp_path / "store", rows_of(world, kind="object"), set(), top=0)
    with pytest.raises(SchemaError, match="--concepts none"):
        measure_store(store, world / "truth")


def test_the_command_can_be_a_gate(world: Path, tmp_path: Path) -> None:
    app = Typer()
    sample_commands.register(app)
    store = write_store(tmp_path / "store", rows_of(world, source="sample"), {0})
    arguments = ["sample-accuracy", store, "--truth", str(world / "truth")]
    result = CliRunner().invoke(app, [*arguments, "--at-least", "0.5"])
    assert result.exit_code == 0, result.output
    assert "concept accuracy of objects: 0.9" in result.output
    gate = CliRunner().invoke(app, [*arguments, "--at-least", "0.999"])
    assert gate.exit_code == 1
    assert "below the 0.999" in gate.output
    assert '"objects_top1": 0.9' in CliRunner().invoke(app, [*arguments, "--json"]).output

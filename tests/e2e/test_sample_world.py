"""The demo's way, on the scenes and the teacher that come with the package."""

import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image
from typer.testing import CliRunner

from tap_engine.jobs.data_cli import app
from tap_engine.pipeline.sample.drawings import SAMPLE_DATA
from tap_engine.pipeline.sample.world import SampleConfig, write_sample_world
from tap_engine.schemas.truth import read_truth

pytestmark = pytest.mark.ray


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shipped") / "scenes"
    run("sample-shipped", out)
    return out


@pytest.fixture(scope="module")
def store(scenes: Path, ray_local) -> Path:
    """Built from the shipped validation scenes with the shipped teacher."""
    from tap_engine.pipeline.build import build
    from tap_engine.pipeline.config import BuildConfig, WorkerConfig
    from tap_engine.pipeline.sources.sa1b import Sa1bSource
    from tap_engine.pipeline.teacher import TeacherConfig

    out = scenes.parent / "store"
    config = BuildConfig(
        out=str(out), teacher=TeacherConfig(name="sample"), workers=WorkerConfig(actors=1)
    )
    build(Sa1bSource([str(scenes / "validation")], "sample"), config)
    return out


def test_the_store_names_what_the_scenes_show(store: Path, scenes: Path) -> None:
    assert "21 checks passed, 0 failed" in run("verify", store)
    found = json.loads(
        run("sample-accuracy", store, "--truth", scenes / "truth", "--at-least", 0.75, "--json")
    )
    assert found["objects_top1"] >= 0.75
    assert (found["not_in_store"], found["without_truth"]) == (0, 0)
    kinds = {row["value"]: row for row in found["rows"] if row["facet"] == "kind"}
    assert kinds["object"]["regions"] > 250
    assert kinds["part"]["entropy"] > kinds["object"]["entropy"], "a part shows less than a whole"


def test_the_picture_shows_the_scenes(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "store.png"
    assert "drew 6 images with" in run("picture", store, "--out", out)
    picture = np.asarray(Image.open(out).convert("RGB"))
    assert min(picture.shape[:2]) > 1000
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10_000


def test_the_nearest_regions_show_the_same_thing(store: Path, scenes: Path) -> None:
    truth = read_truth(scenes / "truth").filter(pc.field("split") == "val")
    whole = truth.filter(
        (pc.field("source") == "sample")
        & (pc.field("kind") == "object")
        & (pc.field("visibility") > 0.95)
        & pc.field("tint").is_null()
    ).to_pylist()
    shown: dict[str, list[tuple[int, int]]] = {}
    for row in whole:
        shown.setdefault(row["glyph"], []).append((row["image_id"], row["region_id"]))
    twice = [places for places in shown.values() if len(places) > 1]
    assert len(twice) >= 3, "drawings that stand in two scenes"
    keys = {
        (row["image_id"], row["region_id"]): row["key"]
        for line in run("query", store, "--limit", 0, "--format", "json").splitlines()
        if (row := json.loads(line))
    }
    found = 0
    for places in twice:
        lines = run("nearest", store, "--key", keys[places[0]], "--top", 5, "--format", "json")
        rows = [json.loads(line) for line in lines.splitlines()]
        found += any((row["image_id"], row["region_id"]) in places[1:] for row in rows)
    assert found >= 0.8 * len(twice)


def test_the_shipped_scenes_are_what_their_command_draws(tmp_path: Path) -> None:
    """A changed renderer must raise RENDERER_VERSION and ship new scenes."""
    made = json.loads((SAMPLE_DATA / "scenes" / "sample.json").read_text())["settings"]
    few = SampleConfig(scenes=2, validation=0, captioned=0, size=made["size"], seed=made["seed"])
    write_sample_world(tmp_path / "few", few, workers=1)
    again = json.loads((tmp_path / "few" / "sample.json").read_text())["settings"]
    assert again == made | {"scenes": 2, "validation": 0, "captioned": 0}
    drawn = read_truth(tmp_path / "few" / "truth")
    shipped = read_truth(SAMPLE_DATA / "scenes" / "truth").slice(0, len(drawn))
    same = ["image_id", "region_id", "kind", "concept", "tint"]
    assert shipped.select(same).equals(drawn.select(same))
    # OpenCV may round a border pixel otherwise on another processor.
    np.testing.assert_allclose(shipped["area"].to_numpy(), drawn["area"].to_numpy(), rtol=0.02)


def test_what_is_shipped_is_small() -> None:
    sizes = {path: path.stat().st_size for path in SAMPLE_DATA.rglob("*") if path.is_file()}
    teacher = sum(size for path, size in sizes.items() if "teacher" in path.parts)
    assert teacher < 10e6
    assert sum(sizes.values()) < 25e6

import json
import shutil
from collections import Counter

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tap_engine.jobs.data_cli import app
from tap_engine.pipeline.store import Store
from tap_engine.schemas.tables import IMAGES, REGIONS
from tests.e2e.support import tap_data

pytestmark = pytest.mark.ray


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "sample"
    run("sample", folder, "--scenes", 1, "--validation", 0, "--captioned", 5, "--size", 128)
    return folder


@pytest.fixture(scope="module")
def files(world):
    part = world / "visual_genome"
    found = ["import-visual-genome", "--regions", part / "region_descriptions.json"]
    found += ["--image-data", part / "image_data.json", "--splits", part / "splits.json"]
    return [*found, "--cpus", 1]


def test_the_sample_worlds_captions_become_a_store(world, files, tmp_path) -> None:
    """First with one photo of five, then with all: missing ones decide the exit code."""
    out, photos = tmp_path / "store", world / "visual_genome" / "VG_100K"
    (tmp_path / "few").mkdir()
    shutil.copy(next(photos.iterdir()), tmp_path / "few")
    few = tap_data(*files, "--images", tmp_path / "few", "--out", out, code=3)
    assert "4 image_missing" in few.stdout
    assert "80.00% was left out" in few.stderr
    truth = [
        row
        for path in (world / "truth").glob("vg_*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    assert truth
    every = tap_data(*files, "--images", world / "visual_genome", "--out", out).stdout
    assert f"cleaning of {len(truth)} phrases" in every
    assert "built 4 images" in every
    assert "(1 of 5 images were there before)" in every
    stored = Store(str(out)).open(REGIONS).to_table().to_pylist()
    split = {"train": "train", "validation": "val"}
    expected = {(r["image_id"], r["region_id"]): (r["caption"], split[r["split"]]) for r in truth}
    assert {
        (r["image_id"], r["region_id"]): (r["caption_raw"], r["split"]) for r in stored
    } == expected
    images = Store(str(out)).open(IMAGES).to_table(columns=["split"]).column(0).to_pylist()
    assert Counter(images) == {"train": 4, "val": 1}
    assert " 0 failed" in run("verify", out).stdout
    assert "rejects: none" in run("inspect", out).stdout
    shown = run("query", out, "--filter", "split = 'val'", "--format", "json").stdout
    assert {json.loads(line)["split"] for line in shown.splitlines()} == {"val"}


def test_a_wrong_folder_is_named(files, tmp_path) -> None:
    arguments = (*files, "--images", tmp_path / "nowhere", "--out", tmp_path / "store")
    assert "nowhere: cannot be listed" in run(*arguments, code=1).stderr

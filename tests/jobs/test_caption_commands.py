import json
import shutil
from collections import Counter

import pytest
from typer.testing import CliRunner

from tap_engine.jobs.data_cli import app
from tap_engine.pipeline.store import Store
from tap_engine.schemas.errors import StoreError
from tap_engine.schemas.tables import IMAGES, MIXTURE, REGIONS
from tap_engine.schemas.truth import read_truth
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


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    return tmp_path_factory.mktemp("captioned") / "store"


def test_the_sample_worlds_captions_become_a_store(world, files, captioned, tmp_path) -> None:
    """First with one photo of five, then with all: missing ones decide the exit code."""
    out, photos = captioned, world / "visual_genome" / "VG_100K"
    (tmp_path / "few").mkdir()
    shutil.copy(next(photos.iterdir()), tmp_path / "few")
    few = tap_data(*files, "--images", tmp_path / "few", "--out", out, code=3)
    assert "4 image_missing" in few.stdout
    assert "80.00% was left out" in few.stderr
    truth = [
        row
        for path in (world / "truth").glob("vg_*.parquet")
        for row in read_truth(path).to_pylist()
    ]
    assert truth
    every = tap_data(*files, "--images", world / "visual_genome", "--out", out).stdout
    assert f"cleaning of {len(truth)} phrases" in every
    assert "built 4 images" in every
    assert "(1 of 5 images were there before)" in every
    stored = Store(str(out)).open(REGIONS).to_table().to_pylist()
    expected = {(r["image_id"], r["region_id"]): (r["caption"], r["split"]) for r in truth}
    assert {
        (r["image_id"], r["region_id"]): (r["caption_raw"], r["split"]) for r in stored
    } == expected
    images = Store(str(out)).open(IMAGES).to_table(columns=["split"]).column(0).to_pylist()
    assert Counter(images) == {"train": 4, "val": 1}
    assert " 0 failed" in run("verify", out).stdout
    assert "rejects: none" in run("inspect", out).stdout
    shown = run("query", out, "--filter", "split = 'val'", "--format", "json").stdout
    assert {json.loads(line)["split"] for line in shown.splitlines()} == {"val"}


def test_a_plan_is_made_of_it_and_the_trainer_finds_its_images(
    captioned, built_store, tmp_path
) -> None:
    from tap_engine.train.data.selection import planned_rows
    from tap_engine.train.data.store_reader import StoreReader

    stores = ("--stores", built_store, "--stores", captioned)
    plan = ("mix", *stores, "--subsets", 2, "--share", "vg=0.6", "--out", tmp_path / "mix")
    said = run(*plan, "--regions", "0.03k").stdout
    assert "sa1b: 25 regions in all subsets, 62.5% of its 40" in said
    assert "1 images of val and test left out" in said
    assert "is in " in run(*plan, "--regions", 30).stdout, "the same plan again"
    assert "seed" in run(*plan, "--regions", 30, "--seed", 1, code=1).stderr
    readers = [StoreReader(str(s), region_columns=["caption"]) for s in (built_store,)]
    with pytest.raises(StoreError, match="Give exactly the stores that were planned"):
        planned_rows(str(tmp_path / "mix"), None, readers)
    readers.append(StoreReader(str(captioned), region_columns=["caption"]))
    lists = planned_rows(str(tmp_path / "mix"), None, readers)
    rows = Store(str(tmp_path / "mix")).open(MIXTURE).to_table().to_pylist()
    assert [len(found) for found in lists] == [
        sum(row["subset"] == k for row in rows) for k in (0, 1)
    ]
    sources = Counter(row["source"] for row in rows)
    shown = json.loads(run("inspect", tmp_path / "mix", "--json").stdout)
    assert (shown["rows"], shown["sources"]) == ({"mixture": len(rows)}, sources)
    assert "in 0 units" not in run("inspect", tmp_path / "mix").stdout
    drawn = [readers[0].read(found[found < 8]) for found in lists]
    assert [[image.image_id for image in part] for part in drawn] == [
        [r["image_id"] for r in rows if r["subset"] == k and r["source"] == "sa1b"] for k in (0, 1)
    ]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--regions", "many", "--regions must be a number such as 100M"),
        ("--share", "vg", "--share must be SOURCE=SHARE"),
        ("--share", "cars=0.1", "no source 'cars'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(tmp_path, option, value, message) -> None:
    found = run("mix", "--stores", tmp_path, "--out", tmp_path / "m", option, value, code=1)
    assert message in found.stderr


def test_a_wrong_folder_is_named(files, tmp_path) -> None:
    arguments = (*files, "--images", tmp_path / "nowhere", "--out", tmp_path / "store")
    assert "nowhere: cannot be listed" in run(*arguments, code=1).stderr

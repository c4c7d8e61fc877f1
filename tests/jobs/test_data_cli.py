import csv
import io
import json
import shutil
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from tap_engine.jobs.data_cli import app
from tap_engine.pipeline.store import Store
from tap_engine.schemas.keys import region_key
from tap_engine.schemas.tables import IMAGES, REGIONS
from tests.e2e.support import tap_data
from tests.scenes import scene_members, write_tar

pytestmark = pytest.mark.ray


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


def test_verify_says_it_with_its_exit_code(built_store, tmp_path) -> None:
    assert "21 checks passed, 0 failed" in run("verify", built_store).stdout
    copy = shutil.copytree(built_store, tmp_path / "store")
    Store(str(copy)).open(IMAGES).delete("image_id = 1")
    assert "BAD  every region's image is in images" in run("verify", copy, code=4).stdout
    missing = run("verify", tmp_path / "nothing", code=1)
    assert "no table 'images'" in missing.stderr


def test_inspect_shows_counts_and_provenance(built_store) -> None:
    text = run("inspect", built_store).stdout
    assert "images: 8 rows" in text
    assert "images by source: sa1b 8, in 2 units" in text
    found = json.loads(run("inspect", built_store, "--json").stdout)
    assert found["rows"] == {"images": 8, "regions": 40, "concepts": 6, "rejects": 0}
    assert found["settings"]["vocabulary"]["size"] == 6


def test_too_much_left_out_is_exit_code_3_and_a_valid_store(tmp_path, tiny_clip, few_concepts):
    members = scene_members([1, 2])
    members["sa_2.jpg"] = b"not a jpeg"
    write_tar(tmp_path / "shard.tar", members)
    build = ["build-semantic", tmp_path / "shard.tar", "--cpus", 1, "--teacher", tiny_clip]
    build += ["--vocabulary", few_concepts, "--concepts", "top:3", "--out"]
    found = tap_data(*build, tmp_path / "store", code=3)
    assert "50.00% was left out, more than max_reject_share=0.01 allows" in found.stderr
    assert " 0 failed" in run("verify", tmp_path / "store").stdout
    # Half is left out: not more than half.
    tap_data(*build, tmp_path / "lenient", "--max-reject-share", 0.5)


def test_inspect_one_region_saves_its_picture(built_store, tmp_path) -> None:
    key = region_key(2, 3)
    png = tmp_path / "r.png"
    found = json.loads(run("inspect", built_store, "--key", key, "--png", png, "--json").stdout)
    assert (found["image_id"], found["region_id"]) == (2, 2003)
    shares = [concept["probability"] for concept in found["concepts"]]
    assert shares == sorted(shares, reverse=True)
    picture = np.asarray(Image.open(png))
    assert max(picture.shape) == 560, "a small region is enlarged"
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    assert "no region" in run("inspect", built_store, "--key", 5, code=1).stderr


def test_query_by_concept_name_equals_query_by_id(built_store) -> None:
    dataset = Store(str(built_store)).open(REGIONS)
    names = ["person", "dog", "cat", "tree", "car", "sky"]
    for index, name in enumerate(names):
        expected = dataset.count_rows(filter=f"concept_ids[1] = {index} AND area > 300")
        filter_ = f"concept = '{name}' AND area > 300"
        out = run("query", built_store, "--filter", filter_, "--format", "json", "--limit", 0)
        rows = [json.loads(line) for line in out.stdout.splitlines()]
        assert len(rows) == expected
        assert all(row["concept"] == name and row["area"] > 300 for row in rows)
    two = dataset.count_rows(filter="concept_ids[1] IN (0, 1)")
    out = run("query", built_store, "--filter", "concept IN ('person', 'dog')", "--limit", 0).stdout
    assert out.splitlines()[-1] == f"{two} rows"
    has = [3 in ids for ids in dataset.to_table().column("concept_ids").to_pylist()]
    out = run("query", built_store, "--filter", "has_concept('tree')", "--limit", 0).stdout
    assert out.splitlines()[-1] == f"{sum(has)} rows"


def test_query_formats_hold_the_same_rows(built_store, tmp_path) -> None:
    columns = "key,area,source,concepts,bbox_xywh"
    arguments = ("query", built_store, "--columns", columns, "--limit", 0)
    parquet, lines = tmp_path / "a.parquet", tmp_path / "a.json"
    run(*arguments, "--format", "parquet", "--out", parquet)
    run(*arguments, "--format", "json", "--out", lines)
    table = pq.read_table(parquet)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert table.num_rows == 40
    assert table.to_pylist() == rows
    text = run(*arguments, "--format", "csv", "--out", tmp_path / "a.csv")
    assert "wrote 40 rows" in text.stderr
    found = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert [int(row["key"]) for row in found] == [row["key"] for row in rows]
    assert json.loads(found[0]["concepts"]) == rows[0]["concepts"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--filter", "concept = 'do'"), "close ones: dog"),
        (("--filter", "no_column = 3"), "no_column"),
        (("--columns", "keys"), "no column 'keys'"),
        (("--format", "xml"), "--format must be"),
        (("--format", "parquet"), "needs --out"),
    ],
)
def test_query_errors_say_what_to_do(built_store, arguments, message) -> None:
    assert message in run("query", built_store, *arguments, code=1).stderr


def test_help_is_instant() -> None:
    import subprocess
    import sys

    program = "import sys; from tap_engine.jobs.data_cli import app; print(*sys.modules)"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert time.perf_counter() - start < 5
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "ray", "lance", "pyarrow", "numpy", "cv2", "open_clip"}

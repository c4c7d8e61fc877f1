import json

import pytest
from typer.testing import CliRunner

from tap_engine.jobs.data_cli import app
from tests.pipeline.sources.own_photos import SQUARE, encoded, pixels, put

run = CliRunner().invoke


@pytest.fixture
def folder(tmp_path):
    """Two photos, one of them without a usable annotation."""
    rows = [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [SQUARE], "area": 3},
        {"id": 2, "image_id": 2, "category_id": 1, "segmentation": [SQUARE[:7]]},
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": rows,
        "categories": [{"id": 1, "name": "kite"}],
    }
    put(tmp_path / "mine/annotations.json", content)
    for name in ("a", "b"):
        put(tmp_path / f"mine/{name}.png", encoded(pixels()))
    return tmp_path / "mine"


def test_check_source_lists_problems_with_their_lines_and_writes_nothing(folder) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    found = run(app, ["check-source", str(folder)])
    assert found.exit_code == 4
    assert "LOST annotations.json:" in found.output and "7 numbers" in found.output
    assert "note annotations.json:" in found.output and "area 3" in found.output
    assert "2 photos with 1 regions can be built; 1 problems, 1 notes" in found.output
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    rows = json.loads(run(app, ["check-source", str(folder), "--json"]).stdout.partition("\n")[2])
    lines = (folder / "annotations.json").read_text().splitlines()
    for row in rows["problems"]:
        assert row["file"] == "annotations.json" and lines[row["line"] - 1].strip() == "{"


def test_a_clean_folder_ends_with_0(folder) -> None:
    content = json.loads((folder / "annotations.json").read_text())
    content["annotations"] = content["annotations"][:1]
    put(folder / "annotations.json", content)
    assert run(app, ["check-source", str(folder)]).exit_code == 0


def test_many_problems_of_one_kind_are_counted(folder) -> None:
    content = json.loads((folder / "annotations.json").read_text())
    content["images"] += [{"id": f"{n}", "file_name": f"gone_{n}.png"} for n in range(500)]
    put(folder / "annotations.json", content)
    found = run(app, ["check-source", str(folder)])
    assert "and 450 more of image_missing" in found.output
    assert found.output.count("gone_") == 50
    assert run(app, ["check-source", str(folder), "--all"]).output.count("gone_") == 500


def test_photos_where_sa1b_is_expected_are_told_how_they_are_read(folder) -> None:
    for path in (folder, folder / "annotations.json"):
        found = run(app, ["check-source", str(path), "--source", "sa1b"])
        assert found.exit_code == 1 and "--source auto" in found.output


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("nonsense", "must be auto or one of"),
        ("no_module:Nothing", "MODULE:CLASS"),
    ],
)
def test_a_source_that_does_not_fit_says_what_would(folder, tmp_path, option, words) -> None:
    arguments = ["build-semantic", str(folder), "--source", option, "--teacher", "sample"]
    found = run(app, [*arguments, "--out", str(tmp_path / "store")])
    assert found.exit_code == 1 and words in found.output
    assert not (tmp_path / "store").exists()

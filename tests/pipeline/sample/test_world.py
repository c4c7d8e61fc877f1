import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from tap_engine.jobs import sample_commands
from tap_engine.pipeline.sample import world as sample_world
from tap_engine.pipeline.sample.files import SceneName
from tap_engine.pipeline.sample.world import SampleConfig, write_sample_world
from tap_engine.schemas import rle
from tap_engine.schemas.errors import ConfigError, SchemaError, SourceError
from tap_engine.schemas.keys import MAX_SOURCE_ID, pack_image_id
from tap_engine.schemas.truth import read_truth

SMALL = SampleConfig(scenes=20, validation=6, captioned=10, size=128)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "world"
    write_sample_world(out, SMALL, workers=1)
    return out


def contents(out: Path) -> dict[str, str]:
    """Hash of every file but sample.json, which holds the time."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "sample.json"
    }


def members(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as file:
        return {member.name: file.extractfile(member).read() for member in file}  # type: ignore[union-attr]


def test_several_processes_give_the_same_bytes(world: Path, tmp_path: Path) -> None:
    write_sample_world(tmp_path / "again", SMALL, workers=2)
    assert contents(tmp_path / "again") == contents(world)


def test_another_seed_gives_other_scenes_with_other_ids(world: Path, tmp_path: Path) -> None:
    config = SampleConfig(scenes=3, validation=0, captioned=0, size=128, seed=1)
    write_sample_world(tmp_path / "other", config, workers=1)
    ours = members(world / "train" / "sa_000000.tar")
    theirs = members(tmp_path / "other" / "train" / "sa_010000.tar")
    assert not ours.keys() & theirs.keys()
    assert not set(ours.values()) & set(theirs.values())


def test_train_and_validation_share_no_id_and_no_picture(world: Path) -> None:
    train = members(world / "train" / "sa_000000.tar")
    held_out = members(world / "validation" / "sa_005000.tar")
    assert (len(train), len(held_out)) == (40, 12)
    assert not train.keys() & held_out.keys()
    assert not set(train.values()) & set(held_out.values())
    truth = read_truth(world / "truth")
    assert pc.count_distinct(truth["region_id"]).as_py() == len(truth)


def test_the_layout_is_that_of_sa1b(world: Path) -> None:
    files = members(world / "train" / "sa_000000.tar")
    assert list(files)[:2] == ["./sa_1.jpg", "./sa_1.json"]
    picture = np.asarray(Image.open(io.BytesIO(files["./sa_1.jpg"])))
    assert picture.shape == (128, 128, 3)
    content = json.loads(files["./sa_1.json"])
    assert content["image"] == {
        "image_id": 1,
        "width": 128,
        "height": 128,
        "file_name": "sa_1.jpg",
    }
    for annotation in content["annotations"]:
        runs = rle.runs(annotation["segmentation"]["counts"], (128, 128))
        left, top, width, height = rle.bbox_xywh(runs, (128, 128))
        assert annotation["bbox"] == [left, top, width - 1, height - 1]
        assert annotation["area"] == rle.area(runs)


def test_the_truth_joins_with_the_annotations(world: Path) -> None:
    truth = read_truth(world / "truth").to_pylist()
    by_key = {(row["image_id"], row["region_id"]): row for row in truth}
    found = 0
    for folder, split in (("train", "train"), ("validation", "val")):
        for tar in (world / folder).glob("*.tar"):
            for name, raw in members(tar).items():
                if not name.endswith(".json"):
                    continue
                content = json.loads(raw)
                image_id = pack_image_id("sample", content["image"]["image_id"])
                for annotation in content["annotations"]:
                    row = by_key[image_id, annotation["id"]]
                    assert row["split"] == split
                    assert row["area"] == annotation["area"]
                    found += 1
    assert found == sum(row["source"] == "sample" for row in truth)
    parts = [row for row in truth if row["kind"] == "part"]
    assert parts
    for row in parts:
        assert by_key[row["image_id"], row["parent_id"]]["concept"] == row["concept"]


def test_the_captions_are_in_visual_genomes_layout(world: Path) -> None:
    folder = world / "visual_genome"
    images = {row["image_id"]: row for row in json.loads((folder / "image_data.json").read_text())}
    scenes = json.loads((folder / "region_descriptions.json").read_text())
    splits = json.loads((folder / "splits.json").read_text())
    assert len(images) == len(scenes) == 10
    assert (len(splits["train"]), len(splits["val"]), splits["test"]) == (8, 2, [])
    assert {*splits["train"], *splits["val"]} == images.keys()
    truth = {row["region_id"]: row for row in read_truth(world / "truth").to_pylist()}
    for scene in scenes:
        assert Image.open(folder / "VG_100K" / f"{scene['id']}.jpg").size == (128, 128)
        for region in scene["regions"]:
            assert region.keys() == {
                "region_id",
                "image_id",
                "x",
                "y",
                "width",
                "height",
                "phrase",
            }
            assert 0 <= region["x"] < region["x"] + region["width"] <= 128
            assert truth[region["region_id"]]["caption"] == region["phrase"]
            assert truth[region["region_id"]]["image_id"] == pack_image_id("vg", scene["id"])
    assert not (folder / "blocks").exists()


@pytest.mark.parametrize("stop_at", [7, 16])
def test_a_stopped_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    monkeypatch.setattr(sample_world, "SHARD_SCENES", 4)
    few = SampleConfig(scenes=10, validation=3, captioned=5, size=128)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    write_sample_world(whole, few, workers=1)

    class Killed(BaseException):
        pass

    def kill(done: int, total: int) -> None:
        if done == stop_at:
            raise Killed

    with pytest.raises(Killed):
        write_sample_world(stopped, few, workers=1, progress=kill)
    summary = write_sample_world(stopped, few, workers=1)
    assert summary.scenes_before >= (stop_at - 1) // 4 * 4 - 4
    assert summary.scenes_before + summary.scenes == 18
    assert contents(stopped) == contents(whole)
    assert write_sample_world(stopped, few, workers=1).scenes == 0


def test_other_settings_on_the_same_folder_are_refused(world: Path) -> None:
    with pytest.raises(SchemaError, match="size: 256 against 128"):
        write_sample_world(
            world, SampleConfig(scenes=20, validation=6, captioned=10, size=256), workers=1
        )


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(ConfigError, match="holds other files"):
        write_sample_world(tmp_path, SMALL, workers=1)


@pytest.mark.parametrize(
    ("setting", "value"), [("size", 64), ("seed", -1), ("scenes", -1), ("seed", 80_001)]
)
def test_impossible_settings_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"sample.{setting} must be in"):
        SampleConfig(**{setting: value})


def test_the_largest_number_fits_the_key() -> None:
    last = SceneName(sample_world.MAX_SEED, "captioned-validation", 9_999_999)
    assert last.number <= MAX_SOURCE_ID
    assert last.number * 1000 + 999 < 2**53, "annotation ids must survive json readers with floats"


def test_no_truth_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="expected a truth table"):
        read_truth(tmp_path)
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    with pytest.raises(SchemaError, match="not a parquet file"):
        read_truth(tmp_path / "bad.parquet")


def run(*arguments: str) -> Any:
    app = Typer()
    sample_commands.register(app)
    return CliRunner().invoke(app, list(arguments))


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    result = run("sample", out, "--scenes", "5", "--size", "128", "--workers", "1")
    assert result.exit_code == 0, result.output
    assert "drew 7 scenes" in result.output
    assert "next: tap-data build-semantic" in result.output
    again = run("sample", out, "--scenes", "5", "--size", "128", "--workers", "1")
    assert "drew 0 scenes" in again.output
    assert "7 were there before" in again.output


def test_the_command_reports_errors_without_traceback(tmp_path: Path) -> None:
    result = run("sample", str(tmp_path), "--size", "10")
    assert result.exit_code == 1
    assert "ConfigError: sample.size must be in 128..2048 px, got 10" in result.output

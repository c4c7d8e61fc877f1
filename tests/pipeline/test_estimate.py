"""`--dry-run`: its figures against the files, and the command end to end."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tap_engine.jobs.data_cli import app
from tap_engine.pipeline import estimate as module
from tap_engine.pipeline.config import BuildConfig
from tap_engine.pipeline.estimate import Estimate, estimate
from tap_engine.pipeline.sources.sa1b import Sa1bSource
from tap_engine.pipeline.teacher import TeacherConfig
from tap_engine.schemas.errors import ConfigError, SourceError
from tests.scenes import draw_scene, write_shard, write_tar

WIDTH = 32
"""Of the tiny teacher's embeddings."""

FIXED = 8 + 8 + 8 + 1 + 8 + 16 + 4 + 4 + 4
"""Bytes of a row of `regions`: key, image_id, region_id, source, unit, box (4 float32), area,
predicted_iou, stability_score."""


@pytest.fixture(autouse=True)
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TEACHER_S", 0.05)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Two tars with 3 and 5 scenes of 5 regions."""
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "sa_000000.tar", range(1, 4))
    write_shard(folder / "sa_000001.tar", range(4, 9))
    return folder


@pytest.fixture
def config(tmp_path, tiny_clip, few_concepts):
    def make(**changes) -> BuildConfig:
        settings = {
            "out": str(tmp_path / "store"),
            "teacher": TeacherConfig(name=str(tiny_clip)),
            "vocabulary": str(few_concepts),
            "concepts": "top:3",
        }
        return BuildConfig(**{**settings, **changes})

    return make


def said(shards: Path, config: BuildConfig) -> Estimate:
    return estimate(Sa1bSource([str(shards)]), config, lambda text: None)


def sizes() -> tuple[int, int]:
    """Bytes of the JPEGs and of the RLEs of the eight scenes."""
    scenes = [draw_scene(number) for number in range(1, 9)]
    jpegs = sum(len(jpeg) for jpeg, _ in scenes)
    counts = (a["segmentation"]["counts"] for _, scene in scenes for a in scene["annotations"])
    return jpegs, sum(map(len, counts))


@pytest.mark.parametrize(
    ("concepts", "columns"),
    [
        ("none", 0),
        ("top:3", 3 * 2 + 3 * 2 + 4),  # ids uint16, probabilities float16, entropy float32
        ("full", 6 * 2 + 6 * 2 + 4),
        ("top:64", 6 * 2 + 6 * 2 + 4),  # no more than the vocabulary has
    ],
)
def test_bytes_are_those_of_the_columns(shards, config, concepts, columns) -> None:
    found = said(shards, config(concepts=concepts))
    assert (found.shards, found.images, found.regions, found.exact) == (2, 8, 40, True)
    jpegs, rles = sizes()
    expected = jpegs + 8 * 64 + rles + 40 * (FIXED + 2 * WIDTH + columns)
    assert found.store_bytes == pytest.approx(expected, abs=1)


def test_counts_sizes_and_times(shards, config) -> None:
    found = said(shards, config())
    assert found.shard_bytes == sum(path.stat().st_size for path in shards.glob("*.tar"))
    jpegs, rles = sizes()
    assert found.sampled_images == 8
    assert found.jpeg_bytes == pytest.approx(jpegs / 8)
    assert found.rle_bytes == pytest.approx(rles / 40)
    assert found.prepare_s > 0 and found.crops_per_s and found.crops_per_s > 0
    assert found.core_hours == pytest.approx(8 * found.prepare_s / 3600)
    assert found.teacher_hours == pytest.approx(40 / found.crops_per_s / 3600)
    assert found.warnings == []


def test_a_limit_bounds_the_images(shards, config) -> None:
    found = said(shards, config(limit=2))
    assert (found.images, found.regions) == (2, 10)


def test_many_shards_are_judged_by_the_bytes_of_some(shards, config, monkeypatch) -> None:
    monkeypatch.setattr(module, "_INDEXED_SHARDS", 1)
    found = said(shards, config())
    first = (shards / "sa_000000.tar").stat().st_size
    assert not found.exact
    assert found.images == round(3 * found.shard_bytes / first)
    assert said(shards, config(limit=4)).images == 4


def test_a_store_that_does_not_fit_is_said(shards, config, monkeypatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda place: usage)
    (warning,) = said(shards, config()).warnings
    assert "the store will take" in warning and "1.0 kB free" in warning


def test_a_teacher_that_is_not_here_is_not_timed(shards, config) -> None:
    found = said(shards, config(teacher=TeacherConfig(name="ViT-B-32", pretrained="openai")))
    assert found.crops_per_s is None and found.teacher_hours is None
    assert "the teacher was not timed" in found.warnings[0]


def test_nothing_to_estimate(tmp_path, shards, config) -> None:
    with pytest.raises(ConfigError, match="with a teacher"):
        said(shards, config(teacher=None))
    write_tar(tmp_path / "bad.tar", {"sa_1.jpg": b"x", "sa_1.json": b"{"})
    with pytest.raises(SourceError, match="without --dry-run"):
        said(tmp_path / "bad.tar", config())


def test_the_command_prints_it_and_writes_nothing(shards, tmp_path, tiny_clip, few_concepts):
    out = tmp_path / "store"
    arguments = ["build-semantic", shards, "--out", out, "--teacher", tiny_clip, "--dry-run"]
    arguments += ["--vocabulary", few_concepts, "--concepts", "top:3", "--device", "cpu"]
    before = {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    jpegs, rles = sizes()
    kilobytes = (jpegs + 8 * 64 + rles + 40 * (FIXED + 2 * WIDTH + 16)) / 1000
    for line in (
        "8 images, about 40 regions (from 8 sampled images)",
        f"store: about {kilobytes:.1f} kB at {out}",
        "crops/s on cpu here",
        "nothing was written",
    ):
        assert line in result.output
    assert not out.exists()
    assert {path: path.stat().st_mtime_ns for path in shards.iterdir()} == before

"""`tap-train` commands: what they print, and their exit codes."""

import json

import pytest
from typer.testing import CliRunner

from tap_engine.jobs.train_cli import main
from tests.train.small_run import SETTINGS, arguments
from tests.train.small_store import make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("commands") / "store", 6)


def call(*args):
    result = CliRunner().invoke(main, list(args))
    return result.exit_code, result.output


def test_run_measure_export_and_go_on(store, tmp_path):
    out = tmp_path / "run"
    code, text = call(*arguments(store, out, "train.steps=2"), "--held-out", str(store))
    assert code == 0, text
    assert "done: 2 steps" in text and "inscribed ellipse" in text
    code, text = call("measure", str(out), "--store", str(store), "--images", "2", "--json")
    assert code == 0 and set(json.loads(text)) >= {"box_iou/all", "filled_iou/all"}
    code, text = call("export", str(out), str(tmp_path / "model"), "--half")
    assert code == 0 and "concepts.safetensors" in text and " MB" in text
    code, text = call(*arguments(store, out, "train.steps=3"))
    assert code == 0 and "going on from" in text and "train.steps: 2 -> 3" in text
    code, text = call(*arguments(store, out), "--resume", "never")
    assert code == 1 and "--resume auto" in text


def test_tokenizer_captions_and_their_figures(store, tmp_path):
    """From a captioned store to a model that speaks, by commands alone."""
    captioned = make_store(
        tmp_path / "vg",
        9,
        source="vg",
        captions=True,
        taught=False,
        splits=("train", "train", "val"),
    )
    assert call(*arguments(store, tmp_path / "stage1", "train.steps=1"))[0] == 0
    file = str(tmp_path / "tokenizer.json")
    code, text = call("tokenizer", "--store", str(captioned), "--size", "300", "--out", file)
    assert code == 0 and "ids from" in text and "--set init.tokenizer=" in text
    small = [s for s in SETTINGS if s.startswith(("model", "log"))]
    small += ["train.steps=2", "train.batch=2", "train.images=2", f"init.tokenizer={file}"]
    small += [f"init.weights={tmp_path / 'stage1'}"]
    sets = [part for setting in small for part in ("--set", setting)]
    out = str(tmp_path / "run")
    tuning = ["run", "--recipe", "sample_caption", "--store", str(captioned), "--out", out, *sets]
    code, text = call(*tuning, "--held-out", str(captioned))
    assert code == 0 and "caption CIDEr" in text, text
    code, text = call("measure", out, "--store", str(captioned), "--json")
    assert code == 0 and set(json.loads(text)) == {
        "caption_CIDEr",
        "caption_BLEU@4",
        "caption_ROUGE-L",
    }
    code, text = call("measure", out, "--store", str(captioned), "--split", "test")
    assert code == 1 and "nothing to measure in split 'test'" in text
    code, text = call("tokenizer", "--store", str(store), "--out", file)
    assert code == 1 and "no captions" in text


def test_recipes_are_listed_and_shown():
    code, text = call("recipes")
    assert code == 0 and "vit_b_stage1" in text and "smoke" in text
    code, text = call("recipes", "sample", "--set", "train.steps=7")
    assert code == 0 and "train.steps=7" in text.splitlines()
    code, text = call("recipes", "vit_g")
    assert code == 1 and "there are" in text


def test_dry_run_prints_the_settings_and_touches_nothing(tmp_path):
    code, text = call("run", "--recipe", "vit_l_stage1", "--out", str(tmp_path / "r"), "--dry-run")
    assert code == 0 and json.loads(text)["optim"]["rate"] == 1e-3
    assert not (tmp_path / "r").exists()


def test_a_path_may_have_a_comma(tmp_path):
    args = ["--store", "/data/a,b", "--store", "s3://bucket/c", "--dry-run"]
    code, text = call("run", "--recipe", "smoke", "--out", str(tmp_path / "r"), *args)
    assert code == 0 and json.loads(text)["stream"]["stores"] == ["/data/a,b", "s3://bucket/c"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--set", "optim.wramup_steps=3"], "close: optim.warmup_steps"),
        (["--set", "init.trunk="], "no store to train on"),
        (["--set", "init.trunk=", "--store", "nowhere"], "no readable table"),
        (["--set", "init.needs=weights"], "--set init.weights=RUN"),
    ],
)
def test_mistakes_are_one_line(args, message, tmp_path):
    code, text = call("run", "--recipe", "smoke", "--out", str(tmp_path / "r"), *args)
    assert code == 1 and message in text and "Traceback" not in text


def test_wrong_gate_and_missing_store_are_explained(store, tmp_path):
    code, text = call("gate", "nothing", "--out", str(tmp_path), "--store", str(store))
    assert code == 1 and "overfit, quick, losses" in text
    code, text = call("gate", "quick", "--out", str(tmp_path), "--store", str(store))
    assert code == 1 and "--held-out" in text

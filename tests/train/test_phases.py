"""A recipe of several phases is trained by one command, and goes on by the same one."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from tap_engine.jobs.train_cli import main
from tap_engine.model.checkpoint import read_card
from tap_engine.schemas.errors import ConfigError
from tap_engine.train.checkpoint import checkpoints, model_folder
from tap_engine.train.phases import plan_phases, train_phases
from tap_engine.train.recipes import phases
from tests.train.small_run import SETTINGS
from tests.train.small_store import make_store

SMALL = [s for s in SETTINGS if not s.startswith(("init", "prompts.stages"))]
SMALL += ["train.steps=2", "checkpoint.every=1", "model.text.vocab_size=300", "init.trunk="]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("phases")
    splits = ("train", "train", "val")
    return (
        make_store(root / "taught", 6),
        make_store(root / "vg", 9, source="vg", captions=True, taught=False, splits=splits),
    )


def call(stores, out, *more):
    sets = [part for setting in SMALL for part in ("--set", setting)]
    given = ["--store", str(stores[0]), "--captions", str(stores[1]), "--out", str(out)]
    result = CliRunner().invoke(main, ["run", "--recipe", "sample", *given, *sets, *more])
    return result.exit_code, result.output


def test_one_command_trains_every_phase_and_goes_on(stores, tmp_path):
    out = tmp_path / "run"
    code, text = call(stores, out)
    assert code == 0, text
    folders = [f"{out}/{name}" for name in ("1-start", "2-clicks", "3-captions")]
    for number, folder in enumerate(folders, 1):
        assert f"phase {number} of 3" in text and f"in {folder}" in text
    assert f"started from {folders[0]}: all weights set" in text
    assert f"started from {folders[1]}: all weights set" in text
    # The model of the run is the last phase's, with its tokenizer and the names of the others.
    last = model_folder(out)
    assert last == checkpoints(out / "3-captions")[-1]
    assert read_card(last).about["recipe"] == "sample_caption"
    assert (last / "tokenizer.json").is_file() and (last / "concepts.safetensors").is_file()

    code, text = call(stores, out)
    assert code == 0 and text.count("done before") == 3 and "step" not in text.split("done:")[0]
    # As if it had been killed in the second phase, before the last step.
    newest = checkpoints(out / "2-clicks")[-1]
    newest.rename(newest.with_name("gone"))
    code, text = call(stores, out)
    assert code == 0 and text.count("done before") == 2 and "going on from" in text


def test_without_captions_the_phase_that_needs_them_is_left_out(tmp_path):
    said = []
    runs = plan_phases(phases("sample"), tmp_path, "", said.append)
    assert [run.folder.name for run in runs] == ["1-start", "2-clicks"]
    assert len(said) == 1 and "--captions" in said[0]
    (one,) = plan_phases(phases("smoke"), tmp_path, "", said.append)
    assert one.folder == tmp_path and len(said) == 1
    with pytest.raises(ConfigError, match="--resume auto, or never"):
        train_phases(runs, "run/checkpoints/step_00000001", said.append)


def test_only_phases_that_learn_captions_alone_take_the_captioned_store(tmp_path):
    configs = [
        (name, replace(config, stream=replace(config.stream, stores=("taught",))))
        for name, config in phases("sample")
    ]
    runs = plan_phases(configs, tmp_path, "captioned", print)
    assert [run.config.stream.stores[0] for run in runs] == ["taught", "taught", "captioned"]

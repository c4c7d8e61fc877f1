"""Settings, paths and files that cannot work: said in one line, before anything is computed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tap_engine.jobs import data_cli, train_cli
from tap_engine.jobs.cluster import ray_session
from tap_engine.jobs.output import command_errors
from tap_engine.schemas.errors import CheckpointError, ConfigError
from tap_engine.schemas.settings import with_overrides
from tap_engine.train.checkpoint import read_run_state
from tap_engine.train.recipes import recipe


@pytest.mark.parametrize(
    "setting",
    [
        "optim.clip_norm=-1",
        "optim.rate=nan",
        "optim.rate=inf",
        "optim.weight_decay=-1",
        "stream.max_problems=-1",
        "stream.first_images=-1",
        "train.threads=-1",
        "train.steps=inf",
        "train.steps=1e999",
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(setting) -> None:
    with pytest.raises(ConfigError, match=setting.split("=")[0].split(".")[1]):
        with_overrides(recipe("smoke"), [setting])


@pytest.mark.parametrize("weights", ["nan", "1,-1", "0,1"])
def test_weights_of_stores_are_positive(weights) -> None:
    stores = ",".join(f"s{k}" for k in range(weights.count(",") + 1))
    with pytest.raises(ConfigError, match=r"stream.weights"):
        with_overrides(recipe("smoke"), [f"stream.stores={stores}", f"stream.weights={weights}"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--recipe", "smoke", "--store", "s", "--out", "s3://bucket/run"],
        ["export", "sample", "s3://bucket/x"],
        ["score", "--protocol", "names", "--truth", "t", "--predictions", "p", "--out", "s3://b/s"],
        ["measure", "sample", "--store", "s", "--picture", "gs://b/x.png"],
        ["tokenizer", "--store", "s", "--out", "s3://b/t.json"],
        ["gate", "quick", "--store", "s", "--out", "s3://b/g"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_uri_where_a_folder_is_meant_is_refused(arguments, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(train_cli.main, arguments, env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert "must be a local file or folder" in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_written_is_said_first(tmp_path) -> None:
    options = ["picture", str(tmp_path), "--out", str(tmp_path / "x.xyz")]
    result = CliRunner().invoke(data_cli.app, options, env={"COLUMNS": "300"})
    assert result.exit_code == 2 and "ends in .png" in result.output
    options[-1] = "/proc/no/x.png"
    result = CliRunner().invoke(data_cli.app, options, env={"COLUMNS": "300"})
    assert result.exit_code == 2 and "cannot be made" in result.output


def test_what_the_system_refuses_is_one_line(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as stop, command_errors():
        (tmp_path / "no" / "file").write_text("")
    assert stop.value.code == 1
    said = capsys.readouterr().err.strip()
    assert said == f"FileNotFoundError: {tmp_path}/no/file: No such file or directory"
    with pytest.raises(ZeroDivisionError), command_errors():
        1 / 0  # noqa: B018  # a fault of ours keeps its traceback


def test_ctrl_c_and_a_stop_have_their_exit_codes() -> None:
    from tap_engine.jobs.cluster import Stopped

    for error, code in ((KeyboardInterrupt(), 130), (Stopped(), 143)):
        with pytest.raises(SystemExit) as stop, command_errors():
            raise error
        assert stop.value.code == code


@pytest.mark.parametrize("content", ["{}", "[]", '{"step": 3, "config": {}, "scaler": {}}', "{"])
def test_a_checkpoint_of_another_version_says_what_it_lacks(tmp_path, content) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"lacks|damaged"):
        read_run_state(tmp_path)


@pytest.mark.parametrize(
    ("cpus", "wheel", "message"),
    [(0, None, "--cpus must be"), (-1, None, "--cpus must be"), (1, __file__, "no wheel")],
)
def test_ray_is_not_started_with_settings_that_cannot_work(cpus, wheel, message) -> None:
    with pytest.raises(ConfigError, match=message), ray_session(None, cpus, wheel):
        pass


def test_a_cluster_that_does_not_answer_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match="nobody answers"), ray_session("127.0.0.1:1", None, None):
        pass


def test_compiled_code_finds_a_place_where_nothing_can_be_written(tmp_path) -> None:
    """A private one, which is gone afterwards: numba keeps pickles."""
    code = (
        "import os; access = os.access; os.access = lambda *_, **__: False\n"
        "import tap_engine; place = os.environ['NUMBA_CACHE_DIR']\n"
        "print(place, oct(os.stat(place).st_mode & 0o777))\n"
        "from tap_engine.schemas import rle; import numpy\n"
        "assert rle.area(rle.runs(rle.encode(numpy.ones((3, 4))), (3, 4))) == 12"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "NUMBA_CACHE_DIR")}
    environment |= {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    place, mode = done.stdout.split()
    assert mode == "0o700" and Path(place).parent == tmp_path
    assert not Path(place).exists()

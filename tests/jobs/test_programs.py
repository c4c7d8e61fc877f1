"""The three programs: what they import, what their help lists, and that they know their version."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from tap_engine import __version__
from tap_engine.jobs import data_cli, tap_cli, train_cli

PROGRAMS = {"tap": tap_cli.main, "tap-train": train_cli.main, "tap-data": data_cli.app}

AFTER_PREDICT = """
import sys
from typer.testing import CliRunner
from tap_engine.jobs.tap_cli import main
result = CliRunner().invoke(main, sys.argv[1:])
assert result.exit_code == 0, result.output
print("\\n".join(sys.modules))
"""


def test_tap_predict_loads_neither_training_code_nor_ray(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "photo.png")
    arguments = ["predict", "photo.png", "--model", "sample", "--box", "2,3,40,30"]
    done = subprocess.run(
        [sys.executable, "-c", AFTER_PREDICT, *arguments, "--device", "cpu"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines())
    assert "tap_engine.model.predictor" in loaded, "it ran"
    unwanted = ("ray", "lance", "tap_engine.train", "tap_engine.pipeline")
    assert not loaded.intersection(unwanted)
    assert (tmp_path / "photo.tap.png").is_file()


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_knows_its_version(program: str) -> None:
    result = CliRunner().invoke(PROGRAMS[program], ["--version"])
    assert (result.exit_code, result.output) == (0, f"tap-engine {__version__}\n")


def test_tap_train_predict_works_but_its_help_lists_only_its_own() -> None:
    assert CliRunner().invoke(train_cli.main, ["predict", "--help"]).exit_code == 0
    listed = CliRunner().invoke(train_cli.main, ["--help"]).output
    assert "│ predict" not in listed
    assert all(f" {panel} " in listed for panel in ("Train", "Evaluate", "Publish"))
    commands = get_command(train_cli.main).commands
    assert not [
        name for name, found in commands.items() if not found.hidden and not found.rich_help_panel
    ], "every command has a panel"
    assert "│ predict" in CliRunner().invoke(tap_cli.main, ["--help"]).output

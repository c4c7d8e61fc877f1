"""Running commands as a user does: in another process, from another folder."""

import os
import subprocess
import sys
from pathlib import Path


def tap_data(*arguments: object, code: int = 0, cwd: Path | None = None, **env: str):
    """Run `tap-data`; fails the test on another exit code, showing what was printed."""
    return _run("data_cli", arguments, code, cwd, env)


def _run(module: str, arguments, code: int, cwd: Path | None, env: dict[str, str]):
    done = subprocess.run(
        [sys.executable, "-c", f"from tap_engine.jobs.{module} import main; main()"]
        + [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        timeout=280,
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done

"""A run folder that another process holds."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HOLD = (
    "import pathlib, sys, time; from tap_engine.train.folder_lock import FolderLock;"
    "lock = FolderLock(pathlib.Path(sys.argv[1])); lock.take(); print('held', flush=True);"
    "time.sleep(600)"
)


@contextmanager
def held(folder: Path) -> Iterator[int]:
    """The other process's number; it is killed with -9 at the end."""
    command = [sys.executable, "-c", _HOLD, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process.pid
    finally:
        process.kill()
        process.wait()

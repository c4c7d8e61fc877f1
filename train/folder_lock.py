"""Lock of a run folder: one process trains in it, a second one is refused."""

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import IO

from tap_engine.schemas.errors import ConfigError

_FILE = "run.lock"


class FolderLock:
    """Held by the main process of a run until it ends, however it ends.

    A lock of the file system, so nothing is left behind by kill -9; across machines it holds where
    the file system has locks (NFS, Lustre with flock, most others).

    Args:
        folder: of the run; made if missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Hold the folder from now on.

        Raises:
            ConfigError: another process holds it, or it cannot be made.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = (self._folder / _FILE).open("a+")
        except OSError as error:
            raise ConfigError(f"cannot make the run folder {self._folder}: {error}") from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise ConfigError(
                f"{self._folder} is in use by {_holder(file.read())}; wait for it to end, or give "
                "another --out"
            ) from None
        except OSError:
            pass  # a file system without locks: nothing to ask
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
        file.flush()
        self._file = file

    def release(self) -> None:
        """Let others in; the end of the process does it too."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _holder(text: str) -> str:
    try:
        content = json.loads(text)
        return f"process {content['pid']} on {content['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"

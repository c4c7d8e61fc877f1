"""Files and folders that are written whole or not at all.

    with replacing(path) as partial:
        partial.write_bytes(content)

Content goes to a hidden name beside the target and takes the target's name only when it is complete
and on the disk. A reader, or a process that starts after a kill, sees the old content or the new.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyarrow import fs


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to; at the end of the block it becomes `path`.

    The caller writes a file there, or makes a folder with files in it. An exception removes what
    was written and leaves `path` as it was. What a killed process left is removed by the next one
    that writes the same path. The name is fixed: only one process at a time may write a path.

    Args:
        path: the target in an existing folder. An old file or folder of this name is replaced.

    Raises:
        OSError: the disk is full, the folder is missing, or the block wrote nothing.
    """
    partial, aside = (path.with_name(f".{path.name}.{kind}") for kind in ("partial", "old"))
    _put_back(aside, path)  # of a process that was killed between the two renames below
    _remove(partial)
    try:
        yield partial
        if partial.is_dir():
            for folder, _, files in os.walk(partial):
                for file in (*files, "."):
                    _sync(Path(folder, file))
        else:
            _sync(partial)
        if path.is_dir():  # a folder cannot be renamed over another one
            _remove(aside)
            os.replace(path, aside)
        os.replace(partial, path)
        _sync(path.parent)
    except BaseException:
        _put_back(aside, path)
        _remove(partial)
        raise
    _remove(aside)


@contextmanager
def replacing_in(filesystem: "fs.FileSystem", path: str) -> Iterator[str]:
    """`replacing` for one file of any pyarrow filesystem, local or an object store.

    The name to write to is a new one every time, so several processes may build the same file; the
    last to finish puts its content in place and removes what killed ones left.

    Args:
        filesystem: the filesystem of the file.
        path: the file, in an existing folder.
    """
    from pyarrow import fs  # not above: the model writes checkpoints where there is no pyarrow

    folder, name = path.rsplit("/", 1)
    partial = f"{folder}/.{name}.{uuid.uuid4().hex}.partial"
    try:
        yield partial
        if isinstance(filesystem, fs.LocalFileSystem):
            _sync(Path(partial))
        filesystem.move(partial, path)
    except BaseException:
        with suppress(OSError):
            filesystem.delete_file(partial)
        raise
    for left in filesystem.get_file_info(fs.FileSelector(folder)):
        if left.base_name.startswith(f".{name}.") and left.base_name.endswith(".partial"):
            filesystem.delete_file(left.path)


def _put_back(aside: Path, path: Path) -> None:
    if aside.exists() and not path.exists():
        os.replace(aside, path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

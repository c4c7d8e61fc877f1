"""Listing, reading and naming what lies behind paths and URIs (schemas/filesystem.py)."""

import os
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from tap_engine.schemas.errors import SourceError
from tap_engine.schemas.filesystem import open_filesystem


class Unreadable(Exception):
    """One file of many cannot be read, and will not be a minute later: bad input, not a fault."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies in a folder; a name that is not UTF-8 has Python's surrogates in it."""

    base_name: str
    is_file: bool
    size: int


def absolute_uri(uri: str) -> str:
    """The same place for workers that start in another folder."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def base_name(path: str) -> str:
    """Last part of a path or URI."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def place_of(uri: str) -> object:
    """What two paths to one file have in common: its inode here, its URI elsewhere."""
    if "://" in uri:
        return uri
    info = os.stat(uri)
    return info.st_dev, info.st_ino


def is_sidecar(name: str) -> bool:
    """Whether a file is what macOS puts beside every `NAME`: `._NAME`, without any content."""
    return base_name(name).startswith("._")


def shown(name: str) -> str:
    """A name as tables can hold it: bytes that are not UTF-8 and control characters escaped."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def describe(uri: str) -> fs.FileInfo:
    """Kind and size of what is there.

    Raises:
        SourceError: nothing is there, or it cannot be asked, with the storage's own words.
    """
    filesystem, path = open_filesystem(uri)
    try:
        info = filesystem.get_file_info(path)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{uri}: cannot be reached: {_last_line(error)}") from error
    if info.type == fs.FileType.NotFound:
        raise SourceError(f"{uri}: there is no such file or folder")
    return info


def list_folder(uri: str) -> list[Entry]:
    """What lies directly in a folder or under a prefix, sorted by name.

    Raises:
        SourceError: there is nothing at this place.
    """
    try:
        if "://" not in uri:
            with os.scandir(os.path.abspath(os.path.expanduser(uri))) as found:
                entries = [_local_entry(entry) for entry in found]
        else:
            filesystem, path = open_filesystem(uri)
            entries = [
                Entry(info.base_name, info.is_file, info.size or 0)
                for info in filesystem.get_file_info(fs.FileSelector(path, recursive=False))
            ]
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{uri}: cannot be listed: {_last_line(error)}") from error
    return sorted(entries, key=lambda entry: entry.base_name)


def read_small(uri: str, most: int) -> bytes:
    """A whole file.

    Args:
        uri: path or URI.
        most: bytes it may have; a wrong one must not exhaust memory.

    Raises:
        Unreadable: too large, or a local file that the system does not give out.
        OSError: storage that may answer when it is asked again.
    """
    filesystem, path = open_filesystem(uri)
    try:
        with filesystem.open_input_stream(path) as file:
            content = file.read(most + 1)
    except OSError as error:
        if "://" in uri:
            raise
        raise Unreadable(_last_line(error)) from error
    if len(content) > most:
        raise Unreadable(f"larger than {most:,} bytes")
    return bytes(content)


def _local_entry(entry: os.DirEntry[str]) -> Entry:
    try:
        info = entry.stat()
    except OSError:  # a link that leads nowhere
        return Entry(entry.name, False, 0)
    return Entry(entry.name, entry.is_file(), info.st_size)


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1][:300]

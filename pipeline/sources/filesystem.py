"""Listing, opening and naming what lies behind paths and URIs (schemas/filesystem.py)."""

from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from tap_engine.schemas.errors import SourceError
from tap_engine.schemas.filesystem import open_filesystem


def absolute_uri(uri: str) -> str:
    """The same place for workers that start in another folder."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def base_name(path: str) -> str:
    """Last part of a path or URI."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def list_folder(uri: str) -> list[fs.FileInfo]:
    """What lies directly in a folder or under a prefix, sorted by name.

    Raises:
        SourceError: there is nothing at this place.
    """
    filesystem, path = open_filesystem(uri)
    try:
        found = filesystem.get_file_info(fs.FileSelector(path, recursive=False))
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{uri}: cannot be listed: {error}") from error
    return sorted(found, key=lambda info: info.base_name)

"""Paths and URIs through pyarrow's filesystems: local, s3://, gs://, file://.

Credentials and endpoints come from the standard environment variables (AWS_*, GOOGLE_*), which
Lance reads as well; nothing here knows a cloud.
"""

import os

import pyarrow as pa
from pyarrow import fs

from tap_engine.schemas.errors import SourceError


def open_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path or URI, and the path inside it.

    Raises:
        SourceError: the scheme is unknown to pyarrow, or the place cannot be reached.
    """
    if "://" not in uri:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SourceError(
            f"{uri}: expected a path or a s3://, gs:// or file:// URI: {error}"
        ) from error
    except OSError as error:  # a bucket without a region, or no network to ask for it
        raise SourceError(f"{uri}: cannot be reached: {str(error).splitlines()[-1]}") from error
    return filesystem, path

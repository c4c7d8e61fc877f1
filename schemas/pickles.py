"""Reads pickle files from strangers: arrays and plain values, nothing that runs.

Official TAP weights and concept files and RefCOCOg's references are pickles. An ordinary unpickler
runs whatever code such a file names; this one knows a fixed list of names and refuses the rest.
"""

import _codecs
import importlib
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from tap_engine.schemas.errors import CheckpointError

Globals = Mapping[tuple[str, str], Callable[..., Any]]


def _codec_encode(text: str, encoding: str = "latin1") -> bytes:
    """What protocol-2 pickles call to restore bytes; only the codec they use for it."""
    if encoding != "latin1":
        raise CheckpointError(f"pickle asks for codec {encoding!r}, only 'latin1' is allowed")
    encoded = _codecs.encode(text, encoding)
    assert isinstance(encoded, bytes)
    return encoded


def _numpy_globals() -> dict[tuple[str, str], Callable[..., Any]]:
    multiarray = importlib.import_module("numpy._core.multiarray")
    numeric = importlib.import_module("numpy._core.numeric")
    allowed: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _codec_encode,
        ("collections", "OrderedDict"): OrderedDict,
    }
    for package in ("numpy.core", "numpy._core"):
        allowed[f"{package}.multiarray", "_reconstruct"] = multiarray._reconstruct
        allowed[f"{package}.multiarray", "scalar"] = multiarray.scalar
        allowed[f"{package}.numeric", "_frombuffer"] = numeric._frombuffer
    return allowed


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], where: str, allowed: Globals, encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self._where = where
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise CheckpointError(
                f"{self._where}: the pickle asks for {module}.{name}, which is not on the list of "
                "array constructors; refused, nothing was run"
            ) from None


def load(path: str | Path, *, extra: Globals | None = None, encoding: str = "ASCII") -> Any:
    """Plain values and NumPy arrays of a pickle file.

    Args:
        path: the file.
        extra: more constructors to allow, by (module, name); the caller vouches for them.
        encoding: "latin1" for files that Python 2 wrote.

    Raises:
        CheckpointError: the file names anything off the list, or is no pickle.
    """
    with open(path, "rb") as file:
        unpickler = _Unpickler(file, str(path), {**_numpy_globals(), **(extra or {})}, encoding)
        try:
            return unpickler.load()
        except CheckpointError:
            raise
        # A hostile stream can make the pickle machine raise nearly anything; all of it means
        # "this is not the file we were promised".
        except Exception as error:
            raise CheckpointError(f"{path}: not a readable pickle: {error!r}") from error

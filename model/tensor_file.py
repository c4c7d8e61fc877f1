"""Safetensors files: written whole or not at all, read with errors that say what to do."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tap_engine.schemas.errors import CheckpointError
from tap_engine.schemas.replacing import replacing


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file; a reader sees the old one or the new one, never a half."""
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with replacing(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # what this user's files have; the library writes 0600
        save_file(whole, partial, {"format": "pt", **metadata})
        partial.chmod(mode)


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """The safetensors reader of a file.

    Raises:
        CheckpointError: missing, or not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise CheckpointError(f"no file {str(path)!r}") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error}); pickles are converted by "
            "`tap-train convert-weights`"
        ) from error

"""Markers with their reasons, and where optional fixtures lie."""

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"

_SHARED = Path(__file__).parents[2] / "shared" / "data"


def shared_data(name: str) -> Path:
    """A file or folder of real data beside the checkout; skips the test where it is absent."""
    path = _SHARED / name
    if not path.exists():
        pytest.skip(f"real data {name!r} is not beside this checkout")
    return path


def requires_gpu() -> None:
    """Skip unless torch sees a CUDA device."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")

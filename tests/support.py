"""Markers with their reasons, and where optional fixtures lie."""

import os
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"

DATA_VARIABLE = "TAP_ENGINE_TEST_DATA"


def shared_data(name: str) -> Path:
    """A file or folder of real data that is not shipped; skips the test where it is absent.

    It is looked for in the folder that TAP_ENGINE_TEST_DATA names, else beside the checkout.
    tests/README.md lists what can lie there and where it comes from.
    """
    folder = os.environ.get(DATA_VARIABLE) or Path(__file__).parents[2] / "shared" / "data"
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"real data {name!r} is not in {folder}; set {DATA_VARIABLE}, see tests/README")
    return path


def requires_gpu() -> None:
    """Skip unless torch sees a CUDA device."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")

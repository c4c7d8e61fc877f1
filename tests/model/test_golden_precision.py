"""The official numbers in half precision and on a GPU, within tolerances that are stated here."""

import pytest
import torch

from tests.golden.checks import CHECKS, run_check
from tests.golden.fixture import Fixture
from tests.support import GOLDEN, requires_gpu

PARTS = [name for name in sorted(CHECKS) if name[:2] in ("01", "03", "05")]
"""The networks; the rest is arithmetic in float32, whatever the precision is."""

TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 8e-2}
"""Largest error as a share of the expected tensor's largest value."""


def check(fixture: str, dtype: torch.dtype, device: str) -> None:
    found = Fixture(GOLDEN / f"{fixture}.safetensors", device)
    half = dtype != torch.float32
    with torch.device(device), torch.autocast(device, dtype, enabled=half), torch.no_grad():
        verdicts = run_check(found)
    compared = [v for v in verdicts if found[v.name].is_floating_point()]
    assert compared
    for v in compared:
        assert v.error <= TOLERANCE[dtype] * found[v.name].abs().max().item(), v


@pytest.mark.parametrize("fixture", PARTS)
def test_bf16_on_a_cpu(fixture) -> None:
    check(fixture, torch.bfloat16, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("fixture", PARTS)
def test_on_a_gpu(fixture, dtype) -> None:
    requires_gpu()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    check(fixture, dtype, "cuda")

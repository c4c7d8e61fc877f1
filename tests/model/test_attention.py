import math

import pytest
import torch

from tap_engine.model import attention as door
from tap_engine.model.attention import DropPath, attention, attention_backend
from tap_engine.schemas.errors import ConfigError
from tests.support import requires_gpu


def inputs(n: int = 5, m: int = 7) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, n, 3, 8), (2, m, 3, 8), (2, m, 3, 8)]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def by_hand(q, k, v, bias=None, causal=False):
    out = torch.empty_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            logits = q[b, :, h] @ k[b, :, h].T / math.sqrt(q.shape[3])
            if bias is not None:
                logits = logits + bias[h]
            for i in range(q.shape[1]):
                for j in range(k.shape[1]):
                    if causal and j > i + k.shape[1] - q.shape[1]:
                        logits[i, j] = -math.inf
            out[b, :, h] = logits.softmax(-1) @ v[b, :, h]
    return out


def test_against_the_formula() -> None:
    q, k, v = inputs()
    torch.testing.assert_close(attention(q, k, v), by_hand(q, k, v))
    bias = torch.randn(3, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(attention(q, k, v, bias=bias), by_hand(q, k, v, bias))


def test_keys_that_are_not_seen_count_nothing() -> None:
    q, k, v = inputs()
    seen = torch.tensor([[1, 0, 1, 1, 0, 1, 1], [0, 0, 0, 1, 0, 0, 0]]).bool()
    found = attention(q, k, v, seen=seen)
    for row in range(2):
        kept = [x[row : row + 1, seen[row]] for x in (k, v)]
        torch.testing.assert_close(found[row : row + 1], by_hand(q[row : row + 1], *kept))


@pytest.mark.parametrize("n", [1, 3, 7])
def test_causal_aligns_the_last_query_with_the_last_key(n) -> None:
    q, k, v = inputs(n=n, m=7)
    torch.testing.assert_close(attention(q, k, v, causal=True), by_hand(q, k, v, causal=True))


def test_flash_is_taken_only_where_it_can(monkeypatch) -> None:
    monkeypatch.setattr(door, "FLASH_INSTALLED", True)

    class Input:  # what the door looks at, as a GPU tensor would have it
        def __init__(self, dtype=torch.bfloat16, head_dim=64, is_cuda=True):
            self.dtype, self.shape, self.is_cuda = dtype, (2, 5, 3, head_dim), is_cuda

    assert door.uses_flash(Input(), None)
    assert not door.uses_flash(Input(is_cuda=False), None)
    assert not door.uses_flash(Input(dtype=torch.float32), None)
    assert not door.uses_flash(Input(head_dim=264), None)
    assert not door.uses_flash(Input(head_dim=20), None)
    assert not door.uses_flash(Input(), torch.zeros(3, 5, 5))
    assert not door.uses_flash(Input(), torch.ones(2, 5, dtype=torch.bool))
    with attention_backend("sdpa"):
        assert not door.uses_flash(Input(), None)


def test_asking_for_flash_without_it_says_how_to_get_it() -> None:
    if door.FLASH_INSTALLED:
        pytest.skip("flash-attn is installed here")
    with (
        pytest.raises(ConfigError, match=r'pip install "tap-engine\[flash\]"'),
        attention_backend("flash"),
    ):
        pass


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_flash_equals_sdpa(dtype, causal) -> None:
    requires_gpu()
    if not door.FLASH_INSTALLED:
        pytest.skip("flash-attn is not installed")
    q, k, v = (x.to("cuda", dtype) for x in inputs())
    expected = by_hand(q.double(), k.double(), v.double(), causal=causal)
    with attention_backend("flash"):
        flash = attention(q, k, v, causal=causal)
    with attention_backend("sdpa"):
        sdpa = attention(q, k, v, causal=causal)
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(flash.double(), expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(sdpa.double(), expected, atol=tolerance, rtol=0)


def test_drop_path_keeps_or_drops_whole_rows() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(4000, 3, 2)
    y = drop.train()(x)
    rows = y.flatten(1)
    assert (rows == rows[:, :1]).all()
    kept = rows[:, 0] != 0
    torch.testing.assert_close(rows[kept], torch.full_like(rows[kept], 4 / 3))
    assert (~kept).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert drop.eval()(x) is x

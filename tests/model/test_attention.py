import contextlib
import math
import threading

import pytest
import torch
from torch.nn.attention import SDPBackend

from tap_engine.model import attention as door
from tap_engine.model import attention_backends as backends
from tap_engine.model.attention import DropPath, attention, fits_flash
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


def test_flash_takes_half_precision_on_a_gpu_without_a_mask() -> None:
    class Input:  # what is looked at, as a GPU tensor would have it
        def __init__(self, dtype=torch.bfloat16, head_dim=64, is_cuda=True):
            self.dtype, self.shape, self.is_cuda = dtype, (2, 5, 3, head_dim), is_cuda

    assert fits_flash(Input(), None)
    assert not fits_flash(Input(is_cuda=False), None)
    assert not fits_flash(Input(dtype=torch.float32), None)
    assert not fits_flash(Input(head_dim=264), None)
    assert not fits_flash(Input(head_dim=20), None)
    assert not fits_flash(Input(), torch.zeros(3, 5, 5))
    assert not fits_flash(Input(), torch.ones(2, 5, dtype=torch.bool))


@pytest.mark.parametrize("backend", ["flash2", "flash3", "flash4"])
def test_asking_for_what_is_not_here_says_why(backend) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError, match=f"'{backend}' cannot be used: .*'sdpa' always can"):
        backends.use(backend, cpu)
    assert backends.current() == "sdpa"


def test_backends_of_torch_are_never_asked_for_dropout(monkeypatch) -> None:
    seen = []

    def watched(kernels):
        seen.append(kernels)
        return contextlib.nullcontext()

    monkeypatch.setattr(door, "sdpa_kernel", watched)
    q, k, v = inputs()
    for backend, times in (("sdpa", 0), ("flash4", 1)):
        monkeypatch.setattr(backends, "_current", backend)
        attention(q, k, v, dropout=0.5)
        assert len(seen) == times
        attention(q, k, v)
        assert len(seen) == times
    assert SDPBackend.FLASH_ATTENTION not in seen[0]


def test_a_backend_is_the_processs_and_comes_back(monkeypatch) -> None:
    monkeypatch.setattr(backends, "missing", lambda backend, device: None)
    found = []
    with backends.using("flash2", torch.device("cpu")):
        # autograd's threads run forward passes again, with the same kernels
        thread = threading.Thread(target=lambda: found.append(backends.current()))
        thread.start()
        thread.join()
    assert found == ["flash2"]
    assert backends.current() == "sdpa"


def test_the_fastest_backend_is_measured() -> None:
    calls = []

    def attend(q, k, v, causal):
        calls.append((tuple(q.shape), tuple(k.shape), causal))
        return attention(q, k, v, causal=causal)

    shapes = [backends.Shape(1, 3, 5, 2, 8), backends.Shape(1, 4, 4, 2, 8, True)]
    found = backends.fastest(attend, shapes, torch.device("cpu"), torch.float32, repeats=3)
    assert list(found) == ["sdpa"] and found["sdpa"] > 0
    assert calls == [((1, 3, 2, 8), (1, 5, 2, 8), False), ((1, 4, 2, 8), (1, 4, 2, 8), True)] * 5


@pytest.mark.gpu
@pytest.mark.parametrize("backend", backends.BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_backends_give_the_formulas_numbers(backend, dtype, causal) -> None:
    requires_gpu()
    cuda = torch.device("cuda")
    if (reason := backends.missing(backend, cuda)) is not None:
        pytest.skip(f"{backend}: {reason}")
    q, k, v = (x.to(cuda, dtype) for x in inputs())
    expected = by_hand(q.double(), k.double(), v.double(), causal=causal)
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    with backends.using(backend, cuda):
        found = attention(q, k, v, causal=causal)
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=0)


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

"""Which attention kernels this process uses, and which are the fastest on its device.

    sdpa    torch's own choice among its fused kernels; the default
    flash2  the package flash-attn; needs half precision and no mask, else SDPA
    flash3  SDPA whose flash kernel is flash-attn 3, by torch's switch
    flash4  the same with flash-attn 4 (the package flash-attn-4; compute capability 9.0 or 10.0)

The choice is one for the process and no context variable: with activation checkpointing, autograd's
own threads run forward passes too, and they must take the same kernels.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from tap_engine.schemas.errors import ConfigError

Backend = Literal["sdpa", "flash2", "flash3", "flash4"]
BACKENDS: tuple[str, ...] = get_args(Backend)

OF_TORCH = {"flash3": "FA3", "flash4": "FA4"}
"""The names by which torch's own switch knows them."""

_PACKAGES = {"flash3": "flash_attn_interface", "flash4": "flash_attn.cute"}

_current: Backend = "sdpa"


def current() -> Backend:
    """The backend of this process."""
    return _current


def missing(backend: str, device: torch.device) -> str | None:
    """Why a backend cannot be used on a device; None if it can.

    Raises:
        ConfigError: no such backend.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"attention must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "sdpa":
        return None
    if backend == "flash2" and not _flash2_installed():
        return 'flash-attn is not installed: pip install "tap-engine[flash]"'
    if backend in OF_TORCH:
        if OF_TORCH[backend] not in _switches():
            return f"torch {torch.__version__} has no switch for it"
        if not _installed(_PACKAGES[backend]):
            return f"its package, which brings the module {_PACKAGES[backend]}, is not installed"
    return None if device.type == "cuda" else f"it needs a CUDA device, this is {device.type}"


def _switches() -> list[str]:
    return getattr(nn.attention, "list_flash_attention_impls", list)()


@cache
def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


@cache
def _flash2_installed() -> bool:
    # flash-attn-4 alone brings a package of the same name, without this file.
    spec = importlib.util.find_spec("flash_attn")
    places = (spec.submodule_search_locations if spec else None) or ()
    return any((Path(place) / "flash_attn_interface.py").is_file() for place in places)


def use(backend: str, device: torch.device) -> None:
    """From here on, every attention of this process takes these kernels.

    Raises:
        ConfigError: they cannot be used here, and why.
    """
    global _current
    if (reason := missing(backend, device)) is not None:
        raise ConfigError(f"attention {backend!r} cannot be used: {reason}; 'sdpa' always can")
    if _current in OF_TORCH and backend != _current:
        nn.attention.restore_flash_attention_impl()
    if backend in OF_TORCH and backend != _current:
        try:
            nn.attention.activate_flash_attention_impl(OF_TORCH[backend])
        except Exception as error:  # it imports a package of others, which may fail in any way
            _current = "sdpa"
            raise ConfigError(f"attention {backend!r} did not start: {error}") from error
    _current = cast(Backend, backend)


@contextmanager
def using(backend: str, device: torch.device) -> Iterator[None]:
    """`use` for a while, then what was used before; for tests and benchmarks."""
    before = _current
    use(backend, device)
    try:
        yield
    finally:
        use(before, device)


class Shape(NamedTuple):
    """Sizes of one attention: B rows, N queries, M keys, H heads of d channels."""

    rows: int
    queries: int
    keys: int
    heads: int
    channels: int
    causal: bool = False


def fastest(
    attend: Callable[..., Tensor],
    shapes: Sequence[Shape],
    device: torch.device,
    dtype: torch.dtype,
    repeats: int = 10,
) -> dict[str, float]:
    """Seconds that each usable backend takes for forward and backward of all shapes.

    Args:
        attend: `attention.attention`.
        shapes: what is computed.
        device: the device it is computed on.
        dtype: the type of queries, keys and values.
        repeats: runs that are timed, after two that are not.

    Returns:
        The backends with their seconds, the fastest first; those that fail are left out.
    """
    found = {}
    for backend in BACKENDS:
        if missing(backend, device) is not None:
            continue
        try:
            with using(backend, device):
                found[backend] = _seconds(attend, shapes, device, dtype, repeats)
        except (ConfigError, RuntimeError):
            if backend == "sdpa":
                raise
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def _seconds(
    attend: Callable[..., Tensor],
    shapes: Sequence[Shape],
    device: torch.device,
    dtype: torch.dtype,
    repeats: int,
) -> float:
    inputs = []
    for s in shapes:
        q = torch.randn(s.rows, s.queries, s.heads, s.channels, device=device, dtype=dtype)
        k = torch.randn(s.rows, s.keys, s.heads, s.channels, device=device, dtype=dtype)
        inputs.append((q.requires_grad_(), k.requires_grad_(), s.causal))
    start = 0.0
    for turn in range(2 + repeats):
        if turn == 2:
            _wait(device)
            start = time.perf_counter()
        for q, k, causal in inputs:
            attend(q, k, k, causal=causal).sum().backward()
    _wait(device)
    return (time.perf_counter() - start) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""Connects to Ray: a local one that the command starts and ends, or a running cluster."""

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tap_engine.schemas.errors import ConfigError

_ANSWER_S = 10.0


@contextmanager
def ray_session(address: str | None, cpus: int | None, wheel: str | None) -> Iterator[None]:
    """Connect to Ray for the time of one job.

    Args:
        address: a running cluster ("auto", "ray://...", "host:6379"); None starts Ray here.
        cpus: the number of CPUs that a local Ray may use; None for all.
        wheel: file of this package's wheel to install on a cluster's workers; None where it is
            part of their image.
    """
    # Ray would otherwise re-create a `uv run` environment on every worker.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # Its C++ core prints notes for Ray's developers at error level.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Ray starts workers 15 nicer than this command: on a busy machine they got 2 % of a core, and a
    # build that takes seconds took minutes. Whoever wants that says `nice tap-data ...`.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # glibc keeps what a thread has freed, and a worker has many: its peak was 1.9 GB, not 1.5
    # (benchmarks/results/engine.md). Inherited by the workers; this process has read its own.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(4 << 20))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(64 << 20))
    # Ray starts its own processes by fork and exec, which Lance cannot tell from a fork.
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    # It would tell users how to get back the bars that ours replace.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    import ray

    if address and cpus:
        raise ConfigError("--cpus is for a local Ray; a running cluster has its own")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cpus is not None and cpus < 1:
        raise ConfigError(f"--cpus must be at least 1, got {cpus}")
    if wheel:
        if not Path(wheel).is_file() or not wheel.endswith(".whl"):
            raise ConfigError(f"no wheel {wheel!r}; `make wheel` writes one to dist/")
        options["runtime_env"] = {"py_modules": [wheel]}
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        options["address"] = address
    else:
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    if address:
        _require_answer(address)
    if "HOME" not in os.environ:
        try:
            Path.home()
        except RuntimeError:  # a user that this machine does not know, as containers have
            os.environ["HOME"] = tempfile.mkdtemp(prefix="tap-home-")
    try:
        with _silent_start():
            ray.init(**options)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        raise ConfigError(_why(error, address)) from error
    # Ray has set its own, which aborts. A stop by Slurm or Kubernetes is one by Ctrl-C.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _stop) if main else None
    try:
        yield
    finally:
        ray.shutdown()
        if main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


class Stopped(KeyboardInterrupt):
    """SIGTERM came.

    Attributes:
        signal: its number.
    """

    signal = int(signal.SIGTERM)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


@contextmanager
def _silent_start() -> Iterator[None]:
    """Ray's C++ core reports on the raw error stream that it obeys RAY_BACKEND_LOG_LEVEL.

    Failures to start are Python exceptions and not touched by this.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _require_answer(address: str) -> None:
    """Ask a cluster's address before Ray does, which waits a quarter of an hour for an answer.

    Raises:
        ConfigError: nobody answers there.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto" or not colon or not port.isdigit():
        return
    print(f"connecting to the Ray cluster at {address}", file=sys.stderr)
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
    except OSError as error:
        raise ConfigError(
            f"no Ray cluster at {address!r}: nobody answers ({error}); `ray status` on its head "
            "says the address"
        ) from error


def _why(error: BaseException, address: str | None) -> str:
    """Ray's reason in one line; what lies below a connection that was refused, too."""
    reasons: list[str] = []
    link: BaseException | None = error
    while link is not None:
        text = (str(link).strip().splitlines() or [type(link).__name__])[0][:300]
        if text not in reasons:
            reasons.append(text)
        link = link.__cause__ or link.__context__
    where = f"no Ray cluster at {address!r}" if address else "Ray does not start on this machine"
    return f"{where}: {'; '.join(reasons)}"

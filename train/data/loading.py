"""Loader processes that outlive a stop signal and report every batch that they lose.

A stop is delivered to every process of a job: by a terminal to its foreground group, by Slurm to
all processes of the step, by torchrun to each rank's group. The trainer then ends its step and
saves, and for that its loaders must live. And a batch that cannot be handed over (a full /dev/shm,
no file descriptor left) is dropped by the thread that hands it over, with a traceback that nobody
waits for: here tensors go to shared memory before that, where a failure can be told.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from tap_engine.schemas.errors import TapError
from tap_engine.train.data.examples import Batch

_SILENT_S = 900.0
"""A batch that does not come for so long never will."""

_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class LoaderError(TapError):
    """A loader process cannot deliver its batches."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a loader process could not do; sent in place of a batch."""

    text: str


def load(
    passes: IterableDataset[Batch], *, workers: int, prefetch: int, pin: bool
) -> Iterator[Batch]:
    """The batches of a data set, in its order.

    Args:
        passes: makes the batches; its `__iter__` asks torch which worker it is.
        workers: loader processes; 0 loads in this one.
        prefetch: batches each keeps ready.
        pin: copy to pinned memory, for CUDA.

    Raises:
        LoaderError: a process died, fell silent, or cannot hand its batches over.
    """
    if not workers:
        yield from DataLoader(passes, batch_size=None, pin_memory=pin)
        return
    loader: DataLoader[Any] = DataLoader(
        _Shared(passes),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=prefetch,
        multiprocessing_context="spawn",
        worker_init_fn=_begin,
        timeout=_SILENT_S,
        pin_memory=pin,
    )
    with loader_errors():
        # What is blocked here is blocked in a new process until it has set its own handlers.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        try:
            batches = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for batch in batches:
            if isinstance(batch, _Failure):
                raise LoaderError(_advice(batch.text))
            yield batch


@contextmanager
def loader_errors() -> Iterator[None]:
    """What torch reports of loader processes, wherever it does, becomes a LoaderError."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(("DataLoader ", "Pin memory thread")):
            raise
        raise LoaderError(_advice(str(error).splitlines()[0])) from error


def _advice(text: str) -> str:
    return (
        f"a loader process cannot deliver: {text}. Batches travel through /dev/shm, which "
        "containers limit to 64 MB: give it more (docker run --shm-size=8g), or lower "
        "stream.prefetch, or load in the training process with stream.workers=0. The same command "
        "goes on from the last checkpoint"
    )


class _Shared(IterableDataset[Any]):
    """The same batches, put into shared memory where a failure can still be told."""

    def __init__(self, passes: IterableDataset[Batch]) -> None:
        self.passes = passes

    def __iter__(self) -> Iterator[Batch | _Failure]:
        try:
            for batch in self.passes:
                yield batch.shared()
        except (RuntimeError, OSError, TapError) as error:
            yield _Failure(f"{type(error).__name__}: {error}"[:500])


def _begin(_: int) -> None:
    """Let stops of the whole job pass by; torch ends this process when the trainer's is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _first_stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)


def _first_stop(number: int, frame: FrameType | None) -> None:
    # The first may be the job's. torch and multiprocessing ask a process twice that does not end.
    signal.signal(number, lambda *_: os._exit(0))

"""Reports of a run: a progress line, one JSON line per report, TensorBoard."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.progress import duration

_FILE = "log.jsonl"

_SHOWN = (
    "loss",
    "concept",
    "focal",
    "dice",
    "caption",
    "iou_box",
    "iou_point",
    "iou_next",
    "agree",
    "next_word",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """Settings of the log.

    Attributes:
        every: steps between reports; figures are averages over them.
        pictures_every: steps between picture panels; 0 none.
        tensorboard: write event files.
    """

    every: int = 20
    pictures_every: int = 1000
    tensorboard: bool = True

    def __post_init__(self) -> None:
        if self.every < 1 or self.pictures_every < 0:
            raise ConfigError("log.every must be at least 1 and log.pictures_every not negative")


class RunLog:
    """Writes reports of the main process; does nothing in the others.

    Args:
        run: the run's folder.
        config: what is reported and when; see `LogConfig`.
        step: steps done before; later lines of an interrupted run are dropped.
        steps: steps in all, for the ETA.
        active: False in all but the main process.
    """

    def __init__(
        self, run: Path, config: LogConfig, *, step: int, steps: int, active: bool
    ) -> None:
        self._active = active
        self._steps = steps
        self._board: Any = None
        if not active:
            return
        run.mkdir(parents=True, exist_ok=True)
        self._run = run
        self._path = run / _FILE
        if self._path.exists():
            lines = self._path.read_text(errors="replace").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            self._path.write_text("".join(line + "\n" for line in kept))
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step or None)

    def say(self, text: str) -> None:
        """A line for people."""
        if not self._active:
            return
        try:
            print(text, flush=True)
        except OSError as error:
            # Its reader has gone: head, less, tee, a lost ssh. The log file has all of it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            with contextlib.suppress(OSError):
                print(
                    f"nobody reads the standard output any more ({error.strerror}); training goes "
                    f"on, see {self._path}",
                    file=sys.stderr,
                )

    def report(
        self, step: int, figures: Mapping[str, float], *, seconds: float, steps: int
    ) -> None:
        """One report.

        Args:
            step: steps done.
            figures: averages since the last report; `images`, `wait_s` and `rate` among them.
            seconds: since the last report.
            steps: steps since the last report.
        """
        if not self._active:
            return
        speed = figures["images"] / seconds
        wait = figures["wait_s"] / seconds
        memory = memory_gb()
        values = {k: v for k, v in figures.items() if k not in ("images", "wait_s")}
        record = {"step": step, **values, "images_per_s": speed, "wait_share": wait}
        record |= {"memory_gb": memory, "time": time.time()}
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self._board is not None:
            for name, value in record.items():
                if name not in ("step", "time"):
                    self._board.add_scalar(f"train/{name}", value, step)
        shown = "  ".join(f"{k} {figures[k]:.3f}" for k in _SHOWN if k in figures)
        left = (self._steps - step) * seconds / steps
        self.say(
            f"step {step}/{self._steps}  {shown}  rate {figures['rate']:.1e}  "
            f"{speed:.1f} images/s  wait {100 * wait:.1f} %  {memory:.1f} GB  ETA {duration(left)}"
        )

    def measured(self, step: int, figures: Mapping[str, float]) -> None:
        """Held-out figures."""
        if not self._active:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "held_out": dict(figures)}) + "\n")
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(f"held_out/{name}", value, step)

    def picture(self, step: int, sheet: Image.Image) -> None:
        """A picture panel, as PNG and on the board."""
        if not self._active:
            return
        folder = self._run / "pictures"
        folder.mkdir(exist_ok=True)
        sheet.save(folder / f"step_{step:08d}.png")
        if self._board is not None:
            pixels = np.asarray(sheet)
            self._board.add_image("truth_and_prediction", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes what is buffered."""
        if self._board is not None:
            self._board.close()


def memory_gb() -> float:
    """Peak of the GPU's memory where there is one, else what this process holds now."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e9
    return float("nan")


def _step_of(line: str) -> int:
    # A line cut by a kill counts as later than everything.
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize

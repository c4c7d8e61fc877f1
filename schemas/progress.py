"""Progress of long jobs: one live line on a terminal, a plain line now and then elsewhere."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

Say = Callable[[str], None]
"""Receives what a long job says, one line per call."""

_LIVE_S = 0.5
"""Seconds between two states of the live line."""

_LOG_S = 30.0
"""Seconds between two lines of a log file."""

_SAY_S = 10.0
"""Seconds between two lines for a `say` function, and before the first."""


@dataclass
class Progress:
    """Progress of one long job.

    Attributes:
        total: number of items, including those that earlier runs finished.
        done: number of finished items, including those of earlier runs.
        unit: plural name of the items.
        stream: the terminal or file that lines are written to.
        say: a function that gets the lines instead of `stream`; never a live line.
    """

    total: int
    done: int = 0
    unit: str = "units"
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    say: Say | None = None

    def __post_init__(self) -> None:
        self._start = time.monotonic()
        self._first = self.done
        self._live = self.say is None and self.stream.isatty()
        self._shown = self._start if self.say else -math.inf
        self._pause_s = _SAY_S if self.say else _LIVE_S if self._live else _LOG_S

    def update(self, done: int, text: str = "", *, force: bool = False) -> None:
        """Shows `done` of `total`, `text` and an estimate of the time left; skips most calls.

        Args:
            done: number of finished items, including those of earlier runs.
            text: what else there is to say.
            force: show it even if the last line was a moment ago.
        """
        self.done = done
        now = time.monotonic()
        if not force and now - self._shown < self._pause_s:
            return
        self._shown = now
        share = 100 * done / self.total if self.total else 100.0
        line = f"{done:,}/{self.total:,} {self.unit} ({share:.1f} %)"
        line += f", {text}" if text else ""
        line += f", elapsed {duration(now - self._start)}, left {self._left(now)}"
        if self.say:
            self.say(line)
            return
        self.stream.write(f"\r\x1b[K{line}" if self._live else f"{line}\n")
        self.stream.flush()

    def skip(self) -> None:
        """Counts one item that an earlier run finished; it does not raise the rate."""
        self.done += 1
        self._first += 1

    def close(self) -> None:
        """End the live line."""
        if self._live:
            self.stream.write("\n")
            self.stream.flush()

    def _left(self, now: float) -> str:
        finished = self.done - self._first
        if finished <= 0:
            return "?"
        return duration((now - self._start) / finished * (self.total - self.done))


def duration(seconds: float) -> str:
    """Formats seconds for people: 42s, 3m05s, 2h07m, 4d03h."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"

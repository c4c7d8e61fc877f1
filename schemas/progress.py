"""A live line on a terminal, plain lines elsewhere; counted in what is committed."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

Say = Callable[[str], None]
"""Where a long job says what it does, a line at a time."""

_LINE_S = 0.5
_LOG_S = 30.0


@dataclass
class Progress:
    """Progress of one long job.

    Attributes:
        total: items in all, those of earlier runs included.
        done: items finished, those of earlier runs included.
        unit: what an item is called.
        stream: where lines go.
    """

    total: int
    done: int = 0
    unit: str = "units"
    stream: TextIO = field(default_factory=lambda: sys.stderr)

    def __post_init__(self) -> None:
        self._start = time.monotonic()
        self._first = self.done
        self._shown = 0.0
        self._live = self.stream.isatty()

    def update(self, done: int, text: str = "", *, force: bool = False) -> None:
        """Show `done` of `total` with a rate-based estimate of what is left, and `text`."""
        self.done = done
        now = time.monotonic()
        if not force and now - self._shown < (_LINE_S if self._live else _LOG_S):
            return
        self._shown = now
        share = 100 * done / self.total if self.total else 100.0
        line = f"{done:,}/{self.total:,} {self.unit} ({share:.1f} %)"
        line += f", {text}" if text else ""
        line += f", elapsed {duration(now - self._start)}, left {self._left(now)}"
        self.stream.write(f"\r\x1b[K{line}" if self._live else f"{line}\n")
        self.stream.flush()

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
    """Seconds as people read them: 42s, 3m05s, 2h07m, 4d03h."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"

import io

import pytest

from tap_engine.schemas import progress
from tap_engine.schemas.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns forward."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_file_gets_the_first_state_and_a_line_every_half_minute(clock) -> None:
    log = io.StringIO()
    bar = Progress(100, unit="images", stream=log)
    for second in range(61):
        clock[0] = 100.0 + second
        bar.update(second)
    bar.close()
    lines = log.getvalue().splitlines()
    assert lines == [
        "0/100 images (0.0 %), elapsed 0s, left ?",
        "30/100 images (30.0 %), elapsed 30s, left 1m10s",
        "60/100 images (60.0 %), elapsed 1m00s, left 40s",
    ]


def test_a_terminal_gets_one_live_line(clock) -> None:
    terminal = Terminal()
    bar = Progress(4, stream=terminal)
    bar.update(1)
    clock[0] += 0.4
    bar.update(2)
    clock[0] += 0.2
    bar.update(3, "3 rejects")
    bar.close()
    shown = terminal.getvalue()
    assert shown.count("\r\x1b[K") == 2
    assert shown.endswith("3/4 units (75.0 %), 3 rejects, elapsed 0s, left 0s\n")
    assert shown.count("\n") == 1


def test_a_function_gets_a_line_every_ten_seconds_and_none_of_a_short_job(clock) -> None:
    said: list[str] = []
    bar = Progress(100, say=said.append, stream=Terminal())
    for second in range(25):
        clock[0] = 100.0 + second
        bar.update(second)
    bar.close()
    assert [line.split()[0] for line in said] == ["10/100", "20/100"]
    bar.update(25, force=True)
    assert len(said) == 3


def test_what_earlier_runs_did_does_not_make_this_one_look_faster(clock) -> None:
    said: list[str] = []
    bar = Progress(100, done=40, say=said.append)
    for _ in range(20):
        bar.skip()
    clock[0] += 20
    bar.update(70)  # 10 new ones in 20 s, 30 to go
    assert said == ["70/100 units (70.0 %), elapsed 20s, left 1m00s"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(42.9, "42s"), (185, "3m05s"), (7620, "2h07m"), (356_400, "4d03h")],
)
def test_durations_read_well(seconds, text) -> None:
    assert duration(seconds) == text

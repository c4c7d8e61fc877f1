"""The steps in the order of their value, each in a process and under a limit; resumable."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from benchmarks.gpu.bench import Bench, identity

ROOT = Path(__file__).parents[2]
LEAST_S = 20
"""A step is not begun with less time left."""


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: on the command line, and of the result file.
        function: "module:function" in this package; it is called with a `Bench`.
        limit_s: seconds after which it is stopped.
        letter: its place in the list of docs/gpu.md.
    """

    name: str
    function: str
    limit_s: int
    letter: str

    def load(self) -> Callable[[Bench], None]:
        """The function; its module is imported here, in the step's own process."""
        module, _, function = self.function.partition(":")
        return getattr(import_module(f"benchmarks.gpu.{module}"), function)


STEPS = (
    Step("tests", "checks:tests", 240, "a"),
    Step("teacher", "teacher:throughput", 330, "b"),
    Step("training", "training:training", 420, "d"),
    Step("decoding", "decoding:decoding", 180, "e"),
    Step("engine", "engine:engine", 300, "c"),
    Step("precision", "teacher:precision", 180, "b"),
    Step("fp8", "teacher:fp8", 180, "b"),
    Step("trainer", "checks:sample_world", 240, "d"),
    Step("later", "checks:later", 60, "f"),
)
BY_NAME = {step.name: step for step in STEPS}


def run_step(name: str, folder: Path, device: str, *, dry: bool, seed: int) -> bool:
    """Runs a step in this process; False if a part of it failed."""
    bench = Bench(folder / f"{name}.json", device, dry=dry, seed=seed)
    bench.result["command"] = f"python -m benchmarks.gpu {name}" + (" --dry-run" if dry else "")
    begun = time.perf_counter()
    bench.save()
    BY_NAME[name].load()(bench)
    bench.result["seconds"] = round(time.perf_counter() - begun, 1)
    bench.result["finished"] = not bench.result["failed"]
    bench.save()
    return not bench.result["failed"]


def finished(path: Path, device: str, *, dry: bool, seed: int) -> bool:
    """True if a result is whole, and of this card, torch, sizes and seed."""
    if not path.is_file():
        return False
    found = json.loads(path.read_text())
    who = identity(device, dry, seed)
    return bool(found.get("finished")) and all(found.get(k) == v for k, v in who.items())


def run_all(
    names: Sequence[str], folder: Path, device: str, *, minutes: float, dry: bool, seed: int
) -> dict[str, str]:
    """Runs steps one after the other while there is time.

    Returns:
        What became of each: "done", "was done", "failed", "stopped after N s" or "no time left".
    """
    end = time.monotonic() + 60 * minutes
    found: dict[str, str] = {}
    for name in names:
        left = end - time.monotonic()
        if finished(folder / f"{name}.json", device, dry=dry, seed=seed):
            found[name] = "was done"
        elif left < LEAST_S:
            found[name] = "no time left"
        else:
            limit = min(BY_NAME[name].limit_s, left)
            print(f"{name}, at most {limit:.0f} s", flush=True)
            options = ["--out", str(folder), "--device", device, "--seed", str(seed)]
            options += ["--dry-run"] if dry else []
            found[name] = _child(["--inside", name, *options], limit)
        print(f"{name}: {found[name]}", flush=True)
    return found


def _child(arguments: list[str], limit_s: float) -> str:
    # A group of its own, so that what a step has started is stopped with it.
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    child = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        code = child.wait(limit_s)
    except BaseException as error:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            return f"stopped after {limit_s:.0f} s; the same command goes on"
        raise
    return "done" if code == 0 else "failed"

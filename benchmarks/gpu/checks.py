"""The tests that need a GPU, the trainer on it, and what is too long for a first run."""

import importlib.util
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.gpu.bench import Bench, Skip

ROOT = Path(__file__).parents[2]


def tests(bench: Bench) -> None:
    """`pytest -m gpu`: numbers of each kernel, precision and compiled part against the CPU's."""

    def run() -> None:
        where = ["tests/model/test_attention.py"] if bench.dry else ["tests"]
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junit-xml={report}"]
            done = subprocess.run([*command, *where], cwd=ROOT, check=False)
            if not report.is_file():
                raise RuntimeError(f"pytest wrote no report, exit code {done.returncode}")
            cases = list(ElementTree.parse(report).iter("testcase"))
        bad = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
        skipped = [c for c in cases if c.find("skipped") is not None]
        bench.figure("tests: passed", len(cases) - len(bad) - len(skipped), "tests")
        bench.figure("tests: skipped", len(skipped), "tests")
        bench.figure("tests: failed", len(bad), "tests", ", ".join(str(c.get("name")) for c in bad))
        if bad or done.returncode:
            raise RuntimeError(f"{len(bad)} tests failed, exit code {done.returncode}")

    bench.part("pytest -m gpu", run)


def sample_world(bench: Bench) -> None:
    """The trainer's whole way on the device: real store, real stream, data-wait, a checkpoint."""

    def run() -> None:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            arguments = _tiny_run(folder) if bench.dry else _sample_run(folder)
            train = [sys.executable, "-m", "tap_engine.jobs.train_cli", *arguments]
            subprocess.run([*train, "--set", f"train.device={bench.device}"], check=True)
            lines = (folder / "run" / "log.jsonl").read_text().splitlines()
            last = json.loads(lines[-1])
        bench.figure("trainer: tiny model, real stream", last["images_per_s"], "images/s")
        bench.figure("trainer: share of time that waits for data", last["wait_share"], "")

    bench.part("the trainer on a store", run)


def _sample_run(folder: Path) -> list[str]:
    """Draws scenes, builds a store of them, and gives the arguments that train on it."""
    scenes, store = str(folder / "scenes"), str(folder / "store")
    tap_data = [sys.executable, "-m", "tap_engine.jobs.data_cli"]
    draw = ["sample", scenes, "--scenes", "64", "--validation", "8", "--captioned", "8"]
    build = ["build-semantic", f"{scenes}/train", "--source", "sample", "--teacher", "sample"]
    for arguments in (draw, [*build, "--out", store]):
        subprocess.run([*tap_data, *arguments], check=True)
    arguments = ["run", "--recipe", "sample_tune", "--store", store, "--out", str(folder / "run")]
    return [*arguments, "--set", "train.precision=bf16"]


def _tiny_run(folder: Path) -> list[str]:
    from tests.train.small_run import arguments
    from tests.train.small_store import make_store

    return arguments(make_store(folder / "store"), folder / "run", "train.steps=2")


def later(bench: Bench) -> None:
    """What takes longer than a first run has; each says how it is run."""

    def recipe() -> None:
        raise Skip(
            "the tiny TAP's full schedule takes longer than a step may: tap-train run --recipe "
            "sample --set train.device=cuda"
        )

    def stand_in(module: str, what: str) -> None:
        if importlib.util.find_spec(module) is None:
            raise Skip(f"{what} does not exist in this version")
        raise Skip(f"{what} has no benchmark of its own yet; its tests are part of `tests`")

    bench.part("tiny TAP", recipe)
    bench.part("chat", lambda: stand_in("tap_engine.model.chat", "TapChat"))
    bench.part("ovsam", lambda: stand_in("tap_engine.model.ovsam", "open-vocabulary SAM"))

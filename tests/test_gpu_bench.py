"""The GPU benchmarks with tiny sizes on a CPU, so that a typo cannot cost time on a GPU."""

import json
import re
import sys

import pytest

from benchmarks.gpu import flops, report, steps
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.expected import EXPECTED, expected_against_measured
from benchmarks.gpu.steps import STEPS, Step, run_all, run_step

ONLY_ON_CUDA = {
    "CUDA graph": "needs a CUDA device",
    "torch's kernels": "needs a CUDA device",
    "fp8 linears": "torchao is not installed|needs a CUDA device",
    "attention flash": "not installed|needs a CUDA device|no switch",
    "tiny TAP": "full schedule",
    "chat": "no benchmark of its own",
    "ovsam": "no benchmark of its own",
    "everything": "does not exist",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu")


@pytest.mark.parametrize("name", [step.name for step in STEPS if step.name != "engine"])
def test_dry_run(folder, name) -> None:
    assert run_step(name, folder, "cpu", dry=True, seed=0)
    check(folder, name)


@pytest.mark.ray
def test_dry_run_of_the_engine(folder, ray_local) -> None:
    assert run_step("engine", folder, "cpu", dry=True, seed=0)
    check(folder, "engine")


def check(folder, name) -> None:
    result = json.loads((folder / f"{name}.json").read_text())
    assert result["finished"] and not result["failed"]
    assert result["parts"] or result["skipped"]
    for part, reason in result["skipped"].items():
        known = [why for start, why in ONLY_ON_CUDA.items() if part.startswith(start)]
        assert known and re.search(known[0], reason), (part, reason)
    assert name in report.page(folder)


def test_every_expected_figure_is_one_that_a_step_writes() -> None:
    written = "".join(p.read_text() for p in sorted((steps.ROOT / "benchmarks/gpu").glob("*.py")))
    written = written.replace((steps.ROOT / "benchmarks/gpu/expected.py").read_text(), "")
    for expectation in EXPECTED:
        head, _, tail = expectation.figure.partition(": ")
        assert f'"{expectation.figure}"' in written or (
            head.startswith("training tap-l stage 1")
            and (f": {tail}" in written or f'"{tail}"' in written)
        ), expectation.figure


def test_expected_against_measured_says_what_was_missed() -> None:
    first, second = EXPECTED[:2]
    figures = {first.figure: {"value": first.least}, second.figure: {"value": second.least / 2}}
    rows = expected_against_measured(figures).splitlines()[2:]
    assert "missed" not in rows[0] and "not measured" not in rows[0]
    assert "**missed**" in rows[1]
    assert all("not measured" in row for row in rows[2:])
    overflow = {"teacher: embeddings not finite, fp16": {"value": 3}}
    assert "| 3, **missed** |" in expected_against_measured(overflow)


def two_parts(bench: Bench) -> None:
    bench.part("first", lambda: bench.figure("runs", 1 + count(bench), "times"))
    bench.part("second", lambda: 1 / bench.seed)  # fails with seed 0


def count(bench: Bench) -> float:
    return bench.result["figures"].get("runs", {"value": 0})["value"]


def test_what_is_done_is_kept_and_what_failed_is_tried_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Step, "load", lambda self: two_parts)
    for _ in range(2):
        assert not run_step("teacher", tmp_path, "cpu", dry=True, seed=0)
        result = json.loads((tmp_path / "teacher.json").read_text())
        assert result["parts"] == ["first"] and result["figures"]["runs"]["value"] == 1
        assert result["failed"] == {"second": "ZeroDivisionError: division by zero"}
    assert not steps.finished(tmp_path / "teacher.json", "cpu", dry=True, seed=0)
    # Another seed is another measurement.
    assert run_step("teacher", tmp_path, "cpu", dry=True, seed=3)
    assert steps.finished(tmp_path / "teacher.json", "cpu", dry=True, seed=3)
    assert not steps.finished(tmp_path / "teacher.json", "cpu", dry=True, seed=0)
    said = run_all(["teacher"], tmp_path, "cpu", minutes=1, dry=True, seed=3)
    assert said == {"teacher": "was done"}


def test_a_step_runs_in_a_process_of_its_own_under_a_limit(tmp_path, monkeypatch) -> None:
    options = {"dry": True, "seed": 0}
    assert run_all(["later"], tmp_path, "cpu", minutes=2, **options) == {"later": "done"}
    assert run_all(["fp8"], tmp_path, "cpu", minutes=0.1, **options) == {"fp8": "no time left"}
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert run_all(["fp8"], tmp_path, "cpu", minutes=2, **options) == {"fp8": "failed"}
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nsleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))
    assert steps._child([], 0.5) == "stopped after 0 s; the same command goes on"


def test_without_a_gpu_nothing_is_measured(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["all", "--device", "cpu"])
    assert "--dry-run finds typos" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("preset", "part", "prompts", "forward"),
    [
        ("tap-b", "encoder", 0, 808.5),
        ("tap-l", "encoder", 0, 2702.1),
        ("tap-l", "boxes", 64, 187.3),
        ("tap-l", "points", 64, 195.7),
        ("tap-b", "captions", 64, 277.6),
    ],
)
def test_counted_work(preset, part, prompts, forward) -> None:
    found = flops.part_gflop(preset, part, prompts, False)
    assert round(found, 1) == forward
    # A backward pass is twice the forward's, but for the first layer's input and attention's
    # recomputed products.
    assert 2.6 < flops.part_gflop(preset, part, prompts, True) / found < 3.3


def test_the_page_has_the_tables_that_are_counted() -> None:
    text = (steps.ROOT / "docs" / "gpu.md").read_text()
    assert expected_against_measured({}) in text
    assert flops.table() in text
    assert all(f"| `{step.name}` |" in text and f"| {step.limit_s} s |" in text for step in STEPS)


def test_a_step_is_the_sum_of_its_parts() -> None:
    assert round(flops.step_gflop("tap-l", "1", 64), 1) == 9247.4
    alone = flops.step_gflop("tap-l", "captions", 64)
    assert alone < flops.step_gflop("tap-l", "1", 64) < flops.step_gflop("tap-l", "2", 64)

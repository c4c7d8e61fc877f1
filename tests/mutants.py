"""`make mutants`: makes known mistakes in a copy of the code; the tests named for each must fail.

    python -m tests.mutants [NAME ...] [--list]

A test that passes whatever the code does is worse than none. Every mistake here was once made on
purpose and found by no test. A mutant whose old text is not in its file exactly once is an error:
change the entry with the code. Exit code 1 if a mutant survives or cannot be judged.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("src", "schemas", "pipeline", "model", "train", "jobs", "tests", "docs")
LIMIT_S = 900


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        name: to choose it by.
        what: the mistake, in words.
        file: path from the root.
        old, new: the text that is replaced; `old` must occur exactly once.
        tests: what pytest is given; at least one test of it must fail.
    """

    name: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @contextmanager
    def made(self, root: Path) -> Iterator[None]:
        """The mistake is in the tree within the block."""
        path = root / self.file
        text = path.read_text()
        path.write_text(text.replace(self.old, self.new))
        try:
            yield
        finally:
            path.write_text(text)

    def problem(self, root: Path) -> str | None:
        """Why this entry does not fit the code; None if it does."""
        path = root / self.file
        if not path.is_file():
            return f"there is no file {self.file}"
        times = path.read_text().count(self.old)
        if times != 1:
            return f"its old text is {times} times in {self.file}, expected once: {self.old!r}"
        missing = [test for test in self.tests if not (root / test.partition("::")[0]).exists()]
        return f"there is no {', '.join(missing)}" if missing else None


OBJECTIVE = ("tests/train/test_objective.py",)
VERIFY = ("tests/pipeline/test_verify.py",)
MUTANTS = (
    Mutant(
        "P4",
        "concepts of the float32 embedding, not of the stored float16",
        "pipeline/unit_builder.py",
        "self._packer.pack(stored)",
        "self._packer.pack(embeddings)",
        ("tests/pipeline/test_unit_builder.py",),
    ),
    Mutant(
        "P8",
        "verify lets a key stand there twice",
        "pipeline/verify.py",
        "bad = same & (key <= previous_key)",
        "bad = same & (key < previous_key)",
        VERIFY,
    ),
    Mutant(
        "P9",
        "a shard named by two paths is indexed twice",
        "pipeline/sources/sa1b.py",
        "found.setdefault(place_of(shard.uri), shard)",
        "found.setdefault(shard.uri, shard)",
        ("tests/pipeline/sources/test_sa1b.py",),
    ),
    Mutant(
        "V2",
        "verify does not see keys of another image",
        "pipeline/verify.py",
        "wrong_image += int(wrong.sum())",
        "wrong_image += 0",
        VERIFY,
    ),
    Mutant(
        "V3",
        "verify takes any concept columns",
        "pipeline/verify.py",
        "return int((~good).sum())",
        "return 0",
        VERIFY,
    ),
    Mutant(
        "V3-order",
        "verify takes rising probabilities",
        "pipeline/verify.py",
        " & (np.diff(probs, axis=1) <= 0).all(1)",
        "",
        VERIFY,
    ),
    Mutant(
        "V4",
        "verify does not see scattered units",
        "pipeline/verify.py",
        "many = values[times > 1]",
        "many = values[times > 99]",
        VERIFY,
    ),
    Mutant(
        "E1",
        "a dry run forgets the concept columns",
        "pipeline/estimate.py",
        " + (4 * top_k + 4 if top_k else 0)",
        "",
        ("tests/pipeline/test_estimate.py",),
    ),
    Mutant(
        "E1-fixed",
        "a dry run forgets the unit column",
        "pipeline/estimate.py",
        "_FIXED_REGION_BYTES = 8 + 8 + 8 + 1 + 8 +",
        "_FIXED_REGION_BYTES = 8 + 8 + 8 + 1 +",
        ("tests/pipeline/test_estimate.py",),
    ),
    Mutant(
        "layout",
        "one worker per GPU, however many GPUs a worker has",
        "pipeline/layout.py",
        "int(gpus / gpus_each)",
        "int(gpus)",
        ("tests/pipeline/test_layout.py",),
    ),
    Mutant(
        "T1",
        "the paper's concept loss the wrong way round",
        "train/concepts.py",
        "return concept_kl_loss(space.student_log_probs(embeds), target)",
        "return concept_reverse_kl_loss(space.student_log_probs(embeds), target)",
        OBJECTIVE,
    ),
    Mutant(
        "T2",
        "regions without a mask learn by a made-up one",
        "train/objective.py",
        "return torch.where(has_mask, best, routed)",
        "return best",
        OBJECTIVE,
    ),
    Mutant(
        "T3",
        "no balanced start",
        "train/objective.py",
        "fade = min(step / w.balanced_steps, 1.0) if w.balanced_steps else 1.0",
        "fade = 1.0",
        OBJECTIVE,
    ),
    Mutant(
        "T4",
        "the auxiliary loss is halved by a second stage",
        "train/objective.py",
        'times = 1 if term.name == "auxiliary" else self.prompts.stages',
        "times = self.prompts.stages",
        OBJECTIVE,
    ),
    Mutant(
        "T20",
        "the auxiliary loss counts regions that no teacher saw",
        "train/terms.py",
        '"pooled": batch.valid & batch.has_mask & batch.has_concepts',
        '"pooled": batch.valid & batch.has_mask',
        OBJECTIVE,
    ),
    Mutant(
        "T16",
        "training goes on in evaluation mode after a measurement",
        "train/run.py",
        "            self.objective.train()\n",
        "            pass\n",
        ("tests/train/test_loop.py::test_training_goes_on_in_training_mode_after_a_measurement",),
    ),
    Mutant(
        "T8",
        "boxes of regions that the view cuts are not tightened",
        "train/data/examples.py",
        "boxes[row] = _tightened(boxes[row], cover, config.image_px)",
        "pass",
        ("tests/train/data/test_examples.py",),
    ),
    Mutant(
        "T6",
        "runs begin at the same rows in every epoch",
        "train/data/order.py",
        "shift = (mixed_bits(self.seed, epochs, -1)",
        "shift = (mixed_bits(self.seed, 0 * epochs, -1)",
        ("tests/train/data/test_order.py",),
    ),
    Mutant(
        "L2",
        "unreadable images never stop a run",
        "train/loop.py",
        "if self.problems > most:",
        "if False:",
        ("tests/train/test_loop.py::test_too_many_unreadable_images_stop_the_run",),
    ),
    Mutant(
        "G1",
        "a resumed run keeps the log lines after its checkpoint",
        "train/run_log.py",
        " if _step_of(line) <= step]",
        "]",
        (
            "tests/train/test_loop.py::test_lines_after_the_checkpoint_are_dropped_when_a_run_goes_on",
        ),
    ),
    Mutant(
        "T14",
        "on a tie the click goes outside",
        "train/evaluation/clicks.py",
        "if missing >= surplus:",
        "if missing > surplus:",
        ("tests/train/evaluation/test_clicks.py",),
    ),
    Mutant(
        "J1",
        "exit code 3 at exactly the limit",
        "jobs/output.py",
        "if summary.reject_share <= limit:",
        "if summary.reject_share < limit:",
        ("tests/jobs/test_data_cli.py",),
    ),
    Mutant(
        "J5",
        "--limit N takes the last N images",
        "train/evaluation/data_choice.py",
        "list(data.truth.images)[:limit]",
        "list(data.truth.images)[-limit:]",
        ("tests/jobs/test_eval_commands.py",),
    ),
    Mutant(
        "wheel",
        "data files of rooms are left out of the wheel",
        "pyproject.toml",
        '[tool.setuptools.package-data]\n"*" = ["*"]',
        '[tool.setuptools.package-data]\n"*" = ["py.typed"]',
        ("tests/test_package.py",),
    ),
)


def copy_of_tree(folder: Path) -> Path:
    """What tests need of the checkout, with the links; written files stay out of it."""
    root = folder / "tap-engine"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in COPIED:
        shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    return root


def run_tests(root: Path, tests: Sequence[str]) -> tuple[int, str]:
    """pytest's exit code, 0 if all passed and 1 if some failed, and the end of what it said."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return -1, f"not finished after {LIMIT_S} s"
    return done.returncode, "\n".join((done.stdout + done.stderr).splitlines()[-15:])


def judge(mutants: Sequence[Mutant], root: Path) -> int:
    """How many of the mutants survive or cannot be judged; says what became of each."""
    needed = sorted({test for mutant in mutants for test in mutant.tests})
    print(f"unchanged: {len(needed)} test files", flush=True)
    code, said = run_tests(root, needed)
    if code:
        print(f"{said}\nthe tests must pass before any mistake is made")
        return len(mutants)
    alive = 0
    for mutant in mutants:
        with mutant.made(root):
            code, said = run_tests(root, mutant.tests)
        verdict = {0: "SURVIVED", 1: "killed"}.get(code, "NOT JUDGED")
        alive += verdict != "killed"
        print(f"{verdict:10s} {mutant.name:10s} {mutant.file}: {mutant.what}", flush=True)
        if verdict == "NOT JUDGED":
            print(said)
    print(f"{len(mutants)} mutants, {len(mutants) - alive} killed")
    return alive


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    known = {mutant.name: mutant for mutant in MUTANTS}
    parser.add_argument("names", nargs="*", metavar="NAME", help="all of them by default")
    parser.add_argument("--list", action="store_true", help="print the mutants; run nothing")
    given = parser.parse_args()
    if unknown := set(given.names) - known.keys():
        parser.error(f"unknown mutant {', '.join(unknown)}; known: {', '.join(known)}")
    chosen = [known[name] for name in given.names] or list(MUTANTS)
    if given.list:
        for mutant in chosen:
            print(f"{mutant.name:10s} {mutant.file}: {mutant.what}; {' '.join(mutant.tests)}")
    with tempfile.TemporaryDirectory() as folder:
        root = copy_of_tree(Path(folder))  # the checkout may change meanwhile
        problems = {m.name: problem for m in chosen if (problem := m.problem(root))}
        for name, problem in problems.items():
            print(f"ERROR      {name}: {problem}")
        if given.list:
            return bool(problems)
        alive = judge([mutant for mutant in chosen if mutant.name not in problems], root)
    return 1 if alive or problems else 0


if __name__ == "__main__":
    sys.exit(main())

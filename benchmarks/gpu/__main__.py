"""The command line; see the package."""

import argparse
import sys
from pathlib import Path

import benchmarks.gpu
from benchmarks.gpu import flops, report
from benchmarks.gpu.expected import expected_against_measured
from benchmarks.gpu.steps import BY_NAME, STEPS, run_all, run_step

RESULTS = Path(__file__).parents[1] / "results" / "gpu"


def main(arguments: list[str] | None = None) -> int:
    """0 if every step that was asked for is done."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=benchmarks.gpu.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [step.name for step in STEPS]
    what = f"all, report, expected, or some of: {', '.join(names)}"
    parser.add_argument("steps", nargs="*", help=what)
    parser.add_argument("--minutes", type=float, default=25.0, help="time for all steps together")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="cpu needs --dry-run")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, to find typos")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inside", choices=names, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    device = given.device or ("cpu" if given.dry_run else "cuda")
    folder = (given.out or RESULTS.with_name("gpu-dry-run" if given.dry_run else "gpu")).absolute()
    if given.steps == ["expected"]:
        print(f"{expected_against_measured({})}\n\n{flops.table()}")
        return 0
    if given.steps == ["report"]:
        print(report.page(folder))
        return 0
    if device == "cpu" and not given.dry_run:
        parser.error("without a GPU there is nothing to measure; --dry-run finds typos")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("torch sees no CUDA device; --dry-run needs none")
    options = {"dry": given.dry_run, "seed": given.seed}
    if given.inside:
        return 0 if run_step(given.inside, folder, device, **options) else 1
    chosen = names if given.steps == ["all"] else given.steps
    if not chosen or (unknown := [name for name in chosen if name not in BY_NAME]):
        parser.error(f"expected {what}; got {', '.join(unknown) if chosen else 'nothing'}")
    states = run_all(chosen, folder, device, minutes=given.minutes, **options)
    text = report.page(folder)
    (folder / "README.md").write_text(text)
    print(f"\n{text}\nwritten to {folder}/README.md")
    return 0 if all(state.endswith("done") for state in states.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

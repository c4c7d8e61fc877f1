"""`python -m tests.golden DIR`: does this model compute what the official one computed?

One line for each compared tensor; exit code 1 if any is outside its tolerance.
"""

import argparse
import sys
from pathlib import Path

from tests.golden.checks import run_check
from tests.golden.fixture import Fixture


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    paths = sorted(parser.parse_args().folder.glob("*.safetensors"))
    if not paths:
        sys.exit("no .safetensors fixtures in this folder")
    compared = failed = 0
    for path in paths:
        try:
            verdicts = run_check(Fixture(path))
        except Exception as error:  # whatever stops a check is a failed check
            print(f"FAIL {path.stem}: {type(error).__name__}: {error}")
            failed += 1
            continue
        for verdict in verdicts:
            compared += 1
            failed += not verdict.passed
            print(
                f"{'ok  ' if verdict.passed else 'FAIL'} {verdict.fixture:22s} {verdict.name:32s} "
                f"error {verdict.error:9.2e}  tolerance {verdict.tolerance:.0e}"
            )
    print(f"{len(paths)} fixtures, {compared} comparisons, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

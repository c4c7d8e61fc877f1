import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["estimate", "reproject", "verify", "unit_builder"])
def test_what_runs_without_ray_does_not_import_it(module) -> None:
    """`--dry-run`, `reproject` and `verify` must work where no Ray is installed or wanted."""
    program = (
        f"import sys, tap_engine.pipeline.{module}; "
        "sys.exit(', '.join(n for n in sys.modules if n.split('.')[0] == 'ray')[:200] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

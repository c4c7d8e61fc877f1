"""What the README tells people to paste, run as it stands there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text("utf-8"), re.M | re.S)


@pytest.mark.ray
def test_the_readme_s_snippets_run_as_pasted(tmp_path, built_store):
    found = blocks("README.md")
    assert len(found) == 1, "one block, run as one script"
    shutil.copytree(built_store, tmp_path / "demo" / "store")
    done = subprocess.run(
        [sys.executable, "-c", found[0]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= 3 and lines[-1].endswith("px") and int(lines[-1].split()[0]) > 0
    assert (tmp_path / "demo" / "image.jpg").read_bytes().startswith(b"\xff\xd8")

"""The model works where nothing of the data engine is installed: a laptop, a Mac, a web service."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ALONE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (taken away by the test)")

sys.meta_path.insert(0, Absent())
{code}
"""
ABSENT = (
    *("ray", "lance", "pyarrow", "open_clip", "typer", "click", "tensorboard"),
    *("ijson", "psutil", "faster_coco_eval", "torchvision"),
)


def run_alone(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ALONE.format(absent=ABSENT, code=code)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_taken_away_is_away(tmp_path: Path) -> None:
    code = "try:\n    import pyarrow\nexcept ModuleNotFoundError as error:\n    print(error)"
    assert "taken away" in run_alone(code, tmp_path)


def test_every_module_of_the_model_imports_and_the_shipped_model_predicts(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "photo.png")
    code = """
import importlib, pkgutil
import numpy as np
from PIL import Image
import tap_engine.model
for module in pkgutil.iter_modules(tap_engine.model.__path__, "tap_engine.model."):
    importlib.import_module(module.name)
from tap_engine.model.predictor import Tap
tap = Tap.from_pretrained("sample", device="cpu")
image = np.asarray(Image.open("photo.png"))
tap.set_image(image)
(region,) = tap.predict(boxes=[[2, 3, 40, 30]])
print(region.mask.shape, bool(region.concepts), bool(region.caption))
"""
    assert run_alone(code, tmp_path).splitlines()[-1] == "(48, 80) True True"

"""tap-engine: segment, recognise and caption any region of a picture, and build the data for it.

    from tap_engine import Tap

Names of this package are loaded on first use, so that importing it costs nothing.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tap_engine.model.predictor import Tap
    from tap_engine.model.region import Region

__all__ = ["Region", "Tap", "__version__"]


def _find_place_for_compiled_code() -> None:
    """Give numba a folder where it has none: a read-only installation, a user without a home.

    A folder of this process and those it starts, which it removes: numba keeps pickles, so a place
    in the shared temporary folder that others can guess would run their code.
    """
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    here = Path(__file__).resolve().parent
    rooms = [(here / room).resolve() for room in ("schemas", "pipeline", "model", "train")]
    if all(os.access(_existing(room / "__pycache__"), os.W_OK) for room in rooms if room.is_dir()):
        return
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        if os.access(_existing(home / "numba"), os.W_OK):
            return
    except RuntimeError:  # no home at all
        pass
    import atexit
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="tap-compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = folder


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


_find_place_for_compiled_code()


def __getattr__(name: str) -> Any:
    if name == "Tap":
        from tap_engine.model.predictor import Tap

        return Tap
    if name == "Region":
        from tap_engine.model.region import Region

        return Region
    raise AttributeError(f"module 'tap_engine' has no attribute {name!r}")

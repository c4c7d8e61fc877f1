"""tap-engine: segment, recognise and caption any region of a picture, and build the data for it.

    from tap_engine import Tap

Names of this package are loaded on first use, so that importing it costs nothing.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tap_engine.model.predictor import Region, Tap

__all__ = ["Region", "Tap", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("Region", "Tap"):
        from tap_engine.model import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module 'tap_engine' has no attribute {name!r}")

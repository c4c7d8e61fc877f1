"""Checks of plain json values: numbers, whole numbers, texts.

`int(2.7)` is 2, `str(None)` is "None" and a bool is an int; each has let a garbled file through.
"""

import math
from typing import Any


def integer(value: Any, bits: int = 64) -> int:
    """A whole number of json that fits; 3.0 is one, 3.5, "3", true and null are not.

    Raises:
        ValueError: it is none, or does not fit into `bits` (signed).
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a whole number, found {value!r:.50}")
    if not math.isfinite(value) or value != int(value):
        raise ValueError(f"expected a whole number, found {value!r:.50}")
    if not -(1 << (bits - 1)) <= value < 1 << (bits - 1):
        raise ValueError(f"{int(value)} does not fit into {bits} bits")
    return int(value)


def number(value: Any) -> float:
    """A finite number.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected a finite number, found {value!r:.50}")
    return float(value)


def box(value: Any) -> list[float]:
    """Four finite numbers.

    Raises:
        ValueError: not these.
    """
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError(f"expected a box of four numbers, found {value!r:.80}")
    return [number(side) for side in value]


def text(value: Any) -> str:
    """A text; half a surrogate, which no file can hold, becomes U+FFFD.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str):
        raise ValueError(f"expected a text, found {value!r:.50}")
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

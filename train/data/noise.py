"""Random numbers computed from what they are for, without a generator's state.

Each sample carries a seed made of (run seed, epoch, image id). What is drawn from it does not
depend on how many processes or loader workers there are, nor on where a run was interrupted, so
there is no random state to save and two ranks train like one.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_STEP = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
"""Increment and multipliers of splitmix64 (Steele, Lea and Flood 2014)."""


def mixed_bits(*values: int | npt.NDArray[np.integer]) -> npt.NDArray[np.uint64]:
    """A well-spread uint64 from integers, or arrays of them that broadcast together."""
    with np.errstate(over="ignore"):
        x = np.zeros((), np.uint64)
        for value in values:
            x = x ^ np.asarray(value).astype(np.uint64)
            x = x + np.uint64(_STEP)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_1)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_2)
            x = x ^ (x >> np.uint64(31))
    return np.asarray(x)


def seed_of(*values: int) -> int:
    """One 63-bit seed from integers, for generators that want one."""
    return int(mixed_bits(*values) >> np.uint64(1))


def uniform(seeds: Tensor, stream: int, count: int) -> Tensor:
    """Independent uniform numbers for each seed, the same on every device.

    Args:
        seeds: [...] int64.
        stream: which draw this is; different streams are independent.
        count: number of values per seed, below 2^16.

    Returns:
        [..., count] float32 in [0, 1), multiples of 2^-24.
    """
    offsets = torch.arange(1, count + 1, device=seeds.device) + (stream << 16)
    x = seeds.unsqueeze(-1) + offsets * _signed(_STEP)
    x = (x ^ _shift(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift(x, 27)) * _signed(_MIX_2)
    x = x ^ _shift(x, 31)
    return _shift(x, 40).float() * 2.0**-24


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask makes it a logical shift.
    return (x >> bits) & ((1 << (64 - bits)) - 1)

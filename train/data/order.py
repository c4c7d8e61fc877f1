"""Shuffled orders of a table's images, computed from the position instead of stored.

The stream of a table is one infinite sequence: epoch after epoch, each a permutation of its rows.
Any position of it can be computed on its own, in constant memory: which rank or loader worker
reads it, and whether a run was interrupted before, changes nothing. An epoch is shuffled in two
levels: runs of consecutive rows come in random order, and `mixed_runs` of them are interleaved, so
that a reader of some of them still reads consecutive rows.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tap_engine.schemas.errors import ConfigError
from tap_engine.train.data.noise import mixed_bits

Index = npt.NDArray[np.int64]

_ROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The order of one table's rows.

    Attributes:
        rows: rows of the table.
        run_rows: consecutive rows of a run; 1 gives a full shuffle.
        mixed_runs: runs that are interleaved.
        seed: another seed, another order.
        shuffle: False gives the table's own order, over and over.
    """

    rows: int
    run_rows: int
    mixed_runs: int
    seed: int
    shuffle: bool = True

    def __post_init__(self) -> None:
        if min(self.rows, self.run_rows, self.mixed_runs) < 1:
            raise ConfigError(
                "a stream needs rows, run_rows and mixed_runs of at least 1, got "
                f"{self.rows}, {self.run_rows}, {self.mixed_runs}"
            )

    def locate(self, positions: Index) -> tuple[Index, Index]:
        """(epoch, row) of each position of the infinite sequence.

        Args:
            positions: [N] int64, not negative.
        """
        epochs, within = np.divmod(np.asarray(positions, np.int64), self.rows)
        if not self.shuffle:
            return epochs, within
        full = self.rows // self.run_rows
        block = self.run_rows * self.mixed_runs
        window = np.minimum(within // block, max((full - 1) // self.mixed_runs, 0))
        inside = within - window * block
        mixed = np.clip(full - window * self.mixed_runs, 0, self.mixed_runs)
        turn, lane = np.divmod(inside, np.maximum(mixed, 1))
        # The rows left over when rows % run_rows != 0 end the last window.
        is_rest = inside >= mixed * self.run_rows
        run = _permuted(
            np.where(is_rest, 0, window * self.mixed_runs + lane),
            full,
            mixed_bits(self.seed, epochs),
        )
        member = _permuted(
            np.where(is_rest, 0, turn), self.run_rows, mixed_bits(self.seed, epochs, run)
        )
        row = np.where(
            is_rest,
            full * self.run_rows + inside - mixed * self.run_rows,
            run * self.run_rows + member,
        )
        # Runs begin elsewhere in each epoch, so that the same rows do not always come together.
        shift = (mixed_bits(self.seed, epochs, -1) % np.uint64(self.rows)).astype(np.int64)
        return epochs, (row + shift) % self.rows


def _permuted(index: Index, size: int, keys: npt.NDArray[np.uint64]) -> Index:
    """Images of indices under a keyed permutation of range(size).

    A Feistel network permutes the next power of four; what falls outside is sent on until it is
    inside (cycle walking), which keeps it a permutation of range(size).
    """
    if size <= 1:
        return np.zeros_like(index)
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    keys = np.broadcast_to(keys, index.shape)
    out = index.astype(np.uint64)
    outside = np.ones(index.shape, bool)
    while outside.any():
        left, right = out[outside] >> np.uint64(half), out[outside] & low
        for turn in range(_ROUNDS):
            left, right = right, left ^ (mixed_bits(keys[outside], turn, right) & low)
        out[outside] = left << np.uint64(half) | right
        outside = out >= size
    return out.astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interleaving:
    """Mixes several streams: says which one each position of the mixed stream is taken from.

    Attributes:
        counts: number of positions per stream in each cycle of sum(counts).
        seed: the order inside a cycle.
    """

    counts: tuple[int, ...]
    seed: int

    @classmethod
    def of_weights(cls, weights: tuple[float, ...], seed: int, cycle: int = 1000) -> "Interleaving":
        """Weights rounded to a cycle; every stream gets at least one place in it.

        Raises:
            ConfigError: no weights, or one that is not positive.
        """
        if not weights or min(weights) <= 0:
            raise ConfigError(f"stream weights must be positive, got {weights}")
        if len(weights) == 1:
            return cls(counts=(1,), seed=seed)
        total = sum(weights)
        return cls(counts=tuple(max(1, round(cycle * w / total)) for w in weights), seed=seed)

    def locate(self, positions: Index) -> tuple[Index, Index]:
        """(stream, position within that stream) of each position of the mixed stream."""
        positions = np.asarray(positions, np.int64)
        slots = np.repeat(np.arange(len(self.counts)), self.counts)
        size = len(slots)
        slots = slots[_permuted(np.arange(size), size, mixed_bits(self.seed))]
        before = np.stack([np.cumsum(slots == k) - (slots == k) for k in range(len(self.counts))])
        cycle, slot = np.divmod(positions, size)
        stream = slots[slot]
        return stream, cycle * np.asarray(self.counts)[stream] + before[stream, slot]

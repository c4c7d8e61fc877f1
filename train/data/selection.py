"""Chooses the images that are drawn if that is not simply all of them: splits and plans.

Either the images of one split of a captioned store, or those of a plan: `tap-data mix` lists the
images of each subset of CaptionSA-400M, and an epoch of the stream is one subset, the subsets in
turn. Row numbers are kept, eight bytes per image of the plan: 34 MB for the full CaptionSA-400M.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tap_engine.schemas.errors import ConfigError, StoreError
from tap_engine.schemas.tables import MIXTURE, table_uri
from tap_engine.train.data.lance_table import open_table
from tap_engine.train.data.noise import seed_of
from tap_engine.train.data.order import Index, Order
from tap_engine.train.data.store_reader import StoreReader


@dataclass(frozen=True, slots=True)
class Turns:
    """Lists of rows, one list an epoch, in turn; the stream of them is infinite, as `Order`'s.

    Attributes:
        lists: [N_k] row numbers of each list, none empty.
        orders: the order in which each list is gone through.
    """

    lists: tuple[Index, ...]
    orders: tuple[Order, ...]

    @classmethod
    def of_lists(cls, lists: Sequence[Index], seed: int, **order: Any) -> "Turns":
        """Gives every list its own shuffled order. `order`: the other fields of `Order`."""
        run_rows = order.pop("run_rows")
        return cls(
            tuple(lists),
            tuple(
                Order(
                    rows=len(rows),
                    run_rows=min(run_rows, len(rows)),
                    seed=seed_of(seed, turn) if len(lists) > 1 else seed,
                    **order,
                )
                for turn, rows in enumerate(lists)
            ),
        )

    def locate(self, positions: Index) -> tuple[Index, Index]:
        """(epoch, row) of each position: `Order.locate` over the lists; an epoch is one list."""
        sizes = np.array([len(rows) for rows in self.lists])
        ends = np.cumsum(sizes)
        cycle, within = np.divmod(np.asarray(positions, np.int64), ends[-1])
        turn = np.searchsorted(ends, within, side="right")
        rows = np.empty_like(within)
        for k, (chosen, order) in enumerate(zip(self.lists, self.orders, strict=True)):
            mine = turn == k
            start = ends[k] - sizes[k]
            _, at = order.locate(cycle[mine] * sizes[k] + within[mine] - start)
            rows[mine] = chosen[at]
        return cycle * len(self.lists) + turn, rows

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of a hash of the lists: another plan, another order."""
        digest = hashlib.sha256()
        for rows in self.lists:
            digest.update(len(rows).to_bytes(8, "little") + rows.astype("<i8").tobytes())
        return digest.hexdigest()[:16]


def planned_rows(
    mixture: str,
    subset: int | None,
    readers: Sequence[StoreReader],
    storage_options: Mapping[str, str] | None = None,
) -> list[Index]:
    """The rows of each subset of a plan, in the stores' own order, counted over all stores.

    Args:
        mixture: folder or object-store prefix with the table that `tap-data mix` wrote.
        subset: only this one; None for all, in ascending order.
        readers: the stores that hold the images.
        storage_options: options of the object store, as Lance takes them.

    Raises:
        StoreError: no such table, or an image of the plan is in no store or in two.
        ConfigError: no such subset.
    """
    planned = _planned(mixture, storage_options)
    if subset is not None and subset not in planned:
        raise ConfigError(
            f"stream.subset={subset}: {mixture} has the subsets {', '.join(map(str, planned))}"
        )
    lists = []
    for number, ids in planned.items():
        if subset not in (None, number):
            continue
        found, start, seen = [], 0, np.zeros(len(ids), np.int64)
        for reader in readers:
            rows = reader.rows_of(ids)
            seen += rows >= 0
            found.append(np.sort(rows[rows >= 0]) + start)
            start += reader.rows
        if (seen != 1).any():
            at = int(np.flatnonzero(seen != 1)[0])
            stores = ", ".join(reader.uri for reader in readers)
            raise StoreError(
                f"{mixture}, subset {number}: {int((seen == 0).sum()):,} of {len(ids):,} planned "
                f"images are in none of the stores and {int((seen > 1).sum()):,} in several, such "
                f"as image {ids[at]}; stores: {stores}. Give exactly the stores that were planned"
            )
        lists.append(np.concatenate(found))
    return lists


def _planned(mixture: str, options: Mapping[str, str] | None) -> dict[int, Index]:
    # Subset -> sorted image ids; the table's rows come in any order.
    uri = table_uri(mixture, MIXTURE)
    table = open_table(uri, options, hint="`tap-data mix` makes a plan")
    columns = table.to_table(columns=["subset", "image_id"])
    subsets, ids = columns["subset"].to_numpy(), columns["image_id"].to_numpy()
    if not len(ids):
        raise StoreError(f"{uri} is empty: nothing is planned")
    return {int(k): np.sort(ids[subsets == k]) for k in np.unique(subsets)}

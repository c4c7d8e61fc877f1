"""Plans a build: indexes the shards, drops what the store has, cuts to the limit."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tap_engine.pipeline.sources.filesystem import base_name, shown
from tap_engine.pipeline.sources.records import Shard, Source, Unit
from tap_engine.schemas.rejects import Reason, Reject, Stage

_INDEX_THREADS = 32
"""Indexing waits for headers (one small read each), so threads beat cores."""


class StoredImages(NamedTuple):
    """Sorted ids of the images in a store, and the sizes of their files in bytes."""

    ids: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Units to build, and how that relates to what was asked.

    Attributes:
        units: to do, none empty, each image once.
        rejects: what the indices of the shards showed to be unusable.
        found_images: sorted ids of all usable images in all indexed shards, built or not.
        total_images: usable images in all shards, each counted once, after the limit.
        built_images: number of those that are in the store already.
        duplicate_images: seen again in another shard; built once.
        shards: number of shards that were indexed.
    """

    units: list[Unit]
    rejects: list[Reject]
    found_images: npt.NDArray[np.int64]
    total_images: int
    built_images: int
    duplicate_images: int
    shards: int


def make_plan(
    source: Source,
    shards: Sequence[Shard],
    *,
    unit_images: int,
    limit: int,
    done_images: npt.NDArray[np.int64],
    stored: StoredImages | None = None,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> Plan:
    """Index shards and keep what is not in the store.

    Args:
        source: reads the shards.
        shards: what `source.shards()` returned.
        unit_images: images per unit.
        limit: number of images at most, built ones included; 0 for all. Shards beyond it
            are not indexed.
        done_images: sorted ids, of ledger.py.
        stored: what the store holds, to tell copies from other pictures of the same number.
        on_shard: told of (shards indexed, shards in all).
    """
    units: list[Unit] = []
    rejects: list[Reject] = []
    images = 0
    indexed = 0
    with ThreadPoolExecutor(_INDEX_THREADS) as pool:
        # Windows, so that a limit does not index a thousand shards for nothing.
        for start in range(0, len(shards), _INDEX_THREADS):
            window = shards[start : start + _INDEX_THREADS]
            for found, left_out in pool.map(lambda s: source.index(s, unit_images), window):
                units += found
                rejects += left_out
                images += sum(len(unit) for unit in found)
                indexed += 1
                on_shard(indexed, len(shards))
            if limit and images >= limit:
                break
    ids = np.concatenate([unit.image_ids for unit in units]) if units else np.empty(0, np.int64)
    found_images, firsts = np.unique(ids, return_index=True)
    first = _first_occurrence(units, firsts)
    kept: list[Unit] = []
    total = built = 0
    for unit, is_first in zip(units, first, strict=True):
        wanted = is_first.copy()
        if limit:
            wanted &= np.cumsum(is_first) <= limit - total
        done = wanted & _contains(done_images, unit.image_ids)
        total += int(wanted.sum())
        built += int(done.sum())
        todo = wanted & ~done
        if todo.all():
            kept.append(unit)
        elif todo.any():
            kept.append(unit.without(~todo))
    repeated = sum(int((~is_first).sum()) for is_first in first)
    others = _other_pictures(units, found_images, firsts, stored)
    repeated -= sum(reject.detail.endswith(_IN_THIS_BUILD) for reject in others)
    rejects += others
    return Plan(kept, rejects, found_images, total, built, repeated, indexed)


_IN_THIS_BUILD = "another picture of this build has its number"


def _other_pictures(
    units: Sequence[Unit],
    found: npt.NDArray[np.int64],
    firsts: npt.NDArray[np.int64],
    stored: StoredImages | None,
) -> list[Reject]:
    """Images whose number is taken by a file of another size: no copies, so they are lost.

    Args:
        units: all that were indexed.
        found: sorted ids in them.
        firsts: for each of `found`, the place of its first occurrence in all units.
        stored: of the store; None where it is new.
    """
    if not units or any(unit.image_bytes is None for unit in units):
        return []
    sizes = np.concatenate([unit.image_bytes for unit in units])
    rejects: list[Reject] = []
    start = 0
    for unit in units:
        own = sizes[start : start + len(unit)]
        places = np.searchsorted(found, unit.image_ids)
        clash = own != sizes[firsts[places]]
        in_store = np.zeros(len(unit), bool)
        if stored is not None and len(stored.ids):
            at = np.minimum(np.searchsorted(stored.ids, unit.image_ids), len(stored.ids) - 1)
            in_store = (stored.ids[at] == unit.image_ids) & (stored.sizes[at] != own)
        for i in np.flatnonzero(clash | in_store).tolist():
            whose = _IN_THIS_BUILD if clash[i] else "the store has another picture of its number"
            rejects.append(
                Reject(
                    stage=Stage.INDEX,
                    reason=Reason.DUPLICATE_IMAGE,
                    detail=f"{unit.file_names[i]} of {shown(base_name(unit.shard))}: {whose}",
                    image_id=int(unit.image_ids[i]),
                )
            )
        start += len(unit)
    return rejects


def _first_occurrence(
    units: Sequence[Unit], firsts: npt.NDArray[np.int64]
) -> list[npt.NDArray[np.bool_]]:
    """For each unit, which of its images no earlier unit has.

    Args:
        units: whose images are numbered through.
        firsts: numbers of the images that no earlier one repeats.
    """
    if not units:
        return []
    first = np.zeros(sum(len(unit) for unit in units), bool)
    first[firsts] = True
    return np.split(first, np.cumsum([len(unit) for unit in units])[:-1])


def _contains(
    ordered: npt.NDArray[np.int64], values: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Which values are in a sorted array, at the cost of the values."""
    if not len(ordered):
        return np.zeros(len(values), bool)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return ordered[places] == values

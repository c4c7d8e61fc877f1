"""The stream of batches from stores: endless, sharded, resumable at any image.

The order is a function of the position (order.py), so the whole state of the stream is one number,
how many images the run has consumed. Ranks and loader workers take their own positions out of the
same sequence: an image comes exactly once per epoch for any number of either, nothing is padded or
dropped, and the last batch of an epoch is filled from the next one.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from tap_engine.schemas.errors import CheckpointError, ConfigError, StoreError
from tap_engine.train.data.examples import (
    REGION_COLUMNS,
    Batch,
    Example,
    ExampleConfig,
    collate,
    make_example,
)
from tap_engine.train.data.loading import load
from tap_engine.train.data.noise import seed_of
from tap_engine.train.data.order import Index, Interleaving, Order
from tap_engine.train.data.selection import Turns, planned_rows
from tap_engine.train.data.store_reader import StoredImage, StoreReader, lacking


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """Settings of the stream: stores, mixture, order, loading.

    Attributes:
        stores: store folders or object-store prefixes.
        weights: share of each store in the stream; empty joins them into one long table.
        storage_options: "name=value" for object stores; environment variables work without.
        soft_masks: mask targets are the share of each mask pixel that is covered; else 0 or 1.
        shuffle: False reads in the tables' own order.
        share: use this share of each store's images: a fixed random part, the same for every seed,
            store layout and run, since the image's id decides.
        first_images: use only so many images of each store; 0 uses all.
        split: images whose `split` column does not name this one are left out, but for stores
            where no image has a split. Empty uses all.
        mixture: a plan of `tap-data mix` for these stores: only its images are drawn, an epoch is
            one subset.
        subset: number of a subset of the plan; None takes all in turn (docs/decisions/0055).
        run_rows: consecutive images that are read together.
        mixed_runs: runs that are interleaved. For many processes make it a multiple of global
            batch x loader workers: each then reads whole runs.
        read_ahead: images a worker fetches at once; with about 1.3 MB each (SA-1B) this bounds its
            memory.
        workers: loader processes per rank; 0 loads in the training process.
        prefetch: batches a worker keeps ready.
        max_problems: images that may be unreadable before the run stops.
    """

    stores: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    storage_options: tuple[str, ...] = ()
    soft_masks: bool = False
    shuffle: bool = True
    share: float = 1.0
    first_images: int = 0
    split: str = "train"
    mixture: str = ""
    subset: int | None = None
    run_rows: int = 8
    mixed_runs: int = 64
    read_ahead: int = 64
    workers: int = 2
    prefetch: int = 2
    max_problems: int = 100

    def __post_init__(self) -> None:
        if self.weights and len(self.weights) != len(self.stores):
            raise ConfigError(
                f"stream.weights has {len(self.weights)} numbers for {len(self.stores)} stores"
            )
        for name in ("run_rows", "mixed_runs", "read_ahead", "prefetch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"stream.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("workers", "max_problems", "first_images"):
            if getattr(self, name) < 0:
                raise ConfigError(f"stream.{name} must not be negative, got {getattr(self, name)}")
        if any(not 0 < weight < math.inf for weight in self.weights):
            raise ConfigError(f"stream.weights must be positive numbers, got {self.weights}")
        if not 0 < self.share <= 1:
            raise ConfigError(f"stream.share must be in (0, 1], got {self.share}")
        if self.mixture and (self.weights or self.first_images or self.share < 1):
            raise ConfigError(
                "stream.mixture says which images are drawn and how often: stream.weights, "
                "stream.first_images and stream.share must be empty, 0 and 1"
            )
        for option in self.storage_options:
            if "=" not in option:
                raise ConfigError(f"stream.storage_options are name=value, got {option!r}")

    @property
    def options(self) -> dict[str, str]:
        """Storage options as Lance takes them."""
        return dict(option.split("=", 1) for option in self.storage_options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """This process's part of every step.

    Attributes:
        images: images of one forward pass in one process.
        accumulate: forward passes per step.
        rank, world: which process of how many.
    """

    images: int
    accumulate: int = 1
    rank: int = 0
    world: int = 1

    @property
    def step_images(self) -> int:
        """Images per step over all processes."""
        return self.images * self.accumulate * self.world

    def positions(self, passes: Index) -> Index:
        """[N, images]: places in the stream of this process's forward passes, counted from 0."""
        step, turn = np.divmod(passes, self.accumulate)
        first = step * self.step_images + (turn * self.world + self.rank) * self.images
        return first[:, None] + np.arange(self.images)


class Stream:
    """The images of all stores as one endless sequence.

    Args:
        config: stores and mixing.
        samples: what is made of an image.
        versions: table versions by store, of an earlier `state`; the newest by default.
    """

    def __init__(
        self,
        config: StreamConfig,
        samples: ExampleConfig,
        versions: list[Mapping[str, int]] | None = None,
    ) -> None:
        if not config.stores:
            raise ConfigError("no store to train on: give --store, or --set stream.stores=...")
        if versions is not None and len(versions) != len(config.stores):
            raise CheckpointError(
                f"the checkpoint streamed {len(versions)} stores, this run has {len(config.stores)}"
            )
        self.config = config
        self.samples = samples
        self.readers = [
            StoreReader(
                uri,
                region_columns=REGION_COLUMNS,
                optional_columns=samples.columns,
                storage_options=config.options,
                versions=versions[i] if versions else None,
            )
            for i, uri in enumerate(config.stores)
        ]
        have = {name for reader in self.readers for name in reader.columns}
        if missing := set(samples.columns) - have:
            raise StoreError(lacking(f"no store ({', '.join(config.stores)}) has", missing))
        self._starts = np.cumsum([0, *(reader.rows for reader in self.readers)])
        self._mixture = Interleaving.of_weights(config.weights or (1.0,), samples.seed)
        if config.mixture:
            lists = planned_rows(config.mixture, config.subset, self.readers, config.options)
            self.rows = [len(rows) for rows in lists]
            self._orders: list[Order | Turns] = [self._turns(0, lists)]
            return
        chosen = [self._chosen(reader) for reader in self.readers]
        self.rows = [
            reader.rows if rows is None else len(rows)
            for reader, rows in zip(self.readers, chosen, strict=True)
        ]
        # Unweighted stores are one long table; weighted ones each have an order of their own.
        parts = [[i] for i in range(len(chosen))] if config.weights else [list(range(len(chosen)))]
        self._orders = [self._order(i, part, chosen) for i, part in enumerate(parts)]

    def _chosen(self, reader: StoreReader) -> Index | None:
        # Rows of the split and below the limit; None where that is all of them.
        rows = reader.split_rows(self.config.split) if self.config.split else None
        if rows is not None and not len(rows):
            raise StoreError(
                f"{reader.uri} has no image of split {self.config.split!r}; "
                "--set stream.split= takes all"
            )
        if self.config.share < 1:
            part = reader.shared_rows(self.config.share)
            rows = part if rows is None else np.intersect1d(rows, part, assume_unique=True)
            if not len(rows):
                raise StoreError(
                    f"{reader.uri}: stream.share={self.config.share} leaves none of "
                    f"{reader.rows} images"
                )
        limit = self.config.first_images
        if not limit or limit >= (reader.rows if rows is None else len(rows)):
            return rows
        return np.arange(limit) if rows is None else rows[:limit]

    def _order(self, number: int, part: list[int], chosen: list[Index | None]) -> Order | Turns:
        if all(chosen[i] is None for i in part):
            rows = sum(self.readers[i].rows for i in part)
            return Order(
                rows=rows,
                run_rows=min(self.config.run_rows, rows),
                mixed_runs=self.config.mixed_runs,
                seed=seed_of(self.samples.seed, number),
                shuffle=self.config.shuffle,
            )
        found = []
        for i in part:
            rows_of_store = chosen[i]
            if rows_of_store is None:
                rows_of_store = np.arange(self.readers[i].rows)
            found.append(rows_of_store + self._starts[i] - self._starts[part[0]])
        return self._turns(number, [np.concatenate(found)])

    def _turns(self, number: int, lists: list[Index]) -> Turns:
        return Turns.of_lists(
            lists,
            seed_of(self.samples.seed, number),
            run_rows=self.config.run_rows,
            mixed_runs=self.config.mixed_runs,
            shuffle=self.config.shuffle,
        )

    @property
    def epoch_images(self) -> int:
        """Images of one pass over all stores, or over all subsets of the plan."""
        return sum(self.rows)

    def state(self, consumed: int) -> dict[str, Any]:
        """State for a checkpoint: the position, and what would change its meaning."""
        return {
            "consumed": consumed,
            "versions": [reader.versions for reader in self.readers],
            "rows": self.rows,
            "seed": self.samples.seed,
            "order": [self.config.shuffle, self.config.run_rows, self.config.mixed_runs],
            "mixture": list(self._mixture.counts),
            "selection": [o.fingerprint for o in self._orders if isinstance(o, Turns)],
        }

    def resume(self, state: Mapping[str, Any]) -> int:
        """Images consumed by the run that `state` is of.

        Raises:
            CheckpointError: the order is another now, so the position would mean other images.
        """
        ours = self.state(state["consumed"])
        state = {"selection": []} | dict(state)  # what runs without one have kept
        if different := [k for k in ours if k != "versions" and ours[k] != state.get(k)]:
            raise CheckpointError(
                "the stream is not the one that was interrupted: "
                + "; ".join(f"{k} is {ours[k]}, was {state.get(k)}" for k in different)
                + ". Use the same stores and stream settings, or start a new run from its "
                "weights with --set init.weights=CHECKPOINT and another --out"
            )
        return int(state["consumed"])

    def batches(self, share: Share, *, consumed: int, steps: int, pin: bool) -> Iterator[Batch]:
        """Batches of this process, `share.accumulate` a step, in the order of the steps.

        Args:
            share: this process's part.
            consumed: images of the stream that came before.
            steps: number of steps to make batches for.
            pin: copy to pinned memory, for CUDA.

        Raises:
            LoaderError: a loader process died or cannot hand its batches over.
        """
        passes = _Passes(self, share, consumed, steps * share.accumulate)
        return load(passes, workers=self.config.workers, prefetch=self.config.prefetch, pin=pin)

    def locate(self, positions: Index) -> tuple[Index, Index, Index]:
        """(store, epoch, row of its `images`) at each place of the stream."""
        part, places = self._mixture.locate(positions)
        epochs, rows = np.empty_like(places), np.empty_like(places)
        for i, order in enumerate(self._orders):
            mine = part == i
            epochs[mine], rows[mine] = order.locate(places[mine])
        if self.config.weights:
            return part, epochs, rows
        store = np.searchsorted(self._starts, rows, side="right") - 1
        return store, epochs, rows - self._starts[store]

    def fetch(self, positions: Index) -> Iterator[Example]:
        """The samples at these places of the stream, in this order.

        Everything is read at once, in the tables' order; decoding waits until a sample is asked
        for, so only compressed images pile up.
        """
        stores, epochs, rows = self.locate(positions)
        found: list[StoredImage | None] = [None] * len(positions)
        for store in np.unique(stores):
            mine = np.flatnonzero(stores == store)
            for at, image in zip(mine, self.readers[store].read(rows[mine]), strict=True):
                found[at] = image
        pairs = zip(found, epochs, strict=True)
        return (make_example(image, int(epoch), self.samples) for image, epoch in pairs if image)


class _Passes(IterableDataset[Batch]):
    """The forward passes of one process; loader worker w of n makes every n-th, from the w-th."""

    def __init__(self, stream: Stream, share: Share, consumed: int, passes: int) -> None:
        self.stream, self.share, self.consumed, self.passes = stream, share, consumed, passes

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        together = max(1, self.stream.config.read_ahead // self.share.images)
        mine = np.arange(first, self.passes, every)
        for start in range(0, len(mine), together):
            places = self.share.positions(mine[start : start + together])
            samples = self.stream.fetch(self.consumed + places.ravel())
            for _ in range(len(places)):
                yield collate(islice(samples, self.share.images), self.stream.samples.prompted)

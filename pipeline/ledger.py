"""The ledger of a build: which units are done, and the commit. The tables are the ledger.

A unit is done when its rows are in `images` (or, if no image of it was usable, when `rejects`
holds its `unit_empty` row). Commits go regions, rejects, images; on start, regions and rejects of
units that are not done are removed. Whatever moment a process dies at, each unit's rows are
therefore there once or not at all. No side file can disagree. What is left to do is asked by image,
so a resume may cut units another way.

What the index of a shard shows to be unusable (half a pair, a damaged stretch) is no worker's
business: the driver commits it itself, compared with what is there, so each row comes once.

One driver at a time may commit (lease.py). One that takes over from a driver which may still wake
up fences the tables first: what that one had prepared is refused (docs/decisions/0110-fencing.md).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from lance.fragment import FragmentMetadata

from tap_engine.pipeline.lease import Lease
from tap_engine.pipeline.planning import StoredImages
from tap_engine.pipeline.store import Store, distinct, runs_of
from tap_engine.schemas.errors import StoreError
from tap_engine.schemas.rejects import HALF_PAIRS, Reason, Reject, Stage
from tap_engine.schemas.tables import IMAGES, REGIONS, REJECTS, rejects_schema

_KEEP_VERSIONS = timedelta(days=1)
"""A trainer may be reading a version while a build goes on."""


@dataclass(slots=True)
class UnitResult:
    """A worker's report of one finished unit. It is small: the rows are already in files.

    Attributes:
        unit_id: the unit.
        images, regions: rows written.
        image_fragments, region_fragments: the uncommitted files, as Lance describes them.
        rejects: what was left out.
        seconds: time spent by stage; work of several threads adds up.
        crops: crops that went through the teacher.
        failure: why the unit could not be built; empty for a finished one.
    """

    unit_id: int
    images: int = 0
    regions: int = 0
    image_fragments: list[FragmentMetadata] = field(default_factory=list)
    region_fragments: list[FragmentMetadata] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    crops: int = 0
    failure: str = ""


def rejects_table(unit_id: int, rejects: Sequence[Reject]) -> pa.Table:
    """Rows of the `rejects` table."""
    rows = [{"unit": unit_id, **asdict(reject)} for reject in rejects]
    return pa.Table.from_pylist(rows, schema=rejects_schema())


class Ledger:
    """The committing end of a build; used by exactly one driver at a time, as a context manager.

    Entering takes the lease, removes what an interrupted run left behind and reads what is done.
    """

    def __init__(self, store: Store, *, take_over: bool = False) -> None:
        self.store = replace(store, patient=True)
        self._lease = Lease(self.store, take_over)
        self.done: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self.removed_rows = 0

    def __enter__(self) -> "Ledger":
        self._lease.take()
        try:
            if not self._lease.alone:
                for table in (REGIONS, REJECTS, IMAGES):
                    self.store.fence(table)
            self._clean()
            self._remove_orphans()
        except BaseException:
            self._lease.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lease.release()

    def commit(self, results: Sequence[UnitResult]) -> None:
        """Make finished units visible, all of them or none.

        Raises:
            StoreError: the lease is lost, or a result does not add up; nothing is committed then.
        """
        fresh = {result.unit_id: result for result in results}
        if len(fresh) != len(results) or np.isin(list(fresh), self.done).any():
            raise StoreError("a unit was delivered twice; nothing of this batch was committed")
        for result in results:
            _check(result)
        rejects = [rejects_table(r.unit_id, r.rejects) for r in results if r.rejects]
        if fragments := [f for r in results for f in r.region_fragments]:
            self._append(REGIONS, fragments)
        if rejects:
            self._append_rejects(pa.concat_tables(rejects))
        if fragments := [f for r in results for f in r.image_fragments]:
            self._append(IMAGES, fragments)
        self.done = np.union1d(self.done, np.fromiter(fresh, np.int64))

    def commit_index(
        self, rejects: Sequence[Reject], found_images: npt.NDArray[np.int64]
    ) -> list[Reject]:
        """Make visible what the indices showed; returns those that no earlier run wrote.

        Half a pair whose other half has appeared since is none any more: its row goes, unless an
        index still shows a half of that image (a copy of it may be whole elsewhere).

        Args:
            rejects: rejects of stage `index` from all shards of this run.
            found_images: sorted ids of the images that are usable now.

        Raises:
            StoreError: the lease is lost.
        """
        table = self.store.open(REJECTS)
        stored = self.store.patiently(
            lambda: table.to_table(
                columns=["reason", "detail", "image_id"], filter=f"stage = '{Stage.INDEX}'"
            )
        ).to_pylist()
        halves = {row["image_id"] for row in stored if row["reason"] in HALF_PAIRS} - {None}
        halves -= {reject.image_id for reject in rejects if reject.reason in HALF_PAIRS}
        paired = np.intersect1d(np.fromiter(halves, np.int64), found_images)
        reasons = ", ".join(f"'{reason}'" for reason in sorted(HALF_PAIRS))
        for start in range(0, len(paired), 1000):
            self._lease.require()
            images = ", ".join(str(image) for image in paired[start : start + 1000])
            where = f"stage = '{Stage.INDEX}' AND reason IN ({reasons}) AND image_id IN ({images})"
            self.store.patiently(partial(table.delete, where))
        known = Counter((row["reason"], row["detail"], row["image_id"]) for row in stored)
        fresh = []
        for reject in rejects:
            row = (reject.reason.value, reject.detail, reject.image_id)
            if known[row]:
                known[row] -= 1
            else:
                fresh.append(reject)
        if fresh:
            content = json.dumps([asdict(reject) for reject in fresh])
            digest = hashlib.blake2b(content.encode(), digest_size=8).digest()
            unit = int.from_bytes(digest, "big") >> 1
            self._append_rejects(rejects_table(unit, fresh))
            self.done = np.union1d(self.done, unit)
        return fresh

    def _append(self, table: str, fragments: Sequence[FragmentMetadata]) -> None:
        # The version first: whoever takes the lease after it fences the table, and this append
        # is refused however long this process is held up from here on.
        version = self.store.open(table).version
        self._lease.require()
        self.store.append(table, fragments, version)

    def _append_rejects(self, rows: pa.Table) -> None:
        writer = self.store.writer(REJECTS, rejects_schema())
        for batch in rows.combine_chunks().to_batches():
            writer.write(batch.columns)
        self._append(REJECTS, writer.close())

    def _clean(self) -> None:
        """Remove rows of unfinished units, and units that are in the store twice.

        Two drivers of version 0.1 could write a unit twice; it is built again.
        """
        stored, twice = self.store.patiently(lambda: runs_of(self.store.open(REGIONS), "unit"))
        table = self.store.patiently(
            lambda: self.store.open(IMAGES).to_table(columns=["image_id", "unit"])
        )
        images, units = (table.column(name).to_numpy() for name in ("image_id", "unit"))
        _, places, times = np.unique(images, return_inverse=True, return_counts=True)
        twice = np.union1d(twice, units[times[places] > 1])
        self.removed_rows = self._remove_units(IMAGES, twice)
        self.done = done_units(self.store)
        self.removed_rows += self._remove_units(REGIONS, np.setdiff1d(stored, self.done))
        rejected = _distinct(self.store, REJECTS, "unit")
        self.removed_rows += self._remove_units(REJECTS, np.setdiff1d(rejected, self.done))

    def _remove_units(self, table: str, units: npt.NDArray[np.int64]) -> int:
        dataset = self.store.open(table)
        before = dataset.count_rows()
        for start in range(0, len(units), 1000):
            self._lease.require()
            listed = ", ".join(str(unit) for unit in units[start : start + 1000])
            self.store.patiently(partial(dataset.delete, f"unit IN ({listed})"))
        return before - self.store.open(table).count_rows()

    def _remove_orphans(self) -> None:
        # Files of fragments that were never committed. A driver that fell silent elsewhere may
        # still wake up and commit the last of its own; Lance then keeps files below a week of age.
        for table in (REGIONS, REJECTS, IMAGES):
            clean = partial(
                self.store.open(table).cleanup_old_versions,
                older_than=_KEEP_VERSIONS,
                delete_unverified=self._lease.alone,
            )
            self.store.patiently(clean)


def done_units(store: Store) -> npt.NDArray[np.int64]:
    """Sorted ids of the units whose rows are all in the store.

    Those of the driver's own rejects (one append) are among them.
    """
    filter_ = f"reason = '{Reason.UNIT_EMPTY}' OR stage = '{Stage.INDEX}'"
    empty = _distinct(store, REJECTS, "unit", filter_)
    return np.union1d(_distinct(store, IMAGES, "unit"), empty)


def done_images(store: Store) -> npt.NDArray[np.int64]:
    """Sorted ids of the images that need no more work: stored, or rejected as a whole.

    What an index rejected is asked of the index again: a missing half may have come.
    """
    rejected = _distinct(
        store, REJECTS, "image_id", f"region_id IS NULL AND stage != '{Stage.INDEX}'"
    )
    return np.union1d(_distinct(store, IMAGES, "image_id"), rejected)


def stored_images(store: Store) -> StoredImages:
    """Images that the store holds; reads where their files lie, not the files."""

    def read() -> pa.Table:
        return store.open(IMAGES).to_table(columns=["image_id", "jpeg"])

    table = store.patiently(read)
    ids = table.column("image_id").to_numpy()
    sizes = pc.struct_field(table.column("jpeg"), "size").to_numpy().astype(np.int64)
    order = np.argsort(ids, kind="stable")
    return StoredImages(ids[order], sizes[order])


def _distinct(
    store: Store, table: str, column: str, filter_: str | None = None
) -> npt.NDArray[np.int64]:
    return store.patiently(lambda: distinct(store.open(table), column, filter_))


def _check(result: UnitResult) -> None:
    for name, rows, fragments in (
        ("images", result.images, result.image_fragments),
        ("regions", result.regions, result.region_fragments),
    ):
        written = sum(fragment.physical_rows for fragment in fragments)
        if written != rows:
            raise StoreError(
                f"unit {result.unit_id}: {rows} {name} reported, {written} in its fragments"
            )
    if not result.images and not any(r.reason == Reason.UNIT_EMPTY for r in result.rejects):
        raise StoreError(f"unit {result.unit_id} has no image and no {Reason.UNIT_EMPTY} row")

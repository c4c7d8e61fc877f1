"""Reads a store for training: row numbers in, images with their regions out.

An image's regions are found by counting, not by a join: a unit's regions are one block of rows
sorted by key, so the region counts of the unit's images say where each image begins. What comes
back is checked against the keys. Only a start row per unit is kept in memory.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tap_engine.schemas.errors import StoreError
from tap_engine.schemas.keys import ORDINAL_BITS
from tap_engine.schemas.provenance import METADATA_KEY, Provenance
from tap_engine.schemas.store_settings import StoreSettings
from tap_engine.schemas.tables import IMAGES, REGIONS, table_uri
from tap_engine.train.data.lance_table import open_table
from tap_engine.train.data.noise import mixed_bits
from tap_engine.train.data.order import Index

_SHARE = 0x5A
"""Keeps the draw of `shared_rows` apart from those of examples, which hash ids as well."""

_CACHED_UNITS = 2048
"""Units whose images are remembered: 16 KB each at 512 images."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image as it lies in the store.

    Attributes:
        image_id: see schemas/keys.py.
        size_hw: height and width, px.
        jpeg: the file's bytes.
        regions: its rows of `regions`, the columns that were asked for, sorted by key.
    """

    image_id: int
    size_hw: tuple[int, int]
    jpeg: bytes
    regions: pa.Table


def lacking(what: str, columns: Iterable[str]) -> str:
    """The message about columns of `regions` that are needed and not there."""
    return (
        f"{what} columns {sorted(columns)}, which these settings need; `tap-data inspect` shows "
        "what was built"
    )


_LOCAL_BLOBS = 16
"""Images asked for at once from a disk. Lance joins neighbours into one read, and fresh buffers of
tens of MB cost more in page faults than fewer reads save (64 at once: four times the CPU time)."""


class _Unit(NamedTuple):
    """The images of a unit in the order of their rows, and the rows of `regions` they have."""

    ids: Index
    heights: npt.NDArray[np.int32]
    widths: npt.NDArray[np.int32]
    starts: Index
    ends: Index


class _Blocks(NamedTuple):
    """Rows of the units of a table: block i has rows starts[i] up to starts[i + 1]."""

    units: Index
    starts: Index


class StoreReader:
    """Reads images with their regions from fixed versions of a store's tables.

    Pickles small, opens its tables on first use: made for loader workers that are spawned (Lance
    is not safe to fork).

    Args:
        uri: the store: a folder or an object-store prefix.
        region_columns: columns of `regions` to read; `key` is always among them.
        optional_columns: columns to read where the store has them; captioned stores that no
            teacher saw have no embedding.
        storage_options: options of the object store, as Lance takes them; the usual variables
            work without.
        versions: table versions to open, of `versions` of an earlier run; the newest by default.

    Raises:
        StoreError: a table is missing, or the rows of a unit do not lie together.
    """

    def __init__(
        self,
        uri: str,
        *,
        region_columns: Sequence[str],
        optional_columns: Sequence[str] = (),
        storage_options: Mapping[str, str] | None = None,
        versions: Mapping[str, int] | None = None,
    ) -> None:
        self.uri = uri
        self._options = dict(storage_options or {})
        self.versions = dict(versions or {})
        self._tables: dict[str, Any] = {}
        self._units: OrderedDict[int, _Unit] = OrderedDict()
        for name in (IMAGES, REGIONS):
            self.versions[name] = self._table(name).version
        stored = self._table(REGIONS).schema.names
        if missing := set(region_columns) - set(stored):
            raise StoreError(lacking(f"{table_uri(uri, REGIONS)} lacks", missing))
        present = [name for name in optional_columns if name in stored]
        self.columns = tuple(dict.fromkeys(["key", *region_columns, *present]))
        self._images = self._blocks(IMAGES)
        self._regions = self._blocks(REGIONS)
        self.rows = int(self._images.starts[-1])
        self._block_of_unit = {int(unit): i for i, unit in enumerate(self._regions.units)}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tables": {}, "_units": OrderedDict()}

    @property
    def provenance(self) -> Provenance:
        """Provenance of the regions."""
        metadata = self._table(REGIONS).schema.metadata or {}
        text = metadata.get(METADATA_KEY.encode())
        if text is None:
            raise StoreError(
                f"{table_uri(self.uri, REGIONS)} has no {METADATA_KEY!r} metadata, so nothing says "
                "which teacher made it; rebuild it with `tap-data build-semantic`"
            )
        return Provenance.from_json(text.decode())

    @property
    def settings(self) -> StoreSettings:
        """Settings that decide the values in the regions: teacher, vocabulary, crops."""
        return StoreSettings.of(self.provenance)

    def read(self, rows: Index) -> list[StoredImage]:
        """The images at these rows, in this order.

        Args:
            rows: [N] row numbers of `images`; reading is cheapest where they are consecutive.

        Raises:
            StoreError: the regions found are not those of the image.
        """
        order = np.argsort(rows, kind="stable")
        wanted = np.asarray(rows)[order]
        blocks = np.searchsorted(self._images.starts, wanted, side="right") - 1
        known = [self._unit(int(block)) for block in blocks]
        places = (wanted - self._images.starts[blocks]).tolist()
        jpegs = self._jpegs(wanted)
        spans = [(unit.starts[at], unit.ends[at]) for unit, at in zip(known, places, strict=True)]
        picked = np.concatenate([np.arange(low, high) for low, high in spans])
        # Rows sorted in the table's order are read in one sweep.
        sweep = np.argsort(picked, kind="stable")
        table = self._table(REGIONS).take(picked[sweep], columns=list(self.columns))
        table = table.take(np.argsort(sweep, kind="stable"))
        keys = table["key"].to_numpy()
        out: list[StoredImage | None] = [None] * len(wanted)
        start = 0
        for i, (unit, at, (low, high)) in enumerate(zip(known, places, spans, strict=True)):
            end, image_id = start + int(high - low), int(unit.ids[at])
            if np.any(keys[start:end] >> ORDINAL_BITS != image_id):
                raise StoreError(
                    f"{self.uri}: the regions at rows {low}..{high} are not those of image "
                    f"{image_id}; run `tap-data verify`"
                )
            out[order[i]] = StoredImage(
                image_id=image_id,
                size_hw=(int(unit.heights[at]), int(unit.widths[at])),
                jpeg=jpegs[i],
                regions=table.slice(start, end - start),
            )
            start = end
        return [image for image in out if image is not None]

    @property
    def has_concepts(self) -> bool:
        """True if a teacher saw its regions; a captioned store may do without."""
        names = self._table(REGIONS).schema.names
        return "embedding" in names or "concept_ids" in names

    def first(self, count: int, split: str = "") -> Iterator[StoredImage]:
        """The first images of a split, as they lie; of all where `split` is empty."""
        rows = self.split_rows(split) if split else None
        rows = np.arange(self.rows) if rows is None else rows
        for start in range(0, min(count, len(rows)), 16):
            yield from self.read(rows[start : min(start + 16, count)])

    def rows_of(self, image_ids: Index) -> Index:
        """Row of `images` of each image, -1 where it is not in this store.

        Args:
            image_ids: [N] sorted. The ids of all images are read, one batch in memory.
        """
        rows = np.full(len(image_ids), -1, np.int64)
        start = 0
        for batch in self._table(IMAGES).to_batches(columns=["image_id"], batch_size=1 << 16):
            ids = batch.column(0).to_numpy()
            at = np.searchsorted(image_ids, ids)
            known = np.flatnonzero(at < len(image_ids))
            known = known[image_ids[at[known]] == ids[known]]
            rows[at[known]] = start + known
            start += len(ids)
        return rows

    def shared_rows(self, share: float) -> Index:
        """Rows of `images` of a fixed random part: those whose hashed id is below the share."""
        ids = self._table(IMAGES).to_table(columns=["image_id"])["image_id"].to_numpy()
        return np.flatnonzero(mixed_bits(_SHARE, ids) < np.uint64(int(share * 2**64)))

    def unit_rows(self) -> list[tuple[int, int, int]]:
        """(unit, first row, last row + 1) of `images`, as they lie."""
        starts = self._images.starts.tolist()
        return list(zip(self._images.units.tolist(), starts[:-1], starts[1:], strict=True))

    def split_rows(self, split: str) -> Index | None:
        """Rows of `images` of this split; None where no image of the store has a split."""
        if "split" not in self._table(IMAGES).schema.names:
            return None
        column = self._table(IMAGES).to_table(columns=["split"])["split"]
        if column.null_count == len(column):
            return None
        return np.flatnonzero(pc.fill_null(pc.equal(column, split), False).to_numpy())

    def concepts(self) -> pa.Table:
        """The `concepts` table: names, source and target embeddings."""
        return self._open("concepts", None).to_table().sort_by("concept_id")

    def _jpegs(self, rows: Index) -> list[bytes]:
        # In one request where each costs a round trip, in small ones from a disk.
        together = len(rows) if "://" in self.uri else _LOCAL_BLOBS
        found: list[bytes] = []
        for start in range(0, len(rows), together):
            blobs = self._table(IMAGES).read_blobs(
                "jpeg", indices=rows[start : start + together].tolist(), preserve_order=True
            )
            found += [blob or b"" for _, blob in blobs]
        return found

    def _unit(self, block: int) -> _Unit:
        # The images of a unit, as they lie, and where the regions of each are.
        if block in self._units:
            self._units.move_to_end(block)
            return self._units[block]
        first, last = self._images.starts[block : block + 2]
        table = self._table(IMAGES).take(
            np.arange(first, last), columns=["image_id", "height", "width", "region_count"]
        )
        ids = table["image_id"].to_numpy()
        counts = table["region_count"].to_numpy().astype(np.int64)
        unit = int(self._images.units[block])
        start, rows = self._region_block(unit)
        if counts.sum() != rows:
            raise StoreError(
                f"{self.uri}: unit {unit} has {rows} regions, its images count {counts.sum()}; "
                "run `tap-data verify`"
            )
        # Regions are sorted by key, that is by image id.
        order = np.argsort(ids)
        starts = np.empty_like(counts)
        starts[order] = start + np.cumsum(counts[order]) - counts[order]
        heights, widths = table["height"].to_numpy(), table["width"].to_numpy()
        self._units[block] = _Unit(ids, heights, widths, starts, starts + counts)
        if len(self._units) > _CACHED_UNITS:
            self._units.popitem(last=False)
        return self._units[block]

    def _region_block(self, unit: int) -> tuple[int, int]:
        at = self._block_of_unit.get(unit)
        if at is None:
            return 0, 0
        start, end = self._regions.starts[at : at + 2]
        return int(start), int(end - start)

    def _blocks(self, name: str) -> _Blocks:
        # One pass over a column of long constant stretches; a second for a hundred million rows.
        units: list[Index] = []
        starts: list[Index] = []
        row, last = 0, None
        for batch in self._table(name).to_batches(columns=["unit"], batch_size=1 << 16):
            column = batch.column(0).to_numpy()
            changes = np.flatnonzero(column[1:] != column[:-1]) + 1
            if len(column) and column[0] != last:
                changes = np.concatenate([[0], changes])
            units.append(column[changes])
            starts.append(row + changes)
            row += len(column)
            last = column[-1] if len(column) else last
        found = np.concatenate(units) if units else np.empty(0, np.int64)
        if not len(found) and name == IMAGES:
            raise StoreError(f"{table_uri(self.uri, name)} is empty: nothing to train on")
        if len(np.unique(found)) != len(found):
            ids, seen = np.unique(found, return_counts=True)
            raise StoreError(
                f"{table_uri(self.uri, name)}: the rows of unit {ids[seen > 1][0]} do not lie "
                "together, so images and regions cannot be paired; rebuild the table"
            )
        edges = np.concatenate([*starts, [row]]).astype(np.int64)
        return _Blocks(found.astype(np.int64), edges)

    def _table(self, name: str) -> Any:
        if name not in self._tables:
            self._tables[name] = self._open(name, self.versions.get(name))
        return self._tables[name]

    def _open(self, name: str, version: int | None) -> Any:
        return open_table(table_uri(self.uri, name), self._options, version=version)

"""The store: Lance tables in one folder or prefix, written as fragments, committed by one driver.

Workers call `FragmentWriter`: rows go to files that no reader sees. The driver appends many
finished fragments in one commit (ledger.py decides when). `ds.write_lance` and `lance_ray` are not
used: the first is broken with this pair of versions, the second commits once at the very end.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lance.commit import CommitConflictError
from lance.fragment import FragmentMetadata, write_fragments

from tap_engine.schemas.errors import StoreError
from tap_engine.schemas.provenance import METADATA_KEY, Provenance
from tap_engine.schemas.store_settings import StoreSettings
from tap_engine.schemas.tables import IMAGES, REGIONS, table_uri

STORAGE_VERSION = {IMAGES: "2.2"}
"""Blob columns need 2.2. All other tables use 2.0, which scans float16 embeddings fastest
(docs/decisions/0003-storage-version.md)."""

Result = TypeVar("Result")

STORAGE_WAITS_S = (1, 10, 60)
"""Pauses before storage that failed is asked again (beside the clients' own)."""

_DEFAULT_STORAGE_VERSION = "2.0"
_LOG = logging.getLogger(__name__)

_QUEUE_BATCHES = 4
"""Record batches between a worker and its writer thread; bounds the memory of both."""

_SCAN_ROWS = 1024
_SCAN_READ_AHEAD = 64 << 20
"""Bytes Lance may hold ahead of a scan. Its default of 2 GiB is slower: every buffer is new memory
(embeddings in 0.13 s against 0.07 s; docs/decisions/0003-storage-version.md)."""


@dataclass(frozen=True)
class Store:
    """Address of a store and options to reach it; small, travels to workers.

    Attributes:
        uri: absolute path or URI of the folder.
        storage_options: options of Lance's object stores, beside the environment's.
        patient: whether an object store that fails is asked again after `STORAGE_WAITS_S`, as the
            driver of a long build does. Local disks are not: what they report stays true.
    """

    uri: str
    storage_options: Mapping[str, str] = field(default_factory=dict)
    patient: bool = False

    @property
    def options(self) -> dict[str, str] | None:
        """`storage_options` as Lance takes them: None where there are none."""
        return dict(self.storage_options) or None

    def table_uri(self, table: str) -> str:
        """Path or URI of one table."""
        return table_uri(self.uri, table)

    def exists(self, table: str) -> bool:
        """True if the table has been created."""
        try:
            self.open(table)
        except StoreError:
            return False
        return True

    def open(self, table: str) -> lance.LanceDataset:
        """The latest version of a table.

        Raises:
            StoreError: there is none.
        """
        try:
            return self.patiently(
                lambda: lance.dataset(self.table_uri(table), storage_options=self.options)
            )
        except (ValueError, FileNotFoundError) as error:
            raise StoreError(f"no table {table!r} in {self.uri}: {str(error)[:200]}") from error

    def patiently(self, call: Callable[[], Result]) -> Result:
        """The result of a call that reaches the storage; see `patient`.

        Args:
            call: may be made again after it failed.

        Raises:
            StoreError: the storage failed, with its own words.
        """
        waits = STORAGE_WAITS_S if self.patient and "://" in self.uri else ()
        for wait_s in (*waits, None):
            try:
                return call()
            except FileNotFoundError:
                raise
            except OSError as error:
                if wait_s is None:
                    raise StoreError(f"{self.uri}: {str(error)[:300]}") from error
                _LOG.warning("%s: %.200s; asked again in %d s", self.uri, error, wait_s)
                time.sleep(wait_s)
        raise AssertionError("unreachable")

    def create(self, table: str, content: pa.Table, provenance: Provenance) -> None:
        """Create a table with some first rows (often none); its schema is the contract's.

        Raises:
            StoreError: it exists already.
        """
        schema = stored_schema(content.schema).with_metadata({METADATA_KEY: provenance.to_json()})
        try:
            lance.write_dataset(
                _stored_table(content, schema),
                self.table_uri(table),
                mode="create",
                data_storage_version=_version(table),
                storage_options=self.options,
            )
        except OSError as error:
            raise StoreError(f"cannot create table {table!r} in {self.uri}: {error}") from error

    def provenance(self, table: str) -> Provenance:
        """Provenance of a table.

        Raises:
            StoreError: no such table, or one that this system did not make.
        """
        metadata = self.open(table).schema.metadata or {}
        if METADATA_KEY.encode() not in metadata:
            raise StoreError(f"table {table!r} in {self.uri} carries no provenance of this system")
        return Provenance.from_json(metadata[METADATA_KEY.encode()].decode())

    def settings(self) -> StoreSettings:
        """Settings that decide the values in the rows.

        Raises:
            StoreError, SchemaError: as for `provenance`, or settings of another form.
        """
        return StoreSettings.of(self.provenance(REGIONS))

    def append(
        self, table: str, fragments: Sequence[FragmentMetadata], read_version: int | None = None
    ) -> None:
        """Commit fragments (of `FragmentWriter.close`) in one version.

        A commit whose answer was lost on the way is recognised by its files and not repeated.

        Args:
            table: which.
            fragments: uncommitted.
            read_version: the table's version when the caller last knew that it may write; a later
                `fence` makes the commit fail. The latest by default.

        Raises:
            StoreError: the table was fenced since, or the storage failed.
        """
        ours = {file.path for fragment in fragments for file in fragment.files}

        before = read_version or self.open(table).version

        def commit() -> None:
            dataset = self.open(table)
            if dataset.version > before and ours <= _files(dataset):
                return
            try:
                lance.LanceDataset.commit(
                    self.table_uri(table),
                    lance.LanceOperation.Append(list(fragments)),
                    read_version=before,
                    storage_options=self.options,
                )
            except CommitConflictError as error:
                raise StoreError(
                    f"another driver has taken over {self.uri}; nothing was added to {table!r}"
                ) from error

        self.patiently(commit)

    def fence(self, table: str) -> None:
        """Refuse every append that was prepared before now, whoever is about to commit it.

        Lance lets appends pass each other, but none passes a Restore: restoring the latest version
        changes no row and makes appends that started from an earlier one fail.
        """
        self.patiently(self.open(table).restore)

    def writer(self, table: str, schema: pa.Schema) -> "FragmentWriter":
        """A writer of one uncommitted fragment."""
        return FragmentWriter(self, table, schema)


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """The contract's schema as Lance stores it: `jpeg` becomes a blob column."""
    index = schema.get_field_index("jpeg")
    if index < 0:
        return schema
    return schema.set(index, lance.blob_field("jpeg", nullable=False))


def blob_column(values: Sequence[bytes]) -> pa.Array:
    """The `jpeg` column of a batch."""
    return lance.blob_array(list(values))


def blob_bytes(dataset: lance.LanceDataset, column: str, rows: Sequence[int]) -> list[bytes]:
    """Bytes of a blob column at row positions, in the order asked."""
    if not rows:
        return []
    blobs = dataset.take_blobs(column, indices=list(rows))
    return [b"" if blob is None else blob.readall() for blob in blobs]


def scan(
    dataset: lance.LanceDataset, columns: Sequence[str], filter_: str | None = None
) -> Iterator[pa.RecordBatch]:
    """Rows in storage order, some thousand at a time, none empty; bounded memory."""
    scanner = dataset.scanner(
        columns=list(columns),
        filter=filter_,
        batch_size=_SCAN_ROWS,
        io_buffer_size=_SCAN_READ_AHEAD,
        scan_in_order=True,
    )
    yield from (batch for batch in scanner.to_batches() if batch.num_rows)


def distinct(
    dataset: lance.LanceDataset, column: str, filter_: str | None = None
) -> npt.NDArray[np.int64]:
    """Sorted distinct values of an int64 column; reads that column only, batch by batch."""
    found = np.empty(0, np.int64)
    for batch in dataset.scanner(columns=[column], filter=filter_).to_batches():
        found = np.union1d(found, batch.column(0).drop_null().to_numpy())
    return found.astype(np.int64)


def runs_of(
    dataset: lance.LanceDataset, column: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Sorted distinct values of an int64 column, and those whose rows do not lie together."""
    starts: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
    last: int | None = None
    for batch in scan(dataset, [column]):
        values = batch.column(0).to_numpy()
        begins = np.concatenate([[last is None or values[0] != last], values[1:] != values[:-1]])
        starts.append(values[begins])
        last = int(values[-1])
    found, times = np.unique(np.concatenate(starts), return_counts=True)
    return found, found[times > 1]


def _files(dataset: lance.LanceDataset) -> set[str]:
    return {file.path for part in dataset.get_fragments() for file in part.metadata.files}


def _version(table: str) -> Any:
    return STORAGE_VERSION.get(table, _DEFAULT_STORAGE_VERSION)


def _stored_table(content: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        blob_column(content.column(name).to_pylist()) if name == "jpeg" else content.column(name)
        for name in content.schema.names
    ]
    return pa.table(columns, schema=schema)


class FragmentWriter:
    """Record batches -> files of one table, visible to nobody until the driver commits them.

    Lance pulls batches, a worker pushes them: a thread and a short queue stand between. Memory is
    bounded by the queue. Not closed or aborted, it leaves at most an orphan file, never a row.
    """

    def __init__(self, store: Store, table: str, schema: pa.Schema) -> None:
        self._store = store
        self._table = table
        self._schema = stored_schema(schema)
        self._queue: queue.Queue[pa.RecordBatch | None] = queue.Queue(_QUEUE_BATCHES)
        self._fragments: list[FragmentMetadata] = []
        self._error: BaseException | None = None
        self._aborted = False
        self._thread: threading.Thread | None = None

    def write(self, columns: Sequence[pa.Array]) -> None:
        """Append rows; blocks while the queue is full.

        Raises:
            StoreError: writing failed, with Lance's reason.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        batch = pa.record_batch(list(columns), schema=self._schema)
        self._put(batch)

    def close(self) -> list[FragmentMetadata]:
        """Finish the files; returns the uncommitted fragments (none without rows).

        Raises:
            StoreError: writing failed.
        """
        if self._thread is None:
            return []
        self._put(None)
        self._thread.join()
        self._raise()
        return self._fragments

    def abort(self) -> None:
        """Give up: the files become orphans, which the next build removes."""
        self._aborted = True
        if self._thread is not None:
            self._thread.join()

    def _put(self, item: pa.RecordBatch | None) -> None:
        while True:
            self._raise()
            try:
                return self._queue.put(item, timeout=1)
            except queue.Full:
                continue

    def _raise(self) -> None:
        if self._error is not None:
            raise StoreError(
                f"writing table {self._table!r} failed: {self._error}"
            ) from self._error

    def _batches(self) -> Iterator[pa.RecordBatch]:
        while True:
            try:
                item = self._queue.get(timeout=1)
            except queue.Empty:
                if self._aborted:
                    raise InterruptedError("aborted") from None
                continue
            if item is None:
                return
            yield item

    def _run(self) -> None:
        try:
            self._fragments = write_fragments(
                pa.RecordBatchReader.from_batches(self._schema, self._batches()),
                self._store.table_uri(self._table),
                schema=self._schema,
                data_storage_version=_version(self._table),
                storage_options=self._store.options,
            )
        # Whatever stops the writer must reach the thread that waits for it.
        except BaseException as error:
            self._error = error

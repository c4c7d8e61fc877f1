"""Lance against LMDB on the same `regions` rows: bytes, lookups by key, scans of the embedding.

    python -m benchmarks.store [--rows 204800] [--rounds 15]

Rows are the contract's: 1,024 float16 of a unit vector, 64 concepts, masks of 80 to 420 bytes, 100
regions per image, 512 images per fragment, written by the engine's own writer in each Lance storage
version. LMDB gets two forms of the same rows: `packed` (a C record, then the mask's bytes: the
fastest there is) and `pickled` (a dict of the columns: what most loaders keep). Everything is read
from the page cache, by one process; the contenders alternate, so that a busy machine hits all.

A lookup is 100 random keys in random order -> an Arrow table of the asked columns in that order. A
scan is every embedding once, as float16 matrices of some 1,024 rows that the caller may keep.
"""

import argparse
import os
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pyarrow as pa

from tap_engine.pipeline import store as store_module
from tap_engine.pipeline.concepts import fixed_size_lists
from tap_engine.pipeline.key_index import index_keys, rows_of_keys
from tap_engine.pipeline.store import Store, scan
from tap_engine.schemas.provenance import Provenance
from tap_engine.schemas.tables import (
    IMAGES,
    REGIONS,
    SOURCE_TYPE,
    images_schema,
    regions_schema,
)

VERSIONS = ("2.0", "2.1", "2.2")
FORMS = ("packed", "pickled")
SCHEMA = regions_schema(1024, 64)
REGIONS_AN_IMAGE, IMAGES_A_UNIT, KEYS = 100, 512, 100
BATCH = 1000  # whole images, near the engine's own 1,024
RECORD = np.dtype(
    [
        *(("key", "<i8"), ("image_id", "<i8"), ("region_id", "<i8"), ("source", "i1")),
        *(("unit", "<i8"), ("bbox_xywh", "<f4", 4), ("area", "<i4"), ("predicted_iou", "<f4")),
        *(("stability_score", "<f4"), ("embedding", "<f2", 1024), ("concept_ids", "<u2", 64)),
        *(("concept_probs", "<f2", 64), ("concept_entropy", "<f4")),
    ]
)
EMBEDDING_AT = RECORD.fields["embedding"][1]
Work = Callable[[], object]


def batches(rows: int) -> Iterator[tuple[int, list[pa.Array]]]:
    """(unit, columns) of some thousand rows at a time; embeddings do not compress, as real ones."""
    rng = np.random.default_rng(0)
    for start in range(0, rows, BATCH):
        n = min(BATCH, rows - start)
        image = np.arange(start, start + n, dtype=np.int64) // REGIONS_AN_IMAGE
        unit = int(image[0]) // IMAGES_A_UNIT
        vectors = rng.standard_normal((n, 1024), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        probs = np.sort(rng.dirichlet(np.full(64, 0.1), n).astype(np.float16))[:, ::-1]
        sizes = rng.integers(80, 420, n)
        yield (
            unit,
            [
                pa.array(image << 16 | np.arange(start, start + n) % REGIONS_AN_IMAGE),
                pa.array(image),
                pa.array(rng.integers(0, 1 << 33, n)),
                pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int8)), ["sa1b"]).cast(
                    SOURCE_TYPE
                ),
                pa.array(np.full(n, unit * 7919 + 1, np.int64)),
                fixed_size_lists((rng.random((n, 4)) * 1500).astype(np.float32), pa.float32()),
                pa.array(rng.integers(1, 10**6, n, dtype=np.int32)),
                pa.array([rng.integers(48, 112, s, np.uint8).tobytes() for s in sizes]),
                pa.array(rng.random(n, np.float32)),
                pa.array(rng.random(n, np.float32)),
                fixed_size_lists(vectors.astype(np.float16), pa.float16()),
                fixed_size_lists(rng.integers(0, 2560, (n, 64), np.uint16), pa.uint16()),
                fixed_size_lists(probs, pa.float16()),
                pa.array(rng.random(n, np.float32)),
                pa.nulls(n, pa.string()),
            ],
        )


def write_lance(folder: Path, version: str, rows: int) -> Store:
    """A store whose `regions` are in one storage version, with its index on `key`."""
    store_module.STORAGE_VERSION[REGIONS] = version
    store = Store(str(folder))
    for table, schema in ((REGIONS, SCHEMA), (IMAGES, images_schema())):
        store.create(table, schema.empty_table(), Provenance({}))
    writer, last, fragments = store.writer(REGIONS, SCHEMA), 0, []
    for unit, columns in batches(rows):
        if unit != last:
            fragments += writer.close()
            writer, last = store.writer(REGIONS, SCHEMA), unit
        writer.write(columns)
    store.append(REGIONS, [*fragments, *writer.close()])
    index_keys(store)
    return store


def write_lmdb(folder: Path, rows: int, encode: Callable[[np.void, bytes], bytes]) -> Any:
    """An LMDB environment: key as 8 big-endian bytes -> `encode` of the row."""
    environment = lmdb.open(str(folder), map_size=rows * 16384, writemap=True)
    for _, columns in batches(rows):
        records = np.zeros(len(columns[0]), RECORD)
        fixed = {f.name: c for f, c in zip(SCHEMA, columns, strict=True) if f.name in RECORD.names}
        for name, column in fixed.items():
            if name == "source":
                column = column.indices
            listed = pa.types.is_fixed_size_list(column.type)
            flat = (column.flatten() if listed else column).to_numpy()
            records[name] = flat.reshape(records[name].shape)
        with environment.begin(write=True) as transaction:
            for record, rle in zip(records, columns[7].to_pylist(), strict=True):
                key = int(record["key"]).to_bytes(8, "big")
                transaction.put(key, encode(record, rle), append=True)
    environment.sync()
    return environment


def packed(record: np.void, rle: bytes) -> bytes:
    return record.tobytes() + rle


def pickled(record: np.void, rle: bytes) -> bytes:
    row = {name: record[name] for name in RECORD.names}
    scalars = {name: value.item() for name, value in row.items() if value.ndim == 0}
    return pickle.dumps({**row, **scalars, "rle": rle, "caption": None}, protocol=5)


def packed_rows(environment: Any, keys: np.ndarray, columns: list[str]) -> pa.Table:
    with environment.begin(buffers=True) as transaction:
        values = [transaction.get(key.to_bytes(8, "big")) for key in keys.tolist()]
        size = RECORD.itemsize
        records = np.frombuffer(b"".join([value[:size] for value in values]), RECORD)
        masks = [bytes(value[size:]) for value in values]
    return arrow(records, masks, columns)


def packed_embeddings(environment: Any, keys: np.ndarray) -> pa.Table:
    """As packed_rows, but touches no other byte of the values than the embedding's."""
    stop = EMBEDDING_AT + 2048
    with environment.begin(buffers=True) as transaction:
        values = [transaction.get(key.to_bytes(8, "big")) for key in keys.tolist()]
        joined = b"".join([value[EMBEDDING_AT:stop] for value in values])
    vectors = np.frombuffer(joined, np.float16).reshape(-1, 1024)
    return pa.table({"embedding": fixed_size_lists(vectors, pa.float16())})


def pickled_rows(environment: Any, keys: np.ndarray, columns: list[str]) -> pa.Table:
    with environment.begin(buffers=True) as transaction:
        rows = [pickle.loads(transaction.get(key.to_bytes(8, "big"))) for key in keys.tolist()]
    records = np.empty(len(rows), RECORD)
    for name in columns:
        if name in RECORD.names:
            records[name] = [row[name] for row in rows]
    return arrow(records, [row["rle"] for row in rows], columns)


def arrow(records: np.ndarray, masks: list[bytes], columns: list[str]) -> pa.Table:
    arrays: dict[str, pa.Array] = {}
    for name in columns:
        field = SCHEMA.field(name)
        if name == "rle":
            arrays[name] = pa.array(masks, pa.binary())
        elif name == "caption":
            arrays[name] = pa.nulls(len(records), pa.string())
        elif name == "source":
            indices = pa.array(records[name])
            arrays[name] = pa.DictionaryArray.from_arrays(indices, pa.array(["sa1b"]))
        elif pa.types.is_fixed_size_list(field.type):
            values = np.ascontiguousarray(records[name])
            arrays[name] = fixed_size_lists(values, field.type.value_type)
        else:
            arrays[name] = pa.array(np.ascontiguousarray(records[name]))
    return pa.table(arrays)


def scan_lmdb(environment: Any, embedding: Callable[[Any], Any], join: bool) -> int:
    rows, parts = 0, []
    with environment.begin(buffers=True) as transaction:
        for value in transaction.cursor().iternext(keys=False, values=True):
            parts.append(embedding(value))
            if len(parts) == 1024:
                rows += len(matrix(parts, join))
                parts = []
        return rows + (len(matrix(parts, join)) if parts else 0)


def matrix(parts: list[Any], join: bool) -> np.ndarray:
    if join:
        return np.frombuffer(b"".join(parts), np.float16).reshape(-1, 1024)
    return np.stack(parts)


def scan_lance(dataset: Any) -> int:
    rows = 0
    for batch in scan(dataset, ["embedding"]):
        rows += len(batch.column(0).flatten().to_numpy().reshape(-1, 1024))
    return rows


def measure(contenders: dict[str, Work], rounds: int) -> dict[str, tuple[float, float]]:
    """(median, best) milliseconds of each, taken in turn after one warm-up."""
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, work in contenders.items():
            start = time.perf_counter()
            work()
            if number:
                spent[name].append(1e3 * (time.perf_counter() - start))
    return {name: (statistics.median(times), min(times)) for name, times in spent.items()}


def show(title: str, times: dict[str, tuple[float, float]]) -> None:
    print(f"\n{title}, load {os.getloadavg()[0]:.1f}\n")
    print("| | median ms | best ms | of packed | of pickled |\n|---|---|---|---|---|")
    for name, (median, best) in times.items():
        of = " | ".join(f"{median / times[f'LMDB {form}'][0]:.2f}" for form in FORMS)
        print(f"| {name} | {median:.2f} | {best:.2f} | {of} |")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check(contenders: dict[str, Callable[[], pa.Table]]) -> None:
    """Every contender must deliver the same rows, or its time means nothing."""
    tables = {name: work() for name, work in contenders.items()}
    first = next(iter(tables.values()))
    for name, table in tables.items():
        for column in first.column_names:
            left, right = first.column(column), table.column(column)
            if left.to_pylist() != right.to_pylist():
                raise AssertionError(f"{name}: column {column!r} differs")


def main(rows: int, rounds: int, folder: Path) -> None:
    raw = sum(column.nbytes for _, columns in batches(rows) for column in columns)
    print(f"{rows:,} rows, raw columns {raw / rows:,.1f} B a row; load {os.getloadavg()[0]:.1f}")
    stores = {version: write_lance(folder / version, version, rows) for version in VERSIONS}
    packs = write_lmdb(folder / "packed", rows, packed)
    pickles = write_lmdb(folder / "pickled", rows, pickled)
    print("\n| | B a row | over the raw columns | with the index on key |\n|---|---|---|---|")
    for version in VERSIONS:
        table = folder / version / "regions.lance"
        data, whole = size(table / "data"), size(table)
        over, indexed = data / raw - 1, whole / raw - 1
        print(f"| Lance {version} | {data / rows:,.1f} | {over:+.2%} | {indexed:+.2%} |")
    for name, environment in (("packed", packs), ("pickled", pickles)):
        used = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        print(f"| LMDB {name} | {used / rows:,.1f} | {used / raw - 1:+.2%} | |")

    rng = np.random.default_rng(1)
    images = rng.choice(rows // REGIONS_AN_IMAGE, KEYS, replace=False)
    keys = images << 16 | rng.integers(0, REGIONS_AN_IMAGE, KEYS)
    datasets = {version: store.open(REGIONS) for version, store in stores.items()}
    for columns in (["embedding"], SCHEMA.names):
        only = columns == ["embedding"]
        contenders: dict[str, Callable[[], pa.Table]] = {
            "LMDB packed": (lambda: packed_embeddings(packs, keys)) if only
            else (lambda: packed_rows(packs, keys, SCHEMA.names)),
            "LMDB pickled": lambda columns=columns: pickled_rows(pickles, keys, columns),
        }  # fmt: skip
        for version, dataset in datasets.items():
            contenders[f"Lance {version}"] = lambda dataset=dataset, columns=columns: rows_of_keys(
                dataset, keys, columns
            )
        check(contenders)
        title = f"{KEYS} random keys, {'the embedding' if only else f'all {len(columns)} columns'}"
        show(title, measure(contenders, 4 * rounds))

    scans: dict[str, Work] = {
        "LMDB packed": lambda: scan_lmdb(
            packs, lambda value: value[EMBEDDING_AT : EMBEDDING_AT + 2048], join=True
        ),
        "LMDB pickled": lambda: scan_lmdb(
            pickles, lambda value: pickle.loads(value)["embedding"], join=False
        ),
    }
    for version, dataset in datasets.items():
        scans[f"Lance {version}"] = lambda dataset=dataset: scan_lance(dataset)
        scans[f"Lance {version}, Lance's own read-ahead"] = lambda dataset=dataset: sum(
            len(b) for b in dataset.to_batches(columns=["embedding"], batch_size=1024)
        )
    assert {work() for work in scans.values()} == {rows}
    times = measure(scans, rounds)
    show(f"Scan of {rows:,} embeddings ({rows * 2048 / 1e6:,.0f} MB)", times)
    print()
    for name, (median, best) in times.items():
        print(f"{name}: {rows / median / 1e3:.2f} M rows/s (best {rows / best / 1e3:.2f})")
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4 * IMAGES_A_UNIT * REGIONS_AN_IMAGE)
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        main(chosen.rows, chosen.rounds, Path(place))

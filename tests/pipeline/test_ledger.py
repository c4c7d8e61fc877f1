import json
import os
import socket
import time
from collections import Counter

import lance
import numpy as np
import pyarrow as pa
import pytest

from tap_engine.pipeline import lease as lease_module
from tap_engine.pipeline import store as store_module
from tap_engine.pipeline.ledger import Ledger, UnitResult, done_images, done_units
from tap_engine.pipeline.store import Store, blob_column
from tap_engine.schemas.errors import StoreError
from tap_engine.schemas.provenance import Provenance
from tap_engine.schemas.rejects import Reason, Reject, Stage
from tap_engine.schemas.tables import (
    CONCEPTS,
    IMAGES,
    REGIONS,
    REJECTS,
    SOURCE_TYPE,
    concepts_schema,
    images_schema,
    regions_schema,
    rejects_schema,
)


@pytest.fixture
def store(tmp_path):
    made = Store(str(tmp_path / "store"))
    schemas = {
        CONCEPTS: concepts_schema(4),
        REJECTS: rejects_schema(),
        REGIONS: regions_schema(0, 0),
        IMAGES: images_schema(),
    }
    for table, schema in schemas.items():
        made.create(table, schema.empty_table(), Provenance({}))
    return made


def source_column(count: int) -> pa.Array:
    return pa.array(["sa1b"] * count).dictionary_encode().cast(SOURCE_TYPE)


def unit(store: Store, unit_id: int, images: int = 2, regions: int = 3) -> UnitResult:
    """A finished unit with its uncommitted files, as a worker would leave it."""
    result = UnitResult(unit_id, images=images, regions=images * regions)
    ids = [unit_id * 100 + i for i in range(images)]
    writer = store.writer(IMAGES, images_schema())
    count = pa.array([regions] * images, pa.int32())
    size = pa.array([8] * images, pa.int32())
    writer.write(
        [
            pa.array(ids),
            source_column(images),
            pa.array([unit_id] * images),
            pa.array([f"sa_{i}.jpg" for i in ids]),
            size,
            size,
            blob_column([b"\xff\xd8"] * images),
            count,
        ]
    )
    result.image_fragments = writer.close()
    writer = store.writer(REGIONS, regions_schema(0, 0))
    n = images * regions
    zeros = pa.array(np.zeros(n * 4, np.float32))
    nothing = pa.nulls(n)
    writer.write(
        [
            pa.array([i << 16 | r for i in ids for r in range(regions)]),
            pa.array([i for i in ids for _ in range(regions)]),
            pa.array(range(n), pa.int64()),
            source_column(n),
            pa.array([unit_id] * n),
            pa.FixedSizeListArray.from_arrays(zeros, 4),
            pa.array([1] * n, pa.int32()),
            nothing.cast(pa.binary()),
            nothing.cast(pa.float32()),
            nothing.cast(pa.float32()),
            nothing.cast(pa.string()),
        ]
    )
    result.region_fragments = writer.close()
    result.rejects = [
        Reject(stage=Stage.READ, reason=Reason.MASK_EMPTY, detail="", image_id=ids[0], region_id=9)
    ]
    return result


def counts(store: Store) -> tuple[int, int, int]:
    images, regions, rejects = (store.open(t).count_rows() for t in (IMAGES, REGIONS, REJECTS))
    return images, regions, rejects


def data_files(store: Store) -> int:
    return sum(len(files) for _, _, files in os.walk(store.table_uri(REGIONS) + "/data"))


def test_committed_units_are_done(store) -> None:
    with Ledger(store) as ledger:
        ledger.commit([unit(store, 1), unit(store, 2)])
        ledger.commit([unit(store, 3)])
    assert counts(store) == (6, 18, 3)
    assert done_units(store).tolist() == [1, 2, 3]
    assert done_images(store).tolist() == [100, 101, 200, 201, 300, 301]


@pytest.mark.parametrize("table", [REGIONS, REJECTS, IMAGES])
def test_death_between_the_commits_loses_and_repeats_nothing(store, monkeypatch, table) -> None:
    """Die right before each of the three appends; the next driver cleans up and does the rest."""
    with Ledger(store) as ledger:
        ledger.commit([unit(store, 1)])
    append = Store.append

    def die(self, name, *rest):
        if name == table:
            raise ConnectionError("the machine is gone")
        return append(self, name, *rest)

    monkeypatch.setattr(Store, "append", die)
    with pytest.raises(ConnectionError), Ledger(store) as ledger:
        ledger.commit([unit(store, 2), unit(store, 3)])
    monkeypatch.undo()
    with Ledger(store) as ledger:
        assert ledger.done.tolist() == [1]
        assert counts(store) == (2, 6, 1)
        ledger.commit([unit(store, 2), unit(store, 3)])
    assert counts(store) == (6, 18, 3)


def test_files_of_dead_workers_are_removed(store) -> None:
    with Ledger(store) as ledger:
        ledger.commit([unit(store, 1)])
    unit(store, 2)  # written, never committed
    assert data_files(store) == 2
    with Ledger(store):
        assert data_files(store) == 1
    assert counts(store) == (2, 6, 1)


def test_files_of_a_driver_that_may_be_alive_are_kept(store) -> None:
    """Its lease ran out, but nobody saw it die: it could be about to commit them."""
    unit(store, 2)
    holder = {"id": "x", "host": "elsewhere", "boot": "b", "pid": 1, "started": "1", "expires": 0}
    store.open(CONCEPTS).update_config({lease_module.LEASE_KEY: json.dumps(holder)})
    with Ledger(store):
        assert data_files(store) == 1


def test_a_unit_without_images_is_done_by_its_reject_row(store) -> None:
    empty = UnitResult(
        7, rejects=[Reject(stage=Stage.UNIT, reason=Reason.UNIT_EMPTY, detail="none")]
    )
    with Ledger(store) as ledger:
        ledger.commit([empty])
    with Ledger(store) as ledger:
        assert ledger.done.tolist() == [7]
        assert counts(store) == (0, 0, 1)


def test_rejected_images_are_done_but_half_pairs_are_not(store) -> None:
    rejects = [
        Reject(stage=Stage.DECODE, reason=Reason.IMAGE_UNREADABLE, detail="", image_id=55),
        Reject(stage=Stage.INDEX, reason=Reason.ANNOTATIONS_MISSING, detail="", image_id=56),
        Reject(stage=Stage.READ, reason=Reason.MASK_EMPTY, detail="", image_id=57, region_id=1),
    ]
    with Ledger(store) as ledger:
        result = unit(store, 1)
        result.rejects = rejects
        ledger.commit([result])
    assert done_images(store).tolist() == [55, 100, 101]


def test_results_that_do_not_add_up_are_not_committed(store) -> None:
    nothing = UnitResult(4)
    with Ledger(store) as ledger:
        short = unit(store, 1)
        short.regions += 1
        ledger.commit([unit(store, 5)])
        for bad, message in ((short, "7 regions reported, 6"), (nothing, "no image and no")):
            with pytest.raises(StoreError, match=message):
                ledger.commit([unit(store, 2), bad])
        with pytest.raises(StoreError, match="delivered twice"):
            ledger.commit([unit(store, 2), unit(store, 5)])
    assert counts(store) == (2, 6, 1)


def test_two_drivers_cannot_be_at_work(store) -> None:
    with Ledger(store) as first:
        with pytest.raises(StoreError, match=rf"process {os.getpid()} on .*--take-over"):
            Ledger(store).__enter__()
        with Ledger(store, take_over=True), pytest.raises(StoreError, match=r"lease .* was lost"):
            first.commit([unit(store, 1)])
        with pytest.raises(StoreError, match=r"lease .* was lost"):
            first.commit([unit(store, 1)])
    assert counts(store) == (0, 0, 0)


@pytest.mark.parametrize("change", [{"expires": 0}, {"pid": 999_999_999}, {"started": "1"}])
def test_the_lease_of_a_dead_driver_is_free(store, change) -> None:
    first = Ledger(store)
    first.__enter__()
    first._lease._stop.set()
    first._lease._renewer.join()
    key = lease_module.LEASE_KEY
    holder = json.loads(store.open(CONCEPTS).config()[key])
    store.open(CONCEPTS).update_config({key: json.dumps({**holder, **change})})
    with Ledger(store) as second:
        second.commit([unit(store, 1)])
    assert counts(store) == (2, 6, 1)


def test_a_silent_driver_elsewhere_keeps_others_out_until_its_lease_ends(store) -> None:
    holder = {"id": "x", "host": "elsewhere", "boot": "b", "pid": 1, "started": "1"}
    key = lease_module.LEASE_KEY
    store.open(CONCEPTS).update_config({key: json.dumps({**holder, "expires": time.time() + 60})})
    with pytest.raises(StoreError, match="process 1 on elsewhere"):
        Ledger(store).__enter__()


def test_the_lease_is_renewed_and_given_back(store, monkeypatch) -> None:
    monkeypatch.setattr(lease_module, "LEASE_S", 2.0)
    with Ledger(store) as ledger:
        time.sleep(3.0)
        ledger.commit([unit(store, 1)])
    assert lease_module.LEASE_KEY not in store.open(CONCEPTS).config()


@pytest.mark.parametrize("table", [REGIONS, REJECTS, IMAGES])
def test_a_driver_that_was_paused_before_an_append_adds_nothing(store, monkeypatch, table) -> None:
    """It asked for its lease, slept, was taken over, and goes on."""
    append = Store.append

    def paused(self, name, *rest):
        if name == table:
            monkeypatch.setattr(Store, "append", append)
            with monkeypatch.context() as elsewhere:
                elsewhere.setattr(socket, "gethostname", lambda: "another-host")
                with Ledger(store, take_over=True) as second:
                    second.commit([unit(store, 1), unit(store, 2)])
        return append(self, name, *rest)

    with Ledger(store) as first:
        built = [unit(store, 1), unit(store, 2)]
        monkeypatch.setattr(Store, "append", paused)
        with pytest.raises(StoreError, match="taken over"):
            first.commit(built)
    assert counts(store) == (4, 12, 2)
    for name, column in ((REGIONS, "key"), (IMAGES, "image_id")):
        rows = Counter(store.open(name).to_table(columns=[column])[column].to_pylist())
        assert max(rows.values()) == 1
    with Ledger(store) as third:
        assert third.removed_rows == 0
        assert third.done.tolist() == [1, 2]


def test_units_that_an_earlier_version_wrote_twice_are_built_again(store) -> None:
    with Ledger(store) as ledger:
        ledger.commit([unit(store, 1), unit(store, 2)])
    store.append(REGIONS, unit(store, 1).region_fragments)
    store.append(IMAGES, unit(store, 2).image_fragments)
    with Ledger(store) as ledger:
        assert ledger.done.tolist() == []
        ledger.commit([unit(store, 1), unit(store, 2)])
    assert counts(store) == (4, 12, 2)


def test_a_process_of_another_pid_namespace_is_not_taken_for_dead(store, monkeypatch) -> None:
    monkeypatch.setattr(lease_module, "_pid_namespace", lambda: "pid:[1]")
    holder = json.loads(Ledger(store)._lease._text()) | {"pid": 999_999_999}
    monkeypatch.undo()
    store.open(CONCEPTS).update_config({lease_module.LEASE_KEY: json.dumps(holder)})
    with pytest.raises(StoreError, match="process 999999999"):
        Ledger(store).__enter__()


def test_a_clock_that_is_ahead_takes_no_lease_of_a_living_driver(store, monkeypatch) -> None:
    monkeypatch.setattr(lease_module, "LEASE_S", 3.0)
    with Ledger(store) as first:
        monkeypatch.setattr(socket, "gethostname", lambda: "another-host")
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 60)
        with pytest.raises(StoreError, match="is being built by process"):
            Ledger(store).__enter__()
        first.commit([unit(store, 1)])  # and its own clock may jump: nobody took the lease
    assert counts(store) == (2, 6, 1)


def test_a_driver_elsewhere_that_shows_no_sign_of_life_is_succeeded(store, monkeypatch) -> None:
    monkeypatch.setattr(lease_module, "LEASE_S", 3.0)
    holder = {"id": "x", "host": "elsewhere", "boot": "b", "pid": 1, "started": "1"}
    text = json.dumps({**holder, "expires": time.time() - 1})
    store.open(CONCEPTS).update_config({lease_module.LEASE_KEY: text})
    with Ledger(store) as ledger:
        ledger.commit([unit(store, 1)])
    assert counts(store) == (2, 6, 1)


def test_storage_that_fails_for_a_while_is_waited_for(store, monkeypatch) -> None:
    """Commits fail, or are done and their answers lost; rows are there once."""
    monkeypatch.setattr(store_module, "STORAGE_WAITS_S", (0, 0, 0))
    remote = Store(f"file://{store.uri}")
    commit = lance.LanceDataset.commit
    faults = iter(["before", "after", "after", "", "before"])

    def faulty(*args, **kwargs):
        fault = next(faults, "")
        if fault == "before":
            raise OSError("connection reset")
        done = commit(*args, **kwargs)
        if fault == "after":
            raise OSError("error getting list response body")
        return done

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(faulty))
    with Ledger(remote) as ledger:
        ledger.commit([unit(store, 1)])
        ledger.commit([unit(store, 2)])
    assert next(faults, None) is None
    assert counts(store) == (4, 12, 2)


def test_storage_that_stays_broken_is_a_store_error(store, monkeypatch) -> None:
    monkeypatch.setattr(store_module, "STORAGE_WAITS_S", (0, 0, 0))

    def broken(*_, **__):
        raise OSError("connection reset")

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(broken))
    remote = Ledger(Store(f"file://{store.uri}"))
    with remote as ledger, pytest.raises(StoreError, match="connection reset"):
        ledger.commit([unit(store, 1)])


def test_a_store_that_cannot_be_written_is_not_taken_for_one_in_use(store, monkeypatch) -> None:
    def refused(*_):
        raise OSError("Permission denied")

    monkeypatch.setattr(lance.LanceDataset, "update_config", refused)
    with pytest.raises(StoreError, match="Permission denied"):
        Ledger(store).__enter__()

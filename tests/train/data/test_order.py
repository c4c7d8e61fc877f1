"""The order of the stream: a permutation every epoch, whatever the sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tap_engine.schemas.errors import ConfigError
from tap_engine.train.data.order import Interleaving, Order


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(1, 300),
    run_rows=st.integers(1, 20),
    mixed_runs=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    shuffle=st.booleans(),
)
def test_every_epoch_has_every_row_once(rows, run_rows, mixed_runs, seed, shuffle):
    order = Order(rows=rows, run_rows=run_rows, mixed_runs=mixed_runs, seed=seed, shuffle=shuffle)
    epochs, found = order.locate(np.arange(3 * rows))
    for epoch in range(3):
        part = slice(epoch * rows, (epoch + 1) * rows)
        assert (epochs[part] == epoch).all()
        assert sorted(found[part]) == list(range(rows))


def test_a_position_does_not_depend_on_what_is_asked_beside_it():
    order = Order(rows=1000, run_rows=8, mixed_runs=16, seed=1)
    whole = order.locate(np.arange(5000))[1]
    some = np.array([4999, 0, 17, 2500])
    assert order.locate(some)[1].tolist() == whole[some].tolist()


def test_epochs_and_seeds_differ_and_rows_are_spread():
    order = Order(rows=4096, run_rows=8, mixed_runs=32, seed=1)
    _, rows = order.locate(np.arange(2 * 4096))
    first, second = rows[:4096], rows[4096:]
    assert (first == second).mean() < 0.01
    assert (
        Order(rows=4096, run_rows=8, mixed_runs=32, seed=2).locate(np.arange(4096))[1] != first
    ).any()
    # A batch of 32 images comes from all over the table.
    spread = np.array([np.ptp(batch) for batch in first.reshape(-1, 32)])
    assert spread.min() > 1500
    assert abs(np.corrcoef(np.arange(4096), first)[0, 1]) < 0.05


def test_a_reader_of_one_lane_reads_whole_runs():
    # 4 workers x batch 2 divide 32 runs: worker 1 reads runs of consecutive rows, wholly.
    order = Order(rows=1024, run_rows=8, mixed_runs=32, seed=0)
    positions = np.arange(256)
    mine = positions[(positions // 2) % 4 == 1]
    rows = np.sort((order.locate(mine)[1] - order.locate(np.array([0]))[1][0]) % 1024)
    starts = rows[np.flatnonzero(np.diff(rows, prepend=-9) != 1)]
    assert len(rows) == 64 and len(starts) <= 8


def test_mixture_gives_the_shares_and_misses_nothing():
    mixture = Interleaving.of_weights((0.96, 0.04), seed=5)
    stream, place = mixture.locate(np.arange(10_000))
    assert np.bincount(stream).tolist() == [9600, 400]
    for k in range(2):
        assert place[stream == k].tolist() == list(range((stream == k).sum()))
    # Not in clumps: no long stretch without the rare one.
    assert np.diff(np.flatnonzero(stream == 1)).max() < 300


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ConfigError, match="rows"):
        Order(rows=0, run_rows=1, mixed_runs=1, seed=0)
    with pytest.raises(ConfigError, match="positive"):
        Interleaving.of_weights((1.0, 0.0), seed=0)


def test_runs_begin_elsewhere_in_each_epoch():
    # Else the same rows would be neighbours in every epoch. One lane reads run after run: where a
    # run begins, modulo its length, is the epoch's shift.
    order = Order(rows=1000, run_rows=10, mixed_runs=1, seed=3)
    shifts = set()
    for epoch in range(8):
        _, rows = order.locate(np.arange(epoch * 1000, epoch * 1000 + 10))
        together = set(rows.tolist())
        first = next(r for r in together if (r - 1) % 1000 not in together)
        assert together == {(first + k) % 1000 for k in range(10)}
        shifts.add(first % 10)
    assert len(shifts) > 3

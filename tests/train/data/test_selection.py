"""Which images are drawn: planned subsets in turn, and one split of a captioned store."""

import json

import lance
import numpy as np
import pyarrow as pa
import pytest

from tap_engine.schemas.errors import CheckpointError, ConfigError, StoreError
from tap_engine.schemas.keys import pack_image_id
from tap_engine.schemas.tables import mixture_schema
from tap_engine.train.data.selection import Turns
from tap_engine.train.data.stream import Share
from tests.train.data.test_stream import settings, stream_of, take
from tests.train.small_store import make_store

SEGMENTED, CAPTIONED = 20, 6


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("planned")
    return (
        make_store(root / "segmented", SEGMENTED),
        make_store(root / "captioned", CAPTIONED, source="vg", captions=True, taught=False),
    )


def write_plan(root, subsets):
    """A plan with the rows of all subsets shuffled; `subsets` are lists of (source, number)."""
    rows = [
        (k, pack_image_id(source, number), source, 6)
        for k, images in enumerate(subsets)
        for source, number in images
    ]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    columns = [list(column) for column in zip(*rows, strict=True)]
    arrays = [pa.array(c).cast(f.type) for c, f in zip(columns, mixture_schema(), strict=True)]
    table = pa.table(arrays, schema=mixture_schema())
    root.mkdir(exist_ok=True)
    lance.write_dataset(table, str(root / "mixture.lance"), mode="overwrite")
    return str(root)


def plan(start, count):
    """All captioned images and a few of the others, as `tap-data mix` draws them."""
    return [("vg", 1 + i) for i in range(CAPTIONED)] + [("sa1b", start + i) for i in range(count)]


@pytest.fixture
def mixture(tmp_path):
    return write_plan(tmp_path, [plan(1, 5), plan(6, 4), plan(11, 7)])


def ids_of(subset):
    return sorted(pack_image_id(source, number) for source, number in subset)


def drawn(stream, count, **share):
    return [i for batch in take(stream, Share(images=1, **share), count) for i in batch.image_ids]


def test_an_epoch_is_one_subset_and_they_come_in_turn(stores, mixture):
    stream = stream_of(stores, mixture=mixture)
    assert stream.epoch_images == 11 + 10 + 13
    ids = drawn(stream, 2 * 34)
    start, seen = 0, []
    for subset in (plan(1, 5), plan(6, 4), plan(11, 7)) * 2:
        seen.append(ids[start : start + len(subset)])
        assert sorted(seen[-1]) == ids_of(subset)
        start += len(subset)
    assert seen[0] != seen[3], "the second time in another order"
    # The same captioned image is another sample in each epoch, as in any stream.
    _, epochs, _ = stream.locate(np.arange(68))
    assert [len(set(epochs[a:b])) for a, b in ((0, 11), (11, 21), (21, 34))] == [1, 1, 1]
    assert epochs[34] == 3


def test_one_subset_alone_and_any_number_of_processes(stores, mixture):
    stream = stream_of(stores, mixture=mixture, subset=1)
    alone = drawn(stream, 20)
    assert sorted(alone[:10]) == sorted(alone[10:]) == ids_of(plan(6, 4))
    parts = [drawn(stream, 10, rank=rank, world=2) for rank in range(2)]
    assert [i for pair in zip(*parts, strict=True) for i in pair] == alone


def test_a_plan_is_resumed_only_as_the_same_plan(stores, mixture, tmp_path):
    stream = stream_of(stores, mixture=mixture)
    state = json.loads(json.dumps(stream.state(17)))
    assert stream_of(stores, mixture=mixture).resume(state) == 17
    # As many images, but others.
    write_plan(tmp_path, [plan(2, 5), plan(7, 4), plan(12, 7)])
    with pytest.raises(CheckpointError, match="selection is"):
        stream_of(stores, mixture=mixture).resume(state)
    with pytest.raises(CheckpointError, match="rows is"):
        stream_of(stores).resume(state)


def test_states_from_before_there_were_plans_are_understood(stores):
    stream = stream_of(stores)
    state = {k: v for k, v in stream.state(5).items() if k != "selection"}
    assert stream.resume(state) == 5


def test_plans_that_do_not_fit_the_stores_are_refused(stores, tmp_path):
    mixture = write_plan(tmp_path, [[*plan(1, 2), ("sa1b", 777)]])
    with pytest.raises(StoreError, match=r"1 of 9 planned images are in none.*image 777"):
        stream_of(stores, mixture=mixture)
    write_plan(tmp_path, [plan(1, 2)])
    with pytest.raises(StoreError, match="6 of 8 planned images are in none"):
        stream_of(stores[:1], mixture=mixture)
    with pytest.raises(StoreError, match="2 in several"):
        stream_of((*stores, stores[0]), mixture=mixture)
    with pytest.raises(ConfigError, match=r"has the subsets 0"):
        stream_of(stores, mixture=mixture, subset=3)
    with pytest.raises(StoreError, match="tap-data mix"):
        stream_of(stores, mixture=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"stream\.weights"):
        stream_of(stores, mixture=mixture, weights=(1.0, 1.0))


def test_only_the_wanted_split_is_drawn(tmp_path):
    names = ("val", "train", "test")
    captioned = make_store(tmp_path / "c", 12, source="vg", captions=True, splits=names)
    segmented = make_store(tmp_path / "s", 4)

    def split(image_id):
        return names[image_id % 3]

    ids = drawn(stream_of([captioned]), 8)
    assert {split(i) for i in ids} == {"train"} and len(set(ids[:4])) == 4
    assert {split(i) for i in drawn(stream_of([captioned], split="test"), 4)} == {"test"}
    assert len(set(drawn(stream_of([captioned], split=""), 12))) == 12
    # A store without splits beside it is drawn whole, in either way of mixing.
    both = stream_of([segmented, captioned])
    assert both.rows == [4, 4] and len(set(drawn(both, 8))) == 8
    weighted = stream_of([segmented, captioned], weights=(1.0, 1.0))
    ids = drawn(weighted, 40)
    assert {i >> 43 for i in ids} == {0, 1}
    assert {split(i) for i in ids if i >> 43} == {"train"}
    assert stream_of([captioned], first_images=2).rows == [2]
    # Where some images have a split, one without has none of them; where none has, all are drawn.
    some = make_store(tmp_path / "some", 12, source="vg", splits=("train", None))
    assert stream_of([some]).rows == [6]
    with pytest.raises(StoreError, match="no image of split 'val'"):
        stream_of([some], split="val")
    assert stream_of([make_store(tmp_path / "none", 6, splits=(None,))]).rows == [6]
    with pytest.raises(StoreError, match="no image of split 'dev'"):
        stream_of([captioned], split="dev")


def test_a_share_is_a_fixed_random_part(tmp_path):
    store = make_store(tmp_path / "s", 400, pixels=False, regions=1)
    whole = stream_of([store], share=0.5)
    (count,) = whole.rows
    assert 160 < count < 240
    once = drawn(whole, count)
    half = set(once)
    assert len(half) == count  # an epoch of what is left has each once
    numbers = [i & 0xFFFF for i in half]
    assert min(numbers) < 20 and max(numbers) > 380  # not the first half
    # The same images whatever the seed, and smaller parts lie in larger ones.
    assert set(drawn(stream_of([store], settings(seed=7), share=0.5), count)) == half
    quarter = stream_of([store], share=0.25)
    assert set(drawn(quarter, quarter.rows[0])) < half
    with pytest.raises(ConfigError, match=r"stream\.share"):
        stream_of([store], share=0.0)


def test_a_column_no_store_has_is_missing_but_one_store_may_lack_it(stores):
    (batch,) = take(stream_of(stores, shuffle=False), Share(images=SEGMENTED + CAPTIONED), 1)
    taught = [i for i, image_id in enumerate(batch.image_ids) if image_id >> 43 == 0]
    assert batch.has_concepts[taught].equal(batch.valid[taught])
    others = [i for i in range(len(batch.image_ids)) if i not in taught]
    assert not batch.has_concepts[others].any() and batch.valid[others].any()
    assert not batch.embeddings[others].any()
    with pytest.raises(StoreError, match=r"no store .* has columns"):
        stream_of(stores[1:])
    (alone,) = take(stream_of(stores[1:], settings(columns=("caption",))), Share(images=2), 1)
    assert alone.embeddings is None and not alone.has_concepts.any() and alone.words is not None


def test_turns_are_permutations_however_the_positions_are_asked_for():
    lists = [np.arange(100, 107), np.arange(5), np.array([900])]
    turns = Turns.of_lists(lists, 3, run_rows=2, mixed_runs=2, shuffle=True)
    epochs, rows = turns.locate(np.arange(26))
    for epoch, (start, end) in enumerate([(0, 7), (7, 12), (12, 13), (13, 20), (20, 25)]):
        assert sorted(rows[start:end]) == lists[epoch % 3].tolist()
        assert (epochs[start:end] == epoch).all()
    order = np.random.default_rng(0).permutation(26)
    assert np.array_equal(turns.locate(order)[1], rows[order])

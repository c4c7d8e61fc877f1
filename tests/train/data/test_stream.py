"""The stream over real Lance stores: exactly once, any sharding, exact resume, right pairs."""

import json
import pickle

import lance
import numpy as np
import pytest
import torch

from tap_engine.model.text_tokenizer import IGNORE, train_bpe
from tap_engine.schemas import rle
from tap_engine.schemas.errors import CheckpointError, ConfigError, StoreError
from tap_engine.schemas.keys import ORDINAL_BITS, SOURCES
from tap_engine.train.data.augment import AugmentConfig
from tap_engine.train.data.examples import ExampleConfig
from tap_engine.train.data.store_reader import StoreReader
from tap_engine.train.data.stream import Share, Stream, StreamConfig
from tap_engine.train.terms import count
from tests.train.small_store import make_store

IMAGES, CAPTIONED = 23, 7
TOKENIZER = train_bpe([f"word {k}" for k in range(99)], 300)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    return (
        make_store(root / "segmented", IMAGES),
        make_store(root / "captioned", CAPTIONED, source="vg", captions=True, seed=1),
    )


def settings(**changes):
    base = dict(
        image_px=64,
        mask_px=16,
        regions=4,
        soft_masks=True,
        fill_rgb=(1, 2, 3),
        columns=("embedding", "concept_ids", "concept_probs", "caption"),
        tokenizer=TOKENIZER,
        positions=12,
        augment=AugmentConfig(scale=(0.5, 2.0), flip=0.5, brightness=0.1),
        seed=3,
    )
    return ExampleConfig(**(base | changes))


def stream_of(stores, samples=None, **config):
    config = {"run_rows": 4, "mixed_runs": 2, "workers": 0, "read_ahead": 8} | config
    return Stream(
        StreamConfig(stores=tuple(str(s) for s in stores), **config), samples or settings()
    )


def take(stream, share, steps, consumed=0):
    return list(stream.batches(share, consumed=consumed, steps=steps, pin=False))


def same(a, b):
    return a.image_ids == b.image_ids and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("images", "masks", "boxes_xyxy", "keys", "seeds", "valid", "embeddings")
    )


def test_every_image_comes_once_an_epoch(stores):
    batches = take(stream_of(stores), Share(images=3), steps=20)
    ids = [image for batch in batches for image in batch.image_ids]
    total = IMAGES + CAPTIONED
    assert len(set(ids[:total])) == total
    assert sorted(ids[:total]) == sorted(ids[total:])
    assert ids[:total] != ids[total:]


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_processes_share_the_steps_of_one(stores, world):
    whole = take(stream_of(stores), Share(images=6), steps=7)
    parts = [
        take(stream_of(stores), Share(images=6 // world, rank=rank, world=world), steps=7)
        for rank in range(world)
    ]
    for step, batch in enumerate(whole):
        ids = [image for part in parts for image in part[step].image_ids]
        assert ids == batch.image_ids
        pixels = torch.cat([part[step].images for part in parts])
        assert torch.equal(pixels, batch.images)


def test_accumulation_and_processes_are_the_same_split(stores):
    alone = take(stream_of(stores), Share(images=2, accumulate=3), steps=4)
    parts = [take(stream_of(stores), Share(images=2, rank=r, world=3), steps=4) for r in range(3)]
    for k, batch in enumerate(alone):
        assert same(batch, parts[k % 3][k // 3])


@pytest.mark.slow
def test_loader_workers_change_nothing_and_a_run_resumes_with_other_workers(stores):
    whole = take(stream_of(stores), Share(images=3), steps=9)
    rest = take(stream_of(stores, workers=2), Share(images=3), steps=4, consumed=15)
    assert len(rest) == 4
    assert all(same(a, b) for a, b in zip(whole[5:], rest, strict=True))


def test_read_ahead_changes_nothing(stores):
    whole = take(stream_of(stores), Share(images=3), steps=9)
    for read_ahead in (1, 1000):
        other = take(stream_of(stores, read_ahead=read_ahead), Share(images=3), steps=9)
        assert all(same(a, b) for a, b in zip(whole, other, strict=True))


def test_weighted_stores_keep_their_shares(stores):
    stream = stream_of(stores, weights=(1.0, 3.0))
    batches = take(stream, Share(images=50), steps=8)
    ids = np.array([image for batch in batches for image in batch.image_ids])
    captioned = ids >> 43 == SOURCES["vg"]
    assert captioned.mean() == pytest.approx(0.75, abs=0.02)
    # Each store still goes through all of its images before one comes again.
    assert len(set(ids[captioned][:CAPTIONED])) == CAPTIONED
    assert len(set(ids[~captioned][:IMAGES])) == IMAGES


def test_images_meet_their_own_regions(stores):
    reader = StoreReader(str(stores[0]), region_columns=["rle", "embedding", "area"])
    raw = lance.dataset(str(stores[0] / "regions.lance")).to_table().to_pylist()
    by_image = {}
    for row in raw:
        by_image.setdefault(row["image_id"], []).append(row)
    rows = np.random.default_rng(0).permutation(reader.rows)
    found = reader.read(rows)
    assert len({image.image_id for image in found}) == IMAGES
    for image in found:
        expected = sorted(by_image.get(image.image_id, []), key=lambda r: r["key"])
        assert image.regions["key"].to_pylist() == [r["key"] for r in expected]
        assert image.regions["rle"].to_pylist() == [r["rle"] for r in expected]
        assert image.regions["embedding"].to_pylist() == [r["embedding"] for r in expected]


def test_sample_fields_are_the_region_rows(stores):
    raw = lance.dataset(str(stores[1] / "regions.lance")).to_table().to_pylist()
    rows = {row["key"]: row for row in raw}
    batches = take(stream_of(stores[1:], settings(augment=AugmentConfig())), Share(images=2), 3)
    seen = 0
    for batch in batches:
        assert batch.words is not None and batch.embeddings is not None
        assert torch.equal(batch.has_concepts, batch.valid)
        for b, image_id in enumerate(batch.image_ids):
            count = int(batch.valid[b].sum())
            for r in range(count):
                row = rows[int(batch.keys[b, r])]
                assert int(batch.keys[b, r]) >> ORDINAL_BITS == image_id
                assert batch.embeddings[b, r].tolist() == row["embedding"]
                assert batch.concept_ids[b, r].tolist() == row["concept_ids"]
                words = batch.words[b, r][batch.words[b, r] != IGNORE].tolist()
                assert words[0] == TOKENIZER.bos_id and words[-1] == TOKENIZER.eos_id
                assert TOKENIZER.decode(words) == row["caption"]
                assert bool(batch.has_mask[b, r]) == (row["rle"] is not None)
                x, y, w, h = row["bbox_xywh"]
                expected = torch.tensor([x, y, x + w, y + h])  # 64 px images fill the canvas
                torch.testing.assert_close(batch.boxes_xyxy[b, r], expected)
                if row["rle"] is None:
                    assert not batch.masks[b, r].any()
                else:
                    mask = rle.decode(row["rle"], (48, 64))
                    share = batch.masks[b, r].float() / 255
                    assert share[:12].sum() * 16 == pytest.approx(mask.sum(), rel=0.02, abs=2)
                seen += 1
            assert not batch.valid[b, count:].any()
            assert (batch.words[b, count:] == IGNORE).all()
    assert seen > 20


def test_more_regions_than_wanted_are_drawn_anew_each_epoch(stores):
    stream = stream_of(stores[:1], settings(regions=2))
    batches = take(stream, Share(images=IMAGES), steps=2)
    keys = [
        {
            image: sorted(k[v].tolist())
            for image, k, v in zip(b.image_ids, b.keys, b.valid, strict=True)
        }
        for b in batches
    ]
    assert all(len(k) <= 2 for k in keys[0].values())
    assert sum(keys[0][image] != keys[1][image] for image in keys[0]) > IMAGES // 2


def test_hard_masks_are_hard(stores):
    (batch,) = take(stream_of(stores[:1], settings(soft_masks=False)), Share(images=4), 1)
    assert set(batch.masks.unique().tolist()) == {0, 255}


def test_state_says_where_and_refuses_another_order(stores):
    stream = stream_of(stores)
    state = json.loads(json.dumps(stream.state(42)))
    assert stream_of(stores, workers=2, read_ahead=2).resume(state) == 42
    with pytest.raises(CheckpointError, match="order is"):
        stream_of(stores, run_rows=5).resume(state)
    with pytest.raises(CheckpointError, match="seed is"):
        stream_of(stores, settings(seed=4)).resume(state)
    with pytest.raises(CheckpointError, match="rows is"):
        stream_of(stores[:1]).resume(state)


def test_a_store_that_grew_is_read_at_the_version_of_the_run(tmp_path):
    store = make_store(tmp_path / "s", 8)
    before = stream_of([store])
    batches = take(before, Share(images=4), 2)
    make_store(store, 4, first_id=100, first_unit=2000, seed=9)
    grown = stream_of([store])
    assert grown.epoch_images == 12
    versions = before.state(0)["versions"]
    again = Stream(before.config, before.samples, versions)
    assert again.epoch_images == 8
    assert all(same(a, b) for a, b in zip(batches, take(again, Share(images=4), 2), strict=True))


def test_unreadable_images_are_reported_and_have_no_regions(tmp_path):
    store = make_store(tmp_path / "s", 5)
    table = lance.dataset(str(store / "images.lance"))
    blobs = [blob for _, blob in table.read_blobs("jpeg", indices=list(range(5)))]
    blobs[2] = blobs[2][:100]
    columns = [c for c in table.schema.names if c != "jpeg"]
    rest = table.to_table(columns=columns)
    at = table.schema.get_field_index("jpeg")
    rest = rest.add_column(at, lance.blob_field("jpeg"), lance.blob_array(blobs))
    lance.write_dataset(
        rest, str(store / "images.lance"), mode="overwrite", data_storage_version="2.2"
    )
    batches = take(stream_of([store], shuffle=False), Share(images=5), 1)
    assert len(batches[0].problems) == 1 and "image " in batches[0].problems[0]
    assert not batches[0].valid[2].any() and batches[0].valid[[0, 1, 3, 4]].any(1).all()


def test_wrong_stores_are_refused_with_what_to_do(stores, tmp_path):
    with pytest.raises(StoreError, match="build-semantic"):
        stream_of([tmp_path / "nothing"])
    with pytest.raises(ConfigError, match="--store"):
        stream_of([])
    with pytest.raises(StoreError, match="lacks columns"):
        StoreReader(str(stores[0]), region_columns=["second_teacher"])
    with pytest.raises(ConfigError, match="weights"):
        stream_of(stores, weights=(1.0,))


def test_regions_of_another_image_are_noticed(tmp_path):
    store = make_store(tmp_path / "s", 6, unit_images=3)
    path = str(store / "regions.lance")
    table = lance.dataset(path).to_table()
    order = np.arange(len(table))
    order[[0, 10]] = order[[10, 0]]  # two rows of the same unit swapped
    lance.write_dataset(table.take(order), path, mode="overwrite")
    with pytest.raises(StoreError, match="verify"):
        take(stream_of([store]), Share(images=6), 1)


def test_a_reader_pickles_small_and_works_afterwards(stores):
    reader = StoreReader(str(stores[0]), region_columns=["rle"])
    reader.read(np.arange(4))
    content = pickle.dumps(reader)
    assert len(content) < 5000
    assert (
        pickle.loads(content).read(np.array([3]))[0].image_id
        == reader.read(np.array([3]))[0].image_id
    )


def test_more_regions_may_be_pooled_than_are_prompted(stores):
    batch = take(stream_of(stores, settings(regions=4, prompted=2)), Share(images=3), steps=1)[0]
    asked = batch.asked()
    assert batch.valid.shape == (3, 4) and asked.valid.shape == (3, 2)
    assert asked.images.shape == (3, 3, 64, 64) and torch.equal(asked.masks, batch.masks[:, :2])
    counts = count([batch])
    pooled = batch.valid & batch.has_mask & batch.has_concepts
    assert counts["pooled"] == pooled.sum() and counts["concepts"] == pooled[:, :2].sum()
    assert take(stream_of(stores), Share(images=3), steps=1)[0].asked().valid.shape == (3, 4)

"""Mutated shards: never a crash, never a lost good row. A hang would meet the test's timeout."""

import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tap_engine.pipeline.crop import crop_regions, decode_image
from tap_engine.pipeline.sources.records import ImageRecord
from tap_engine.pipeline.sources.sa1b import Sa1bSource
from tap_engine.schemas.errors import SchemaError
from tap_engine.schemas.store_settings import CropConfig
from tests.scenes import scene_members, write_tar

NUMBERS = (11, 12, 13, 14)
CROP = CropConfig(mean_rgb=(0.5, 0.5, 0.5), size_px=16)


def read_all(tar: Path) -> dict[int, ImageRecord]:
    """Every usable image, each decoded and cropped as a build would."""
    source = Sa1bSource([str(tar)])
    found = {}
    for shard in source.shards():
        for unit in source.index(shard, 3)[0]:
            for index in range(len(unit)):
                record, _ = source.load(unit, index)
                if record is None:
                    continue
                try:
                    pixels = decode_image(record.jpeg)
                except SchemaError:
                    continue
                if pixels.shape[:2] != (record.height, record.width):
                    continue
                boxes = np.array([region.bbox_xywh for region in record.regions], np.int64)
                runs = [region.runs for region in record.regions]
                crop_regions(pixels, runs, boxes.reshape(-1, 4), CROP)
                found[record.image_id] = record
    return found


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """Bytes of a good tar, where its members lie, and what it holds."""
    path = tmp_path_factory.mktemp("intact") / "sa_000000.tar"
    write_tar(path, scene_members(NUMBERS, size_hw=(40, 50), regions=3))
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        members = [(m.name, m.offset, m.offset_data + -(-m.size // 512) * 512) for m in tar]
    return content, members, read_all(path)


def number_of(name: str) -> int:
    return int(name.removeprefix("./sa_").split(".")[0])


def mutate(rng: random.Random, content: bytes, members) -> tuple[bytes, set[int]]:
    """A damaged tar, and the images that the damage touches."""
    data = bytearray(content)
    kind = rng.choice(["flip", "header", "cut", "blank", "insert", "drop", "json"])
    name, start, stop = rng.choice(members)
    touched = {number_of(name)}
    if kind == "flip":  # somewhere in one member's content
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(start + 512, stop)] = rng.randrange(256)
    elif kind == "header":
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(start, start + 512)] = rng.randrange(256)
    elif kind == "cut":
        at = rng.randrange(len(data))
        touched = {number_of(n) for n, _, end in members if end > at}
        del data[at:]
    elif kind == "blank":
        data[start:stop] = bytes(stop - start)
    elif kind == "insert":  # whole blocks of noise between two members
        data[start:start] = rng.randbytes(512 * rng.randint(1, 4))
        touched = set()
    elif kind == "drop":
        del data[start:stop]
    elif kind == "json":
        name, start, stop = rng.choice([m for m in members if m[0].endswith(".json")])
        touched = {number_of(name)}
        text = data[start + 512 : stop].rstrip(b"\0")
        data[start:stop] = as_member(name, mutate_json(rng, text))
    return bytes(data), touched


def mutate_json(rng: random.Random, text: bytes) -> bytes:
    """Well-formed json with a strange value somewhere."""
    content = json.loads(text)
    strange = rng.choice(
        [None, -1, 1e308, float("inf"), float("nan"), "x", [], {}, True, 10**30, "1" * 100, [[0]]]
    )
    target = rng.choice(["image", "annotation", "segmentation", "top"])
    if target == "image":
        content["image"][rng.choice(list(content["image"]))] = strange
    elif target == "top":
        content[rng.choice(["image", "annotations"])] = strange
    else:
        entry = rng.choice(content["annotations"])
        if target == "segmentation":
            entry = entry["segmentation"]
        entry[rng.choice(list(entry))] = strange
    return json.dumps(content).encode()


def as_member(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    size = 512 + -(-len(content) // 512) * 512
    return buffer.getvalue()[:size]


def same_regions(a: ImageRecord, b: ImageRecord) -> bool:
    key = [(r.ordinal, r.region_id, r.rle, r.bbox_xywh, r.area) for r in a.regions]
    return a.jpeg == b.jpeg and key == [
        (r.ordinal, r.region_id, r.rle, r.bbox_xywh, r.area) for r in b.regions
    ]


@pytest.mark.parametrize(
    ("first", "rounds"), [(0, 120), pytest.param(120, 1200, marks=pytest.mark.long)]
)
def test_mutated_shards_lose_no_good_row(intact, tmp_path, first, rounds) -> None:
    content, members, expected = intact
    assert set(expected) == set(NUMBERS)
    lost_something = 0
    for seed in range(first, first + rounds):
        data, touched = mutate(random.Random(seed), content, members)
        path = tmp_path / "sa_000000.tar"
        path.write_bytes(data)
        found = read_all(path)
        for number in set(NUMBERS) - touched:
            assert number in found, f"seed {seed}: image {number} was good and is gone"
            assert same_regions(found[number], expected[number]), f"seed {seed}: {number} changed"
        lost_something += len(found) < len(expected)
    assert lost_something > rounds / 4, "the mutations must bite"


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b"1", b'{"image": {"a": NaN}}'])
def test_hostile_json_is_a_reject(tmp_path, content) -> None:
    members = scene_members([1, 2], size_hw=(40, 50))
    members["sa_1.json"] = content
    assert set(read_all(write_tar(tmp_path / "sa_000000.tar", members))) == {2}

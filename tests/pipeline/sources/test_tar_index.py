import io
import os
import tarfile

import numpy as np
import pyarrow as pa
import pytest

from tap_engine.pipeline.sources import index_cache
from tap_engine.pipeline.sources.sa1b import Sa1bSource
from tap_engine.pipeline.sources.tar_index import Damage, Member, read_index
from tests.scenes import scene_members, write_tar


def make_tar(sizes, tar_format=tarfile.USTAR_FORMAT, name="./sa_{}.jpg") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for index, size in enumerate(sizes):
            info = tarfile.TarInfo(name.format(index))
            info.size = size
            tar.addfile(info, io.BytesIO(bytes([index % 256]) * size))
    return buffer.getvalue()


def index(content: bytes) -> list:
    return list(read_index(pa.BufferReader(content)))


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
@pytest.mark.parametrize("name", ["./sa_{}.jpg", "sa_{}.json", "long/" * 40 + "sa_{}.jpg"])
def test_offsets_are_those_of_tarfile(tar_format, name) -> None:
    if tar_format == tarfile.USTAR_FORMAT and len(name) > 100:
        name = "long/" * 20 + "sa_{}.jpg"
    content = make_tar([0, 1, 511, 512, 513, 70_000], tar_format, name)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = [Member(m.name, m.offset_data, m.size) for m in tar]
    assert index(content) == expected


def test_a_cut_tar_keeps_what_is_whole() -> None:
    content = make_tar([100, 2000, 3000])
    whole = index(content)
    for length in range(0, len(content), 97):
        found = index(content[:length])
        members = [entry for entry in found if isinstance(entry, Member)]
        assert members == [m for m in whole if m.offset + m.size <= length][: len(members)]
        assert len(members) == sum(m.offset + m.size <= length for m in whole)
        # Silence is right only where nothing is missing but padding.
        ends = [m.offset + m.size for m in whole]
        between = any(end <= length <= -(-end // 512) * 512 for end in [0, *ends])
        damaged = any(isinstance(entry, Damage) for entry in found)
        assert damaged == ((not between and length < ends[-1]) or length == 0), length


def test_a_damaged_header_costs_its_member_only() -> None:
    content = bytearray(make_tar([600] * 5))
    whole = index(bytes(content))
    content[whole[2].offset - 500] ^= 0xFF
    found = index(bytes(content))
    assert [e for e in found if isinstance(e, Member)] == whole[:2] + whole[3:]
    damage = [e for e in found if isinstance(e, Damage)]
    assert len(damage) == 1
    assert damage[0].offset == whole[2].offset - 512


def test_zero_blocks_in_the_middle_do_not_end_the_tar() -> None:
    parts = make_tar([600] * 2)
    content = parts + make_tar([600] * 3)  # what `cat a.tar b.tar` gives
    assert sum(isinstance(entry, Member) for entry in index(content)) == 5


def test_zeros_in_place_of_the_rest_are_damage_and_padding_is_not() -> None:
    content = make_tar([3000] * 8)
    whole = index(content)
    assert not any(isinstance(entry, Damage) for entry in whole)
    end = whole[2].offset + 3072
    found = index(content[:end] + bytes(len(content) - end))
    assert found[:3] == whole[:3]
    (damage,) = found[3:]
    assert f"the last {len(content) - end:,} bytes are zeros" in damage.detail
    for blocks in (20, 64, 2048):  # tar --blocking-factor
        record = 512 * blocks
        padded = content[: whole[-1].offset + 3072]
        padded += bytes(1024 + -(len(padded) + 1024) % record)
        assert index(padded) == whole, blocks


@pytest.mark.parametrize("content", [b"", b"abc", bytes(700), np.random.default_rng(0).bytes(9000)])
def test_what_is_no_tar_has_no_members(content) -> None:
    assert not any(isinstance(entry, Member) for entry in index(content))


def test_a_kept_index_is_used_and_a_changed_shard_is_not_read_by_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(index_cache, "_WORTH_KEEPING", 1)
    path = write_tar(tmp_path / "sa_000000.tar", scene_members([1, 2, 3]))
    source = Sa1bSource([str(path)])
    source.prepare(str(tmp_path / "_index"), print)

    def units():
        (shard,) = source.shards()
        return [(u.names, u.spans.tolist()) for u in source.index(shard, 2)[0]]

    first = units()
    kept = list((tmp_path / "_index").iterdir())
    assert len(kept) == 1
    assert units() == first
    # without its content the file still has name, size and time: only the cache can answer
    stat = path.stat()
    path.write_bytes(bytes(stat.st_size))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert units() == first
    os.utime(path)
    assert units() == []
    kept[0].write_bytes(b"damaged")

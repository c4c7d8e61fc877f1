"""Which shards paths name, without reading them."""

import os

import pytest

from tap_engine.pipeline.sources.sa1b import Sa1bSource
from tap_engine.schemas.errors import SourceError
from tests.scenes import write_shard


def test_a_shard_named_by_two_paths_is_one_shard(tmp_path) -> None:
    shard = write_shard(tmp_path / "data" / "sa_000000.tar", [1, 2])
    other = write_shard(tmp_path / "data" / "sa_000001.tar", [3])
    (tmp_path / "links").mkdir()
    os.link(shard, tmp_path / "links" / "sa_000000.tar")
    named = [shard, tmp_path / "data", tmp_path / "links", f"{tmp_path}/data/../data/{shard.name}"]
    found = Sa1bSource([str(path) for path in named]).shards()
    assert [(s.uri.rpartition("/")[2], s.size) for s in found] == [
        (path.name, path.stat().st_size) for path in (shard, other)
    ]


def test_shards_of_one_name_but_other_sizes_are_two(tmp_path) -> None:
    for folder, numbers in (("a", [1]), ("b", [2, 3])):
        write_shard(tmp_path / folder / "sa_000000.tar", numbers)
    assert len(Sa1bSource([str(tmp_path / "a"), str(tmp_path / "b")]).shards()) == 2


def test_a_path_without_shards_is_named(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="empty"):
        Sa1bSource([str(tmp_path / "empty")]).shards()

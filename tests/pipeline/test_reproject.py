import pickle
import shutil
import tempfile

import numpy as np
import pytest

from tap_engine.pipeline import reproject as module
from tap_engine.pipeline.build import build
from tap_engine.pipeline.config import BuildConfig
from tap_engine.pipeline.reproject import ReprojectConfig, reproject
from tap_engine.pipeline.sources.sa1b import Sa1bSource
from tap_engine.pipeline.store import Store
from tap_engine.pipeline.teacher import TeacherConfig
from tap_engine.pipeline.verify import verify
from tap_engine.schemas.errors import SchemaError
from tap_engine.schemas.tables import CONCEPTS, IMAGES, REGIONS
from tests.scenes import write_shard, write_tiny_clip

pytestmark = pytest.mark.ray


@pytest.fixture
def other(tmp_path, tiny_clip):
    path = tmp_path / "four.txt"
    path.write_text("sky\nred car\ncat\nboat\n")
    return ReprojectConfig(
        teacher=TeacherConfig(name=str(tiny_clip)), vocabulary=str(path), concepts="top:2"
    )


@pytest.fixture
def store(built_store, tmp_path):
    shutil.copytree(built_store, tmp_path / "store")
    return Store(str(tmp_path / "store"))


def by_key(store: Store, columns: list[str]) -> dict:
    return store.open(REGIONS).to_table(columns=["key", *columns]).sort_by("key").to_pydict()


def test_columns_equal_those_of_a_build_with_that_vocabulary(store, tmp_path, other) -> None:
    """And images built later fit in."""
    before = by_key(store, ["embedding"])
    assert reproject(store, other) == 40
    assert verify(store).ok, verify(store).problems
    assert by_key(store, ["embedding"]) == before
    write_shard(tmp_path / "sa_000000.tar", range(1, 12))
    source = Sa1bSource([str(tmp_path / "sa_000000.tar")])
    common = {"teacher": other.teacher, "vocabulary": other.vocabulary, "concepts": "top:2"}
    fresh = BuildConfig(out=str(tmp_path / "fresh"), **common)
    assert build(source, fresh).images == 11
    assert build(source, BuildConfig(out=store.uri, **common)).images == 3
    assert verify(store).ok, verify(store).problems
    columns = ["concept_ids", "concept_probs", "concept_entropy"]
    ours, theirs = (by_key(s, columns) for s in (store, Store(fresh.out)))
    assert ours["key"] == theirs["key"]
    assert ours["concept_ids"] == theirs["concept_ids"]
    for name in columns[1:]:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-3)
    assert store.open(CONCEPTS).to_table().equals(Store(fresh.out).open(CONCEPTS).to_table())


@pytest.mark.parametrize("step", ["_project", "_swap", "_replace_concepts"])
def test_a_killed_run_is_continued(store, other, monkeypatch, step) -> None:
    """Die right after each step; the store is told as unfinished, the same command ends it."""
    work = getattr(module, step)

    def die(*arguments):
        work(*arguments)
        raise ConnectionError("the machine is gone")

    monkeypatch.setattr(module, step, die)
    with pytest.raises(ConnectionError):
        reproject(store, other)
    monkeypatch.undo()
    reproject(store, other)
    assert verify(store).ok, verify(store).problems
    assert store.open(REGIONS).schema.field("concept_ids").type.list_size == 2


def test_nothing_is_read_from_or_left_in_the_temporary_folder(
    store, other, monkeypatch, tmp_path
) -> None:
    """Any user of a machine can put files there, and rows of another store may lie there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    pack, seen = module.ConceptPacker.pack, []

    def watched(self, vectors):
        seen.extend(folder.iterdir())
        return pack(self, vectors)

    monkeypatch.setattr(module.ConceptPacker, "pack", watched)
    unpickle = pickle.loads
    monkeypatch.setattr(pickle, "loads", lambda *a, **k: seen.append("pickle") or unpickle(*a, **k))
    reproject(store, other)
    assert seen == []
    assert list(folder.iterdir()) == []


def test_rows_are_those_of_the_store_that_is_there_after_a_killed_run(
    built_store, store, other, monkeypatch, tmp_path
) -> None:
    """The operator removes the store that was being reprojected and makes another in its place."""
    monkeypatch.setattr(module, "_BATCH_ROWS", 8)
    pack, calls = module.ConceptPacker.pack, []

    def die(self, vectors):
        calls.append(len(vectors))
        if len(calls) == 3:
            raise ConnectionError("the machine is gone")
        return pack(self, vectors)

    monkeypatch.setattr(module.ConceptPacker, "pack", die)
    with pytest.raises(OSError, match="the machine is gone"):
        reproject(store, other)
    monkeypatch.undo()
    shutil.rmtree(store.uri)
    # The same store without its second half, so other regions follow each other.
    shutil.copytree(built_store, store.uri)
    second = store.open(REGIONS).to_table(columns=["unit"])["unit"].to_pylist()[-1]
    for table in (REGIONS, IMAGES):
        store.open(table).delete(f"unit != {second}")
    shutil.copytree(store.uri, tmp_path / "undisturbed")
    undisturbed = Store(str(tmp_path / "undisturbed"))
    reproject(store, other)
    reproject(undisturbed, other)
    columns = ["concept_ids", "concept_probs"]
    assert by_key(store, columns) == by_key(undisturbed, columns)


def test_another_vocabulary_after_a_killed_run(store, other, few_concepts, monkeypatch) -> None:
    def die(*_):
        raise ConnectionError("the machine is gone")

    monkeypatch.setattr(module, "_swap", die)
    with pytest.raises(ConnectionError):
        reproject(store, other)
    monkeypatch.undo()
    third = ReprojectConfig(teacher=other.teacher, vocabulary=str(few_concepts), concepts="full")
    reproject(store, third)
    assert verify(store).ok, verify(store).problems
    assert store.open(REGIONS).schema.field("concept_ids").type.list_size == 6


def test_another_teacher_is_refused(store, other, tmp_path) -> None:
    wrong = write_tiny_clip(tmp_path / "wrong", seed=5)
    config = ReprojectConfig(
        teacher=TeacherConfig(name=str(wrong)), vocabulary=other.vocabulary, concepts="top:2"
    )
    with pytest.raises(SchemaError, match="was built with weights"):
        reproject(store, config)

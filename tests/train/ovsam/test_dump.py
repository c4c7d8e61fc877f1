"""A dump of features: exactly once, resumable, refused where it does not fit, equal in training."""

import lance
import numpy as np
import pytest
import torch

from tap_engine.schemas.errors import SchemaError, StoreError
from tap_engine.train.data.stream import Share, Stream
from tap_engine.train.ovsam import dump
from tap_engine.train.ovsam.dump import DumpConfig, dump_features
from tap_engine.train.ovsam.objectives import Distillation
from tap_engine.train.ovsam.run import open_ovsam_run, samples_of
from tap_engine.train.ovsam.teachers import StoredFeatures, TapTeacher
from tests.train.ovsam.small_runs import labelled_store, small_config, small_start, small_tap


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("dump")
    store = labelled_store(folder / "store", label=False)
    return store, TapTeacher.open(str(small_tap(folder / "tap"))), folder


def rows_of(out):
    table = lance.dataset(str(out / dump.TABLE)).to_table(columns=["image_id", "features"])
    order = np.argsort(table["image_id"].to_numpy())
    values = table["features"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    return table["image_id"].to_numpy()[order], values[order]


def test_a_killed_dump_goes_on_and_every_picture_is_there_once(made, monkeypatch) -> None:
    store, teacher, folder = made
    whole = DumpConfig(store=str(store), out=folder / "whole", image_px=64, images=3)
    assert dump_features(whole, teacher) == 8
    parts = DumpConfig(store=str(store), out=folder / "parts", image_px=64, images=3)
    append, calls = dump._append, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        append(*arguments)

    monkeypatch.setattr(dump, "_append", killed)
    with pytest.raises(KeyboardInterrupt):
        dump_features(parts, teacher)
    monkeypatch.setattr(dump, "_append", append)
    assert dump_features(parts, teacher) == 4
    assert dump_features(parts, teacher) == 0
    (ids, values), (again, same) = rows_of(folder / "whole"), rows_of(folder / "parts")
    assert len(set(ids.tolist())) == 8
    assert np.array_equal(ids, again) and np.array_equal(values, same)


def test_shares_together_are_the_whole(made) -> None:
    store, teacher, folder = made
    for share in (1, 0):
        config = DumpConfig(
            store=str(store), out=folder / "shared", image_px=64, share=share, shares=2
        )
        assert dump_features(config, teacher) == 4
    whole = DumpConfig(store=str(store), out=folder / "one", image_px=64)
    dump_features(whole, teacher)
    assert np.array_equal(rows_of(folder / "shared")[1], rows_of(folder / "one")[1])


def test_another_teacher_or_size_is_refused(made, tmp_path) -> None:
    store, teacher, _ = made
    config = DumpConfig(store=str(store), out=tmp_path / "d", image_px=64, share=0, shares=2)
    dump_features(config, teacher)
    torch.manual_seed(5)
    other = TapTeacher.open(str(small_tap(tmp_path / "tap")))
    with torch.no_grad():
        next(other.model.image_encoder.parameters()).add_(1)
    second = DumpConfig(store=str(store), out=tmp_path / "d", image_px=64, share=1, shares=2)
    with pytest.raises(SchemaError, match="teacher"):
        dump_features(second, other)
    run = small_config("sample_ovsam_s2c", store)
    stored = StoredFeatures(str(tmp_path / "d" / dump.TABLE), run.model)
    stored.require_teacher(teacher)
    with pytest.raises(StoreError, match="dump again"):
        stored.require_teacher(other)
    with pytest.raises(StoreError, match="is the dump complete"):
        stored.read([999_999])
    with pytest.raises(StoreError, match="this model learns"):
        StoredFeatures(
            str(tmp_path / "d" / dump.TABLE),
            small_config("sample_ovsam_s2c", store, "model.image_size=128").model,
        )
    with pytest.raises(StoreError, match="no dump of features"):
        StoredFeatures(str(tmp_path / "nothing"), run.model)


def test_a_dump_and_the_teacher_itself_give_the_same_loss(made) -> None:
    store, teacher, folder = made
    out = folder / "equal"
    dump_features(DumpConfig(store=str(store), out=out, image_px=64), teacher)
    config = small_config("sample_ovsam_s2c", store)
    start = small_start(folder / "start", config)
    sets = (f"init.weights={start}", f"init.features={out / dump.TABLE}", "init.teacher=")
    run = open_ovsam_run(small_config("sample_ovsam_s2c", store, *sets), folder / "run")
    stream = Stream(config.stream, samples_of(config))
    batch = next(iter(stream.batches(Share(images=4), consumed=0, steps=1, pin=False)))
    counts = {"images": torch.tensor(4.0)}
    stored, _ = run.objective(batch, counts, 0)
    direct, _ = Distillation(run.model, teacher)(batch, counts, 0)
    assert stored.item() == pytest.approx(direct.item(), rel=1e-3)
    run.lock.release()

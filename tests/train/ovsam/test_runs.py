"""Both stages through the trainer's own loop: what trains, what is frozen, what resumes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tap_engine.model.ovsam.checkpoint import load_ovsam
from tap_engine.model.ovsam.classes import ClassTable
from tap_engine.model.ovsam.predictor import OpenVocabularySam
from tap_engine.schemas.errors import CheckpointError, ConfigError, StoreError
from tap_engine.train.loop import train
from tap_engine.train.ovsam.run import open_ovsam_run
from tests.train.ovsam.small_runs import (
    labelled_store,
    small_classes,
    small_config,
    small_start,
    small_tap,
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return labelled_store(tmp_path_factory.mktemp("store") / "s")


@pytest.fixture(scope="module")
def stage1(tmp_path_factory, store):
    folder = tmp_path_factory.mktemp("stage1")
    start = small_start(folder / "start", small_config("sample_ovsam_s2c", store))
    config = small_config(
        "sample_ovsam_s2c",
        store,
        f"init.weights={start}",
        f"init.teacher={small_tap(folder / 'tap')}",
    )
    run = open_ovsam_run(config, folder / "run")
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    train(run)
    return run, before, folder


def changed(run, before) -> set[str]:
    now = run.model.state_dict()
    return {name for name, value in before.items() if not torch.equal(now[name], value)}


def test_stage_one_trains_the_adapter_alone(stage1) -> None:
    run, before, _ = stage1
    moved = changed(run, before)
    assert moved and all(name.startswith("adapter.") for name in moved)
    assert "adapter.pos_embed" not in moved
    parameters = {name for name, _ in run.model.named_parameters() if name.startswith("adapter.")}
    assert parameters <= moved


def test_stage_two_trains_the_head_and_leaves_the_rest_bit_identical(tmp_path, store) -> None:
    start = small_start(tmp_path / "start", small_config("sample_ovsam_c2s", store))
    classes = small_classes(tmp_path / "classes.safetensors")
    config = small_config(
        "sample_ovsam_c2s",
        store,
        f"init.weights={start}",
        f"init.classes={classes}",
        "optim.weight_decay=0.5",
        "train.steps=5",
    )
    run = open_ovsam_run(config, tmp_path / "run")
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    train(run)
    moved = changed(run, before)
    frozen = ("backbone.", "adapter.", "prompt_encoder.")
    assert moved and not [name for name in moved if name.startswith(frozen)]
    assert {name.split(".")[0] for name in moved} == {"pyramid", "decoder", "region_embedding"}
    model = OpenVocabularySam.from_pretrained(next((tmp_path / "run/checkpoints").iterdir()))
    assert model.concepts is not None
    assert model.concepts.kinds.tolist() == ClassTable.load(classes).kinds.tolist()
    model.set_image(np.zeros((40, 60, 3), np.uint8))
    assert len(model.predict(boxes=[[5, 5, 30, 30]])[0].concepts) == 4


@pytest.mark.parametrize("stage", ["s2c", "c2s"])
def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path, store, stage) -> None:
    start = small_start(tmp_path / "start", small_config(f"sample_ovsam_{stage}", store))
    classes = small_classes(tmp_path / "classes.safetensors")
    sets = [f"init.weights={start}", f"init.classes={classes}"]
    if stage == "s2c":
        sets = [f"init.weights={start}", f"init.teacher={small_tap(tmp_path / 'tap')}"]
    config = small_config(f"sample_ovsam_{stage}", store, *sets)
    train(open_ovsam_run(config, tmp_path / "whole"))

    class Stopped(Exception):
        pass

    run = open_ovsam_run(config, tmp_path / "parts")
    save = run.save

    def save_and_stop():
        save()
        raise Stopped

    type(run).save, before = lambda self: save_and_stop(), type(run).save
    try:
        with pytest.raises(Stopped):
            train(run)
    finally:
        type(run).save = before
    again = open_ovsam_run(config, tmp_path / "parts")
    assert again.step == 2
    train(again)
    whole, parts = (
        load_file(tmp_path / name / "checkpoints/step_00000004/model.safetensors")
        for name in ("whole", "parts")
    )
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


def test_what_is_missing_is_said_before_anything_is_computed(tmp_path, store) -> None:
    with pytest.raises(ConfigError, match="which frozen CLIP"):
        open_ovsam_run(small_config("sample_ovsam_s2c", store), tmp_path / "a")
    with pytest.raises(ConfigError, match="no teacher to distil"):
        open_ovsam_run(small_config("sample_ovsam_s2c", store, "init.teacher="), tmp_path / "b")
    with pytest.raises(ConfigError, match="stage c2s needs classes"):
        open_ovsam_run(small_config("sample_ovsam_c2s", store), tmp_path / "c")
    config = small_config("sample_ovsam_c2s", store)
    start = small_start(tmp_path / "start", config)
    classes = small_classes(tmp_path / "classes.safetensors")
    plain = labelled_store(tmp_path / "plain", label=False)
    with pytest.raises(StoreError, match="has no column 'label'"):
        open_ovsam_run(
            small_config(
                "sample_ovsam_c2s", plain, f"init.weights={start}", f"init.classes={classes}"
            ),
            tmp_path / "d",
        )
    with pytest.raises(CheckpointError, match="the recipe's model has"):
        open_ovsam_run(
            small_config(
                "sample_ovsam_c2s",
                store,
                f"init.weights={start}",
                f"init.classes={classes}",
                "model.head.pyramid_dim=64",
            ),
            tmp_path / "e",
        )


def test_the_decoder_starts_as_the_teachers(stage1, tmp_path, store) -> None:
    _, _, folder = stage1
    from tap_engine.model.checkpoint import load_model
    from tap_engine.model.ovsam.model import OvsamModel
    from tap_engine.train.ovsam.start import start_from_tap

    tap = load_model(folder / "tap")
    model = OvsamModel(small_config("sample_ovsam_s2c", store).model)
    start_from_tap(model, tap)
    points = torch.tensor([[[[10.0, 8], [40, 50]]]])
    labels = torch.tensor([[[2, 3]]])
    torch.testing.assert_close(
        model.prompt_encoder(points, labels), tap.prompt_encoder(points, labels)
    )
    assert torch.equal(model.decoder.mask_token.weight[0], tap.image_decoder.mask_tokens.weight[0])
    assert model.adapter.pos_embed.abs().sum() > 0
    # With the teacher's semantic and other mask tokens left out the masks are near, not equal.
    embedding = tap.encode_image(torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8))
    ours, _ = model.decode(embedding, points, labels)
    theirs = tap.decode(embedding, points, labels).mask_logits[:, :, 0]
    correlation = torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1]
    assert correlation > 0.5
    assert load_ovsam(folder / "run/checkpoints/step_00000004").config.image_size == 64

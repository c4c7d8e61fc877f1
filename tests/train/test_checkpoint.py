"""Checkpoints are whole or not there, and only the ones asked for stay."""

import pytest
import torch
from safetensors.torch import load_file

from tap_engine.model.config import preset
from tap_engine.model.predictor import Tap
from tap_engine.schemas.errors import CheckpointError, ConfigError
from tap_engine.train.checkpoint import (
    CheckpointConfig,
    checkpoints,
    export_model,
    find_checkpoint,
    load_optimizer,
    model_folder,
    optimizer_tensors,
    read_state,
    read_tensors,
    save_checkpoint,
)
from tap_engine.train.opening import open_run
from tests.train.small_run import small_config
from tests.train.small_store import make_store


def save(run, step, config=CheckpointConfig(), write=lambda folder: None):  # noqa: B008
    return save_checkpoint(
        run,
        step,
        write_model=write,
        tensors={"a": torch.full((2,), float(step))},
        state={"x": step},
        config=config,
    )


def test_saved_is_read_and_old_ones_go(tmp_path):
    config = CheckpointConfig(keep=2, keep_every=20)
    for step in (10, 20, 30, 40, 50, 60):
        save(tmp_path, step, config)
    assert [p.name for p in checkpoints(tmp_path)] == [
        f"step_{step:08d}" for step in (20, 40, 50, 60)
    ]
    last = find_checkpoint(tmp_path, "auto")
    assert read_state(last) == {"step": 60, "x": 60}
    assert read_tensors(last)["a"].tolist() == [60, 60]


def test_a_crash_while_saving_leaves_the_one_before(tmp_path):
    save(tmp_path, 1)

    def crash(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2, write=crash)
    assert [p.name for p in checkpoints(tmp_path)] == ["step_00000001"]
    save(tmp_path, 2)
    assert len(checkpoints(tmp_path)) == 2


def test_what_to_go_on_from(tmp_path):
    assert find_checkpoint(tmp_path, "auto") is None
    assert find_checkpoint(tmp_path, "never") is None
    path = save(tmp_path, 5)
    assert find_checkpoint(tmp_path, str(path)) == path
    with pytest.raises(CheckpointError, match="--resume auto"):
        find_checkpoint(tmp_path, "never")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        find_checkpoint(tmp_path, str(tmp_path / "nowhere"))
    (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        read_state(path)
    (path / "trainer.safetensors").write_bytes(b"xx")
    with pytest.raises(CheckpointError, match="damaged"):
        read_tensors(path)
    with pytest.raises(ConfigError, match="keep"):
        CheckpointConfig(keep=0)


def test_moments_go_by_name():
    def make():
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        groups = [{"params": [layer.bias, layer.weight], "names": ["b", "w"]}]
        return layer, torch.optim.AdamW(groups, lr=0.1)

    def step(layer, optimizer):
        layer(torch.ones(3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    layer, optimizer = make()
    step(layer, optimizer)
    saved = {k: v.clone() for k, v in optimizer_tensors(optimizer).items()}
    weights = {k: v.clone() for k, v in layer.state_dict().items()}
    step(layer, optimizer)
    other, again = make()
    other.load_state_dict(weights)
    load_optimizer(again, saved)
    step(other, again)
    assert torch.equal(other.weight, layer.weight)
    del saved["optimizer/w/exp_avg"], saved["optimizer/w/exp_avg_sq"], saved["optimizer/w/step"]
    with pytest.raises(CheckpointError, match=r"init\.weights"):
        load_optimizer(again, saved)


def test_a_checkpoint_is_a_model_and_exports_at_half_size(tmp_path):
    store = make_store(tmp_path / "store", 4)
    run = open_run(small_config(store), tmp_path / "run")
    run.save()
    assert model_folder(tmp_path / "run").name == "step_00000000"
    export_model(tmp_path / "run", tmp_path / "whole", half=False)
    export_model(tmp_path / "run", tmp_path / "half", half=True)
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("whole", "half")]
    assert 0.45 < sizes[1] / sizes[0] < 0.6
    whole, half = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "half"))
    name = "prompt_encoder.coord_matrix"
    assert half[name].dtype == torch.float32 and torch.equal(half[name], whole[name])
    image = torch.randint(0, 255, (40, 50, 3), dtype=torch.uint8).numpy()
    answers = []
    for folder in ("whole", "half"):
        tap = Tap.from_pretrained(tmp_path / folder)
        tap.set_image(image)
        (region,) = tap.predict(boxes=[[5, 5, 30, 30]])
        answers.append(region)
    assert answers[0].concepts[0].name.startswith("concept ")
    torch.testing.assert_close(
        torch.tensor(answers[0].sem_embed), torch.tensor(answers[1].sem_embed), atol=0.02, rtol=0.05
    )


def test_a_run_without_checkpoints_has_no_model(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="without a complete checkpoint"):
        model_folder(tmp_path)


def test_presets_still_have_what_recipes_name():
    assert preset("tiny").decoder.sem_embed_dim == 128

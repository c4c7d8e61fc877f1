"""What a run starts from, and what it refuses to start without."""

import pytest
import torch

from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.settings import with_overrides
from tap_engine.train.opening import open_run
from tap_engine.train.recipes import RECIPES, recipe
from tap_engine.train.start import check_start, initial_model, trunk_file


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_that_go_on_from_weights_say_which_setting_gives_them(name):
    config = recipe(name)
    if config.init.weights or config.init.trunk:
        check_start(config)
        return
    setting = "init.mae=" if name.endswith(("stage1", "_sam")) else "init.weights="
    with pytest.raises(ConfigError, match=setting) as found:
        check_start(config)
    assert "--set init.random=true" in str(found.value) and name in str(found.value)
    check_start(with_overrides(config, ["init.weights=there"]))
    check_start(with_overrides(config, ["init.random=true"]))
    mae = with_overrides(config, ["init.mae=there"])
    if name.endswith(("stage1", "_sam")):
        check_start(mae)
    else:
        with pytest.raises(ConfigError):
            check_start(mae)


def test_a_run_refuses_before_it_reads_a_store(tmp_path):
    config = with_overrides(recipe("sample_caption"), ["stream.stores=nowhere"])
    with pytest.raises(ConfigError, match=r"init\.weights="):
        open_run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_the_shipped_trunk_is_found_from_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, notes = initial_model(recipe("sample"))
    assert len(notes) == 1 and notes[0].endswith("trunk set")
    weights = model.state_dict()["image_encoder.trunk.conv1.weight"]
    assert not torch.equal(weights, torch.zeros_like(weights))
    (tmp_path / "sample").write_bytes(b"")  # a file of that name comes first
    assert trunk_file("sample").resolve() == (tmp_path / "sample").resolve()
    with pytest.raises(ConfigError, match=r"init\.trunk"):
        trunk_file("nowhere.safetensors")

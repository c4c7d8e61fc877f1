import pytest
import torch
from safetensors.torch import load_file

from tap_engine.model.config import preset
from tap_engine.model.schedule import cosine_rate
from tap_engine.model.tap import TapModel
from tap_engine.schemas.errors import ConfigError
from tap_engine.train.optim import (
    OptimConfig,
    make_optimizer,
    parameter_groups,
    rate_factor,
    set_rate,
    update_ema,
)
from tests.support import GOLDEN

SCHEDULES = [
    ("out/lr_0", dict(peak=1e-3, last=1e-5, steps=200, warmup_steps=20, warmup_from=0.0)),
    ("out/lr_2", dict(peak=3e-4, last=0.0, steps=150)),
]


@pytest.mark.parametrize(("name", "settings"), SCHEDULES)
def test_schedule_equals_the_released_one(name, settings):
    expected = load_file(GOLDEN / "06_losses_lr.safetensors")[name]
    found = [cosine_rate(step, **settings) for step in range(len(expected))]
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64), expected.double(), atol=1e-12, rtol=0
    )


def test_decay_groups_of_tap_l_are_the_released_ones():
    with torch.device("meta"):
        model = TapModel(preset("tap-l"))
    everything = {"text_decoder": 1.0}
    groups = parameter_groups(model, OptimConfig(rate_factors=everything))
    sizes = {
        float(g["weight_decay"]): (len(g["params"]), sum(p.numel() for p in g["params"]))
        for g in groups
    }
    assert sizes == {0.1: (440, 399_166_692), 0.0: (196, 148_096)}
    old = parameter_groups(model, OptimConfig(rate_factors=everything, decay_rule="v1.0"))
    without = next(g for g in old if g["weight_decay"] == 0)
    assert all(p.ndim < 2 for p in without["params"])
    assert sum(len(g["params"]) for g in old) == 636


def test_factors_scale_and_freeze():
    model = torch.nn.ModuleDict(
        {"encoder": torch.nn.Linear(2, 2), "decoder": torch.nn.Linear(2, 2)}
    )
    config = OptimConfig(rate_factors={"encoder": 0.5, "encoder.bias": 0.0, "model": 9.0})
    optimizer = make_optimizer(model, config)
    set_rate(optimizer, 0.1)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    assert rates == {"encoder.weight": 0.05, "decoder.weight": 0.1, "decoder.bias": 0.1}
    assert rate_factor("model.encoder.weight", config.rate_factors) == 0.5


def test_nothing_to_train_is_an_error():
    with pytest.raises(ConfigError, match="frozen"):
        make_optimizer(torch.nn.Linear(2, 2), OptimConfig(rate_factors={"": 0.0}))


def test_linear_scaling():
    assert OptimConfig(rate=1e-3).peak_rate(64) == pytest.approx(2.5e-4)
    assert OptimConfig(rate=1e-3, scaling="none").peak_rate(64) == 1e-3
    with pytest.raises(ConfigError, match="scaling"):
        OptimConfig(scaling="sqrt")
    with pytest.raises(ConfigError, match="decay_rule"):
        OptimConfig(decay_rule="v2")


def test_average_of_constant_weights_is_those_weights():
    average, weights = [torch.zeros(3), torch.tensor(1)], [torch.ones(3), torch.tensor(5)]
    for _ in range(100):
        update_ema(average, weights, 0.9)
    torch.testing.assert_close(average[0], torch.full((3,), 1 - 0.9**100))
    assert average[1] == 5

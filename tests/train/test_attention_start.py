import pytest
import torch

from tap_engine.model import attention as door
from tap_engine.model import attention_backends as backends
from tap_engine.schemas.errors import ConfigError
from tap_engine.train.attention_start import attention_shapes, start_attention
from tap_engine.train.opening import open_run
from tests.model.small import small_model
from tests.train.small_run import small_config
from tests.train.small_store import make_store

CPU = torch.device("cpu")


def test_the_log_says_which_kernels_a_run_uses(tmp_path, capsys) -> None:
    store = make_store(tmp_path / "store")
    open_run(small_config(store), tmp_path / "plain")
    assert "\nattention: sdpa\n" in capsys.readouterr().out
    open_run(small_config(store, "train.attention=auto"), tmp_path / "auto")
    assert "\nattention: sdpa, the fastest of sdpa " in capsys.readouterr().out


def test_settings_that_cannot_be(tmp_path) -> None:
    with pytest.raises(ConfigError, match="must be auto, sdpa, flash2, flash3, flash4, got 'fast'"):
        small_config(tmp_path, "train.attention=fast")
    with pytest.raises(ConfigError, match="'flash4' cannot be used"):
        start_attention(small_config(tmp_path, "train.attention=flash4"), CPU)


def test_auto_takes_the_fastest(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(backends, "missing", lambda backend, device: None)
    monkeypatch.setattr(backends, "fastest", lambda *_: {"flash2": 0.001, "sdpa": 0.002})
    line = start_attention(small_config(tmp_path, "train.attention=auto"), CPU)
    assert backends.current() == "flash2"
    assert line == "attention: flash2, the fastest of flash2 1.00 ms, sdpa 2.00 ms"
    backends.use("sdpa", CPU)


def test_what_is_measured_is_what_the_model_computes(monkeypatch) -> None:
    model, seen = small_model().train(), set()
    plain = door.attention

    def watched(q, k, v, **options):
        shape = (*q.shape[:2], k.shape[1], *q.shape[2:], options.get("causal", False))
        seen.add(tuple(shape))
        return plain(q, k, v, **options)

    for name in ("image_decoder", "text_decoder"):
        monkeypatch.setattr(f"tap_engine.model.{name}.attention", watched)
    points, labels = torch.rand(1, 3, 2, 2), torch.tensor([2, 3]).expand(1, 3, 2)
    model.decode(torch.randn(1, 32, 4, 4), points, labels)
    model.caption_logits(torch.randn(3, 32), torch.zeros(3, 39, dtype=torch.int64))
    assert set(map(tuple, attention_shapes(model.config, 3))) <= seen

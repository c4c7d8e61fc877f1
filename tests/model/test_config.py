import json

import pytest

from tap_engine.model.config import PRESETS, DecoderConfig, TapConfig, TextConfig, VitConfig, preset
from tap_engine.schemas.errors import ConfigError


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_json_and_back(name) -> None:
    assert TapConfig.from_json(preset(name).to_json()) == preset(name)


def test_settings_missing_in_json_take_their_defaults() -> None:
    content = json.loads(preset("tiny").to_json())
    del content["decoder"]["mask_bias"], content["text"]
    config = TapConfig.from_json(json.dumps(content))
    assert config.decoder.mask_bias is False
    assert config.text == TextConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "damaged"),
        ("{", "damaged"),
        ('{"depth": 3}', "no setting 'depth'"),
        ('{"encoder": {"kind": "swin"}}', "expected one of"),
        ('{"encoder": {"kind": "vit", "layers": [1]}}', "VitConfig has no setting 'layers'"),
    ],
)
def test_damaged_json_is_refused(text, message) -> None:
    with pytest.raises(ConfigError, match=message):
        TapConfig.from_json(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VitConfig(depth=6), "multiple of the four cross-window"),
        (lambda: VitConfig(embed_dim=100, num_heads=3), "multiple of num_heads"),
        (lambda: VitConfig(drop_path=1.0), r"in \[0, 1\)"),
        (lambda: TapConfig(image_size=1000), "multiple of the patch side"),
        (lambda: TapConfig(image_size=512 + 16), "window_size"),
        (lambda: TapConfig(decoder=DecoderConfig(num_heads=3)), "must split over"),
        (lambda: TapConfig(decoder=DecoderConfig(detail=True)), "the ViT encoder has"),
        (lambda: TapConfig(pixel_std=(1.0, 0.0, 1.0)), "std positive"),
        (lambda: TextConfig(max_seq_len=2), "room for a word"),
        (lambda: preset("tap-xxl"), "expected one of"),
    ],
)
def test_settings_out_of_range_are_named(make, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_official_sizes_are_the_defaults() -> None:
    official = TapConfig()
    for name in ("tap-b", "tap-l", "tap-h"):
        config = PRESETS[name]
        assert (config.decoder, config.text) == (official.decoder, official.text)
        assert config.fourier_scale == 1 and not config.decoder.first_residual
        assert not config.decoder.mask_bias and not config.decoder.copy_init
        assert not config.decoder.detail

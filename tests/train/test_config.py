import json
from dataclasses import dataclass, field, replace

import pytest

from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.settings import field_names, with_overrides
from tap_engine.train.config import LoopConfig, differences
from tap_engine.train.data.augment import AugmentConfig
from tap_engine.train.recipes import RECIPES, recipe


def test_overrides_are_parsed_by_type():
    config = with_overrides(
        recipe("vit_b_stage1"),
        [
            "train.steps=1e3",
            "optim.rate=2e-4",
            "optim.betas=0.8,0.99",
            "stream.stores=s3://a/b,c=d",
            "stream.weights=1,2",
            "optim.rate_factors=text_decoder:0,image_encoder:0.1",
            "train.recompute=false",
            "model.encoder.drop_path=0.3",
            "model.encoder.depth=16",
            "loss.concept_loss=feature",
        ],
    )
    assert config.train.steps == 1000 and isinstance(config.train.steps, int)
    assert config.optim.rate == 2e-4 and config.optim.betas == (0.8, 0.99)
    assert config.stream.stores == ("s3://a/b", "c=d") and config.stream.weights == (1.0, 2.0)
    assert config.optim.rate_factors == {"text_decoder": 0.0, "image_encoder": 0.1}
    assert config.train.recompute is False
    assert config.model.encoder.drop_path == 0.3 and config.model.encoder.depth == 16


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.warmup=3", "optim.warmup_steps"),
        ("train.rate=3", "optim.rate"),
        ("modle.image_size=3", "model.image_size"),
        ("train=3", "group of settings: train.steps"),
        ("zzzz=3", "`recipes RECIPE` of `tap-train`"),
        ("train.steps", "name.field=value"),
        ("train.steps=many", "takes int, got 'many'"),
        ("train.steps=2.5", "takes int"),
        ("optim.betas=0.9", "takes"),
        ("train.recompute=maybe", "takes bool"),
        ("train.steps=0", "at least 1"),
        ("train.precision=int4", "fp32, bf16 or fp16"),
        ("loss.concept_loss=l2", "kl, reverse_kl, top_k, feature"),
    ],
)
def test_mistakes_say_what_would_be_right(override, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        with_overrides(recipe("sample"), [override])


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_of_every_recipe_can_be_set_to_itself(name):
    config = recipe(name)
    for setting, value in field_names(config):
        if isinstance(value, tuple):
            text = ",".join(map(str, value))
        elif isinstance(value, dict):
            text = ",".join(f"{k}:{v}" for k, v in value.items())
        else:
            text = str(value)
        assert with_overrides(config, [f"{setting}={text}"]) == config, setting


def test_papers_numbers_are_in_the_recipes():
    for name, depth, drop_path in (("vit_b_stage1", 12, 0.1), ("vit_l_stage1", 24, 0.2)):
        config = recipe(name)
        assert config.optim.rate == 1e-3 and config.optim.betas == (0.9, 0.999)
        assert config.optim.weight_decay == 0.1 and config.optim.final_share == 0.01
        assert config.train.batch == 256 and config.train.images == 1
        assert config.train.steps == 180_000
        assert config.augment.scale == (0.5, 2.0)
        assert config.prompts.per_image == 64 and config.prompts.max_points == 9
        assert config.prompts.box_share == 0.5 and config.prompts.free_share == 0.5
        assert config.loss.focal == 20 * config.loss.dice
        assert config.model.encoder.depth == depth
        assert config.model.encoder.drop_path == drop_path
        assert config.model.decoder.dropout == 0.1
        assert config.model.image_size == 1024 and not config.stream.soft_masks


def test_papers_numbers_of_captions_are_in_the_recipes():
    for size in "bl":
        first = recipe(f"vit_{size}_stage1")
        second = recipe(f"vit_{size}_stage2")
        loss = second.loss
        assert (loss.concept, loss.segmentation, loss.caption) == (1.0, 5.0, 1.0)
        assert second.optim.rate == 1e-4 and second.train.steps == 45_000
        assert second.train.batch == 256 and second.augment.scale == (0.5, 2.0)
        assert second.model.text.dropout == 0.4 and second.augment.flip == 0
        tuning = recipe(f"vit_{size}_caption")
        assert tuning.train.batch == 64 and tuning.train.steps == 60_000
        assert tuning.optim.rate == tuning.optim.peak_rate(64) == 1e-3
        assert tuning.model.text.dropout == 0.4 and tuning.model.text.max_seq_len == 40
        assert tuning.augment == AugmentConfig() and tuning.loss.columns == ("caption",)
        assert tuning.optim.weight_decay == 0.1
        for other in (second, tuning):
            text = replace(other.model.text, dropout=first.model.text.dropout)
            assert replace(other.model, text=text) == first.model


def test_the_first_papers_numbers_and_all_sizes_are_in_the_recipes():
    for size in "bl":
        first, tuning = recipe(f"vit_{size}_v1_stage1"), recipe(f"vit_{size}_v1_caption")
        assert first.train.steps == 90_000 and first.stream.share == 0.5
        assert tuning.train.steps == 30_000 and tuning.model.text.dropout == 0.3
    for size, depth, width in (("b", 12, 768), ("l", 24, 1024), ("xl", 24, 1152), ("h", 32, 1280)):
        for kind in ("stage1", "stage2", "caption", "stage2_caption"):
            config = recipe(f"vit_{size}_{kind}")
            assert config.recipe == f"vit_{size}_{kind}"
            encoder = config.model.encoder
            assert (encoder.depth, encoder.embed_dim) == (depth, width)
        after = recipe(f"vit_{size}_stage2_caption")
        assert after.train.steps == 36_000 and after.optim.peak_rate(64) == 1e-4


def test_only_the_tiny_preset_departs_from_the_official_network():
    official = recipe("vit_l_stage1").model.decoder
    assert not official.first_residual and not official.mask_bias and not official.copy_init
    assert not official.detail and recipe("vit_l_stage1").prompts.point_area == 0


def test_batches_divide_over_processes_or_the_error_says_how():
    assert LoopConfig(batch=256, images=1).accumulate(256) == 1
    assert LoopConfig(batch=256, images=1).accumulate(8) == 32
    assert LoopConfig(batch=256, images=4).accumulate(8) == 8
    with pytest.raises(ConfigError, match=r"train\.batch=255 does"):
        LoopConfig(batch=256, images=1).accumulate(3)


def test_written_settings_have_no_secrets_and_differences_are_named():
    config = with_overrides(
        recipe("smoke"), ["stream.storage_options=aws_secret_access_key=hush,region=x"]
    )
    content = config.to_dict()
    assert "hush" not in json.dumps(content)
    assert content["stream"]["storage_options"] == ["aws_secret_access_key=...", "region=..."]
    other = with_overrides(config, ["optim.rate=7", "train.steps=9"]).to_dict()
    found = differences(other, content)
    assert found == ["optim.rate: 0.0015 -> 7.0", "train.steps: 40 -> 9"]


def test_optional_and_nested_fields_are_found():
    @dataclass(frozen=True)
    class Inner:
        maybe: int | None = None

    @dataclass(frozen=True)
    class Outer:
        inner: Inner = field(default_factory=Inner)

    # Local classes have no importable annotations to resolve but these are plain.
    assert with_overrides(Outer(), ["inner.maybe=3"]).inner.maybe == 3
    assert with_overrides(Outer(Inner(3)), ["inner.maybe=none"]).inner.maybe is None

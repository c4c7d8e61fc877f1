import pytest
import torch

from tap_engine.model.ovsam.backbone import backbone_of, named_backbone
from tap_engine.model.ovsam.config import AdapterConfig, BackboneConfig, OvsamConfig
from tap_engine.model.ovsam.model import OvsamModel, boxes_of_masks
from tap_engine.schemas.errors import CheckpointError, ConfigError
from tests.model.ovsam.small import small_config, small_model

LEDGER = {
    "RN50x16": {
        "backbone": 167_328_912,
        "adapter": 128_844_768,
        "pyramid": 3_835_904,
        "prompt_encoder": 6_220,
        "decoder": 3_505_280 + 256 + 328_960,
        "region_embedding": 196_608,
    },
    "convnext_large_d_320": {
        "backbone": 199_770_816,
        "adapter": 114_099_168,
        "pyramid": 3_098_624,
        "prompt_encoder": 6_220,
        "decoder": 3_505_280 + 256 + 328_960,
        "region_embedding": 196_608,
    },
}
TOTALS = {"RN50x16": 304_046_908, "convnext_large_d_320": 321_005_932}


@pytest.mark.parametrize("name", LEDGER)
def test_parameters_are_those_of_the_paper_part_by_part(name: str) -> None:
    with torch.device("meta"):
        model = OvsamModel(OvsamConfig(backbone=named_backbone(name)))
    found = {
        part: sum(p.numel() for p in module.parameters()) for part, module in model.named_children()
    }
    assert found == LEDGER[name]
    assert sum(found.values()) == TOTALS[name]
    assert model.adapter.pos_embed.numel() == 5_242_880
    assert not isinstance(model.adapter.pos_embed, torch.nn.Parameter)


def test_the_adapters_parts_have_the_published_counts() -> None:
    with torch.device("meta"):
        adapter = OvsamModel(OvsamConfig()).adapter

    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(adapter.projections) == 29_496_320
    assert adapter.level_vectors.numel() == 5_120
    assert count(adapter.blocks) == 98_424_800
    assert count(adapter.neck) == 918_528


def test_a_convolutional_clip_is_known_by_open_clips_name() -> None:
    assert named_backbone("RN50x16") == BackboneConfig()
    assert named_backbone("RN50x64").widths == (512, 1024, 2048, 4096)
    with pytest.raises(ConfigError, match=r"convolutional ones: .*RN50"):
        named_backbone("RN50x17")
    with pytest.raises(ConfigError, match="no convolutional CLIP"):
        named_backbone("ViT-B-32")


def test_its_features_are_open_clips_own() -> None:
    import open_clip

    from tap_engine.pipeline.sample.teacher_model import MODEL_CONFIG, new_model

    torch.manual_seed(0)
    clip = new_model().eval()
    model = OvsamModel(
        OvsamConfig(
            backbone=backbone_of("sample", MODEL_CONFIG),
            adapter=AdapterConfig(embed_dim=16, depth=1, num_heads=2, window=3, global_blocks=()),
            image_size=64,
        )
    )
    model.backbone.load_tower(clip.state_dict())
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = clip.encode_image(image)
        found = model.backbone.tower.attnpool(model.backbone(image)[3])
    assert isinstance(clip.visual, open_clip.modified_resnet.ModifiedResNet)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="another model than sample"):
        model.backbone.load_tower({"visual.conv1.weight": torch.zeros(3)})


def test_frozen_clip_stays_in_evaluation_mode_and_gives_no_gradient() -> None:
    model = small_model().train()
    assert not any(module.training for module in model.backbone.modules())
    assert not any(p.requires_grad for p in model.backbone.parameters())
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model.encode_image(torch.randn(1, 3, 64, 64)).embedding.sum().backward()
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_single_level_reads_that_level_alone() -> None:
    config = small_config()
    model = OvsamModel(
        OvsamConfig(
            backbone=config.backbone,
            adapter=AdapterConfig(
                levels=(2,), embed_dim=16, depth=1, num_heads=2, window=3, global_blocks=(), out=32
            ),
            head=config.head,
            image_size=64,
        )
    )
    levels = list(model.backbone(torch.randn(1, 3, 64, 64)))
    before = model.adapter(tuple(levels))
    for index in (0, 1, 3):
        levels[index] = torch.zeros_like(levels[index])
    assert torch.equal(model.adapter(tuple(levels)), before)
    levels[2] = levels[2] + 1
    assert not torch.equal(model.adapter(tuple(levels)), before)


def test_pixels_beside_the_picture_are_zero_after_normalising() -> None:
    model = small_model()
    images = torch.full((2, 3, 64, 64), 200, dtype=torch.uint8)
    found = model.normalise(images, torch.tensor([[64, 40], [30, 64]]))
    assert (found[0, :, :, 40:] == 0).all() and (found[0, :, :, :40] != 0).all()
    assert (found[1, :, 30:] == 0).all() and (found[1, :, :30] != 0).all()
    assert found[0, 0, 0, 0].item() == pytest.approx((200 - 123.675) / 58.395, rel=1e-5)


def test_boxes_of_masks_end_after_the_last_pixel() -> None:
    masks = torch.full((3, 8, 8), -1.0)
    masks[0, 2:4, 1:6] = 1
    masks[2, 7, 0] = 1
    wanted = [[4, 8, 24, 16], [0, 0, 0, 0], [0, 28, 4, 32]]
    assert boxes_of_masks(masks).tolist() == wanted


def test_the_label_token_variant_names_by_its_token() -> None:
    model = small_model(classify_by="label_token")
    tokens, other = torch.randn(2, 32), torch.randn(2, 32)
    rois = torch.tensor([[0.0, 0, 0, 20, 20], [0, 5, 5, 40, 40]])
    pyramid = model.encode_image(torch.randn(1, 3, 64, 64)).pyramid
    assert not torch.equal(
        model.name_regions(pyramid, rois, tokens), model.name_regions(pyramid, rois, other)
    )
    region = small_model()
    assert torch.equal(
        region.name_regions(pyramid, rois, tokens), region.name_regions(pyramid, rois, other)
    )


def test_settings_survive_json_and_bad_ones_are_refused() -> None:
    config = small_config()
    assert OvsamConfig.from_json(config.to_json()) == config
    with pytest.raises(CheckpointError, match="newer version"):
        OvsamConfig.from_json('{"backbone": {"nonsense": 1}}')
    with pytest.raises(ConfigError, match=r"adapter\.out must be 256"):
        OvsamConfig(adapter=AdapterConfig(out=128))
    with pytest.raises(ConfigError, match="multiple of 32"):
        OvsamConfig(image_size=1000)

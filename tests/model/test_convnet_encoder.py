import open_clip
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet

from tap_engine.model.config import PRESETS
from tap_engine.model.convnet_encoder import ConvnetEncoder, Trunk
from tap_engine.model.tap import TapModel


@pytest.fixture
def tower() -> ModifiedResNet:
    torch.manual_seed(0)
    tower = ModifiedResNet([2, 2, 2, 2], output_dim=128, heads=4, image_size=64, width=16)
    for module in tower.modules():  # nothing at its neutral start
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return tower.eval()


def test_trunk_is_open_clips_image_tower(tower) -> None:
    trunk = Trunk((2, 2, 2, 2), 16).eval()
    weights = {k: v for k, v in tower.state_dict().items() if not k.startswith("attnpool.")}
    trunk.load_state_dict(weights)  # names and shapes
    images = torch.randn(2, 3, 64, 96)
    expected = tower.forward_intermediates(images, indices=[1, 2, 3, 4], intermediates_only=True)
    for found, level in zip(trunk(images), expected["image_intermediates"], strict=True):
        torch.testing.assert_close(found, level, atol=1e-5, rtol=1e-5)
    assert open_clip.__version__


def test_a_warm_trunk_sees_rgb_where_the_model_sees_bgr(tower) -> None:
    model = TapModel(PRESETS["tiny"]).eval()
    assert isinstance(model.image_encoder, ConvnetEncoder)
    model.image_encoder.load_trunk(tower.state_dict())
    rgb = torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8)
    expected = tower.forward_intermediates((rgb - 122.0) / 64, indices=[4], intermediates_only=True)
    found = model.image_encoder.trunk(model.normalise(rgb))[-1]
    torch.testing.assert_close(found, expected["image_intermediates"][0], atol=1e-4, rtol=1e-4)


def test_positions_start_as_the_prompts_code() -> None:
    model = TapModel(PRESETS["tiny"])
    code = model.prompt_encoder.grid_code((16, 16)).flatten(0, 1)
    assert torch.equal(model.image_encoder.pos_embed.weight, code)
    blocks = model.image_encoder.blocks
    tokens = torch.randn(2, 256, 128)
    assert torch.equal(blocks[1](blocks[0](tokens)), tokens)  # blocks start as the identity


def test_sizes_of_the_recipe() -> None:
    encoder = TapModel(PRESETS["tiny"]).image_encoder
    counts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in encoder.named_children()
    }
    assert counts == {
        "trunk": 878_808,
        "lateral": 115_072,
        "pos_embed": 16 * 16 * 128,
        "blocks": 396_544,
        "norm": 256,
        "detail": 5_168,
    }

"""SAM through transformers: as a teacher, and as what decoder and prompts start from."""

import pytest
import torch

from tap_engine.model.config import DecoderConfig
from tap_engine.model.ovsam.config import AdapterConfig, HeadConfig, OvsamConfig
from tap_engine.model.ovsam.model import OvsamModel
from tap_engine.model.ovsam.sam_encoder import SamImageEncoder
from tap_engine.schemas.errors import ConfigError
from tap_engine.train.ovsam.sam_start import start_from_sam
from tap_engine.train.ovsam.teachers import SamTeacher, TapTeacher, open_teacher
from tests.model.ovsam.small import small_config

transformers = pytest.importorskip("transformers", reason="a SAM teacher needs transformers")


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = transformers.SamConfig(
        vision_config={
            "hidden_size": 24,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
            "window_size": 3,
            "global_attn_indexes": [1],
            "num_pos_feats": 8,
            "mlp_dim": 96,
            "layer_norm_eps": 1e-6,
        },
        prompt_encoder_config={
            "hidden_size": 16,
            "image_size": 64,
            "patch_size": 16,
            "mask_input_channels": 16,
        },
        mask_decoder_config={
            "hidden_size": 16,
            "mlp_dim": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )
    model = transformers.SamModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def model_like(sam, **adapter) -> OvsamModel:
    sizes = {"embed_dim": 24, "depth": 1, "num_heads": 2, "window": 3, "global_blocks": ()}
    return OvsamModel(
        OvsamConfig(
            backbone=small_config().backbone,
            adapter=AdapterConfig(**{**sizes, **adapter}, out=16),
            head=HeadConfig(
                dim=16, decoder=DecoderConfig(num_heads=2, mlp_dim=32, dropout=0.0), pyramid_dim=8
            ),
            image_size=64,
        )
    ).eval()


def test_its_features_are_our_encoders(sam) -> None:
    ours = SamImageEncoder(
        image_size=64, embed_dim=24, depth=2, num_heads=2, window=3, global_blocks=(1,), out=16
    ).eval()
    names = {
        "patch_embed.projection.": "patch_embed.",
        "layers.": "blocks.",
        "layer_norm": "norm",
        "mlp.lin": "mlp.fc",
        "neck.conv1": "neck.0",
        "neck.norm1": "neck.1",
        "neck.conv2": "neck.2",
        "neck.norm2": "neck.3",
    }
    state = {}
    for name, value in sam.vision_encoder.state_dict().items():
        for theirs, new in names.items():
            name = name.replace(theirs, new)
        state[name] = value
    ours.load_state_dict(state)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = sam.vision_encoder(x).last_hidden_state
        torch.testing.assert_close(ours(x), expected, atol=2e-4, rtol=1e-4)


def test_a_folder_is_opened_without_a_network_and_pads_with_zeros(sam, tmp_path) -> None:
    sam.save_pretrained(tmp_path / "sam")
    teacher = open_teacher(str(tmp_path / "sam"))
    assert isinstance(teacher, SamTeacher)
    assert isinstance(open_teacher("sample"), TapTeacher)
    images = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8)
    content = torch.tensor([[64, 40]])
    found = teacher.features(images, content)
    assert found.shape == (1, 16, 4, 4)
    other = images.clone()
    other[..., 40:] = 7
    assert torch.equal(teacher.features(other, content), found)
    assert not torch.equal(teacher.features(images, torch.tensor([[64, 64]])), found)
    assert SamTeacher(sam).fingerprint == teacher.fingerprint
    with pytest.raises(ConfigError, match="no folder of transformers' SamModel"):
        SamTeacher.open(str(tmp_path))


def test_prompts_and_masks_start_as_sams(sam) -> None:
    model = model_like(sam)
    start_from_sam(model, sam)
    assert torch.equal(model.adapter.pos_embed, sam.vision_encoder.pos_embed)
    points = torch.tensor([[[[10.0, 8.0], [40, 50]]]])
    labels = torch.tensor([[[2, 3]]])
    with torch.no_grad():
        expected, dense = sam.prompt_encoder(
            input_points=None, input_labels=None, input_boxes=points.flatten(2), input_masks=None
        )
        found = model.prompt_encoder(points, labels)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.prompt_encoder.dense((4, 4)), dense)
    ours, theirs = model.decoder.transformer, sam.mask_decoder.transformer
    mine = ours.blocks[1].cross_attn_image_to_token.proj.weight
    assert torch.equal(mine, theirs.layers[1].cross_attn_image_to_token.out_proj.weight)


def test_every_part_of_the_decoder_but_the_label_mlp_is_taken(sam) -> None:
    model = model_like(sam)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.fill_(123)
    start_from_sam(model, sam)
    left = {name for name, p in model.decoder.named_parameters() if (p == 123).all()}
    assert left == {name for name in left if name.startswith("label_pred.")}
    with pytest.raises(ConfigError, match=r"adapter\.pos_embed"):
        start_from_sam(model_like(sam, embed_dim=32), sam)

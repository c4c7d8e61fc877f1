import os
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tap_engine.model.checkpoint import ModelCard, save_model
from tap_engine.model.config import PRESETS
from tap_engine.model.encoder_start import initialise_encoder, resize_patch_filter, start_from
from tap_engine.model.image_encoder import resize_positions
from tap_engine.model.tap import TapModel
from tap_engine.schemas.errors import CheckpointError
from tests.model.small import small_model


class Attack:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def mae_weights(depth: int = 4, dim: int = 24, grid: int = 14) -> dict[str, torch.Tensor]:
    """A MAE ViT's tensors under timm's names, as the published checkpoints have them."""
    shapes = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, 1 + grid * grid, dim),
        "patch_embed.proj.weight": (dim, 3, 16, 16),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
    }
    for block in range(depth):
        for name, shape in {
            "norm1.weight": (dim,),
            "norm1.bias": (dim,),
            "attn.qkv.weight": (3 * dim, dim),
            "attn.qkv.bias": (3 * dim,),
            "attn.proj.weight": (dim, dim),
            "attn.proj.bias": (dim,),
            "norm2.weight": (dim,),
            "norm2.bias": (dim,),
            "mlp.fc1.weight": (4 * dim, dim),
            "mlp.fc1.bias": (4 * dim,),
            "mlp.fc2.weight": (dim, 4 * dim),
            "mlp.fc2.bias": (dim,),
        }.items():
            shapes[f"blocks.{block}.{name}"] = shape
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def test_mae_starts_the_encoder(tmp_path) -> None:
    weights = mae_weights()
    torch.save({"model": weights | {"decoder_pos_embed": torch.zeros(1)}}, tmp_path / "mae.pth")
    encoder = small_model().image_encoder
    relative = encoder.blocks[0].attn.rel_pos_embed.weight.clone()
    report = initialise_encoder(encoder, tmp_path / "mae.pth")
    own = encoder.state_dict()
    for name, value in weights.items():
        if name in ("cls_token", "pos_embed"):
            continue
        # MAE saw RGB, this model sees BGR.
        expected = value.flip(1) if name == "patch_embed.proj.weight" else value
        assert torch.equal(own[name], expected), name
    expected = resize_positions(weights["pos_embed"][0, 1:], 4)
    torch.testing.assert_close(own["pos_embed.weight"], expected)
    assert torch.equal(encoder.blocks[0].attn.rel_pos_embed.weight, relative)
    assert len(report.matched) == 4 * 12 + 2 + 2 + 1
    assert report.resized == (14, 4)
    assert report.unused == ("cls_token", "decoder_pos_embed")
    assert "blocks.0.attn.rel_pos_embed.weight" in report.fresh
    assert "position table resized from 14 to 4" in str(report)


def test_a_resized_patch_filter_answers_enlarged_patches_alike(tmp_path) -> None:
    torch.manual_seed(0)
    weight, patches = torch.randn(24, 3, 14, 14), torch.randn(50, 3, 14, 14)
    larger = F.interpolate(patches, (16, 16), mode="bicubic", align_corners=False)
    before = torch.einsum("nchw,dchw->nd", patches, weight)
    after = torch.einsum("nchw,dchw->nd", larger, resize_patch_filter(weight, 16))
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-4)
    assert resize_patch_filter(weight, 14) is weight
    # A file of MAE-H's kind starts an encoder with patches of 16 px.
    weights = mae_weights(grid=16) | {"patch_embed.proj.weight": weight}
    torch.save({"model": weights}, tmp_path / "mae.pth")
    encoder = small_model().image_encoder
    report = initialise_encoder(encoder, tmp_path / "mae.pth")
    assert report.patch == (14, 16) and "patch filter resized from 14 to 16 px" in str(report)
    expected = resize_patch_filter(weight, 16).flip(1)
    torch.testing.assert_close(encoder.patch_embed.proj.weight.detach(), expected)


def test_mae_of_another_size_is_refused(tmp_path) -> None:
    encoder = small_model().image_encoder
    torch.save(mae_weights(dim=32), tmp_path / "wide.pth")
    with pytest.raises(CheckpointError, match=r"a ViT of another size.*another shape"):
        initialise_encoder(encoder, tmp_path / "wide.pth")
    torch.save(mae_weights(depth=8), tmp_path / "deep.pth")
    with pytest.raises(CheckpointError, match=r"48 unknown, first 'blocks\.4\."):
        initialise_encoder(encoder, tmp_path / "deep.pth")


def test_a_file_with_a_block_cut_off_is_refused(tmp_path) -> None:
    weights = mae_weights()
    del weights["blocks.3.mlp.fc2.bias"]
    torch.save(weights, tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match=r"1 missing, first 'blocks\.3\.mlp\.fc2\.bias'"):
        initialise_encoder(small_model().image_encoder, tmp_path / "cut.pth")


def test_sam_is_refused_with_the_reason(tmp_path) -> None:
    weights = {f"image_encoder.{name}": value for name, value in mae_weights().items()}
    weights["image_encoder.blocks.0.attn.rel_pos_h"] = torch.zeros(27, 12)
    torch.save(weights, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match="SAM's image encoder does not fit"):
        initialise_encoder(small_model().image_encoder, tmp_path / "sam.pth")


def test_code_in_a_pth_is_not_run(tmp_path) -> None:
    marker = tmp_path / "pwned"
    torch.save({"model": mae_weights(), "args": Attack(marker)}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="not readable as tensors alone"):
        initialise_encoder(small_model().image_encoder, tmp_path / "evil.pth")
    assert not marker.exists()


def test_the_tiny_model_goes_on_at_another_image_size(tmp_path) -> None:
    small = TapModel(replace(PRESETS["tiny"], image_size=64)).eval()
    save_model(tmp_path, small.state_dict(), ModelCard(config=small.config))
    large = TapModel(replace(PRESETS["tiny"], image_size=128)).eval()
    assert start_from(large, tmp_path) == (64, 128)
    before, after = small.state_dict(), large.state_dict()
    table = "image_encoder.pos_embed.weight"
    assert all(torch.equal(before[name], after[name]) for name in before if name != table)
    # Cells and prompts still speak of places in the same code.
    code = large.prompt_encoder.grid_code((8, 8)).flatten(0, 1)
    assert torch.cosine_similarity(after[table], code).min() > 0.9
    assert start_from(TapModel(small.config), tmp_path) is None
    plain = replace(PRESETS["tiny"].decoder, detail=False)
    other = TapModel(replace(PRESETS["tiny"], image_size=128, decoder=plain))
    with pytest.raises(CheckpointError, match=r"unknown, first 'image_encoder\.detail"):
        start_from(other, tmp_path)

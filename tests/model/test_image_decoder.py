import torch
import torch.nn.functional as F

from tap_engine.model.config import DecoderConfig
from tap_engine.model.image_decoder import ImageDecoder, cells_to_pixels, upscale


def make(**settings) -> tuple[ImageDecoder, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    config = DecoderConfig(
        num_heads=4, mlp_dim=64, sem_hidden_dim=32, sem_embed_dim=16, dropout=0, **settings
    )
    decoder = ImageDecoder(32, config)
    return decoder, torch.randn(2, 32, 6, 6), torch.randn(6, 6, 32), torch.randn(2, 5, 3, 32)


def test_sharing_the_image_side_equals_a_copy_per_prompt() -> None:
    decoder, image, pos, prompts = make()
    shared = decoder(image, pos, prompts)
    copies = decoder(image.repeat_interleave(5, 0), pos, prompts.flatten(0, 1).unsqueeze(1))
    for name in shared.__dataclass_fields__:
        found, expected = getattr(shared, name), getattr(copies, name)
        torch.testing.assert_close(found, expected.view_as(found), atol=2e-5, rtol=0)


def test_gradients_of_the_shared_image_side() -> None:
    decoder, image, pos, prompts = make()
    gradients = []
    for copies in (False, True):
        leaf = image.clone().requires_grad_()
        if copies:
            out = decoder(leaf.repeat_interleave(5, 0), pos, prompts.flatten(0, 1).unsqueeze(1))
        else:
            out = decoder(leaf, pos, prompts)
        (out.mask_logits.square().mean() + out.sem_embeds.square().mean()).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


def test_settings_of_small_models_change_what_they_say() -> None:
    for settings in ({"first_residual": True}, {"mask_bias": True}):
        decoder, image, pos, prompts = make(**settings)
        plain, *_ = make()
        plain.load_state_dict(decoder.state_dict(), strict=False)
        if decoder.mask_bias is not None:
            torch.nn.init.constant_(decoder.mask_bias, 3.0)
        difference = (
            decoder(image, pos, prompts).mask_logits - plain(image, pos, prompts).mask_logits
        )
        if "mask_bias" in settings:
            torch.testing.assert_close(difference, torch.full_like(difference, 3.0))
        else:
            assert difference.abs().max() > 0.01


def test_copy_init_starts_as_a_copy_of_the_values() -> None:
    decoder, *_ = make(copy_init=True)
    attn = decoder.transformer.blocks[1].self_attn
    same = torch.randn(1, 1, 1, 32).expand(1, 1, 4, 32)
    torch.testing.assert_close(
        attn(torch.randn(1, 1, 7, 32), same, same),
        same[:, :, :1].expand(1, 1, 7, 32),
        atol=1e-5,
        rtol=0,
    )


def test_select_takes_one_candidate_per_prompt() -> None:
    decoder, image, pos, prompts = make()
    out = decoder(image, pos, prompts)
    index = torch.tensor([[0, 1, 2, 3, 1], [3, 3, 0, 2, 2]])
    chosen = out.select(index)
    for b in range(2):
        for p in range(5):
            for name in out.__dataclass_fields__:
                expected = getattr(out, name)[b, p, index[b, p]]
                assert torch.equal(getattr(chosen, name)[b, p], expected)


def test_dropout_acts_where_stated() -> None:
    """Not on the first self attention, never on image to tokens; once after the blocks."""
    torch.manual_seed(0)
    decoder = ImageDecoder(32, DecoderConfig(num_heads=4, mlp_dim=64, dropout=0.3)).train()
    calls: list[str] = []
    for name, module in decoder.named_modules():
        if isinstance(module, torch.nn.Dropout):
            assert module.p == 0.3
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    decoder(torch.randn(1, 32, 4, 4), torch.randn(4, 4, 32), torch.randn(1, 2, 2, 32))
    blocks, last = "transformer.blocks.{}.dropout", "transformer.dropout"
    assert calls == [blocks.format(0)] * 2 + [blocks.format(1)] * 3 + [last]


def test_detail_is_added_at_its_own_pixels() -> None:
    """Against the convolutions written plainly, on pixels in rows and columns."""
    decoder, cells, *_ = make(detail=True)
    to_half, norm, act, to_quarter, last_act = decoder.output_conv
    half, quarter = torch.randn(2, 8, 12, 12), torch.randn(2, 4, 24, 24)
    x = F.conv_transpose2d(cells, to_half.weight, to_half.bias, stride=2) + half
    x = act(norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    x = F.conv_transpose2d(x, to_quarter.weight, to_quarter.bias, stride=2)
    expected = last_act(x + quarter)  # [B, D / 8, 4h, 4w]

    fine = torch.cat([F.pixel_unshuffle(half, 2), F.pixel_unshuffle(quarter, 4)], 1)
    found = upscale(decoder.output_conv, cells.flatten(2).transpose(1, 2).unsqueeze(1), fine)
    found = cells_to_pixels(found.flatten(3, 4).flatten(2, 3).transpose(2, 3), (6, 6)).squeeze(1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

"""Each known mistake, made on purpose, moves the output by what was measured for it.

The sizes are those that the official implementation shows when the same mistake is made in it
(largest change of an expected output; of the mask logits, end to end), so these tests also say
that nothing else differs.
"""

from collections.abc import Callable

import cv2
import pytest
import torch
from torch import Tensor, nn

from tap_engine.model import text_decoder
from tap_engine.model.image_decoder import Attention, ImageDecoder, TwoWayBlock
from tap_engine.model.image_encoder import CrossWindowConv, RelativePositionBias, VitEncoder
from tap_engine.model.prompt_encoder import Label, PromptEncoder
from tap_engine.model.tap import TapModel
from tests.golden import checks
from tests.support import GOLDEN

Mistake = Callable[[nn.Module], None]


def eps(kind: type[nn.Module], value: float) -> Mistake:
    def make(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, kind):
                module.eps = value

    return make


def tanh_gelu(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"


def bias(change: Callable[[RelativePositionBias, int], None]) -> Mistake:
    def make(model: nn.Module) -> None:
        for block in model.blocks:
            head_dim = block.attn.proj.in_features // block.attn.num_heads
            change(block.attn.rel_pos_embed, head_dim)

    return make


def transposed(table: RelativePositionBias, _: int) -> None:
    table.index.copy_(table.index.T.clone())


def cross_convs(change: Callable[[CrossWindowConv], nn.Module]) -> Mistake:
    def make(model: VitEncoder) -> None:
        model.cross_conv = nn.ModuleList(change(conv) for conv in model.cross_conv)

    return make


def relu_inside(conv: CrossWindowConv) -> CrossWindowConv:
    conv.activation = nn.ReLU()
    return conv


class NormAfter(nn.Module):
    def __init__(self, conv: nn.Module, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def norm_after_last_conv(model: VitEncoder) -> None:
    model.cross_conv[3] = NormAfter(model.cross_conv[3], model.norm)
    model.norm = nn.Identity()


def convs_one_block_early(model: VitEncoder) -> None:
    blocks = list(model.blocks)
    # Stages of 1, 2, 2 and 2 blocks; what is left of the last comes after its convolution.
    model.blocks = nn.ModuleList([nn.Identity(), *blocks[:-1]])
    last, size = blocks[-1], model.window_size

    class BlockAfter(nn.Module):
        def __init__(self, conv: nn.Module, norm: nn.LayerNorm) -> None:
            super().__init__()
            self.conv, self.block, self.norm = conv, last, norm

        def forward(self, x: Tensor) -> Tensor:
            from tap_engine.model.image_encoder import partition, unpartition

            x = self.conv(x).permute(0, 2, 3, 1)
            windows = self.norm(self.block(partition(x, size)))
            return unpartition(windows, size, (x.shape[1], x.shape[2])).permute(0, 3, 1, 2)

    model.cross_conv[3] = BlockAfter(model.cross_conv[3], model.norm)
    model.norm = nn.Identity()


def relu_in_neck(model: VitEncoder) -> None:
    model.neck.lateral_conv[0].append(nn.ReLU())


def batch_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()


def first_block(**settings: bool) -> Mistake:
    def make(model: ImageDecoder) -> None:
        for name, value in settings.items():
            setattr(model.transformer.blocks[0], name, value)

    return make


def gelu_mlp(model: ImageDecoder) -> None:
    for block in model.transformer.blocks:
        assert isinstance(block, TwoWayBlock)
        block.mlp.activation = nn.GELU()


def upscaling_eps(model: ImageDecoder) -> None:
    model.output_conv[1].eps = 1e-6


def half_the_heads(model: ImageDecoder) -> None:
    for name, module in model.named_modules():
        if isinstance(module, Attention) and not name.endswith("self_attn"):
            module.num_heads //= 2


def around_transformer(change: Callable[..., tuple[Tensor, Tensor]]) -> Mistake:
    def make(model: ImageDecoder) -> None:
        original = model.transformer.forward
        model.transformer.forward = lambda *inputs, **_: change(original, *inputs)

    return make


def read_iou_first(original, tokens, image, pos, *seen):
    tokens, image = original(tokens, image, pos, *seen)
    order = [1, 2, 3, 4, 0, *range(5, tokens.shape[2])]
    return tokens[:, :, order], image


def no_image_position(original, tokens, image, pos, *seen):
    return original(tokens, image, torch.zeros_like(pos), *seen)


def prompts(change: Callable[..., Tensor]) -> Mistake:
    def make(model: PromptEncoder) -> None:
        original = model.forward
        model.forward = lambda points, labels: change(model, original, points, labels)

    return make


def no_half(_, original, points, labels):
    return original(points - 0.5, labels)


def no_clipping(model, _, points, labels):
    code = model.position_code((points + 0.5) / model.image_size)
    code = torch.where(labels.unsqueeze(-1) == Label.PADDING, 0.0, code)
    return code + model.point_embed(labels)


def padding_keeps_code(model, _, points, labels):
    code = model.position_code(((points + 0.5) / model.image_size).clamp(0, 1))
    return code + model.point_embed(labels)


def swapped(_, original, points, labels):
    return original(points.flip(-1), labels)


def not_centred(model: PromptEncoder) -> None:
    original = model.position_code
    model.position_code = lambda positions: original((positions + 1) / 2)


def cosines_first(model: PromptEncoder) -> None:
    original = model.position_code
    model.position_code = lambda positions: torch.cat(
        original(positions).chunk(2, dim=-1)[::-1], dim=-1
    )


def read_at_prompt(model: nn.Module) -> None:
    original = model.transformer.forward
    model.transformer.forward = lambda *inputs: original(*inputs).roll(1, dims=1)


ENCODER, PROMPTS, DECODER, TEXT = (
    "01_image_encoder",
    "02_prompt_encoder",
    "03_image_decoder",
    "05_text_decoder",
)

MISTAKES: list[tuple[str, str, Mistake, float]] = [
    (ENCODER, "LayerNorm eps", eps(nn.LayerNorm, 1e-6), 4.3e-01),
    (ENCODER, "BatchNorm eps", eps(nn.BatchNorm2d, 1e-6), 1.2e-02),
    (ENCODER, "tanh GELU", tanh_gelu, 1.5e-02),
    (ENCODER, "relative index transposed", bias(transposed), 2.1e01),
    (ENCODER, "relative bias dropped", bias(lambda t, _: t.weight.zero_()), 2.0e01),
    (ENCODER, "relative bias scaled", bias(lambda t, d: t.weight.mul_(d**-0.5)), 1.7e01),
    (ENCODER, "ReLU in the cross-convs", cross_convs(relu_inside), 6.4e00),
    (
        ENCODER,
        "ReLU after the cross-convs",
        cross_convs(lambda conv: nn.Sequential(conv, nn.ReLU())),
        3.6e01,
    ),
    (ENCODER, "final norm after the last cross-conv", norm_after_last_conv, 2.9e01),
    (ENCODER, "cross-convs one block early", convs_one_block_early, 3.4e01),
    (ENCODER, "no cross-conv", cross_convs(lambda _: nn.Identity()), 3.9e01),
    (ENCODER, "ReLU in the neck", relu_in_neck, 2.6e01),
    (ENCODER, "batch statistics", batch_statistics, 3.8e01),
    (DECODER, "first block keeps the residual", first_block(first_residual=True), 5.0e00),
    (DECODER, "first block like the others", first_block(first=False), 4.8e00),
    (DECODER, "GELU mlp", gelu_mlp, 1.6e00),
    (DECODER, "LayerNorm eps of the upscaling", upscaling_eps, 8.4e-02),
    (DECODER, "half the heads in cross attention", half_the_heads, 4.6e00),
    (DECODER, "outputs read IoU first", around_transformer(read_iou_first), 3.9e00),
    (DECODER, "no image position", around_transformer(no_image_position), 5.0e00),
    (PROMPTS, "no +0.5", prompts(no_half), 9.2e-02),
    (PROMPTS, "no clipping", prompts(no_clipping), 1.9e00),
    (PROMPTS, "padding keeps its position", prompts(padding_keeps_code), 1.0e00),
    (PROMPTS, "x and y swapped", prompts(swapped), 2.0e00),
    (PROMPTS, "not centred", not_centred, 2.0e00),
    (PROMPTS, "cosines first", cosines_first, 1.4e00),
    (TEXT, "tanh GELU", tanh_gelu, 1.7e-03),
    (TEXT, "logits read at the prompt", read_at_prompt, 2.0e01),
]


def largest_error(verdicts: list[checks.Verdict], suffix: str = "") -> float:
    assert any(not v.passed for v in verdicts), "the mistake passes unseen"
    outputs = [v for v in verdicts if v.name.startswith("out/") and v.name.endswith(suffix)]
    return max(v.error for v in outputs if v.tolerance > 0)


@pytest.mark.parametrize(
    ("fixture", "mistake", "size"),
    [pytest.param(f, m, s, id=f"{f[3:]}: {name}") for f, name, m, s in MISTAKES],
)
def test_mistakes_in_a_part(fixture, mistake, size, monkeypatch) -> None:
    load = checks.load

    def load_and_spoil(module, weights):
        load(module, weights)
        mistake(module)

    monkeypatch.setattr(checks, "load", load_and_spoil)
    f = checks.Fixture(GOLDEN / f"{fixture}.safetensors")
    assert largest_error(checks.run_check(f)) == pytest.approx(size, rel=0.05)


def half_rotation(x: Tensor, rotation: Tensor) -> Tensor:
    cos, sin = rotation[:, None, :, 0], rotation[:, None, :, 1]
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)


@pytest.mark.parametrize(
    ("name", "replacement", "size"),
    [
        ("rotate", half_rotation, 1.3e01),
        ("rotate", lambda x, _: x, 1.6e01),
        ("attention", None, 1.5e01),
    ],
    ids=["rotary by halves", "no rotary", "not causal"],
)
def test_mistakes_in_the_caption_decoder(name, replacement, size, monkeypatch) -> None:
    if replacement is None:
        attention = text_decoder.attention

        def replacement(q, k, v, *, causal, dropout):
            return attention(q, k, v, causal=False, dropout=dropout)

    monkeypatch.setattr(text_decoder, name, replacement)
    f = checks.Fixture(GOLDEN / f"{TEXT}.safetensors")
    assert largest_error(checks.run_check(f)) == pytest.approx(size, rel=0.05)


def refill(f: checks.Fixture, fill: tuple[float, float, float]) -> None:
    canvas = f["mid/padded_batch_uint8"].float()
    for row, (h, w) in zip(canvas, f["mid/im_info"][:, :2].int().tolist(), strict=True):
        row[h:], row[:, w:] = torch.tensor(fill), torch.tensor(fill)
    f.tensors["mid/padded_batch_uint8"] = canvas


def resize_with_opencv(f: checks.Fixture) -> None:
    canvas = f["mid/padded_batch_uint8"]
    for index, (h, w) in enumerate(f["mid/im_info"][:, :2].int().tolist()):
        image = f[f"in/image_{index}_bgr_uint8"].numpy()
        resized = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
        canvas[index, :h, :w] = torch.from_numpy(resized)


def unscale_prompts(f: checks.Fixture) -> None:
    scales = f["mid/im_info"][:, 2].repeat_interleave(2)
    f["in/boxes_orig"].div_(scales[:, None])
    f["in/points_orig"][..., :2].div_(scales[:, None, None])


@pytest.mark.parametrize(
    ("spoil", "size"),
    [
        (lambda f: refill(f, (103.53, 116.28, 123.675)), 1.6),
        (lambda f: refill(f, (0, 0, 0)), 2.4),
        (resize_with_opencv, 1.7),
        (unscale_prompts, 2.2),
    ],
    ids=["padding of the exact mean", "black padding", "OpenCV's resize", "prompts not scaled"],
)
def test_mistakes_before_the_model(spoil, size) -> None:
    f = checks.Fixture(GOLDEN / "07_end_to_end.safetensors")
    spoil(f)
    assert largest_error(checks.run_check(f), "mask_pred") == pytest.approx(size, rel=0.05)


def test_channels_in_the_wrong_order(monkeypatch) -> None:
    normalise = TapModel.normalise
    monkeypatch.setattr(TapModel, "normalise", lambda self, x: normalise(self, x.flip(1)))
    f = checks.Fixture(GOLDEN / "07_end_to_end.safetensors")
    assert largest_error(checks.run_check(f), "mask_pred") == pytest.approx(2.7, rel=0.05)


def test_a_fill_colour_rounded_instead_of_cut(monkeypatch) -> None:
    monkeypatch.setattr(TapModel, "fill_rgb", (124, 116, 104))
    f = checks.Fixture(GOLDEN / "07_end_to_end.safetensors")
    failed = [v.name for v in checks.run_check(f) if not v.passed]
    assert failed == ["mid/padded_batch_uint8 (padding)"]

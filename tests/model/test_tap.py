from dataclasses import replace

import pytest
import torch

from tap_engine.model.config import PRESETS, ConvnetConfig
from tap_engine.model.prompt_encoder import Label
from tap_engine.model.tap import TapModel, route
from tests.model.small import small_config, small_model
from tests.support import requires_gpu


def decode_something(model: TapModel, images: torch.Tensor):
    torch.manual_seed(3)
    points = torch.rand(len(images), 3, 2, 2) * model.config.image_size
    labels = torch.tensor([2, 3]).expand(len(images), 3, 2)
    return model.decode(model.encode_image(images), points, labels)


def test_shapes() -> None:
    model = small_model()
    out = decode_something(model, torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    assert out.mask_logits.shape == (2, 3, 4, 16, 16)
    assert out.iou_pred.shape == (2, 3, 4)
    assert out.mask_tokens.shape == out.sem_tokens.shape == (2, 3, 4, 32)
    assert out.sem_embeds.shape == (2, 3, 4, 16)
    ids = torch.ones(6, 5, dtype=torch.int64)
    logits = model.caption_logits(out.sem_tokens[:, :, 0].flatten(0, 1), ids)
    assert logits.shape == (6, 5, 300)


def test_without_masks_the_tokens_are_the_same() -> None:
    model = small_model()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    points, labels = torch.rand(1, 3, 2, 2) * 64, torch.tensor([2, 3]).expand(1, 3, 2)
    whole, bare = (
        model.decode(model.encode_image(images), points, labels, masks=masks)
        for masks in (True, False)
    )
    assert bare.mask_logits.shape == (1, 3, 4, 0, 0)
    for name in ("iou_pred", "mask_tokens", "sem_tokens", "sem_embeds"):
        assert torch.equal(getattr(bare, name), getattr(whole, name)), name
    assert bare.select(torch.zeros(1, 3, dtype=torch.int64)).sem_tokens.shape == (1, 3, 32)


def test_pixels_are_rgb_in_any_dtype_and_bgr_inside() -> None:
    model = small_model()
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    images[:, 0] = 255  # pure red
    inside = model.normalise(images)[0, :, 0, 0]
    expected = [
        (value - mean) / std
        for value, mean, std in zip(
            (0, 0, 255), model.config.pixel_mean, model.config.pixel_std, strict=True
        )
    ]
    assert inside.tolist() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(model.encode_image(images), model.encode_image(images.float()))


def test_images_do_not_mix_in_a_batch() -> None:
    model = small_model()
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    together = model.encode_image(images)
    torch.testing.assert_close(model.encode_image(images[1:2]), together[1:2], atol=1e-5, rtol=1e-5)


def test_prompts_do_not_mix() -> None:
    model = small_model()
    embedding = torch.randn(1, 32, 4, 4)
    points, labels = torch.rand(1, 5, 3, 2) * 64, torch.randint(0, 5, (1, 5, 3))
    together = model.decode(embedding, points, labels)
    alone = model.decode(embedding, points[:, 2:3], labels[:, 2:3])
    torch.testing.assert_close(
        alone.mask_logits[:, 0], together.mask_logits[:, 2], atol=1e-5, rtol=0
    )


def test_wrong_shapes_say_so() -> None:
    model = small_model()
    with pytest.raises(ValueError, match=r"must be \[B, 3, 64, 64\]"):
        model.encode_image(torch.zeros(1, 3, 32, 32))
    embedding = torch.zeros(2, 32, 4, 4)
    with pytest.raises(ValueError, match=r"points must be \[B, P, K, 2\]"):
        model.decode(embedding, torch.zeros(2, 3, 2), torch.zeros(2, 3, dtype=torch.int64))
    for shape in ((2, 0, 3), (2, 3, 0)):
        with pytest.raises(ValueError, match="no prompts"):
            model.decode(embedding, torch.zeros(*shape, 2), torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(ValueError, match="prompts of 1 images, 2 embeddings"):
        model.decode(embedding, torch.zeros(1, 3, 1, 2), torch.zeros(1, 3, 1, dtype=torch.int64))


def test_routing() -> None:
    iou = torch.tensor([[[0.1, 0.2, 0.9, 0.3], [0.9, 0.2, 0.1, 0.3]]])
    box = torch.tensor([[[Label.BOX_TOP_LEFT, Label.BOX_BOTTOM_RIGHT]] * 2])
    loose = torch.tensor([[[Label.FOREGROUND, Label.PADDING]] * 2])
    assert route(iou, box).tolist() == [[0, 0]]
    assert route(iou, loose).tolist() == [[2, 3]]


@pytest.mark.parametrize("preset", ["vit", "convnet"])
def test_activation_checkpointing_changes_nothing(preset) -> None:
    config = small_config()
    if preset == "convnet":
        config = small_config(encoder=ConvnetConfig(layers=(1, 1, 1, 1), width=4, depth=1))
    torch.manual_seed(0)
    model = TapModel(config).train()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    gradients = []
    for enabled in (False, True):
        model.set_activation_checkpointing(enabled)
        model.zero_grad()
        out = decode_something(model, images)
        (out.mask_logits.square().mean() + out.sem_embeds.square().mean()).backward()
        gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, plain in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], plain, msg=name)


def test_compiled_parts_give_the_same_numbers_and_names() -> None:
    model = small_model()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        plain, names = decode_something(model, images), list(model.state_dict())
        # All of it but the slow C++ compiler; a graph break would be an error.
        model.compile_parts(backend="aot_eager", fullgraph=True)
        compiled = decode_something(model, images)
    assert list(model.state_dict()) == names
    for field in plain.__dataclass_fields__:
        torch.testing.assert_close(
            getattr(compiled, field), getattr(plain, field), atol=1e-4, rtol=1e-4
        )


def test_batch_norm_stays_local_without_a_process_group() -> None:
    model = small_model()
    kinds = [type(m) for m in model.modules()]
    assert [type(m) for m in model.sync_batch_norm().modules()] == kinds


def test_autocast_leaves_prompt_positions_alone() -> None:
    model = small_model()
    points, labels = torch.rand(1, 4, 2, 2) * 64, torch.ones(1, 4, 2, dtype=torch.int64)
    plain = model.prompt_encoder(points, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.prompt_encoder(points, labels), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_half_precision_stays_near(dtype) -> None:
    model = small_model()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        plain = decode_something(model, images)
        with torch.autocast("cpu", dtype):
            half = decode_something(model, images)
    scale = plain.mask_logits.std()
    assert (half.mask_logits.float() - plain.mask_logits).abs().max() < 0.15 * scale


@pytest.mark.gpu
def test_gpu_gives_the_cpus_numbers() -> None:
    requires_gpu()
    model = small_model()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    plain = decode_something(model, images)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(3)
    points = torch.rand(1, 3, 2, 2) * 64
    model = model.cuda()
    labels = torch.tensor([2, 3], device="cuda").expand(1, 3, 2)
    out = model.decode(model.encode_image(images.cuda()), points.cuda(), labels)
    torch.testing.assert_close(out.mask_logits.cpu(), plain.mask_logits, atol=1e-3, rtol=1e-3)


def test_one_batch_is_learnt() -> None:
    """Boxes to masks: two images of two rectangles each, 60 steps of the tiny network."""
    torch.manual_seed(0)
    model = TapModel(replace(PRESETS["tiny"], image_size=64)).train()
    images = torch.full((2, 3, 64, 64), 40, dtype=torch.uint8)
    boxes = torch.tensor([[[4, 4, 32, 20], [36, 28, 60, 60]], [[16, 4, 52, 24], [4, 36, 24, 60]]])
    target = torch.zeros(2, 2, 16, 16)
    for b in range(2):
        for p in range(2):
            x1, y1, x2, y2 = boxes[b, p].tolist()
            images[b, p, y1:y2, x1:x2] = 220
            target[b, p, y1 // 4 : y2 // 4, x1 // 4 : x2 // 4] = 1
    points = boxes.view(2, 2, 2, 2).float()
    labels = torch.tensor([2, 3]).expand(2, 2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        logits = model.decode(model.encode_image(images), points, labels).mask_logits[:, :, 0]
        torch.nn.functional.binary_cross_entropy_with_logits(logits, target).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    inside = logits > 0
    iou = (inside & (target > 0)).sum() / (inside | (target > 0)).sum()
    assert iou > 0.9

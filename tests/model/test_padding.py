"""Padding beyond the one point that ends loose points is not looked at."""

import pytest
import torch

from tap_engine.model.config import DecoderConfig
from tap_engine.model.prompt_encoder import Label, attended
from tap_engine.model.tap import TapModel
from tests.model.small import small_model

FIELDS = ("mask_logits", "iou_pred", "mask_tokens", "sem_tokens", "sem_embeds")


def answers(model: TapModel, prompts: list[list[int]], columns: int):
    """The model's answers to prompts of these labels, filled up to so many columns."""
    torch.manual_seed(1)
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    points = torch.rand(1, len(prompts), 12, 2) * 64
    rows = [labels + [Label.PADDING] * (columns - len(labels)) for labels in prompts]
    labels = torch.tensor([rows], dtype=torch.int64)
    # A padding's place is not looked at either: here it is any.
    return model.decode(model.encode_image(images), points[:, :, :columns], labels)


def test_attended_by_hand() -> None:
    labels = torch.tensor([[1, 4, 4, 4], [1, 0, 1, 4], [2, 3, 4, 4], [2, 3, 0, 4], [1, 0, 1, 1]])
    expected = [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert attended(labels).int().tolist() == expected
    assert attended(torch.tensor([4, 1, 4])).tolist() == [True, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["official", "residual"])
def test_the_number_of_columns_never_matters(kind, dtype) -> None:
    decoder = DecoderConfig(
        num_heads=4,
        mlp_dim=48,
        sem_hidden_dim=40,
        sem_embed_dim=16,
        first_residual=kind == "residual",
    )
    model = small_model(decoder=decoder)
    torch.nn.init.normal_(model.prompt_encoder.point_embed.weight, std=1.0)
    prompts = [[1, 4], [1, 0, 1, 4], [2, 3], [2, 3, 0, 1], [1, 1, 1, 1, 4]]
    bf16 = dtype == torch.bfloat16
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=bf16):
        least = answers(model, prompts, 5)
        for columns in (6, 9, 12):
            more = answers(model, prompts, columns)
            for name in FIELDS:
                difference = getattr(more, name).float() - getattr(least, name).float()
                # The same sums in the same precision; only the order of adding may differ.
                assert difference.abs().max() < (1e-5 if not bf16 else 2e-2), (name, columns)
        # One by one, without any surplus.
        for row, labels in enumerate(prompts):
            alone = answers(model, prompts[: row + 1], max(len(p) for p in prompts[: row + 1]))
            for name in FIELDS if not bf16 else ():
                difference = getattr(alone, name)[0, row] - getattr(least, name)[0, row]
                assert difference.abs().max() < 1e-5, (name, labels)


def test_the_one_padding_that_ends_points_is_looked_at() -> None:
    # As in the released inference code: the golden fixtures have it.
    model = small_model()
    torch.nn.init.normal_(model.prompt_encoder.point_embed.weight, std=1.0)
    with torch.no_grad():
        with_end, without = (answers(model, [p], 3) for p in ([1, 0, 4], [1, 0, 0]))
        before = with_end.mask_logits
        model.prompt_encoder.point_embed.weight[Label.PADDING] += 1
        after = answers(model, [[1, 0, 4]], 3).mask_logits
        same = answers(model, [[2, 3, 4]], 3).mask_logits
        model.prompt_encoder.point_embed.weight[Label.PADDING] -= 1
        boxed = answers(model, [[2, 3, 4]], 3).mask_logits
    assert not torch.allclose(before, after, atol=1e-3)
    assert not torch.allclose(before, without.mask_logits, atol=1e-3)
    assert torch.equal(boxed, same)


def test_no_gradient_reaches_surplus_padding() -> None:
    model = small_model().train()
    points = torch.rand(1, 2, 4, 2) * 64
    labels = torch.tensor([[[2, 3, 4, 4], [2, 3, 0, 4]]])
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    out = model.decode(model.encode_image(images), points, labels)
    (out.mask_logits.sum() + out.sem_embeds.sum()).backward()
    gradient = model.prompt_encoder.point_embed.weight.grad
    assert gradient[Label.PADDING].abs().max() == 0
    assert gradient[Label.BOX_TOP_LEFT].abs().max() > 0

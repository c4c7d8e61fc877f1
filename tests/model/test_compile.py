"""The three parts of a training step compile whole: no graph breaks, the same numbers."""

import math

import pytest
import torch

from tap_engine.model.prompt_encoder import Label
from tests.model.small import small_model
from tests.support import requires_gpu

BOX = (Label.BOX_TOP_LEFT, Label.BOX_BOTTOM_RIGHT)
POINTS = (Label.FOREGROUND, Label.BACKGROUND, Label.PADDING, Label.PADDING)


def encode(model):
    return model.encode_image(numbers(model, 1, 3, 64, 64) * 255)


def decode(labels):
    def run(model):
        points = numbers(model, 1, 3, len(labels), 2) * 64
        given = torch.tensor(labels, device=points.device).expand(1, 3, -1)
        out = model.decode(numbers(model, 1, 32, 4, 4), points, given)
        return torch.cat([out.mask_logits.flatten(), out.iou_pred.flatten()])

    return run


def caption(model):
    ids = torch.arange(21, device=model.pixel_mean.device).view(3, 7)
    return model.caption_logits(numbers(model, 3, 32), ids)


def numbers(model, *shape):
    count = math.prod(shape)
    return (torch.arange(count, device=model.pixel_mean.device) * 37 % 101 / 101).view(shape)


PARTS = {"encode": encode, "boxes": decode(BOX), "points": decode(POINTS), "caption": caption}


@pytest.mark.parametrize("part", PARTS)
def test_no_graph_breaks_in_training(part) -> None:
    torch._dynamo.reset()
    model = small_model().train()
    found = torch._dynamo.explain(PARTS[part])(model)
    assert found.graph_break_count == 0, [reason.reason for reason in found.break_reasons]
    assert found.graph_count == 1


@pytest.mark.parametrize("part", PARTS)
def test_the_traced_graph_gives_the_same_numbers(part) -> None:
    torch._dynamo.reset()
    model = small_model()
    traced = torch.compile(PARTS[part], backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(traced(model), PARTS[part](model))


@pytest.mark.gpu
@pytest.mark.parametrize("part", PARTS)
def test_compiled_equals_eager_on_a_gpu(part) -> None:
    requires_gpu()
    torch._dynamo.reset()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = small_model().cuda()
    with torch.no_grad():
        found = torch.compile(PARTS[part], fullgraph=True)(model)
        torch.testing.assert_close(found, PARTS[part](model), atol=1e-3, rtol=1e-3)

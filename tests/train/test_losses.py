"""Losses against the released code's numbers and against slow plain versions."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tap_engine.model.concept_projector import concept_log_probs
from tap_engine.train import losses
from tests.support import GOLDEN


@pytest.fixture(scope="module")
def golden():
    return {k: v.float() for k, v in load_file(GOLDEN / "06_losses_lr.safetensors").items()}


def test_golden_fixture_is_the_one_described():
    info = json.loads((GOLDEN / "06_losses_lr.json").read_text())
    assert info["config"]["focal_alpha"] == losses.FOCAL_ALPHA
    assert info["config"]["focal_gamma"] == losses.FOCAL_GAMMA


@pytest.mark.parametrize(("name", "alpha"), [("focal_none", 0.25), ("focal_alpha_0.6_none", 0.6)])
def test_focal_equals_the_released_code_at_every_pixel(golden, name, alpha):
    # Each pixel as a mask of its own: the mean over its pixels is its value.
    found = losses.focal_loss(
        golden["in/logits"][..., None, None], golden["in/targets"][..., None, None], alpha
    )
    torch.testing.assert_close(found, golden[f"out/{name}"], atol=1e-5, rtol=1e-6)


def test_focal_mean_and_dice_equal_the_released_code(golden):
    logits, targets = golden["in/logits"][:, None], golden["in/targets"][:, None]
    focal = losses.focal_loss(logits, targets)
    torch.testing.assert_close(
        focal.mean(), golden["out/focal_mean"].squeeze(), atol=1e-5, rtol=1e-6
    )
    dice = losses.dice_loss(logits, targets)
    torch.testing.assert_close(dice, golden["out/dice_none"], atol=1e-5, rtol=1e-6)


def test_soft_targets_are_the_expectation_of_hard_ones():
    logits = torch.randn(3, 8, 8)
    soft = torch.rand(3, 8, 8)
    expected = soft * F.softplus(-logits) + (1 - soft) * F.softplus(logits)
    found = losses.focal_loss(logits, soft, alpha=0.5, gamma=0)
    torch.testing.assert_close(found, 0.5 * expected.mean((1, 2)))


def test_gradients_of_focal_agree_with_finite_differences():
    logits = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 3, 3, dtype=torch.float64)
    value = losses.focal_loss(logits, target)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    step = torch.zeros_like(logits)
    step[1, 2, 0] = 1e-2
    with torch.no_grad():
        up, down = (
            losses.focal_loss(logits + step, target),
            losses.focal_loss(logits - step, target),
        )
    assert gradient[1, 2, 0].item() == pytest.approx(((up - down)[1] / 2e-2).item(), abs=1e-4)


def test_dice_of_nothing_against_nothing_is_nothing_and_is_one_when_wrong():
    empty, full = torch.full((1, 16, 16), -50.0), torch.full((1, 16, 16), 50.0)
    assert losses.dice_loss(empty, torch.zeros(1, 16, 16)).item() == pytest.approx(0, abs=1e-6)
    assert losses.dice_loss(full, torch.ones(1, 16, 16)).item() == pytest.approx(0, abs=1e-6)
    assert losses.dice_loss(full, torch.zeros(1, 16, 16)).item() > 0.99


def test_balanced_cross_entropy_does_not_depend_on_the_area():
    # A constant prediction costs the same for a small and a large mask.
    logits = torch.full((2, 32, 32), -2.0)
    target = torch.zeros(2, 32, 32)
    target[0, :4, :4] = 1
    target[1, :24] = 1
    values = losses.balanced_bce_loss(logits, target)
    expected = 0.5 * (F.softplus(torch.tensor(2.0)) + F.softplus(torch.tensor(-2.0)))
    torch.testing.assert_close(values, expected.expand(2))


def test_mask_iou_counts_pixels():
    logits = torch.full((2, 4, 4), -1.0)
    logits[0, :2] = 1
    target = torch.zeros(2, 4, 4)
    target[0, 1:3] = 0.9
    torch.testing.assert_close(losses.mask_iou(logits, target), torch.tensor([4 / 12, 0.0]))


def test_concept_losses_against_torch():
    weights = torch.randn(8, 20)
    student, teacher = (concept_log_probs(torch.randn(5, 8), weights) for _ in range(2))
    forward = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(losses.concept_kl_loss(student, teacher), forward)
    backward = F.kl_div(teacher, student, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(losses.concept_reverse_kl_loss(student, teacher), backward)
    assert (forward > 0).all()
    assert not torch.allclose(forward, backward)


def test_top_k_of_all_concepts_is_the_exact_loss():
    weights = torch.randn(8, 20)
    student, teacher = (concept_log_probs(torch.randn(5, 8), weights) for _ in range(2))
    probs, ids = teacher.exp().sort(-1, descending=True)
    torch.testing.assert_close(
        losses.concept_top_k_loss(student, ids, probs),
        losses.concept_kl_loss(student, teacher),
        atol=1e-4,
        rtol=1e-4,
    )
    few = losses.concept_top_k_loss(student, ids[:, :3], probs[:, :3])
    assert few.isfinite().all()


def test_feature_loss_ignores_length():
    a = torch.randn(4, 8)
    torch.testing.assert_close(
        losses.feature_loss(3 * a, 0.1 * a), torch.zeros(4), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(losses.feature_loss(a, -a), torch.full((4,), 2.0))


def test_half_precision_inputs_are_computed_in_float32():
    logits = (torch.randn(2, 16, 16) * 20).half()
    target = torch.rand(2, 16, 16)
    for loss in (losses.focal_loss, losses.dice_loss, losses.balanced_bce_loss):
        value = loss(logits, target)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(logits.float(), target))

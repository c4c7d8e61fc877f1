"""The objective where it is used, with numbers worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch

from tap_engine.model.image_decoder import RegionOutput
from tap_engine.model.prompt_encoder import Label
from tap_engine.model.tap import TapModel
from tap_engine.schemas.errors import ConfigError
from tap_engine.train.concepts import CONCEPT_LOSSES, ConceptSpace
from tap_engine.train.data.examples import Batch
from tap_engine.train.loss_config import LossConfig
from tap_engine.train.objective import Objective
from tap_engine.train.opening import freeze
from tap_engine.train.optim import OptimConfig
from tap_engine.train.prompts import PromptBatch, PromptConfig
from tap_engine.train.recipes import recipe
from tap_engine.train.terms import count, groups
from tests.model.small import small_config, small_model

POINT, BOX = [int(Label.FOREGROUND), int(Label.PADDING)], [2, 3]


def made_batch(**changes) -> Batch:
    """One image of 64 px, four regions, 16 x 16 mask cells: the left half, a quarter, a cell, none.

    The third was seen by no teacher, the fourth has no mask.
    """
    masks = torch.zeros(1, 4, 16, 16, dtype=torch.uint8)
    masks[0, 0, :, :8] = 255
    masks[0, 1, :8, :8] = 255
    masks[0, 2, 4, 4] = 255
    embeddings = torch.zeros(1, 4, 16, dtype=torch.float16)
    embeddings[0, :, 0] = 1
    generator = torch.Generator().manual_seed(0)
    batch = Batch(
        images=torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=generator),
        masks=masks,
        has_mask=torch.tensor([[True, True, True, False]]),
        boxes_xyxy=torch.tensor(
            [[[0.0, 0, 32, 64], [0, 0, 32, 32], [16, 16, 20, 20], [8, 8, 40, 40]]]
        ),
        keys=torch.arange(4)[None],
        seeds=torch.arange(4)[None] * 7919,
        content_hw=torch.tensor([[64, 64]]),
        valid=torch.ones(1, 4, dtype=torch.bool),
        has_concepts=torch.tensor([[True, True, False, True]]),
        embeddings=embeddings,
        concept_ids=None,
        concept_probs=None,
        words=None,
        image_ids=[1 << 43],
        problems=[],
    )
    return replace(batch, **changes)


def made_space(scale: float = 3.0) -> ConceptSpace:
    """Three concepts along three axes of a 16-wide space."""
    axes = torch.eye(16)[:3]
    return ConceptSpace(("a", "b", "c"), axes, axes, scale)


def objective(losses: LossConfig | None = None, prompts: PromptConfig | None = None) -> Objective:
    return Objective(small_model(), made_space(), losses or LossConfig(), prompts or PromptConfig())


def output(logits: torch.Tensor, iou: torch.Tensor) -> RegionOutput:
    """Four candidates of constant logits [B, P, 4] on 16 x 16 cells."""
    shape = logits.shape
    return RegionOutput(
        mask_logits=logits[..., None, None].expand(*shape, 16, 16),
        iou_pred=iou,
        mask_tokens=torch.zeros(*shape, 32),
        sem_tokens=torch.zeros(*shape, 32),
        sem_embeds=torch.zeros(*shape, 16),
    )


def prompts_of(*kinds: list[int]) -> PromptBatch:
    labels = torch.tensor([kinds])
    return PromptBatch(torch.zeros(*labels.shape, 2), labels)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Student (3/4, 1/4), teacher (1/2, 1/2): KL(teacher || student) = ln(4/3) / 2.
        ("kl", 0.5 * math.log(4 / 3)),
        # The other way: 3/4 ln(3/2) + 1/4 ln(1/2).
        ("reverse_kl", 0.75 * math.log(1.5) + 0.25 * math.log(0.5)),
        # Cosine of 45 degrees.
        ("feature", 1 - math.sqrt(0.5)),
    ],
)
def test_concept_losses_by_hand(kind, expected):
    axes = torch.eye(2)
    space = ConceptSpace(("a", "b"), axes, axes, math.log(3))
    batch = made_batch(embeddings=torch.tensor([[[1.0, 1.0]]], dtype=torch.float16))
    student = torch.tensor([[[2.0, 0.0]]])
    found = CONCEPT_LOSSES[kind].loss(space, student, batch)
    assert found.item() == pytest.approx(expected, abs=2e-4)


def test_the_mask_that_learns():
    made = objective()
    truth = torch.zeros(1, 5, 16, 16)
    truth[0, 0] = truth[0, 1] = truth[0, 2] = 1.0
    # All cells are inside: the larger the logit, the smaller the loss. Candidate 0 is best of all,
    # 2 is best of 1 to 3, routing believes 3.
    logits = torch.tensor([5.0, 1, 3, 2]).expand(1, 5, 4)
    iou = torch.tensor([0.9, 0.1, 0.2, 0.8]).expand(1, 5, 4)
    has_mask = torch.tensor([[True, True, False, False, True]])
    prompts = prompts_of(BOX, POINT, POINT, BOX, POINT)
    found = made.choose(output(logits, iou), truth, has_mask, prompts)
    # The last one's truth is empty: the smallest logit of 1 to 3 is best.
    assert found.tolist() == [[0, 2, 3, 0, 1]]
    best = objective(LossConfig(supervise="best"))
    found = best.choose(output(logits, iou), truth, has_mask, prompts)
    assert found.tolist() == [[0, 0, 3, 0, 1]]
    unmasked = objective(LossConfig(segmentation=0))
    found = unmasked.choose(output(logits, iou), truth, has_mask, prompts)
    assert found.tolist() == [[0, 3, 3, 0, 3]]


def test_stage_two_corrects_what_a_user_sees_and_trains_the_best():
    # Truth is the left half. Candidate 1 is it, and is supervised; routing believes 3, which is
    # the right half. The errors of what is shown are everywhere, those of the supervised nowhere.
    batch = made_batch()
    left = batch.masks[:, :1].float() / 255 * 8 - 4
    logits = torch.stack([left * 0 - 4, left, left * 0 - 4, -left], 2)
    out = replace(output(torch.zeros(1, 1, 4), torch.tensor([[[0.0, 0.1, 0.2, 0.9]]])))
    out = replace(out, mask_logits=logits)
    prompts = prompts_of(POINT)
    for correct, background in (("routed", True), ("supervised", False)):
        made = objective(prompts=PromptConfig(correct=correct, free_share=0.0))
        truth = batch.masks[:, :1].float() / 255
        chosen = made.choose(out, truth, batch.has_mask[:, :1], prompts)
        assert chosen.item() == 1
        shown = made.shown(out, out.select(chosen), prompts)
        seen = set()
        for seed in range(40):
            one = replace(
                batch,
                masks=batch.masks[:, :1],
                seeds=torch.tensor([[seed * 7919]]),
                has_mask=batch.has_mask[:, :1],
                valid=batch.valid[:, :1],
            )
            seen |= set(made.next_prompts(one, prompts, shown.mask_logits).labels.unique().tolist())
        assert (int(Label.BACKGROUND) in seen) == background, correct


def test_forward_corrects_what_is_shown(monkeypatch):
    # The same where it is used: the masks that stage 2 is given are those of the routed candidates.
    for correct in ("routed", "supervised"):
        made = objective(prompts=PromptConfig(correct=correct)).eval()
        batch = made_batch()
        given, inner = [], made.next_prompts

        def noted(batch, prompts, logits, given=given, inner=inner):
            given.append(logits)
            return inner(batch, prompts, logits)

        monkeypatch.setattr(made, "next_prompts", noted)
        made(batch, count([batch]), 0)
        prompts = made.first_prompts(batch)
        features = made.model.encode_image(batch.images)
        out = made.model.decode(features, prompts.points, prompts.labels)
        truth = batch.masks.float() / 255
        best = made.choose(out, truth, batch.has_mask, prompts)
        shown = made.shown(out, out.select(best), prompts)
        torch.testing.assert_close(given[0], shown.mask_logits)


def test_the_balanced_start_fades_into_the_focal_loss():
    made = objective(LossConfig(balanced_steps=10, segmentation=5.0))
    truth = torch.zeros(1, 1, 16, 16)
    truth[..., :4] = 1
    out = output(torch.zeros(1, 1, 4), torch.full((1, 1, 4), 0.5))
    for step, fade in ((0, 0.0), (2, 0.2), (10, 1.0), (99, 1.0)):
        terms = {t.name: t for t in made.mask_terms(out, out.mask_logits[:, :, 0], truth, step)}
        assert terms["focal"].weight == pytest.approx(5 * 20 * fade)
        assert terms["dice"].weight == terms["iou"].weight == 5
        if fade == 1:
            assert "balanced" not in terms
            continue
        assert terms["balanced"].weight == pytest.approx(5 * 2 * (1 - fade))
        assert terms["balanced"].values.item() == pytest.approx(math.log(2))
    # Logits of 0: p = 1/2. A quarter is inside: (.25 * .25 + .75 * .75) * ln 2 / 4.
    assert terms["focal"].values.item() == pytest.approx(0.625 * math.log(2) / 4)
    # 2 * 32 + 1 over 128 + 64 + 1.
    assert terms["dice"].values.item() == pytest.approx(1 - 65 / 193)
    # Nothing is above 0, so every IoU is 0 and was said to be a half.
    assert terms["iou"].values.item() == pytest.approx(0.25)


def test_a_term_counts_the_regions_that_have_it():
    batch = made_batch()
    found = groups(batch)
    assert found["masks"].tolist() == [[True, True, True, False]]
    assert found["concepts"].tolist() == [[True, True, False, True]]
    assert found["pooled"].tolist() == [[True, True, False, False]]
    # Only the first region gets a prompt; pooled features ask nothing.
    found = groups(replace(batch, prompted=1))
    assert found["masks"].tolist() == found["concepts"].tolist() == [[True]]
    assert found["pooled"].tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("stages", [1, 2])
def test_the_loss_is_the_weighted_sum_of_its_terms(stages):
    losses = LossConfig(concept=0.5, segmentation=3.0, auxiliary=2.0)
    made = objective(losses, PromptConfig(stages=stages)).eval()
    batch = made_batch()
    loss, figures = made(batch, count([batch]), 0)
    mean = {name: (total / number).item() for name, (total, number) in figures.items()}
    counts = {name: int(number) for name, (_, number) in figures.items()}
    # Two rounds of prompts weigh half each; the pooled features are looked at once.
    expected = 0.5 * mean["concept"] + 2.0 * mean["auxiliary"]
    expected += 3.0 * (20 * mean["focal"] + mean["dice"] + mean["iou"])
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert counts["auxiliary"] == 2
    assert counts["focal"] == counts["concept"] == 3 * stages


def test_auxiliary_loss_by_hand():
    made = objective(LossConfig(auxiliary=2.0))
    torch.nn.init.zeros_(made.auxiliary.bias)
    torch.nn.init.zeros_(made.auxiliary.weight)
    with torch.no_grad():
        made.auxiliary.weight[0, 0] = made.auxiliary.weight[1, 1] = 1
    features = torch.zeros(1, 32, 4, 4)
    features[0, 0, :, :1] = 1  # channel 0 in the first column, channel 1 in the second
    features[0, 1, :, 1:2] = 1
    (term,) = made.auxiliary_terms(features, made_batch())
    assert term.weight == 2.0 and term.group == "pooled"
    # The left half sees both columns alike, the quarter too; the teacher says concept 0 alone.
    e = math.exp
    teacher = [e(3) / (e(3) + 2), 1 / (e(3) + 2), 1 / (e(3) + 2)]
    both = e(3 * math.sqrt(0.5))
    student = [both / (2 * both + 1), both / (2 * both + 1), 1 / (2 * both + 1)]
    kl = sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True))
    # Eight cells of the embedding count fully; the quarter covers four.
    assert term.values[0, 0].item() == pytest.approx(kl, rel=1e-3)
    assert term.values[0, 1].item() == pytest.approx(kl / 2, rel=1e-3)


@pytest.mark.parametrize(
    "losses",
    [
        LossConfig(concept=0),
        LossConfig(segmentation=0),
        LossConfig(concept=0, auxiliary=1.0),
        LossConfig(concept=0, caption=1.0),
        LossConfig(concept=0, segmentation=0, caption=1.0),
        LossConfig(caption=1.0, auxiliary=1.0),
    ],
    ids=str,
)
def test_what_trains_gets_a_gradient(losses):
    # Under DDP a parameter that trains and gets none stops the run at its second step.
    made = objective(losses)
    freeze(made, OptimConfig(rate_factors={}))
    batch = made_batch()
    made.train()
    loss, _ = made(batch, count([batch]), 0)
    loss.backward()
    without = [n for n, p in made.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    unasked = [n for n, p in made.named_parameters() if not p.requires_grad and p.grad is not None]
    assert unasked == []
    assert any(p.requires_grad for p in made.model.image_encoder.parameters())


def test_sam_has_five_tokens_and_learns_masks_alone():
    config = recipe("sample_sam")
    assert not config.model.decoder.semantic and config.loss.columns == ()
    tiny = small_config()
    decoder, text = replace(tiny.decoder, semantic=False), replace(tiny.text, prompt="mask")
    small = replace(tiny, decoder=decoder, text=text)
    model = TapModel(small)
    names = dict(model.named_parameters())
    assert not any("sem_" in name for name in names)
    tokens = []
    model.image_decoder.transformer.register_forward_pre_hook(
        lambda _, a: tokens.append(a[0].shape)
    )
    made = Objective(model, made_space(), config.loss, PromptConfig())
    freeze(made, OptimConfig(rate_factors={}))
    batch = made_batch()
    loss, figures = made(batch, count([batch]), 999)
    loss.backward()
    assert [shape[2] for shape in tokens] == [5 + 2, 5 + 10]
    assert set(figures) >= {"focal", "dice", "iou"} and "concept" not in figures
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)
    with pytest.raises(ConfigError, match=r"loss\.concept=0"):
        Objective(model, made_space(), LossConfig(), PromptConfig())
    with pytest.raises(ConfigError, match=r"text\.prompt=mask"):
        replace(small, text=replace(small.text, prompt="semantic"))

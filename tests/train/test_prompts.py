"""Two-stage prompts: shares, counts, labels, places."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from tap_engine.model.predictor import Tap
from tap_engine.model.prompt_encoder import Label, attended
from tap_engine.model.prompts import make_prompts
from tap_engine.schemas import rle
from tap_engine.schemas.errors import ConfigError
from tap_engine.train.evaluation.evaluation import Question
from tap_engine.train.evaluation.region_model import TapRegions
from tap_engine.train.evaluation.tasks.prompts import prompted
from tap_engine.train.prompts import (
    PromptBatch,
    PromptConfig,
    first_prompts,
    jitter_boxes,
    next_prompts,
    pick_points,
)
from tests.model.small import small_model

PX = 64
PADDING, TOP_LEFT = Label.PADDING, Label.BOX_TOP_LEFT


@pytest.fixture
def regions():
    """2,000 regions: seeds, masks [P, 16, 16] bool, boxes in px, has_mask."""
    count = 2000
    masks = torch.zeros(count, 16, 16, dtype=torch.bool)
    masks[:, 4:12, 2:8] = True
    boxes = torch.tensor([8.0, 16, 32, 48]).expand(count, 4).clone()
    return torch.arange(count) * 7919, masks, boxes, torch.ones(count, dtype=torch.bool)


def cells(points):
    """Mask cell of each point: the inverse of (v + 0.5) * ratio - 0.5."""
    return ((points + 0.5) * 16 / PX - 0.5).round().long()


def test_stage_one_is_half_boxes_and_half_points(regions):
    prompts = first_prompts(*regions, PX, PromptConfig())
    assert prompts.points.shape == (2000, 2, 2)
    assert 900 < int(prompts.is_box.sum()) < 1100
    boxed = prompts.labels[prompts.is_box]
    assert (boxed == torch.tensor([2, 3])).all()
    single = prompts.labels[~prompts.is_box]
    assert (single == torch.tensor([1, PADDING])).all()
    at = cells(prompts.points[~prompts.is_box][:, 0])
    assert (at[:, 0] >= 2).all() and (at[:, 0] < 8).all()
    assert (at[:, 1] >= 4).all() and (at[:, 1] < 12).all()
    # Every pixel of the mask is clicked sometimes.
    assert len({tuple(p) for p in at.tolist()}) == 48


def test_regions_without_a_mask_get_their_box(regions):
    seeds, masks, boxes, has_mask = regions
    prompts = first_prompts(seeds, masks & False, boxes, ~has_mask, PX, PromptConfig(box_share=0.0))
    assert prompts.is_box.all()


def test_boxes_only_grow_within_their_limits(regions):
    seeds, _, boxes, _ = regions
    config = PromptConfig(box_jitter=0.1, box_jitter_px=5.0)
    grown = jitter_boxes(seeds, boxes, PX, config)
    out = torch.cat([boxes[:, :2] - grown[:, :2], grown[:, 2:] - boxes[:, 2:]], 1)
    assert (out >= 0).all() and (out <= 5.0 + 1e-4).all()
    # Inward draws become nothing: about half of the sides stay.
    assert ((out == 0).float().mean(0) - 0.5).abs().max() < 0.05
    # Half-normal with a tenth of each side: mean 0.4 sigma over all draws, before the limit.
    free = jitter_boxes(seeds, boxes, PX, PromptConfig(box_jitter=0.1, box_jitter_px=1e9))
    width_noise = (boxes[:, 0] - free[:, 0]).mean().item()
    assert width_noise == pytest.approx(0.399 * 2.4, rel=0.1)
    at_edge = jitter_boxes(seeds, torch.tensor([[0.0, 0, 64, 64]]).expand(2000, 4), PX, config)
    assert (at_edge == torch.tensor([0.0, 0, 64, 64])).all()


def test_corrections_lie_in_the_error_with_the_right_label(regions):
    seeds, masks, _, has_mask = regions
    config = PromptConfig(free_share=0.0)
    first = first_prompts(*regions, PX, config)
    # Predicted: shifted right by three cells. Missed at columns 2..4, too much at 8..10.
    predicted = torch.full((2000, 16, 16), -1.0)
    predicted[:, 4:12, 5:11] = 1
    prompts = next_prompts(seeds, first, predicted, masks, has_mask, PX, config)
    assert prompts.points.shape == (2000, 10, 2)
    for box in (True, False):
        chosen = prompts.labels[first.is_box == box]
        kept = 2 if box else 1
        extra = (chosen != PADDING).sum(1) - kept
        assert extra.min() == 1 and extra.max() == 8
        shares = torch.bincount(extra, minlength=9)[1:] / len(extra)
        assert (shares - 1 / 8).abs().max() < 0.04
        points, labels = prompts.points[first.is_box == box][:, kept:], chosen[:, kept:]
        for label, low, high in ((1, 2, 5), (0, 8, 11)):
            column = cells(points[labels == label])[:, 0]
            assert len(column) and (column >= low).all() and (column < high).all()
    # Padding comes last, and loose points are followed by at least one.
    padding = (prompts.labels == PADDING).int()
    assert (padding.diff(dim=1) >= 0).all()
    assert (prompts.labels[~first.is_box][:, -1] == PADDING).all()


def test_a_perfect_prediction_is_corrected_inside_the_mask(regions):
    seeds, masks, _, has_mask = regions
    config = PromptConfig(free_share=0.0)
    first = first_prompts(*regions, PX, config)
    logits = masks.float() - 0.5
    prompts = next_prompts(seeds, first, logits, masks, has_mask, PX, config)
    extra = prompts.labels[first.is_box][:, 2:]
    assert set(extra.unique().tolist()) == {1, PADDING}


def test_half_of_stage_two_forgets_stage_one_and_clicks_the_mask(regions):
    seeds, masks, _, has_mask = regions
    config = PromptConfig(box_share=1.0)
    first = first_prompts(*regions, PX, config)
    wrong = torch.ones(2000, 16, 16)
    prompts = next_prompts(seeds, first, wrong, masks, has_mask, PX, config)
    free = prompts.labels[:, 0] != TOP_LEFT
    assert 900 < int(free.sum()) < 1100
    labels = prompts.labels[free]
    assert set(labels.unique().tolist()) == {1, PADDING}
    counts = (labels == 1).sum(1)
    assert counts.min() == 1 and counts.max() == 9
    shares = torch.bincount(counts, minlength=10)[1:] / len(counts)
    assert (shares - 1 / 9).abs().max() < 0.05
    at = cells(prompts.points[free][labels == 1])
    assert (at[:, 0] >= 2).all() and (at[:, 0] < 8).all()


def test_prompts_do_not_depend_on_their_neighbours(regions):
    seeds, masks, boxes, has_mask = regions
    config = PromptConfig()
    whole = first_prompts(*regions, PX, config)
    logits = torch.randn(2000, 16, 16, generator=torch.Generator().manual_seed(0))
    after = next_prompts(seeds, whole, logits, masks, has_mask, PX, config)
    for i in (0, 777, 1999):
        one = slice(i, i + 1)
        alone = first_prompts(seeds[one], masks[one], boxes[one], has_mask[one], PX, config)
        torch.testing.assert_close(alone.points, whole.points[one])
        again = next_prompts(seeds[one], alone, logits[one], masks[one], has_mask[one], PX, config)
        assert torch.equal(again.labels, after.labels[one])
        torch.testing.assert_close(again.points, after.points[one])


def test_points_of_empty_and_one_pixel_masks():
    inside = torch.zeros(2, 8, 8, dtype=torch.bool)
    inside[0, 0, 7] = True
    prompts = first_prompts(
        torch.arange(2),
        inside,
        torch.zeros(2, 4),
        torch.ones(2, dtype=torch.bool),
        8,
        PromptConfig(box_share=0.0),
    )
    assert prompts.points[0, 0].tolist() == [7.0, 0.0]
    assert prompts.points[1, 0].isfinite().all()


def test_points_are_uniform_over_large_masks():
    inside = torch.ones(1, 256, 256, dtype=torch.bool)
    seeds = torch.arange(4000)
    points = pick_points(seeds, inside.expand(4000, -1, -1), 1, 1024, stream=0)[:, 0]
    assert (points.mean(0) - 511.5).abs().max() < 20
    assert points.min() >= 1.5 and points.max() <= 1021.5


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="box_share"):
        PromptConfig(box_share=1.5)
    with pytest.raises(ConfigError, match="stages"):
        PromptConfig(stages=3)


def test_prompts_knows_its_boxes():
    prompts = PromptBatch(torch.zeros(2, 2, 2), torch.tensor([[2, 3], [1, 4]]))
    assert prompts.is_box.tolist() == [True, False]


def test_without_a_mask_stage_two_clicks_the_predicted_one(regions):
    seeds, masks, _, has_mask = regions
    config = PromptConfig(free_share=0.0)
    first = first_prompts(*regions[:3], ~has_mask, PX, config)
    predicted = torch.full((2000, 16, 16), -1.0)
    predicted[:1000, 9:14, 3:5] = 1  # the second half predicts nothing
    prompts = next_prompts(seeds, first, predicted, masks, ~has_mask, PX, config)
    clicked, kept = prompts.labels[:1000], prompts.labels[1000:]
    assert set(clicked.unique().tolist()) == {1, PADDING}
    counts = (clicked == 1).sum(1)
    assert counts.min() == 1 and counts.max() == 9
    at = cells(prompts.points[:1000][clicked == 1])
    assert (at[:, 0] >= 3).all() and (at[:, 0] < 5).all()
    assert (at[:, 1] >= 9).all() and (at[:, 1] < 14).all()
    assert (kept[:, :2] == torch.tensor([2, 3])).all() and (kept[:, 2:] == PADDING).all()
    assert torch.equal(prompts.points[1000:, :2], first.points[1000:])


def test_small_regions_get_fewer_points_where_asked(regions):
    seeds, masks, boxes, has_mask = regions
    small = masks.clone()
    small[:, 4:12, 4:8] = False  # 16 of 256 cells, a third of the others'
    mixed = torch.where((torch.arange(2000) % 2 == 0)[:, None, None], small, masks)
    config = PromptConfig(box_share=0.4, point_area=48 / 256)
    pointed = ~first_prompts(seeds, mixed, boxes, has_mask, PX, config).is_box
    assert 0.16 < pointed[::2].float().mean() < 0.24  # 0.6 / 3
    assert 0.56 < pointed[1::2].float().mean() < 0.64


def layouts(labels) -> dict[bool, set[int]]:
    """Starts with a box -> how many padding tokens the decoder looks at."""
    labels = torch.as_tensor(labels).flatten(0, -2)
    seen = ((labels == PADDING) & attended(labels)).sum(1)
    boxed = labels[:, 0] == TOP_LEFT
    return {kind: set(seen[boxed == kind].tolist()) for kind in (True, False) if kind in boxed}


AT_USE = {True: {0}, False: {1}}


def test_what_is_trained_is_laid_out_as_what_is_used(regions):
    seeds, masks, _, has_mask = regions
    config = PromptConfig()
    first = first_prompts(*regions, PX, config)
    wrong = torch.ones(2000, 16, 16)
    second = next_prompts(seeds, first, wrong, masks, has_mask, PX, config)
    assert layouts(first.labels) == layouts(second.labels) == AT_USE
    boxes_alone = next_prompts(seeds, first, wrong - 2, masks, ~has_mask, PX, config)
    assert layouts(boxes_alone.labels) == AT_USE


def test_people_lay_prompts_out_so():
    mask = np.zeros((40, 60), bool)
    mask[10:20, 30:50] = True
    box, points = [1, 2, 30, 20], [[5, 6], [7, 8]]
    for given in (
        {"boxes": box},
        {"boxes": box, "points": points, "point_labels": [0, 1]},
        {"boxes": box, "points": points, "point_labels": [0, 4]},
        {"points": points[:1]},
        {"points": points, "point_labels": [1, 4]},
        {"points": [points, points], "point_labels": [[1, 4], [1, 0]]},
        {"mask": mask},
    ):
        kind = "boxes" in given
        assert layouts(make_prompts((40, 60), **given).labels) == {kind: AT_USE[kind]}, given


def test_the_click_protocol_lays_prompts_out_so():
    shown = []

    class Noted(TapRegions):
        def prompt(self, points, labels, wanted):
            shown.append(labels)
            return super().prompt(points, labels, wanted)

    model = Noted(Tap(small_model()))
    model.set_image(np.zeros((64, 64, 3), np.uint8))
    mask = np.zeros((64, 64), bool)
    mask[10:40, 10:30] = True
    boxes = pa.array([[10.0, 10, 20, 30]], pa.list_(pa.float64(), 4))
    region = {"region_id": [1], "bbox_xywh": boxes, "rle": [rle.encode(mask)]}
    prompted(Question(1, (64, 64), pa.table(region), model))
    assert [labels.shape[1] for labels in shown] == [2, 10, *range(2, 11)]
    for labels, kind in zip(shown, [True] + [False] * 10, strict=True):
        assert layouts(labels) == {kind: AT_USE[kind]}

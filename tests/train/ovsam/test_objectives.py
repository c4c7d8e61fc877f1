"""The losses where they are used: divisors, samples without masks, prompts, labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tap_engine.model.schedule import stepped_rate
from tap_engine.schemas.truth import Thing, Truth
from tap_engine.train.data.stream import Share, Stream
from tap_engine.train.ovsam.labels import RegionLabels, labels_of_stores
from tap_engine.train.ovsam.losses import (
    HeadLossConfig,
    choose_points,
    class_loss,
    distillation_loss,
    mask_losses,
)
from tap_engine.train.ovsam.objectives import Naming
from tap_engine.train.ovsam.run import samples_of
from tests.train.ovsam.small_runs import CLASSES, labelled_store, small_config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    store = labelled_store(tmp_path_factory.mktemp("store") / "s")
    return small_config(
        "sample_ovsam_c2s", store, "prompts.boxes=3", "prompts.per_image=6", "loss.points=64"
    )


@pytest.fixture(scope="module")
def batch(config):
    torch.set_num_threads(1)
    stream = Stream(config.stream, samples_of(config))
    share = Share(images=4)
    return next(iter(stream.batches(share, consumed=0, steps=1, pin=False)))


@pytest.fixture(scope="module")
def naming(config):
    from tap_engine.model.ovsam.classes import ClassTable
    from tap_engine.model.ovsam.model import OvsamModel

    torch.manual_seed(0)
    prototypes = torch.nn.functional.normalize(torch.randn(4, 1, 128), dim=-1)
    stream = Stream(config.stream, samples_of(config))
    ids = {name: i for i, name in enumerate(CLASSES)}
    labels = labels_of_stores(stream.readers, ids, None)
    table = ClassTable(CLASSES, prototypes, torch.ones(4))
    return Naming(OvsamModel(config.model), table, labels, config.loss, config.prompts)


def test_labels_are_looked_up_by_key_and_unknown_names_are_left_out() -> None:
    labels = RegionLabels.of({30: "bee", 10: "ant", 20: "fox"}, {"ant": 0, "bee": 1})
    keys = torch.tensor([[10, 20], [30, 99]])
    assert labels.look_up(keys).tolist() == [[0, -1], [1, -1]]
    assert RegionLabels.of({}, {}).look_up(keys).tolist() == [[-1, -1], [-1, -1]]


def test_labels_of_a_sample_store_are_its_objects(tmp_path) -> None:
    store = labelled_store(tmp_path / "plain", label=False)
    config = small_config("sample_ovsam_c2s", store)
    reader = Stream(config.stream, samples_of(config)).readers[0]
    import lance

    rows = lance.dataset(str(store / "regions.lance")).to_table(
        columns=["key", "image_id", "region_id"]
    )
    keys, images, regions = (column.to_pylist() for column in rows.columns)
    things = {
        (images[0], regions[0]): Thing("object", "ant"),
        (images[1], regions[1]): Thing("part", "ant"),
        (images[2], regions[2]): Thing("object", "unknown"),
    }
    labels = labels_of_stores([reader], {"ant": 7}, Truth(things))
    assert labels.keys.tolist() == [keys[0]] and labels.ids.tolist() == [7]


def test_prompts_are_boxes_first_then_points_in_the_mask_of_regions_with_a_class(
    naming, batch
) -> None:
    asked = naming.ask(batch)
    assert asked.points.shape == (4, 6, 2, 2)
    assert (asked.point_labels[:, :3] == torch.tensor([2, 3])).all()
    classes = naming.labels.look_up(batch.keys)
    for image in range(4):
        usable = batch.valid[image] & (classes[image] >= 0)
        if not usable.any():
            assert not asked.counts[image].any()
            continue
        assert asked.counts[image].all()
        assert usable[asked.region[image]].all()
        assert set(asked.region[image].tolist()) == set(usable.nonzero().flatten()[:6].tolist())
        for turn, region in enumerate(asked.region[image].tolist()):
            if turn < 3:
                box = batch.boxes_xyxy[image, region]
                assert torch.equal(asked.points[image, turn].flatten(), box)
            else:
                assert asked.point_labels[image, turn].tolist() == [1, 4]
                x, y = ((asked.points[image, turn, 0] + 0.5) * 16 / 64).long().tolist()
                assert batch.masks[image, region, y, x] == 255
    # The same batch asks the same; another seed asks elsewhere.
    assert torch.equal(naming.ask(batch).points, asked.points)
    other = replace(batch, seeds=batch.seeds + 12345678)
    assert not torch.equal(naming.ask(other).points, asked.points)


def test_regions_without_a_mask_get_boxes_and_no_mask_loss(naming, batch) -> None:
    without = replace(
        batch, has_mask=torch.zeros_like(batch.has_mask), masks=torch.zeros_like(batch.masks)
    )
    assert (naming.ask(without).point_labels == torch.tensor([2, 3])).all()
    counts = naming.count(without)
    assert counts["masks"] == 0 and counts["classes"] > 0
    naming.zero_grad()
    loss, figures = naming(without, counts, 0)
    loss.backward()
    assert figures["mask"][1] == 0 and figures["dice"][1] == 0 and figures["class"][0] > 0
    head, decoder = naming.model.region_embedding, naming.model.decoder
    assert head.project.weight.grad.abs().sum() > 0
    # Every trained tensor has a gradient, so that processes agree; the decoder's is 0.
    grads = [p.grad for p in decoder.transformer.parameters()]
    assert all(g is not None and g.abs().sum() == 0 for g in grads)


def test_a_mixed_step_is_the_weighted_sum_of_its_sources(naming, batch) -> None:
    torch.manual_seed(0)
    boxes = replace(batch, has_mask=torch.zeros_like(batch.has_mask))
    counts = {k: naming.count(batch)[k] + naming.count(boxes)[k] for k in ("classes", "masks")}

    def part(one, totals):
        torch.manual_seed(0)  # the points that masks are compared at
        return naming(one, totals, 0)[0].item()

    mixed = part(batch, counts) + part(boxes, counts)
    alone = part(batch, naming.count(batch)), part(boxes, naming.count(boxes))
    # Both have the same prompts, one has all the masks: its mask losses count in full.
    naming_only = naming.losses
    naming.losses = replace(naming_only, mask=0.0, dice=0.0)
    classes = part(batch, naming.count(batch)), part(boxes, naming.count(boxes))
    naming.losses = naming_only
    expected = (alone[0] - classes[0]) + (classes[0] + classes[1]) / 2
    assert mixed == pytest.approx(expected, rel=1e-5)


def test_an_ignored_label_has_no_loss_but_counts_in_the_divisor() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    each, divisor = class_loss(logits, torch.tensor([2, -1, 4]), 0.1)
    assert each[1] == 0 and divisor.tolist() == pytest.approx([1, 1, 0.1])
    assert each[0].item() == pytest.approx(-logits[0].log_softmax(-1)[2].item())
    assert each[2].item() == pytest.approx(-0.1 * logits[2].log_softmax(-1)[4].item())


def test_distillation_counts_padding_too() -> None:
    student, teacher = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    teacher[1, :, 3] = 2
    assert distillation_loss(student, teacher).tolist() == [0, 1]


def test_points_are_chosen_where_the_mask_is_in_doubt() -> None:
    x = torch.linspace(-8, 8, 64).expand(64, 64)[None]
    generator = torch.Generator().manual_seed(0)
    points = choose_points(x, HeadLossConfig(points=200), generator)
    assert points.shape == (1, 200, 2)
    near = (points[0, :150, 0] - 0.5).abs()
    assert near.max() < 0.25
    assert (points[0, 150:, 0] - 0.5).abs().mean() > 0.2
    entropy, dice = mask_losses(x, (x > 0).float(), points)
    wrong = mask_losses(x, (x < 0).float(), points)
    assert entropy < wrong[0] and dice < 0.3 < wrong[1]


def test_the_rate_falls_to_a_tenth_after_each_milestone() -> None:
    settings = {"milestones": (8 / 12, 11 / 12), "warmup_steps": 10, "warmup_from": 0.1}
    steps = (0, 9, 79, 80, 109, 110, 119)
    rates = [stepped_rate(step, peak=1.0, steps=120, **settings) for step in steps]
    assert rates == pytest.approx([0.19, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_the_published_recipes_have_the_specifications_numbers() -> None:
    from tap_engine.train.loop import rate_at
    from tap_engine.train.ovsam.recipes import ovsam_recipe

    first, second = ovsam_recipe("ovsam_s2c"), ovsam_recipe("ovsam_c2s_coco")
    assert (first.optim.clip_norm, second.optim.clip_norm) == (5.0, 0.01)
    assert rate_at(500, first.optim, first.train) == pytest.approx(1e-4)
    assert rate_at(0, first.optim, first.train) == pytest.approx(
        1e-4 * (1 / 500 + (499 / 500) * 1e-3)
    )
    assert rate_at(first.train.steps, first.optim, first.train) == pytest.approx(1e-6)
    assert rate_at(second.train.steps - 1, second.optim, second.train) == pytest.approx(1e-6)
    assert (second.prompts.per_image, second.prompts.boxes) == (40, 21)
    weights = second.loss
    assert (weights.classes, weights.mask, weights.dice) == (2.0, 5.0, 5.0)
    assert (weights.points, weights.oversample, weights.importance) == (12_544, 3.0, 0.75)
    assert np.isclose(second.optim.weight_decay, 0.05) and second.train.batch == 16

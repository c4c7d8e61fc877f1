"""Stage 2: every sample is taught what it has, and losses are told apart by source."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tap_engine.model.text_tokenizer import IGNORE, train_bpe
from tap_engine.schemas.errors import CheckpointError, ConfigError
from tap_engine.train.loop import train
from tap_engine.train.losses import caption_loss
from tap_engine.train.opening import open_run
from tap_engine.train.terms import count
from tests.train.data.test_selection import plan, write_plan
from tests.train.small_run import small_config
from tests.train.small_store import make_store

LOSSES = ("loss.concept=1", "loss.segmentation=5", "loss.caption=1", "loss.auxiliary=0")
SETTINGS = (*LOSSES, "loss.balanced_steps=0", "optim.rate_factors=", "train.batch=4")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store with masks and concepts, one with boxes and captions, a plan, a tokenizer."""
    root = tmp_path_factory.mktemp("stage2")
    make_store(root / "sa1b", 12)
    make_store(root / "vg", 6, source="vg", captions=True, taught=False, boxes=True)
    write_plan(root / "plan", [plan(1, 6), plan(7, 6)])
    train_bpe([f"word {k}" for k in range(99)], 300).save(root / "tokenizer.json")
    return root


def config_of(world, *overrides):
    made = small_config(
        world / "sa1b", *SETTINGS, f"init.tokenizer={world / 'tokenizer.json'}", *overrides
    )
    stores = (str(world / "sa1b"), str(world / "vg"))
    return replace(made, stream=replace(made.stream, stores=stores))


def batch_of(run, source):
    """The first batch whose images are all of this source."""
    for batch in run.batches():
        if all((image_id >> 43 == 1) == (source == "vg") for image_id in batch.image_ids):
            return batch
    raise AssertionError(f"no batch of {source} alone")


@pytest.fixture
def run(world, tmp_path):
    config = config_of(
        world, "train.batch=1", "train.images=1", "train.steps=40", "model.text.dropout=0"
    )
    return open_run(config, tmp_path / "run")


def test_a_step_sums_what_its_samples_have(run):
    batches = [batch_of(run, "sa1b"), batch_of(run, "vg")]
    totals = count(batches)
    assert totals["masks"] == totals["concepts"] == batches[0].valid.sum()
    ends = [(b.words[..., 1:] != IGNORE).sum() for b in batches]
    assert ends[0] == 0 and totals["words"] == ends[1] > 0
    found = [run.objective(batch, totals, 0) for batch in batches]
    mean = {}
    for _, figures in found:
        for name, (total, number) in figures.items():
            before = mean.get(name, (0.0, 0.0))
            mean[name] = (before[0] + total, before[1] + number)
    mean = {k: (a / b).item() for k, (a, b) in mean.items() if b}
    masks = 20 * mean["focal"] + mean["dice"] + mean["iou"]
    expected = mean["concept"] + 5 * masks + mean["caption"]
    assert sum(loss for loss, _ in found).item() == pytest.approx(expected, rel=1e-5)
    # By source: what a source does not have is not reported.
    assert mean["sa1b/concept"] == pytest.approx(mean["concept"])
    assert mean["vg/caption"] == pytest.approx(mean["caption"])
    assert {k for k in mean if k.startswith("vg/")} == {"vg/caption", "vg/next_word"}
    assert "sa1b/caption" not in mean and "sa1b/focal" in mean


def test_captions_are_scored_word_by_word(run):
    batch = batch_of(run, "vg")
    run.objective.eval()
    prompts = run.objective.first_prompts(batch)
    output = run.model.decode(
        run.model.encode_image(batch.images), prompts.points, prompts.labels
    ).select(torch.zeros_like(prompts.labels[..., 0]))
    (term, right) = run.objective.caption_terms(output, batch)
    for r in range(batch.valid.shape[1]):
        if not batch.valid[0, r]:
            assert term.values[0, r] == 0
            continue
        words = batch.words[0, r][batch.words[0, r] != IGNORE]
        logits = run.model.caption_logits(output.sem_tokens[0, r : r + 1], words[None, :-1])[0]
        by_hand = -sum(F.log_softmax(row, -1)[w] for row, w in zip(logits, words[1:], strict=True))
        torch.testing.assert_close(term.values[0, r], by_hand, rtol=1e-4, atol=1e-4)
        assert right.values[0, r] == (logits.argmax(-1) == words[1:]).sum()


@pytest.mark.parametrize(("source", "untouched"), [("sa1b", "text_decoder"), ("vg", "mask_pred")])
def test_parts_without_a_target_get_zero_gradients_not_none(run, source, untouched):
    # Else processes of a group would wait for each other's gradients for ever.
    batch = batch_of(run, source)
    loss, _ = run.objective(batch, count([batch]), 0)
    loss.backward()
    for name, parameter in run.model.named_parameters():
        if "text_decoder" in name:
            assert parameter.grad is not None, name
        if untouched in name and parameter.grad is not None:
            assert not parameter.grad.any(), name


def test_label_smoothing_is_torchs():
    logits, targets = torch.randn(3, 5, 7), torch.randint(0, 7, (3, 5))
    targets[1, 3:] = targets[2] = IGNORE
    for smoothing in (0.0, 0.1):
        found = caption_loss(logits, targets, smoothing)
        whole = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="sum", label_smoothing=smoothing
        )
        torch.testing.assert_close(found.sum(), whole)
        assert found[2] == 0
    assert not torch.allclose(caption_loss(logits, targets, 0.1), caption_loss(logits, targets))


def test_a_run_on_a_plan_logs_sources_and_carries_its_tokenizer(world, tmp_path):
    config = config_of(world, f"stream.mixture={world / 'plan'}", "train.steps=6")
    run = open_run(config, tmp_path / "run")
    train(run)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    seen = {name for line in lines for name in line}
    assert {"sa1b/focal", "sa1b/concept", "vg/caption", "vg/next_word"} <= seen
    assert not {"vg/focal", "vg/concept", "sa1b/caption", "coco/focal"} & seen
    with pytest.raises(CheckpointError, match="start a new run"):
        train_bpe(["other words entirely"] * 3, 290).save(tmp_path / "other.json")
        open_run(config_of(world, f"init.tokenizer={tmp_path / 'other.json'}"), tmp_path / "run")


def test_what_is_missing_for_captions_is_said(world, tmp_path):
    with pytest.raises(ConfigError, match="tap-train tokenizer"):
        open_run(config_of(world, "init.tokenizer="), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"--set model\.text\.vocab_size="):
        open_run(config_of(world, "model.text.vocab_size=280"), tmp_path / "run")


@pytest.mark.slow
def test_two_processes_with_other_sources_train_like_one(world, tmp_path):
    """Each process may have one source alone: all report and exchange the same."""
    import os
    import subprocess
    import sys

    from tests.train.small_run import SETTINGS as SMALL

    sets = [
        *(*SMALL, *SETTINGS, f"init.tokenizer={world / 'tokenizer.json'}", "train.steps=5"),
        *("model.decoder.dropout=0", "model.text.dropout=0", "train.images=1", "train.batch=2"),
        f"stream.mixture={world / 'plan'}",
    ]
    config = config_of(world, *sets[len(SMALL) + len(SETTINGS) :])
    train(open_run(config, tmp_path / "one"))
    arguments = ["run", "--recipe", "smoke", "--out", str(tmp_path / "two")]
    arguments += ["--store", str(world / "sa1b"), "--store", str(world / "vg")]
    arguments += [part for setting in sets for part in ("--set", setting)]
    launch = ["torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    subprocess.run(
        [sys.executable, "-m", *launch, "-m", "tap_engine.jobs.train_cli", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=240,
    )
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for ours, theirs in zip(one, two, strict=True):
        assert theirs.keys() == ours.keys()
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4), ours["step"]

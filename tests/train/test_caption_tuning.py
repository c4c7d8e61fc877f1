"""Caption fine-tuning: the text decoder learns, everything else is as if it were not there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tap_engine.model.checkpoint import read_card
from tap_engine.model.predictor import Tap
from tap_engine.model.text_tokenizer import load_tokenizer, train_bpe
from tap_engine.schemas.settings import with_overrides
from tap_engine.train import held_out
from tap_engine.train.checkpoint import checkpoints, export_model
from tap_engine.train.config import TrainConfig
from tap_engine.train.held_out import HeldOutConfig, report_checkpoint
from tap_engine.train.held_out_data import boxes_xyxy_of, open_measured, pixels_of
from tap_engine.train.loop import train
from tap_engine.train.objective import Objective
from tap_engine.train.opening import open_run
from tap_engine.train.recipes import recipe
from tap_engine.train.terms import count
from tests.train.small_run import SETTINGS, small_config
from tests.train.small_store import make_store

IMAGES = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A captioned store, a stage-1 checkpoint, a tokenizer."""
    root = tmp_path_factory.mktemp("tuning")
    make_store(
        root / "vg", IMAGES, source="vg", captions=True, taught=False, boxes=True, splits=("train",)
    )
    run = open_run(small_config(make_store(root / "sa1b", 4)), root / "stage1")
    train(run)
    train_bpe([f"word {k}" for k in range(99)], 300).save(root / "tokenizer.json")
    return root


def config_of(world, *overrides: str) -> TrainConfig:
    model = [s for s in SETTINGS if s.startswith(("model.image", "model.decoder", "log", "stream"))]
    config = with_overrides(
        recipe("sample_caption"),
        (
            *model,
            "train.steps=4",
            "train.batch=2",
            "train.images=2",
            f"init.weights={world / 'stage1'}",
            f"init.tokenizer={world / 'tokenizer.json'}",
            *overrides,
        ),
    )
    return replace(config, stream=replace(config.stream, stores=(str(world / "vg"),)))


def test_everything_but_the_text_decoder_stays_to_the_bit(world, tmp_path):
    # Dropout in the image decoder and batch statistics in the encoder would show.
    run = open_run(config_of(world, "optim.weight_decay=0.5"), tmp_path / "run")
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    assert any("running_mean" in name for name in before)
    modes = {name: module.training for name, module in run.model.named_modules() if name}
    assert {name.split(".")[0] for name, training in modes.items() if training} == {"text_decoder"}
    train(run)
    after = run.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in moved} == {"text_decoder"}
    # Measuring and drawing put the model into evaluation mode and must put back what was.
    with run.in_use() as tap:
        assert not tap.model.training
    assert modes == {name: module.training for name, module in run.model.named_modules() if name}


def test_the_frozen_part_keeps_nothing_for_the_backward_pass(world, tmp_path):
    run = open_run(config_of(world), tmp_path / "run")
    batch = next(iter(run.batches()))
    objective: Objective = run.objective
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        prompts = objective.first_prompts(batch)
        output = run.model.decode(
            run.model.encode_image(batch.images), prompts.points, prompts.labels
        )
        assert not kept and not output.sem_tokens.requires_grad
        loss, _ = objective(batch, count([batch]), 0)
    assert kept and loss.requires_grad
    # What is kept is of captioned regions: nothing has the image's or the grid's shape.
    words = int((batch.words[..., 1:] != -100).sum(-1).max())
    rows = int(batch.valid.sum())
    most = rows * (words + 1) * max(run.config.model.text.vocab_size, 4 * 128)
    parameters = {p.data_ptr() for p in run.model.parameters()}
    assert all(t.numel() <= most for t in kept if t.data_ptr() not in parameters)
    frozen = {p.data_ptr() for p in run.model.image_decoder.parameters()}
    assert not frozen & {t.data_ptr() for t in kept}


def test_captions_are_learnt_and_the_checkpoint_speaks(world, tmp_path):
    settings = ("train.steps=200", "train.batch=4", "train.images=4", "optim.warmup_steps=10")
    settings += ("optim.rate=3e-3", "optim.rate_batch=4", "model.text.dropout=0", "log.every=50")
    run = open_run(config_of(world, *settings), tmp_path / "run")
    train(run)
    tap = Tap.from_pretrained(checkpoints(tmp_path / "run")[-1])
    assert tap.concepts is not None, "the names it was started with go on"
    found = right = 0
    for stored in open_measured(str(world / "vg")).first(IMAGES):
        tap.set_image(pixels_of(stored))
        boxes = boxes_xyxy_of(stored)
        said = [region.caption for region in tap.predict(boxes=boxes)] if len(boxes) else []
        phrases = stored.regions["caption"].to_pylist()
        right += sum(a == b for a, b in zip(said, phrases, strict=True))
        found += len(said)
    assert right / found > 0.5, (right, found)
    # Chance is one of the 24 phrases; every caption at least begins as they all do.
    out = tmp_path / "exported"
    export_model(tmp_path / "run", out, half=True)
    assert load_tokenizer(out).fingerprint == read_card(out).tokenizer
    (report,) = report_checkpoint(
        out, HeldOutConfig(store=str(world / "vg"), split="train"), tmp_path / "drawn.png"
    )
    assert report.summary()["caption_CIDEr"] > 1
    tap, reader, space = held_out._opened(out, str(world / "vg"))
    drawn = held_out.draw(tap, space, reader, 4, "train")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "drawn.png")), np.asarray(drawn))


def test_the_mask_token_can_prompt_instead_and_the_checkpoint_says_so(world, tmp_path):
    run = open_run(config_of(world, "model.text.prompt=mask"), tmp_path / "run")
    batch = next(iter(run.batches()))
    seen = []
    run.model.text_decoder.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    run.objective(batch, count([batch]), 0)
    prompts = run.objective.first_prompts(batch)
    output = run.model.decode(run.model.encode_image(batch.images), prompts.points, prompts.labels)
    rows = batch.words[..., 0] != -100
    torch.testing.assert_close(seen[0], output.mask_tokens[:, :, 0][rows])
    assert not torch.allclose(seen[0], output.sem_tokens[:, :, 0][rows])
    run.save()
    tap = Tap.from_pretrained(checkpoints(tmp_path / "run")[-1])
    assert tap.model.config.text.prompt == "mask"
    seen.clear()
    tap.model.text_decoder.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tap.set_image(np.zeros((64, 64, 3), np.uint8))
    (region,) = tap.predict(boxes=[[4, 4, 40, 40]])
    assert region.caption is not None
    assert not np.allclose(seen[0].numpy()[0], region.sem_token, atol=1e-3)


def test_a_text_decoder_of_other_ids_or_shape_starts_anew(world, tmp_path, capsys):
    first = open_run(config_of(world, "train.steps=1"), tmp_path / "first")
    train(first)
    learned = first.model.text_decoder.state_dict()
    go_on = f"init.weights={tmp_path / 'first'}"

    def starts_with(name: str, *overrides: str) -> bool:
        run = open_run(config_of(world, go_on, *overrides), tmp_path / name)
        found = run.model.text_decoder.state_dict()
        return all(torch.equal(found[k], learned[k]) for k in learned if k in found)

    assert starts_with("same", "init.tokenizer=", "model.text.dropout=0.3")
    capsys.readouterr()
    assert not starts_with("prompt", "model.text.prompt=mask")
    assert "but the text decoder's" in capsys.readouterr().out
    train_bpe(["other words entirely"] * 3, 290).save(tmp_path / "other.json")
    assert not starts_with("ids", f"init.tokenizer={tmp_path / 'other.json'}")
    assert not starts_with("shape", "model.text.embed_dim=64")

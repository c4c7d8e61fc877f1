"""A chat run: the order of its rows, its loss, going on after a stop, and its two stages."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tap_engine.jobs.train_cli import main
from tap_engine.model.chat.checkpoint import CHAT_FILE
from tap_engine.model.chat.tap_chat import TapChat
from tap_engine.model.tensor_file import open_tensors
from tap_engine.schemas.errors import CheckpointError, ConfigError
from tap_engine.train.chat.config import ChatRunConfig, chat_recipe
from tap_engine.train.chat.training import ChatObjective, open_chat_run, train_chat
from tap_engine.train.loop import rate_at
from tests.train.held_folder import held


def tensors_of(folder: Path, step: int) -> dict[str, torch.Tensor]:
    with open_tensors(folder / "checkpoints" / f"step_{step:08d}" / CHAT_FILE) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_every_epoch_has_each_row_once_and_batches_of_like_length(config, tmp_path) -> None:
    stream = open_chat_run(config, tmp_path / "run").stream
    assert stream.rows == 24
    for epoch in range(3):
        rows = np.concatenate([stream.rows_of(epoch * 6 + step, 4) for step in range(6)])
        assert sorted(rows) == list(range(24))
    # The two batches of a window do not overlap in length.
    for number in range(3):
        short, long = sorted(
            (stream.lengths[stream.rows_of(number * 2 + step, 4)] for step in range(2)),
            key=lambda lengths: int(lengths.min()),
        )
        assert short.max() <= long.min()
    other = open_chat_run(replace(config, train=replace(config.train, seed=1)), tmp_path / "other")
    assert not np.array_equal(other.stream.rows_of(0, 4), stream.rows_of(0, 4))


def test_processes_share_the_rows_of_a_step(config, tmp_path) -> None:
    stream = open_chat_run(config, tmp_path / "run").stream
    whole = stream.rows_of(3, 4)
    seen: list[int] = []
    for rank in range(2):
        (passes,) = stream.batches(step=3, steps=4, batch=4, rank=rank, world=2, at_once=1)
        assert len(passes) == 2
        seen += [int(row) for row in whole[rank::2]]
        for row, one in zip(whole[rank::2], passes, strict=True):
            (record,) = stream._tables[0].take([int(row)]).to_pylist()
            assert (one.images is None) == (record["image"] is None)
    assert sorted(seen) == sorted(int(row) for row in whole)


def test_the_loss_is_the_mean_over_learned_tokens_however_the_batch_is_cut(
    config, tmp_path
) -> None:
    run = open_chat_run(config, tmp_path / "run")
    objective, rows = ChatObjective(run.model), run.stream.rows_of(0, 4)
    whole, count, _ = objective(run.stream.sequences(rows))
    parts = [objective(run.stream.sequences(rows[i : i + 1])) for i in range(4)]
    assert count == sum(part[1] for part in parts)
    assert float(whole) == pytest.approx(float(sum(part[0] for part in parts)), abs=1e-4)
    logits, targets = run.model.target_logits(_with_features(run, rows))
    by_hand = -logits.log_softmax(-1)[torch.arange(len(targets)), targets].sum()
    assert float(whole) == pytest.approx(float(by_hand), abs=1e-4)


def _with_features(run, rows):
    sequences = run.stream.sequences(rows)
    if sequences.images is not None:
        sequences.batch.features = run.model.encode_images(sequences.images)
    return sequences.batch


def test_a_stopped_run_goes_on_as_if_nothing_had_been(config: ChatRunConfig, tmp_path) -> None:
    straight = open_chat_run(config, tmp_path / "straight")
    train_chat(straight)
    assert straight.step == 6
    # Killed after the checkpoint of step 3: the same command goes on from there.
    shutil.copytree(tmp_path / "straight", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "step_00000006")
    again = open_chat_run(config, tmp_path / "killed")
    assert again.step == 3
    train_chat(again)
    mine, theirs = (tensors_of(tmp_path / name, 6) for name in ("killed", "straight"))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("killed", "straight")
    ]
    assert [(r["step"], r["loss"]) for r in logs[0]] == [(r["step"], r["loss"]) for r in logs[1]]
    with pytest.raises(CheckpointError, match=r"other settings.*optim\.rate"):
        open_chat_run(replace(config, optim=replace(config.optim, rate=1.0)), tmp_path / "killed")


def test_two_stages_through_the_command(config, conversations, tiny_lm, tmp_path) -> None:
    """Stage 1, then stage 2 from it; what was trained talks."""
    shared = [
        "--conversations",
        str(conversations / "store"),
        "--images",
        str(conversations / "images"),
        *("--set", f"chat.language_model={tiny_lm}", "--set", "chat.lora_rank=4"),
        *("--set", "train.batch=4", "--set", "train.images=4", "--set", "optim.rate=1e-2"),
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    steps = ["--set", "train.steps=60"]
    found = CliRunner().invoke(
        main, ["chat", "--recipe", "sample_chat_caption", *shared, *steps, "--out", str(one)]
    )
    assert found.exit_code == 0, found.output
    losses = [json.loads(line)["loss"] for line in (one / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.85 * losses[0]
    found = CliRunner().invoke(
        main,
        [
            *("chat", "--recipe", "sample_chat_instruct", *shared, "--out", str(two)),
            *("--set", f"init.chat={one}", "--set", "train.steps=1"),
        ],
    )
    assert found.exit_code == 0, found.output
    started, trained = tensors_of(one, 60), tensors_of(two, 1)
    assert started.keys() == trained.keys()
    assert all((started[name] - trained[name]).abs().max() < 0.05 for name in started)
    chat = TapChat.from_pretrained(two / "checkpoints" / "step_00000001")
    assert isinstance(chat.ask(None, "What is 3?", max_new_tokens=3).text, str)


def test_an_image_that_cannot_be_read_teaches_nothing(config, conversations, tmp_path) -> None:
    shutil.copytree(conversations / "images", tmp_path / "images")
    (tmp_path / "images" / "1.png").write_bytes(b"no picture")
    broken = replace(config, data=replace(config.data, images=(str(tmp_path / "images"),)))
    stream = open_chat_run(broken, tmp_path / "run").stream
    found = stream.sequences(np.array([2, 1, 3]))
    assert len(found.problems) == 1 and "1.png" in found.problems[0]
    assert found.images is not None and len(found.images) == 2
    assert (found.batch.targets[1] == -100).all()
    assert all((found.batch.targets[row] >= 0).any() for row in (0, 2))


def test_two_runs_in_one_folder_are_refused(config, tmp_path) -> None:
    folder = tmp_path / "run"
    with held(folder) as pid, pytest.raises(ConfigError, match=f"in use by process {pid} on"):
        open_chat_run(config, folder)


def test_blind_runs_see_no_image(config, tmp_path) -> None:
    blind = replace(config, data=replace(config.data, blind=True, images=()))
    run = open_chat_run(blind, tmp_path / "blind")
    assert all(run.stream.sequences(run.stream.rows_of(s, 4)).images is None for s in range(6))


def test_what_is_missing_is_said(config, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"init\.tap is empty"):
        open_chat_run(replace(config, init=replace(config.init, tap="")), tmp_path / "a")
    with pytest.raises(ConfigError, match="1 stores with images need as many places"):
        open_chat_run(replace(config, data=replace(config.data, images=())), tmp_path / "b")
    with pytest.raises(ConfigError, match="no conversations: name a store"):
        open_chat_run(replace(config, data=replace(config.data, stores=())), tmp_path / "c")
    with pytest.raises(ConfigError, match="no recipe 'x'; there are chat_caption"):
        chat_recipe("x")


def test_the_paper_s_schedule() -> None:
    one, two = chat_recipe("chat_caption"), chat_recipe("chat_instruct")
    # 232k captions twice, 695k conversations once, in batches of 128.
    assert abs(one.train.steps * 128 - 2 * 232_000) < 128
    assert abs(two.train.steps * 128 - 695_000) < 128
    for run, rate in ((one, 1e-3), (two, 2e-4)):
        assert (run.optim.betas, run.optim.weight_decay) == ((0.9, 0.95), 0.0)
        assert rate_at(run.optim.warmup_steps, run.optim, run.train) == pytest.approx(rate)
        assert rate_at(run.train.steps, run.optim, run.train) == pytest.approx(0, abs=1e-9)
        assert run.chat.lora_rank == 128 and run.chat.tail_blocks == 4

"""Figures of a chat model against answers that it really generates."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch.nn.functional as F
from typer.testing import CliRunner

from tap_engine.jobs.train_cli import main
from tap_engine.model.chat.batch import collate
from tap_engine.model.chat.template import render
from tap_engine.pipeline.conversations.images import ImageFolder
from tap_engine.pipeline.conversations.importing import import_conversations
from tap_engine.pipeline.store import Store
from tap_engine.train.chat.measuring import OTHER, OWN, measure_chat
from tap_engine.train.chat.training import open_chat_run, train_chat


@pytest.fixture
def trained(config, conversations: Path, tmp_path: Path):
    """A model that has learned to say yes, opened on conversations of which half want that."""
    rows = json.loads((conversations / "rows.json").read_text())
    for row in rows:
        row["conversations"][1]["value"] = "yes"
    (tmp_path / "yes.json").write_text(json.dumps(rows))
    images = ImageFolder(conversations / "images")
    store = Store(str(tmp_path / "yes"))
    import_conversations(
        [str(tmp_path / "yes.json")], images, store, replace=False, say=lambda text: None
    )
    learning = replace(
        config,
        data=replace(config.data, stores=(str(tmp_path / "yes"),)),
        train=replace(config.train, steps=15),
        optim=replace(config.optim, rate=2e-2),
        checkpoint=replace(config.checkpoint, every=15),
    )
    run = open_chat_run(learning, tmp_path / "run")
    train_chat(run)
    start = replace(config.init, chat=str(run.folder))
    asked = open_chat_run(replace(config, init=start), tmp_path / "asked")
    asked.folder = run.folder
    return asked


def test_an_exact_answer_is_what_greedy_generation_gives(trained) -> None:
    found = measure_chat(trained.model, trained.stream)
    right = total = tokens = 0.0
    for row in range(trained.stream.rows):
        ((conversation, _, _),) = trained.stream._records(np.array([row]))
        rendered = render(conversation, "chatml", to_answer=True)
        sequences = trained.stream.sequences(np.array([row]))
        seen = sequences.images
        features = None if seen is None else trained.model.encode_images(seen)
        batch = collate([trained.tokens.encode(rendered, trained.model.visual_tokens)])
        batch.features = features
        said = [int(t) for t in trained.model.generate(batch, trained.tokens.eos_id, 30)]
        text = trained.tokens.decode(said[:-1]) if said[-1] == trained.tokens.eos_id else None
        right += text == conversation.pairs[-1][1]
        sequences.batch.features = features
        logits, targets = trained.model.target_logits(sequences.batch)
        total += F.cross_entropy(logits, targets, reduction="sum").item()
        tokens += len(targets)
    assert 0 < right < trained.stream.rows, "all or nothing would prove little"
    assert found.right[OWN]["all"] == pytest.approx(right / trained.stream.rows)
    assert found.loss[OWN] == pytest.approx(total / tokens, abs=1e-4)
    assert found.answers["all"] == trained.stream.rows
    assert found.loss[OTHER] != found.loss[OWN]


def test_the_command_prints_a_table(trained, conversations) -> None:
    arguments = ["measure-chat", str(trained.folder), "--limit", "6"]
    arguments += ["--conversations", str(conversations / "store")]
    arguments += ["--images", str(conversations / "images")]
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 0, found.output
    assert "loss of a token, own image" in found.output
    assert "exact answers" in found.output and "majority" in found.output

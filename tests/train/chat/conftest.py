import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("transformers", reason="chat needs transformers")
pytest.importorskip("peft", reason="chat needs peft")

from tap_engine.pipeline.conversations.images import ImageFolder
from tap_engine.pipeline.conversations.importing import import_conversations
from tap_engine.pipeline.store import Store
from tap_engine.train.chat.config import ChatRunConfig, chat_recipe
from tests.model.chat.tiny_lm import write_tiny_lm

WORDS = ("red", "hat", "two", "left", "yes", "no", "a", "system")


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_lm(tmp_path_factory.mktemp("tiny_lm"), head=8.0)


@pytest.fixture(scope="session")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images` and a store of 24 samples, of which every sixth has no image."""
    folder = tmp_path_factory.mktemp("conversations")
    (folder / "images").mkdir()
    generator, rows = np.random.default_rng(0), []
    for number in range(24):
        pixels = generator.integers(0, 255, (4, 4, 3), np.uint8).repeat(32, 0).repeat(32, 1)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        # Half of the answers are one that is soon known by heart.
        answer = " ".join(generator.choice(WORDS, 1 + number % 5)) if number % 2 else "yes"
        shown = number % 6 != 0
        marker = "<image>\n" if shown else ""
        turns = [
            {"from": "human", "value": f"{marker}What is {number}?"},
            {"from": "gpt", "value": answer},
        ]
        row = {"id": number, "conversations": turns}
        rows.append(row | ({"image": f"{number}.png"} if shown else {}))
    (folder / "rows.json").write_text(json.dumps(rows))
    import_conversations(
        [str(folder / "rows.json")],
        ImageFolder(folder / "images"),
        Store(str(folder / "store")),
        replace=False,
        say=lambda text: None,
    )
    return folder


@pytest.fixture
def config(conversations: Path, tiny_lm: Path) -> ChatRunConfig:
    """The sample recipe of stage 2 with the tiny language model."""
    base = chat_recipe("sample_chat_instruct")
    return replace(
        base,
        chat=replace(base.chat, language_model=str(tiny_lm), lora_rank=4),
        data=replace(
            base.data,
            stores=(str(conversations / "store"),),
            images=(str(conversations / "images"),),
            group=2,
        ),
        train=replace(base.train, steps=6, batch=4, images=2),
        checkpoint=replace(base.checkpoint, every=3),
        optim=replace(base.optim, warmup_steps=1),
        log=replace(base.log, every=3),
    )

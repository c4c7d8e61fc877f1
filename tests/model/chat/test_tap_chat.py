"""TapChat as its users meet it: ask, remember, stream, batch, boxes; and `tap chat`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tap_engine.jobs.tap_cli import main
from tap_engine.model.chat.chat_model import ChatModel
from tap_engine.model.chat.checkpoint import save_chat
from tap_engine.model.chat.config import ChatConfig
from tap_engine.model.chat.language_model import load_language_model
from tap_engine.model.chat.tap_chat import TapChat
from tap_engine.model.predictor import Tap
from tap_engine.schemas.errors import CheckpointError, ConfigError
from tests.model.chat.tiny_lm import write_tiny_lm


@pytest.fixture(scope="module")
def folder(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    language_model, tokens = load_language_model(str(tiny_lm))
    config = ChatConfig(
        language_model=str(tiny_lm), template="chatml", lora_rank=4, tail_blocks=0, max_tokens=400
    )
    model = ChatModel(Tap.from_pretrained("sample").model, language_model, config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.2)
    folder = tmp_path_factory.mktemp("chat")
    save_chat(folder, model, tokens=tokens.fingerprint, tap="sample", dtype=torch.float32)
    return folder


@pytest.fixture(scope="module")
def chat(folder: Path) -> TapChat:
    return TapChat.from_pretrained(folder)


def picture(level: int) -> np.ndarray:
    return np.full((200, 256, 3), level, np.uint8)


def test_a_talk_remembers_what_was_said(chat: TapChat) -> None:
    talk = chat.look(picture(40))
    first = chat.ask(talk, "Is there a hat?", max_new_tokens=5)
    second = chat.ask(talk, "And where?", max_new_tokens=5)
    said = ["Is there a hat?", first.text, "And where?", second.text]
    assert [turn.text for turn in talk.turns] == said
    fresh = chat.ask(picture(40), "And where?", max_new_tokens=5)
    assert fresh.text != second.text, "the first question is part of the second answer"
    assert chat.ask(picture(220), "Is there a hat?", max_new_tokens=5).text != first.text


def test_streamed_pieces_are_the_answer_and_batches_equal_single_answers(chat: TapChat) -> None:
    talks = [chat.look(picture(40)), chat.look(None), chat.look(picture(220))]
    asked = [(talk, f"Is there a hat{'!' * n}?") for n, talk in enumerate(talks)]
    together = chat.ask_all(asked, max_new_tokens=6)
    for (talk, question), text in zip(asked, together, strict=True):
        pieces = list(chat.stream(talk, question, max_new_tokens=6))
        assert talk.turns[-1].text == text
        assert "".join(pieces).strip() == text


def test_a_box_in_a_question_is_also_tap_s_prompt(chat: TapChat) -> None:
    answer = chat.ask(picture(40), "What is in [25, 0, 75, 50]?", max_new_tokens=2)
    (region,) = answer.regions
    chat.tap.set_image(picture(40))
    (same,) = chat.tap.predict(boxes=[64, 0, 192, 100])
    assert np.array_equal(region.mask, same.mask)
    assert chat.ask(picture(40), "What is there?", max_new_tokens=1).regions == []


def test_a_conversation_that_is_too_long_says_so(chat: TapChat) -> None:
    with pytest.raises(ConfigError, match="reads 400; begin a new one"):
        chat.ask(picture(40), "hat " * 400)


def test_what_is_not_a_chat_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no file .*chat\.safetensors"):
        TapChat.from_pretrained(tmp_path)
    other = write_tiny_lm(tmp_path / "lm", seed=5)
    with pytest.raises(CheckpointError, match="fingerprint"):
        TapChat.from_pretrained(folder, language_model=str(other))


def test_tap_chat_in_a_terminal(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(40)).save(tmp_path / "a b.png")
    arguments = ["chat", str(tmp_path / "a b.png"), "--model", str(folder), "--max-new-tokens", "4"]
    found = CliRunner().invoke(
        main, arguments, input="Is there a hat?\nWhat is in [0, 0, 50, 50]?\n"
    )
    assert found.exit_code == 0, found.output
    assert "region 0:" in found.output
    asked = CliRunner().invoke(main, [*arguments, "--ask", "Is there a hat?"])
    assert asked.exit_code == 0 and asked.output.strip()
    wrong = CliRunner().invoke(main, ["chat", "x.png", "--model", str(tmp_path)])
    assert wrong.exit_code == 1 and "chat.safetensors" in wrong.output

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="chat needs transformers")
pytest.importorskip("peft", reason="chat needs peft")

from tap_engine.model.chat.chat_model import ChatModel
from tap_engine.model.chat.config import ChatConfig
from tap_engine.model.chat.language_model import load_language_model
from tests.model.chat.tiny_lm import write_tiny_lm
from tests.model.small import small_model


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_lm(tmp_path_factory.mktemp("tiny_lm"))


@pytest.fixture
def chat(tiny_lm: Path) -> tuple[ChatModel, object]:
    """A chat model on a small ViT, in which nothing is an identity any more, and its tokens."""
    torch.manual_seed(0)
    language_model, tokens = load_language_model(str(tiny_lm))
    config = ChatConfig(language_model=str(tiny_lm), template="chatml", lora_rank=4, tail_blocks=1)
    model = ChatModel(small_model(), language_model, config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad and ("lora_B" in name or name.endswith("norms.1.weight")):
                value.normal_(std=0.2)
    return model, tokens

"""A chat model on disk: what was trained, and the names and hashes of what it stands on.

    FOLDER/chat.safetensors   adapters, projector, and the encoder's tail where it trained
    FOLDER/model.safetensors  the TAP it looks through, where that is not the shipped one

The language model is not copied: it is loaded by its name, and refused if it is another one.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tap_engine.model.chat.chat_model import ChatModel
from tap_engine.model.chat.config import ChatConfig
from tap_engine.model.chat.language_model import base_fingerprint, require_base
from tap_engine.model.tensor_file import open_tensors, write_tensors
from tap_engine.schemas.errors import CheckpointError

CHAT_FILE = "chat.safetensors"

_CONFIG, _BASE, _TOKENS, _TAP = "chat.config", "chat.base", "chat.tokens", "chat.tap"


@dataclass(frozen=True, slots=True)
class ChatCard:
    """What a chat checkpoint says of itself.

    Attributes:
        config: settings.
        base: fingerprint of the language model that it was trained on.
        tokens: fingerprint of its tokenizer.
        tap: name or path of the TAP checkpoint.
    """

    config: ChatConfig
    base: str
    tokens: str
    tap: str


def trained_tensors(model: ChatModel) -> dict[str, Tensor]:
    """Everything that training changes, by its name in the model."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def save_chat(
    folder: Path,
    model: ChatModel,
    *,
    tokens: str,
    tap: str,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write what was trained, and nothing else.

    Args:
        folder: made if it is missing.
        model: the model.
        tokens: fingerprint of its tokenizer.
        tap: how the TAP checkpoint is named.
        dtype: of the stored weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CHAT_FILE
    tensors = {name: value.detach().to(dtype) for name, value in trained_tensors(model).items()}
    base = base_fingerprint(model.language_model)
    card = {_CONFIG: model.config.to_json(), _BASE: base, _TOKENS: tokens, _TAP: tap}
    write_tensors(path, tensors, card)
    return path


def read_chat_card(folder: Path) -> ChatCard:
    """The card of a folder.

    Raises:
        CheckpointError: there is no chat model in it.
    """
    with open_tensors(folder / CHAT_FILE) as file:
        found = file.metadata() or {}
    try:
        config = ChatConfig.from_json(found[_CONFIG])
        return ChatCard(config, found[_BASE], found[_TOKENS], found[_TAP])
    except KeyError as error:
        raise CheckpointError(
            f"{folder / CHAT_FILE} is not a chat model of this project"
        ) from error


def load_chat(folder: Path, model: ChatModel) -> None:
    """Fill a model with the trained tensors of a folder.

    Raises:
        CheckpointError: another language model, or other names or shapes.
    """
    card = read_chat_card(folder)
    require_base(model.language_model, card.base, str(folder))
    own = trained_tensors(model)
    with open_tensors(folder / CHAT_FILE) as file:
        names = set(file.keys())
        if names != own.keys():
            odd = sorted(names ^ own.keys())
            raise CheckpointError(
                f"{folder}: trained tensors of another model, {len(odd)} differ, first {odd[0]!r}"
            )
        with torch.no_grad():
            for name, value in own.items():
                stored = file.get_tensor(name)
                if stored.shape != value.shape:
                    raise CheckpointError(
                        f"{folder}: {name} is {list(stored.shape)}, expected {list(value.shape)}"
                    )
                value.copy_(stored)

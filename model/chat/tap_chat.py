"""TapChat: talk to a picture. Questions in, answers out, with the regions they are about."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tap_engine.model.chat.batch import ChatBatch, collate
from tap_engine.model.chat.chat_model import ChatModel
from tap_engine.model.chat.checkpoint import ChatCard, load_chat, read_chat_card
from tap_engine.model.chat.config import ChatConfig
from tap_engine.model.chat.language_model import load_language_model
from tap_engine.model.chat.template import render
from tap_engine.model.chat.tokens import ChatTokens, TokenRow
from tap_engine.model.image_input import fit_image, to_rgb
from tap_engine.model.predictor import Tap
from tap_engine.model.region import Region
from tap_engine.schemas.conversations import ASSISTANT, USER, Conversation, Turn
from tap_engine.schemas.errors import CheckpointError, ConfigError

_BOX = re.compile(r"\[\s*" + r"\s*,\s*".join([r"(-?\d+(?:\.\d+)?)"] * 4) + r"\s*\]")


@dataclass(slots=True)
class Answer:
    """What the model said.

    Attributes:
        text: the answer.
        regions: what TAP itself makes of the boxes in the question: mask, names, caption.
    """

    text: str
    regions: list[Region] = field(default_factory=list)


@dataclass(slots=True)
class Talk:
    """One image with what was said about it so far.

    Attributes:
        image: the image as given, or None for talk without one.
        features: [1, C, h, w] what the language model sees of it.
        turns: questions and answers.
    """

    image: Any
    features: torch.Tensor | None
    turns: list[Turn] = field(default_factory=list)


class TapChat:
    """A chat model ready for use.

    Args:
        model: the network.
        tokens: of its language model.
        tap: for the regions.
    """

    def __init__(self, model: ChatModel, tokens: ChatTokens, tap: Tap) -> None:
        self.model, self.tokens, self.tap = model.eval(), tokens, tap

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        language_model: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        download: bool = False,
    ) -> "TapChat":
        """The chat model of a folder.

        Args:
            folder: with chat.safetensors.
            language_model: where the language model lies, if not under the name it was trained by.
            device: where to compute.
            dtype: of the language model.
            download: whether the language model may be fetched from the hub.

        Raises:
            CheckpointError: no chat model, or another language model or tokenizer.
            ConfigError: the language model cannot be loaded.
        """
        folder = Path(folder)
        card: ChatCard = read_chat_card(folder)
        name = language_model or card.config.language_model
        lm, tokens = load_language_model(name, dtype=dtype, download=download)
        if tokens.fingerprint != card.tokens:
            raise CheckpointError(
                f"{folder} was trained with tokenizer {card.tokens}, {name!r} has "
                f"{tokens.fingerprint}"
            )
        tap = Tap.from_pretrained(card.tap, device=device)
        model = ChatModel(tap.model, lm, card.config)
        load_chat(folder, model)
        return cls(model.to(device), tokens, tap)

    @property
    def config(self) -> ChatConfig:
        """Settings of the model."""
        return self.model.config

    def look(self, image: Any) -> Talk:
        """Begin to talk about an image, which is encoded once.

        Args:
            image: see `image_input.to_rgb`; None to talk about nothing to be seen.
        """
        if image is None:
            return Talk(None, None)
        rgb = to_rgb(image)
        config = self.tap.model.config
        fitted = fit_image(rgb, config.image_size, self.tap.model.fill_rgb)
        pixels = torch.from_numpy(fitted.canvas).permute(2, 0, 1)[None].to(self._device)
        with torch.inference_mode():
            return Talk(rgb, self.model.encode_images(pixels))

    def ask(self, talk_or_image: Any, question: str, *, max_new_tokens: int = 128) -> Answer:
        """One answer; a `Talk` remembers it for the next question.

        Args:
            talk_or_image: of `look`, or an image.
            question: in plain words; a box in it, such as [10, 20, 60, 70], is also given to TAP.
            max_new_tokens: longest answer.

        Raises:
            ConfigError: the conversation is longer than the language model reads.
        """
        talk = talk_or_image if isinstance(talk_or_image, Talk) else self.look(talk_or_image)
        for _ in self.stream(talk, question, max_new_tokens=max_new_tokens):
            pass
        return Answer(talk.turns[-1].text, self.regions(talk, question))

    def stream(self, talk: Talk, question: str, *, max_new_tokens: int = 128) -> Iterator[str]:
        """The answer piece by piece, as it is made; added to the talk when it is whole."""
        batch = self._batch([(talk, question)])
        ids: list[int] = []
        said = ""
        for token in self.model.generate(batch, self.tokens.eos_id, max_new_tokens):
            if int(token) == self.tokens.eos_id:
                break
            ids.append(int(token))
            text = self.tokens.decode(ids).lstrip()
            if not text.endswith("\ufffd"):  # half of a letter of several tokens
                yield text[len(said) :]
                said = text
        text = self.tokens.decode(ids)
        if rest := text.lstrip()[len(said) :]:
            yield rest
        text = text.strip()
        talk.turns += [Turn(USER, question), Turn(ASSISTANT, text)]

    def ask_all(self, asked: Sequence[tuple[Talk, str]], *, max_new_tokens: int = 128) -> list[str]:
        """Answers to several questions at once; the talks do not remember them."""
        steps = list(self.model.generate(self._batch(asked), self.tokens.eos_id, max_new_tokens))
        texts = []
        for row in torch.stack(steps, 1).tolist():
            end = row.index(self.tokens.eos_id) if self.tokens.eos_id in row else len(row)
            texts.append(self.tokens.decode(row[:end]).strip())
        return texts

    def regions(self, talk: Talk, question: str) -> list[Region]:
        """What TAP makes of the boxes in a question."""
        if talk.image is None:
            return []
        height, width = talk.image.shape[:2]
        unit = {"percent": 100.0, "fraction": 1.0}.get(self.config.box_units)
        scale = (width / unit, height / unit) if unit else (1.0, 1.0)
        boxes = [
            [float(side) * scale[number % 2] for number, side in enumerate(found)]
            for found in _BOX.findall(question)
        ]
        if not boxes:
            return []
        self.tap.set_image(talk.image)
        return self.tap.predict(boxes=boxes)

    @property
    def _device(self) -> torch.device:
        return next(self.model.projector.parameters()).device

    def _batch(self, asked: Sequence[tuple[Talk, str]]) -> ChatBatch:
        rows = [self._row(talk, question) for talk, question in asked]
        seen = [talk.features for talk, _ in asked if talk.features is not None]
        batch = collate(rows)
        batch.features = torch.cat(seen) if seen else None
        return batch.to(self._device)

    def _row(self, talk: Talk, question: str) -> TokenRow:
        turns = (*talk.turns, Turn(USER, question.strip()), Turn(ASSISTANT, ""))
        image = None if talk.features is None else "image"
        rendered = render(
            Conversation(turns=turns, image=image), self.config.template, to_answer=True
        )
        row = self.tokens.encode(rendered, self.model.visual_tokens)
        if len(row) >= self.config.max_tokens:
            raise ConfigError(
                f"the conversation has {len(row):,} tokens, the language model reads "
                f"{self.config.max_tokens:,}; begin a new one"
            )
        return row

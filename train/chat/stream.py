"""Conversations from stores, in an order that is a function of the step alone.

Batches come from windows of a shuffled epoch: a window is sorted by length, cut into batches, and
the batches are dealt in an order of their own. Which rows a step has depends on seed and step only,
so a run that was killed goes on with the same ones, whatever the number of its processes.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from tap_engine.model.chat.batch import ChatBatch, collate
from tap_engine.model.chat.tokens import ChatTokens, TokenRow
from tap_engine.model.image_input import Rgb, fit_image, open_image, to_rgb
from tap_engine.schemas.conversations import CONVERSATIONS, Conversation, conversation_of
from tap_engine.schemas.errors import ConfigError, SourceError
from tap_engine.schemas.tables import IMAGES, table_uri
from tap_engine.train.chat.config import ConversationConfig
from tap_engine.train.data.lance_table import open_table
from tap_engine.train.data.noise import seed_of
from tap_engine.train.data.order import Order

_HINT = "`tap-data import-conversations` makes one"


@dataclass(slots=True)
class ChatSequences:
    """One process's part of a forward pass.

    Attributes:
        batch: padded sequences; `features` are not filled in yet.
        images: [M, 3, S, S] uint8, of the sequences that have one, in order; None without any.
        cut: question-answer pairs that the context had no room for.
        problems: what could not be read.
    """

    batch: ChatBatch
    images: torch.Tensor | None
    cut: int = 0
    problems: list[str] = field(default_factory=list)


class ChatStream:
    """Conversations as sequences of tokens.

    Args:
        config: stores and template.
        tokens: of the language model.
        visual_tokens: that stand for an image.
        max_tokens: longest sequence.
        image_size: side of TAP's square input, px.
        fill_rgb: colour beside images that are not square.
        seed: of the order.

    Raises:
        ConfigError: no store, or as many image places as stores are not given.
    """

    def __init__(
        self,
        config: ConversationConfig,
        tokens: ChatTokens,
        *,
        visual_tokens: int,
        max_tokens: int,
        image_size: int,
        fill_rgb: tuple[int, int, int],
        seed: int,
    ) -> None:
        if not config.stores:
            raise ConfigError("no conversations: name a store of `tap-data import-conversations`")
        self.config, self.tokens, self.seed = config, tokens, seed
        self._visual, self._max = visual_tokens, max_tokens
        self._size, self._fill = image_size, fill_rgb
        self._tables = [
            open_table(table_uri(uri, CONVERSATIONS), hint=_HINT) for uri in config.stores
        ]
        counts = [table.count_rows() for table in self._tables]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self.rows = int(self._starts[-1])
        if not self.rows:
            raise ConfigError(f"no conversations in {', '.join(config.stores)}")
        lengths = [table.to_table(columns=["characters", "image"]) for table in self._tables]
        self.lengths = np.concatenate([part["characters"].to_numpy() for part in lengths])
        self._with_image = any(part["image"].null_count < len(part) for part in lengths)
        self._pictures: list[_Pictures] = []
        if self._with_image and not config.blind:
            if len(config.images) != len(config.stores):
                raise ConfigError(
                    f"{len(config.stores)} stores with images need as many places of images, got "
                    f"{len(config.images)}: --images names the folder or store of each"
                )
            self._pictures = [_Pictures(place) for place in config.images]
        self._order = Order(rows=self.rows, run_rows=1, mixed_runs=1, seed=seed_of(seed, 71))

    def rows_of(self, step: int, batch: int) -> npt.NDArray[np.int64]:
        """Row numbers of a step, [batch]; each epoch has every row once."""
        window = self.config.group * batch
        number, inside = divmod(step * batch, window)
        start = number * window
        _, rows = self._order.locate(np.arange(start, start + window, dtype=np.int64))
        rows = rows[np.argsort(self.lengths[rows], kind="stable")]
        dealt = np.random.default_rng([self.seed, number]).permutation(self.config.group)
        place = int(dealt[inside // batch]) * batch
        return rows[place : place + batch]

    def sequences(self, rows: npt.NDArray[np.int64]) -> ChatSequences:
        """Tokens and images of some rows."""
        found, pictures, cut, problems = [], [], 0, []
        for row in rows:
            conversation, record, table = self._conversation(int(row))
            picture: Rgb | None = None
            if conversation.image is not None and not self.config.blind:
                try:
                    picture = self._pictures[table].read(record)
                except SourceError as error:
                    problems.append(str(error))
            if picture is None:
                conversation = replace(conversation, image=None)
            encoded, lost = self.tokens.encode_conversation(
                conversation, self.config.template, self._visual, self._max
            )
            cut += lost
            found.append(encoded or TokenRow([self.tokens.eos_id], [-100], [False]))
            if picture is not None and encoded is not None:
                pictures.append(fit_image(picture, self._size, self._fill).canvas)
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) if pictures else None
        return ChatSequences(collate(found), images, cut, problems)

    def batches(
        self, *, step: int, steps: int, batch: int, rank: int, world: int, at_once: int
    ) -> Iterator[list[ChatSequences]]:
        """This process's forward passes of the steps from `step` to `steps`."""
        for number in range(step, steps):
            mine = self.rows_of(number, batch)[rank::world]
            yield [
                self.sequences(mine[start : start + at_once])
                for start in range(0, len(mine), at_once)
            ]

    def kind_of(self, row: int) -> str:
        """The type of question that a conversation's id ends with; "answer" where it names none."""
        label = self._conversation(row)[1]["id"] or ""
        return label.rsplit("/", 1)[-1] if label.count("/") >= 2 else "answer"

    def _conversation(self, row: int) -> tuple[Conversation, Mapping[str, Any], int]:
        table = int(np.searchsorted(self._starts, row, side="right")) - 1
        (record,) = self._tables[table].take([row - int(self._starts[table])]).to_pylist()
        return conversation_of(record), record, table


class _Pictures:
    """Images of a folder, or of a store's own table."""

    def __init__(self, place: str) -> None:
        self._folder = Path(place)
        self._images: Any = None
        self._places: dict[int, int] = {}
        if (self._folder / f"{IMAGES}.lance").is_dir() or "://" in place:
            self._images = open_table(table_uri(place, IMAGES))
            ids = self._images.to_table(columns=["image_id"])["image_id"].to_pylist()
            self._places = {image_id: number for number, image_id in enumerate(ids)}

    def read(self, record: Mapping[str, Any]) -> Rgb:
        if self._images is None:
            return open_image(self._folder / record["image"])
        place = self._places.get(record["image_id"])
        if place is None:
            raise SourceError(f"image {record['image']!r} is not in the store of images")
        (blob,) = self._images.take_blobs("jpeg", indices=[place])
        with Image.open(io.BytesIO(blob.read())) as image:
            return to_rgb(image)

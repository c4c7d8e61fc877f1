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
from tap_engine.model.chat.tokens import IGNORE, ChatTokens, TokenRow
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
        lengths = [table.to_table(columns=["characters"]) for table in self._tables]
        self.lengths = np.concatenate([part["characters"].to_numpy() for part in lengths])
        self._pictures: list[_Pictures] = []
        shown = not config.blind and any(t.count_rows("image IS NOT NULL") for t in self._tables)
        if shown:
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
        """Tokens and images of some rows; a row whose image cannot be read has nothing to learn."""
        found, pictures, cut, problems = [], [], 0, []
        for conversation, record, table in self._records(rows):
            picture: Rgb | None = None
            if self.config.blind:
                conversation = replace(conversation, image=None)
            elif conversation.image is not None:
                try:
                    picture = self._pictures[table].read(record)
                except SourceError as error:
                    problems.append(str(error))
                    found.append(self._nothing())
                    continue
            encoded, lost = self.tokens.encode_conversation(
                conversation, self.config.template, self._visual, self._max
            )
            cut += lost
            found.append(encoded or self._nothing())
            if picture is not None and encoded is not None:
                pictures.append(picture)
        return ChatSequences(collate(found), self._fitted(pictures), cut, problems)

    def images(self, rows: npt.NDArray[np.int64]) -> torch.Tensor | None:
        """The images of those rows that have one, [M, 3, S, S] uint8; None without any.

        Raises:
            SourceError: one cannot be read.
        """
        found = (one for one in self._records(rows) if one[0].image is not None)
        return self._fitted([self._pictures[table].read(record) for _, record, table in found])

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
        ((_, record, _),) = self._records(np.array([row]))
        label = record["id"] or ""
        return label.rsplit("/", 1)[-1] if label.count("/") >= 2 else "answer"

    def _records(
        self, rows: npt.NDArray[np.int64]
    ) -> list[tuple[Conversation, Mapping[str, Any], int]]:
        """Conversations with their records and the numbers of their stores, in the rows' order."""
        tables = np.searchsorted(self._starts, rows, side="right") - 1
        found: dict[int, tuple[Conversation, Mapping[str, Any], int]] = {}
        for number in np.unique(tables):
            mine = rows[tables == number]
            taken = self._tables[number].take((mine - self._starts[number]).tolist()).to_pylist()
            for row, record in zip(mine, taken, strict=True):
                found[int(row)] = (conversation_of(record), record, int(number))
        return [found[int(row)] for row in rows]

    def _nothing(self) -> TokenRow:
        return TokenRow([self.tokens.eos_id], [IGNORE], [False])

    def _fitted(self, pictures: list[Rgb]) -> torch.Tensor | None:
        if not pictures:
            return None
        canvases = [fit_image(picture, self._size, self._fill).canvas for picture in pictures]
        return torch.from_numpy(np.stack(canvases)).permute(0, 3, 1, 2)


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

"""Sequences of tokens, padded or packed, as the chat model takes them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tap_engine.model.chat.tokens import IGNORE, TokenRow


@dataclass(slots=True, kw_only=True)
class ChatBatch:
    """N sequences of L tokens, filled up on the right.

    Attributes:
        ids: [N, L] int64; 0 where a visual token or padding stands.
        targets: [N, L] int64; the id itself where it is learned, else IGNORE.
        visual: [N, L] bool; where visual tokens stand.
        places: [N, L] int64; positions that the language model counts by.
        lengths: [N] int64; tokens of each sequence, padding left out.
        see: [N, L, L] bool, who sees whom; None where everybody sees what stands before.
        features: [M, C, H, W] image features of the M sequences that have an image, in order; or
            None without any.
    """

    ids: Tensor
    targets: Tensor
    visual: Tensor
    places: Tensor
    lengths: Tensor
    see: Tensor | None = None
    features: Tensor | None = None

    def to(self, device: torch.device | str) -> "ChatBatch":
        """The same on a device."""
        parts = {name: getattr(self, name) for name in self.__slots__}
        return replace(self, **{k: v.to(device) for k, v in parts.items() if v is not None})


def collate(rows: Sequence[TokenRow]) -> ChatBatch:
    """Rows filled up on the right to the longest of them."""
    length = max(len(row) for row in rows)
    return ChatBatch(
        ids=_filled([row.ids for row in rows], length, 0),
        targets=_filled([row.targets for row in rows], length, IGNORE),
        visual=_filled([row.visual for row in rows], length, False),
        places=torch.arange(length).expand(len(rows), -1).clone(),
        lengths=torch.tensor([len(row) for row in rows]),
    )


@dataclass(slots=True)
class PackedRow:
    """Independent questions behind one prefix.

    Attributes:
        row: prefix and questions, one after the other.
        turns: of each token, 0 in the prefix, else which question it belongs to, from 1.
        places: positions; each question counts on from the prefix.
    """

    row: TokenRow
    turns: list[int]
    places: list[int]


def pack(prefix: TokenRow, questions: Sequence[TokenRow]) -> PackedRow:
    """One sequence in which each question sees the prefix and itself.

    The image is read once for all questions; the logits are those of single questions.
    """
    row = TokenRow(list(prefix.ids), list(prefix.targets), list(prefix.visual))
    turns, places = [0] * len(prefix), list(range(len(prefix)))
    for number, question in enumerate(questions, 1):
        row.ids += question.ids
        row.targets += question.targets
        row.visual += question.visual
        turns += [number] * len(question)
        places += range(len(prefix), len(prefix) + len(question))
    return PackedRow(row, turns, places)


def collate_packed(packed: Sequence[PackedRow]) -> ChatBatch:
    """Packed rows filled up on the right."""
    batch = collate([one.row for one in packed])
    length = batch.ids.shape[1]
    turns = _filled([one.turns for one in packed], length, -1)
    same = (turns[:, :, None] == turns[:, None, :]) | (turns[:, None, :] == 0)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    places = _filled([one.places for one in packed], length, 0)
    return replace(batch, places=places, see=same & causal)


def _filled(rows: Sequence[Sequence[int | bool]], length: int, value: int | bool) -> Tensor:
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])

"""Terms of the loss: their names, what they count, how they add up.

Everything here adds up over forward passes and processes before it is divided, so that neither
changes a figure.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from tap_engine.model.text_tokenizer import IGNORE
from tap_engine.train.data.examples import Batch

Figures = dict[str, tuple[Tensor, Tensor]]
"""Name -> (sum, count): what adds up over passes and processes before it is divided."""


class Term(NamedTuple):
    """One loss of every prompt.

    Attributes:
        name: its name in the log.
        weight: its weight in the sum.
        values: [B, R] float32; of captions the sum over their words.
        group: which prompts have it, of `groups`.
    """

    name: str
    weight: float
    values: Tensor
    group: str


def groups(batch: Batch) -> dict[str, Tensor]:
    """Weight of each region in the averages of each kind of term, [B, R] bool or int64.

    A region with a mask or a concept target counts once, a caption by its words and EOS. All
    groups but "pooled" are of the regions that get prompts.
    """
    asked = batch.asked()
    words = torch.zeros_like(asked.keys)
    if asked.words is not None:
        words = (asked.words[..., 1:] != IGNORE).sum(-1)
    return {
        "masks": asked.valid & asked.has_mask,
        "concepts": asked.valid & asked.has_concepts,
        "pooled": batch.valid & batch.has_mask & batch.has_concepts,
        "words": words,
    }


def count(batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Sum of each group over all these batches, 0-d float32 each."""
    totals: dict[str, Tensor] = {}
    for batch in batches:
        for name, members in groups(batch).items():
            totals[name] = totals.get(name, 0) + members.sum(dtype=torch.float32)
    return totals


def add_figure(figures: Figures, name: str, values: Tensor, members: Tensor) -> None:
    """Adds values [B, R] where `members` [B, R] to a figure; see `groups` for what they count."""
    total, number = figures.get(name, (values.new_zeros(()), values.new_zeros(())))
    picked = torch.where(members > 0, values.detach(), 0.0)
    figures[name] = (total + picked.sum(), number + members.sum())

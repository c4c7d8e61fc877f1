"""Tables of conversations: what people ask a language model about an image, and its answers.

One row is one sample of LLaVA-style json after the import's checks: roles alternate and begin with
the user, texts are clean, and the marker `<image>` is taken out. Where the image stands is not a
matter of the text any more: it comes in front of the first question (model/chat/template.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

CONVERSATIONS, CONVERSATION_REJECTS = "conversations", "conversation_rejects"
"""Names of the two tables."""

USER, ASSISTANT = "user", "assistant"

IMAGE_MARKER = "<image>"
"""How people's files mark the image; it never reaches a tokenizer."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One question or one answer.

    Attributes:
        role: USER or ASSISTANT.
        text: what was said, without the marker.
    """

    role: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One sample.

    Attributes:
        turns: user and assistant in turn; the first is the user's, the last the assistant's.
        image: name of the image below its folder, or None for text alone.
        system: a system sentence of the file's own, or None for the template's.
    """

    turns: tuple[Turn, ...]
    image: str | None = None
    system: str | None = None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Questions with their answers."""
        texts = [turn.text for turn in self.turns]
        return list(zip(texts[::2], texts[1::2], strict=True))


def conversations_schema() -> pa.Schema:
    """One row per sample.

    `row` counts from 0 in `file`; `id` is the file's own label and no key. `image_id` is set where
    the image was found in a store. `characters` counts the texts of all turns, for sampling samples
    of alike length together. `notes` lists what the import changed, in fixed words.
    """
    turn = pa.struct([pa.field("role", pa.string()), pa.field("text", pa.string())])
    return pa.schema(
        [
            pa.field("file", pa.string(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
            pa.field("id", pa.string()),
            pa.field("source", pa.string(), nullable=False),
            pa.field("image", pa.string()),
            pa.field("image_id", pa.int64()),
            pa.field("system", pa.string()),
            pa.field("turns", pa.list_(turn), nullable=False),
            pa.field("characters", pa.int32(), nullable=False),
            pa.field("notes", pa.list_(pa.string()), nullable=False),
        ]
    )


def conversation_rejects_schema() -> pa.Schema:
    """One row per sample, line or file that was left out; `row` is null for a whole file."""
    return pa.schema(
        [
            pa.field("file", pa.string(), nullable=False),
            pa.field("row", pa.int64()),
            pa.field("id", pa.string()),
            pa.field("reason", pa.string(), nullable=False),
            pa.field("detail", pa.string(), nullable=False),
        ]
    )


def conversation_of(row: dict[str, object]) -> Conversation:
    """The sample of a table's row (`RecordBatch.to_pylist`)."""
    turns: Sequence[dict[str, str]] = row["turns"]  # type: ignore[assignment]
    image, system = row["image"], row["system"]
    return Conversation(
        turns=tuple(Turn(turn["role"], turn["text"]) for turn in turns),
        image=None if image is None else str(image),
        system=None if system is None else str(system),
    )

"""A conversation as the one string that a language model reads, and which of it is learned.

The string is built piece by piece, and the trained spans are written down while it is built:
nothing is ever searched in it, so a question that holds the words of the template does no harm.
Control marks are pieces of their own; whoever writes one into a question has written plain letters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from tap_engine.schemas.conversations import IMAGE_MARKER, Conversation
from tap_engine.schemas.errors import ConfigError

TEXT, MARK, IMAGE = "text", "mark", "image"
"""Kinds of pieces: people's words with the template's around them, a control token, the image."""

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
"""The sentence in front of a conversation that brings none (Bunny's, as of Vicuna)."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the string that is tokenised on its own.

    Attributes:
        kind: TEXT, MARK or IMAGE.
        text: its letters; of a MARK the token's name.
        start: where it begins in the whole string, in characters.
    """

    kind: str
    text: str
    start: int


@dataclass(slots=True)
class Rendered:
    """A conversation in a template.

    Attributes:
        pieces: in order; together they are the string.
        spans: [start, end) in characters of the whole string: each answer and its end mark.
    """

    pieces: list[Piece] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The whole string; `<image>` stands for the visual tokens."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def length(self) -> int:
        """Characters of the whole string."""
        last = self.pieces[-1] if self.pieces else Piece(TEXT, "", 0)
        return last.start + len(last.text)

    def add(self, kind: str, text: str) -> "Rendered":
        """Append a piece; texts that follow each other become one, as a tokenizer sees them."""
        if kind == TEXT and self.pieces and self.pieces[-1].kind == TEXT:
            last = self.pieces.pop()
            self.pieces.append(Piece(TEXT, last.text + text, last.start))
        elif text:
            self.pieces.append(Piece(kind, text, self.length))
        return self

    def learn(self, text: str, end: str) -> "Rendered":
        """Append an answer and its end mark, which are what is trained."""
        start = self.length
        self.add(TEXT, text).add(MARK, end)
        self.spans.append((start, self.length))
        return self


Renderer = Callable[[Conversation, bool], Rendered]


def render(conversation: Conversation, template: str, *, to_answer: bool = False) -> Rendered:
    """A conversation in one of `TEMPLATES`.

    Args:
        conversation: with its last answer, which `to_answer` leaves out.
        template: a name.
        to_answer: end where the last answer begins, for generation.

    Raises:
        ConfigError: no such template.
    """
    if template not in TEMPLATES:
        raise ConfigError(f"template must be one of {', '.join(TEMPLATES)}, got {template!r}")
    return TEMPLATES[template](conversation, to_answer)


def _phi2(conversation: Conversation, to_answer: bool) -> Rendered:
    """Bunny's: the blank after "ASSISTANT:" belongs to the answer's first token."""
    out = Rendered().add(TEXT, f"{conversation.system or SYSTEM} ")
    last = len(conversation.pairs) - 1
    for number, (question, answer) in enumerate(conversation.pairs):
        out.add(TEXT, "USER: ")
        if number == 0 and conversation.image is not None:
            out.add(IMAGE, IMAGE_MARKER).add(TEXT, "\n")
        out.add(TEXT, f"{question} ASSISTANT:")
        if not (to_answer and number == last):
            out.learn(f" {answer}", "<|endoftext|>")
    return out


def _chatml(conversation: Conversation, to_answer: bool) -> Rendered:
    """The form of SmolLM2, Qwen and others; the line end behind an answer is not trained."""
    begin, end = "<|im_start|>", "<|im_end|>"
    out = Rendered().add(MARK, begin).add(TEXT, f"system\n{conversation.system or SYSTEM}")
    out.add(MARK, end).add(TEXT, "\n")
    last = len(conversation.pairs) - 1
    for number, (question, answer) in enumerate(conversation.pairs):
        out.add(MARK, begin).add(TEXT, "user\n")
        if number == 0 and conversation.image is not None:
            out.add(IMAGE, IMAGE_MARKER).add(TEXT, "\n")
        out.add(TEXT, question).add(MARK, end).add(TEXT, "\n")
        out.add(MARK, begin).add(TEXT, "assistant\n")
        if not (to_answer and number == last):
            out.learn(answer, end).add(TEXT, "\n")
    return out


def _caption(conversation: Conversation, to_answer: bool) -> Rendered:
    """Stage 1: visual tokens, caption, end; no instruction (TAP-v2 paper, 3.2)."""
    out = Rendered()
    if conversation.image is not None:
        out.add(IMAGE, IMAGE_MARKER)
    return out if to_answer else out.learn(conversation.pairs[0][1], "<|endoftext|>")


TEMPLATES: Mapping[str, Renderer] = MappingProxyType(
    {"phi2": _phi2, "chatml": _chatml, "caption": _caption}
)
"""Template name -> how it is rendered. `phi2` is the paper's pipeline (by Bunny); the marks at the
end of an answer are the tokenizer's own end token, whatever its name is."""

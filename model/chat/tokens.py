"""Rendered conversations become token ids, and each id is learned or not by its place.

Nothing is masked by a token's number: the end mark that is learned and the same id as padding are
told apart by where they stand.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from tap_engine.model.chat.template import IMAGE, MARK, Rendered, render
from tap_engine.schemas.conversations import Conversation
from tap_engine.schemas.errors import ConfigError

IGNORE = -100
"""The target of what is not learned; `torch.nn.functional.cross_entropy` leaves it out."""


@dataclass(slots=True)
class TokenRow:
    """One sequence.

    Attributes:
        ids: token ids; 0 where a visual token stands.
        targets: the id itself where it is learned, else IGNORE.
        visual: whether a visual token stands there.
    """

    ids: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    visual: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: list[int], learned: list[bool], visual: bool = False) -> None:
        """Append tokens."""
        self.ids += ids
        self.targets += [i if yes else IGNORE for i, yes in zip(ids, learned, strict=True)]
        self.visual += [visual] * len(ids)


class ChatTokens:
    """A language model's tokenizer as conversations use it.

    Args:
        tokenizer: a fast tokenizer of transformers, with an end token.

    Raises:
        ConfigError: it has none, or is not a fast one.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or tokenizer.eos_token_id is None:
            raise ConfigError(
                "the language model's tokenizer must be a fast one (tokenizer.json) with an end "
                f"token; got {type(tokenizer).__name__} with end token {tokenizer.eos_token!r}"
            )
        self._letters: Tokenizer = Tokenizer.from_str(backend.to_str())
        # People's text is letters, even where it spells a control token.
        self._letters.encode_special_tokens = True
        self._letters.no_padding()
        self._letters.no_truncation()
        self._marks = {str(name): int(i) for name, i in tokenizer.get_added_vocab().items()}
        self.eos_id = int(tokenizer.eos_token_id)

    @property
    def fingerprint(self) -> str:
        """Of everything that decides ids."""
        return hashlib.sha256(self._letters.to_str().encode()).hexdigest()[:16]

    def encode(self, rendered: Rendered, visual_tokens: int) -> TokenRow:
        """Ids and targets of a rendered conversation.

        Args:
            rendered: of `template.render`.
            visual_tokens: how many stand in an image's place.

        Raises:
            ConfigError: the template has a mark that the tokenizer does not know.
        """
        row = TokenRow()
        for piece in rendered.pieces:
            if piece.kind == IMAGE:
                row.add([0] * visual_tokens, [False] * visual_tokens, visual=True)
            elif piece.kind == MARK:
                learned = _inside(rendered.spans, piece.start, piece.start + len(piece.text))
                # What ends an answer is this model's own end token, whatever the template calls it.
                row.add([self.eos_id if learned else self._mark(piece.text)], [learned])
            else:
                encoded = self._letters.encode(piece.text, add_special_tokens=False)
                places = [(piece.start + a, piece.start + b) for a, b in encoded.offsets]
                row.add(encoded.ids, [_inside(rendered.spans, a, b) for a, b in places])
        return row

    def encode_conversation(
        self, conversation: Conversation, template: str, visual_tokens: int, max_tokens: int
    ) -> tuple[TokenRow | None, int]:
        """A conversation cut to a context, at the border of a turn.

        Returns:
            The row, or None where not even the first answer fits; and how many question-answer
            pairs were cut.
        """
        turns, whole = conversation.turns, len(conversation.turns)
        while turns:
            kept = Conversation(turns=turns, image=conversation.image, system=conversation.system)
            row = self.encode(render(kept, template), visual_tokens)
            if len(row) <= max_tokens:
                return row, (whole - len(turns)) // 2
            turns = turns[:-2]
        return None, whole // 2

    def decode(self, ids: list[int]) -> str:
        """Text of generated ids, without control tokens."""
        return self._letters.decode(ids, skip_special_tokens=True)

    def _mark(self, text: str) -> int:
        if text not in self._marks:
            raise ConfigError(
                f"the template has the control token {text!r}, which the language model's "
                "tokenizer does not know; choose another template"
            )
        return self._marks[text]


def _inside(spans: list[tuple[int, int]], start: int, end: int) -> bool:
    return any(first <= start and end <= last for first, last in spans)

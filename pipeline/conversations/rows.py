"""One row of a conversation file, as people write them, becomes a checked sample or a refusal.

The rules are the specification's, or ours where it is silent (docs/chat.md):
a leading answer is skipped, a trailing question is dropped, any other disorder is refused; outer
blanks go and line ends become one form, everything else stays to the letter.
"""

from dataclasses import dataclass, field
from typing import Any

from tap_engine.schemas.conversations import (
    ASSISTANT,
    IMAGE_MARKER,
    USER,
    Conversation,
    Turn,
)

_ROLES = {"human": USER, "user": USER, "gpt": ASSISTANT, "assistant": ASSISTANT, "system": "system"}

_SHOWN = 60
"""Characters of a strange value that a refusal shows."""


class RowRefused(Exception):
    """A row cannot be used; `reason` is of a few fixed words, `detail` says what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(slots=True)
class ReadRow:
    """A row that can be used.

    Attributes:
        conversation: the sample; its image is named as the file names it.
        notes: what was changed on the way.
    """

    conversation: Conversation
    notes: list[str] = field(default_factory=list)


def read_row(row: Any) -> ReadRow:
    """Check and clean one row.

    Args:
        row: a value of parsed json.

    Raises:
        RowRefused: with the reason in words.
    """
    if not isinstance(row, dict):
        raise RowRefused("row is not an object", _shown(row))
    notes: list[str] = []
    image = _image_name(row)
    turns = _turns(row)
    system = _system(row, turns, notes)
    turns = _in_order(turns, notes)
    turns = _without_marker(turns, image is not None, notes)
    cleaned = []
    for number, (role, text) in enumerate(turns):
        # Whoever only shows the picture has asked something all the same.
        shows_image = image is not None and number == 0
        text = _clean(text, notes)
        if not text and not (shows_image and role == USER):
            raise RowRefused(f"empty {'question' if role == USER else 'answer'}", f"turn {number}")
        cleaned.append(Turn(role, text))
    return ReadRow(Conversation(turns=tuple(cleaned), image=image, system=system), notes)


def label_of(row: Any) -> str | None:
    """The row's own id as text; it is a label, not a key."""
    found = row.get("id") if isinstance(row, dict) else None
    return None if found is None else str(found)[:200].encode("utf-8", "replace").decode()


def _image_name(row: dict[str, Any]) -> str | None:
    found = row.get("image", row.get("images"))
    if isinstance(found, list):
        if len(found) > 1:
            raise RowRefused("two images", f"{len(found)} names; a sample has one image at most")
        found = found[0] if found else None
    if found is None or found == "":
        return None
    if not isinstance(found, str):
        raise RowRefused("image name is not text", _shown(found))
    return found


def _turns(row: dict[str, Any]) -> list[tuple[str, str]]:
    found = row.get("conversations", row.get("messages"))
    if not isinstance(found, list) or not found:
        raise RowRefused("no turns", f"conversations is {_shown(found)}")
    return [_turn(turn, number) for number, turn in enumerate(found)]


def _turn(turn: Any, number: int) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise RowRefused("a turn is not an object", f"turn {number} is {_shown(turn)}")
    said = turn.get("from", turn.get("role"))
    if said is None:
        raise RowRefused("no role", f"turn {number} has neither `from` nor `role`")
    role = _ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        raise RowRefused("unknown role", f"turn {number} is from {_shown(said)}")
    if "value" not in turn and "content" not in turn:
        raise RowRefused("no value", f"turn {number} has neither `value` nor `content`")
    value = turn.get("value", turn.get("content"))
    if isinstance(value, list):
        value = _joined(value)
    if not isinstance(value, str):
        raise RowRefused("value is not text", f"turn {number} is {_shown(value)}")
    return role, value


def _joined(parts: list[Any]) -> Any:
    """Text of a list of parts, where an image part stands for the marker; else the list itself."""
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image":
            texts.append(f"{IMAGE_MARKER}\n")
        elif kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            return parts
    return "".join(texts)


def _system(row: dict[str, Any], turns: list[tuple[str, str]], notes: list[str]) -> str | None:
    """The system sentence of the row; a system turn is taken out of the front of `turns`."""
    found = row.get("system")
    system = found if isinstance(found, str) else None
    if turns[0][0] == "system":
        system = turns.pop(0)[1]
    if any(role == "system" for role, _ in turns):
        raise RowRefused("system turn in the middle")
    if not turns:
        raise RowRefused("no turns", "there is a system turn only")
    return _clean(system, notes) or None if system else None


def _in_order(turns: list[tuple[str, str]], notes: list[str]) -> list[tuple[str, str]]:
    if turns[0][0] == ASSISTANT:
        if len(turns) == 1:
            raise RowRefused("no question", "there is one answer only")
        turns = turns[1:]
        notes.append("leading answer skipped")
    for number, (role, _) in enumerate(turns):
        if role != (USER, ASSISTANT)[number % 2]:
            raise RowRefused("bad alternation", f"two turns in a row are from the {role}")
    if turns[-1][0] == USER:
        if len(turns) == 1:
            raise RowRefused("no answer", "there is one question only")
        turns = turns[:-1]
        notes.append("trailing question dropped")
    return turns


def _without_marker(
    turns: list[tuple[str, str]], has_image: bool, notes: list[str]
) -> list[tuple[str, str]]:
    """The marker and the image have to agree, else a sample trains blind or with another's."""
    counts = [text.count(IMAGE_MARKER) for _, text in turns]
    if any(counts[1::2]):
        raise RowRefused("marker in an answer", f"{IMAGE_MARKER} stands in an answer")
    if sum(counts) > 1:
        raise RowRefused("two markers", f"{IMAGE_MARKER} stands {sum(counts)} times")
    if sum(counts) and not has_image:
        raise RowRefused("marker without image", f"{IMAGE_MARKER} stands in a text-only row")
    if has_image and not sum(counts):
        notes.append("marker put in front")
    elif has_image and not counts[0]:
        notes.append("marker moved to the first question")
    return [(role, text.replace(IMAGE_MARKER, "")) for role, text in turns]


def _clean(text: str, notes: list[str]) -> str:
    if "\x00" in text:
        text = text.replace("\x00", "")
        notes.append("NUL taken out")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise RowRefused("half a surrogate pair", "the text cannot be written as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _shown(value: Any) -> str:
    try:
        text = ascii(value)
    except RecursionError:
        text = "a very deep value"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."

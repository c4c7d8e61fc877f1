"""Cleans region phrases by five rules, in order, and counts what each rule changed.

The raw phrase stays beside the cleaned one. Inner punctuation stays: a tokenizer can learn it, and
caption metrics drop it themselves. What GRiT did to the texts that TAP trains and tests on was
never published; the characters are those that densecap's script replaces (its preprocess.py,
words_preprocess), and typographic quotes and dashes. docs/captions.md tells people the rules.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

RULES_VERSION = 1
"""Part of a store's provenance: to be raised whenever a phrase could come out differently."""

_DENSECAP = {
    "½": "half",
    "—": "-",
    "™": "",
    "¢": "cent",
    "ç": "c",
    "û": "u",
    "é": "e",
    "°": " degree",
    "è": "e",
    "…": "",
}
_OURS = dict(zip("–‘’“”", "-''\"\"", strict=True))  # noqa: RUF001
_CHARACTERS = str.maketrans(_DENSECAP | _OURS)
_LONG_GAP = re.compile(r"(?<=\S)(?:[^\S ]\s*|\s{2,})(?=\S)")


def _replace_characters(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text).translate(_CHARACTERS)


RULES: Mapping[str, Callable[[str], str]] = {
    "lower case": str.lower,
    "characters replaced": _replace_characters,
    "inner whitespace to one space": lambda text: _LONG_GAP.sub(" ", text),
    "outer whitespace dropped": str.strip,
    "full stop at the end dropped": lambda text: text.rstrip(" ."),
}
"""What is done to a phrase, in this order."""


def clean(raw: str) -> tuple[str, list[str]]:
    """A phrase as it is trained on ("" where no letter or digit is left), and the rules it met."""
    text, touched = raw, []
    for name, rule in RULES.items():
        changed = rule(text)
        if changed != text:
            text = changed
            touched.append(name)
    return (text if any(map(str.isalnum, text)) else ""), touched


@dataclass
class CleaningCounts:
    """What cleaning did to all phrases of a file.

    Attributes:
        phrases: number of phrases.
        rules: number of phrases that each of RULES changed.
        empty: number of phrases with no letter or digit left.
        not_ascii: number that still have characters beyond ASCII, which are kept.
    """

    phrases: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    empty: int = 0
    not_ascii: int = 0

    def clean(self, raw: str) -> str:
        """`clean`, counted."""
        text, touched = clean(raw)
        self.phrases += 1
        self.rules.update(touched)
        self.empty += not text
        self.not_ascii += not text.isascii()
        return text

    def lines(self) -> Iterator[str]:
        """A table for people."""
        yield f"cleaning of {self.phrases:,} phrases:"
        rows = [(name, self.rules[name]) for name in RULES]
        rows += [("nothing left: rejected", self.empty), ("kept beyond ASCII", self.not_ascii)]
        for name, count in rows:
            yield f"  {name:<30} {count:>10,}  {count / max(self.phrases, 1):6.2%}"

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**self.__dict__, "rules": dict(self.rules)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "CleaningCounts":
        """Inverse of `to_json`."""
        return cls(**{**content, "rules": Counter(content["rules"])})

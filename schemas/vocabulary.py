"""Vocabularies: ordered concept names with the label sets they come from.

`merged-2560` is shipped as vocabularies/merged-2560.tsv; `merge` is the rule that made it
(TAP paper, appendix B, Algorithm 1, with the separator rule its released notebook adds).
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tap_engine.schemas import values
from tap_engine.schemas.errors import ConfigError, SchemaError

DEFAULT_VOCABULARY = "merged-2560"

SEPARATED_BY_SPACE = ("lvis", "objects365", "openimages")
"""Label sets whose names write "_" or "-" for a space. Algorithm 1 omits this step; without it
the six sets merge to 2,638 names instead of 2,560."""


MAX_CONCEPTS = 2**16
"""Concept ids are stored in 16 bits (docs/decisions/0101)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabularyInfo:
    """A store's note of its vocabulary; the names themselves are its table `concepts`.

    Attributes:
        name: name of the `Vocabulary`.
        size: number of concepts.
        fingerprint: 16 hex digits that change when a name or its id does.
    """

    name: str
    size: int
    fingerprint: str


@dataclass(frozen=True)
class Vocabulary:
    """Concept names in id order.

    Attributes:
        name: what it is called in reports.
        names: concept name by id; unique, non-empty.
        sources: label sets of each name, same order; empty tuples where unknown.

    Raises:
        SchemaError: empty, duplicate names, more than `MAX_CONCEPTS`, or `sources` of another
            length.
    """

    name: str
    names: tuple[str, ...]
    sources: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise SchemaError(f"vocabulary {self.name!r} has no concepts")
        if len(self.names) > MAX_CONCEPTS:
            raise SchemaError(
                f"vocabulary {self.name!r} has {len(self.names):,} concepts; a store holds at most "
                f"{MAX_CONCEPTS:,}, since concept ids are stored in 16 bits. Leave out the rarest"
            )
        if any(not name.strip() for name in self.names):
            raise SchemaError(f"vocabulary {self.name!r} has an empty concept name")
        if len(set(self.names)) != len(self.names):
            twice = Counter(self.names).most_common(1)[0][0]
            raise SchemaError(f"vocabulary {self.name!r} names {twice!r} twice")
        if not self.sources:
            object.__setattr__(self, "sources", tuple(() for _ in self.names))
        if len(self.sources) != len(self.names):
            raise SchemaError(
                f"vocabulary {self.name!r}: {len(self.names)} names but {len(self.sources)} sources"
            )

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Concept id by name."""
        return {name: index for index, name in enumerate(self.names)}

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change when a name or its id does."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()[:16]

    def describe(self) -> VocabularyInfo:
        """The note that the settings of a store keep of it."""
        return VocabularyInfo(name=self.name, size=len(self), fingerprint=self.fingerprint)


def merge(name: str, label_sets: Mapping[str, Iterable[str]]) -> Vocabulary:
    """Union of label sets: lower-cased, plurals dropped, sorted.

    A name is dropped when it is another name + "s" or + "es". In the label sets named in
    SEPARATED_BY_SPACE, "_" and "-" become spaces first.

    Args:
        name: name of the result.
        label_sets: label-set name ("coco", "lvis", ...) -> its class names.

    Source: TAP paper, appendix B, Algorithm 1; separator rule from its released notebook.
    """
    origins: dict[str, list[str]] = {}
    for label_set, labels in label_sets.items():
        for label in labels:
            concept = label.lower()
            if label_set in SEPARATED_BY_SPACE:
                concept = re.sub(r"[_-]", " ", concept)
            origins.setdefault(concept, [])
            if label_set not in origins[concept]:
                origins[concept].append(label_set)
    plurals = {c + ending for c in origins for ending in ("s", "es") if c + ending in origins}
    names = sorted(set(origins) - plurals)
    return Vocabulary(name, tuple(names), tuple(tuple(origins[n]) for n in names))


def readable_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Class labels of a data set as concept names: lower-cased, words apart.

    LVIS writes coffee_table, COCO writes "sports ball": where one label has a "_", "_" and "-"
    stand for spaces in all of them.
    """
    if any("_" in label for label in labels):
        labels = [re.sub(r"[_-]", " ", label) for label in labels]
    return tuple(label.lower() for label in labels)


def load_vocabulary(name_or_path: str | Vocabulary) -> Vocabulary:
    """A shipped vocabulary by name, or a user's file; a vocabulary is itself.

    Files: `.txt`/`.tsv` with a name a line (label sets after a tab, `#` comments), or `.json`:
    a list of names, or COCO/LVIS annotations whose `categories` are taken in file order.

    Raises:
        ConfigError: no such vocabulary or file.
        SchemaError: the file is of none of these forms.
    """
    if isinstance(name_or_path, Vocabulary):
        return name_or_path
    shipped = Path(__file__).parent / "vocabularies" / f"{name_or_path}.tsv"
    if "/" not in name_or_path and shipped.is_file():
        return _parse_lines(name_or_path, shipped.read_text("utf-8"))
    path = Path(name_or_path)
    if not path.is_file():
        raise ConfigError(
            f"no vocabulary {name_or_path!r}: expected {DEFAULT_VOCABULARY!r} or a file "
            "(.txt, .tsv, or COCO/LVIS .json)"
        )
    try:
        text = path.read_text("utf-8-sig")  # Windows puts a byte-order mark in front
    except UnicodeDecodeError as error:
        raise SchemaError(
            f"{path}: expected a text file in UTF-8, found byte {error.object[error.start]:#04x} "
            f"at {error.start}; save it as UTF-8, not compressed"
        ) from error
    if path.suffix != ".json":
        return _parse_lines(path.stem, text)
    try:
        return _parse_json(path.stem, json.loads(text))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SchemaError(
            f"{path}: expected a json list of names or COCO/LVIS annotations with "
            f"`categories`, found: {error}"
        ) from error


def _parse_lines(name: str, text: str) -> Vocabulary:
    names, sources = [], []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        concept, _, labels = line.partition("\t")
        names.append(concept.strip())
        sources.append(tuple(label for label in labels.strip().split(",") if label))
    return Vocabulary(name, tuple(names), tuple(sources))


def _parse_json(name: str, content: Any) -> Vocabulary:
    if isinstance(content, list) and all(isinstance(label, str) for label in content):
        return Vocabulary(name, tuple(content))
    labels = [values.text(category["name"]) for category in content["categories"]]
    return Vocabulary(name, readable_names(labels))

"""A model's raw answers: one json line per question, as LLaVA and its kin write them."""

import json
from collections.abc import Callable, Container, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tap_engine.schemas.errors import SourceError


@dataclass(slots=True)
class RawAnswers:
    """Answers by question, and what was wrong with the file.

    Attributes:
        texts: the last answer to each known question.
        unknown: ids that the questions do not have.
        duplicates: answers that a later one replaced.
        broken_lines: lines that are no json.
    """

    texts: dict[Hashable, str] = field(default_factory=dict)
    unknown: int = 0
    duplicates: int = 0
    broken_lines: int = 0


def read_raw(
    path: str | Path,
    known: Container[Hashable],
    key: Callable[[dict[str, Any]], Hashable] = lambda row: row["question_id"],
) -> RawAnswers:
    """Read answers; a broken line costs that line.

    Args:
        path: json lines with `question_id` and `text`.
        known: ids of the questions.
        key: the id of a line.

    Raises:
        SourceError: the file is missing.
    """
    found, seen = RawAnswers(), set()
    try:
        lines = Path(path).read_text("utf-8").split("\n")
    except OSError as error:
        raise SourceError(f"{path}: the answers cannot be read: {error}") from error
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = key(row), str(row["text"])
        except (ValueError, KeyError, TypeError):
            found.broken_lines += 1
            continue
        found.duplicates += name in seen
        seen.add(name)
        found.texts[name] = text
    strange = [name for name in found.texts if name not in known]
    for name in strange:
        del found.texts[name]
    found.unknown = len(strange)
    return found


def read_json(path: str | Path) -> Any:
    """A json file.

    Raises:
        SourceError: missing or damaged.
    """
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: expected a json file: {error}") from error


def percent(values: list[float]) -> float:
    """Mean in percent; 0 of nothing."""
    return 100 * sum(values) / len(values) if values else 0.0

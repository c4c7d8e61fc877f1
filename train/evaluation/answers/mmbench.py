"""MMBench: four choices in all rotations (Liu et al. 2023; VLMEvalKit's rules, without a model).

`vanilla` looks at each question once, `circular` counts a question if every rotation is right.
Where the rules cannot read a choice, the official pipeline asks a language model; here it is wrong.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from tap_engine.schemas.errors import SourceError
from tap_engine.train.evaluation.answers.raw import percent, read_raw

PROMPT = (
    "{hint}\n{question}\n{options}\n"
    "Answer with the option's letter from the given choices directly."
)

LETTERS = ("A", "B", "C", "D")

ROTATION = 1_000_000
"""Rotation k of a question has its index plus k times this."""

SHORT_NAMES = MappingProxyType(
    {
        "coarse_perception": "CP",
        "finegrained_perception (instance-level)": "FP-S",
        "finegrained_perception (cross-instance)": "FP-C",
        "logic_reasoning": "LR",
        "relation_reasoning": "RR",
        "attribute_reasoning": "AR",
    }
)

NO_ANSWER = "nan"
"""What the official pipeline reads back from a cell without an answer."""

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_FAILED = "Failed to obtain answer via API"
_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"answer is ([A-D])\b", re.IGNORECASE)
_LAST_WORDS = 4

Row = Mapping[str, str]


def choice_of(answer: str, options: Mapping[str, str]) -> str:
    """The letter that an answer means; "Z" for a refusal, "" where the rules cannot tell.

    Args:
        answer: as the model wrote it.
        options: letter -> text, of this row only.
    """
    if _FAILED not in answer:
        if any(refusal in answer for refusal in _REFUSALS):
            return "Z"
        words = answer.translate(_MARKS).split()
        named = [letter for letter in options if letter in words]
        if len(named) == 1 and words.index(named[0]) >= len(words) - _LAST_WORDS:
            return named[0]
        if not named and "Z" in words:
            return "Z"
        if found := _ANSWER_IS.search(" ".join(words)):
            return found[1].upper()
    if len(answer) > 2 * sum(len(text) for text in options.values()):
        return ""
    lower = answer.lower()
    held = [letter for letter, text in options.items() if text.lower() in lower]
    return held[0] if len(held) == 1 else ""


def score(rows: Sequence[Row], said: Mapping[int, str]) -> dict[str, float]:
    """Accuracies in percent of the questions with their rotations.

    Args:
        rows: of the official tsv.
        said: index of a row -> answer; a missing one is read as "nan".

    Returns:
        `vanilla/...`, `vanilla_all_rows/...` and `circular/...`, each `overall`, by `l2` and by
        `category`, and the counts `questions`, `rows`, `missing_rows`, and `circular_hit/INDEX`.
    """
    groups: defaultdict[str, list[float]] = defaultdict(list)
    rotations: defaultdict[int, list[tuple[Row, float]]] = defaultdict(list)
    single = {}
    for row in rows:
        index = int(row["index"])
        right = float(choice_of(said.get(index) or NO_ANSWER, options_of(row)) == row["answer"])
        rotations[index % ROTATION].append((row, right))
        _count(groups, "vanilla_all_rows", row, right)
        if index < ROTATION:
            _count(groups, "vanilla", row, right)
    for index, found in rotations.items():
        whole = min(right for _, right in found)
        _count(groups, "circular", found[0][0], whole)
        single[f"circular_hit/{index}"] = whole
    counts = {
        "questions": float(len(rotations)),
        "rows": float(len(rows)),
        "missing_rows": float(sum(int(row["index"]) not in said for row in rows)),
    }
    return {name: percent(values) for name, values in groups.items()} | counts | single


def options_of(row: Row) -> dict[str, str]:
    """Letter -> text of the choices that a row has."""
    return {letter: row[letter] for letter in LETTERS if row.get(letter)}


def read_questions(path: str | Path) -> list[Row]:
    """Rows of the official tsv.

    Raises:
        SourceError: missing, or without its columns.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            csv.field_size_limit(1 << 30)  # a cell holds a picture
            rows: list[Row] = list(csv.DictReader(file, delimiter="\t"))
    except OSError as error:
        raise SourceError(f"{path}: the questions cannot be read: {error}") from error
    if not rows or not {"index", "question", "A", "B", "answer"} <= rows[0].keys():
        raise SourceError(f"{path}: expected MMBench's tsv with index, question, A, B and answer")
    return rows


def read_answers(raw: str | Path, rows: Sequence[Row]) -> tuple[dict[int, str], dict[str, float]]:
    """Raw answers, and the counts `unknown` and `duplicates`."""
    known = {int(row["index"]) for row in rows}
    found = read_raw(raw, known, lambda row: int(row["question_id"]))
    counts = {"unknown": float(found.unknown), "duplicates": float(found.duplicates)}
    return {int(str(name)): text for name, text in found.texts.items()}, counts


def submission(rows: Sequence[Row], said: Mapping[int, str]) -> list[dict[str, str | int]]:
    """Rows of the official table: index, question, options, prediction."""
    return [
        {
            "index": int(row["index"]),
            "question": row["question"],
            **options_of(row),
            "prediction": said.get(int(row["index"]), ""),
        }
        for row in rows
    ]


def _count(groups: defaultdict[str, list[float]], kind: str, row: Row, right: float) -> None:
    groups[f"{kind}/overall"].append(right)
    if level := row.get("l2-category"):
        groups[f"{kind}/l2/{SHORT_NAMES.get(level, level)}"].append(right)
    if category := row.get("category"):
        groups[f"{kind}/category/{category}"].append(right)

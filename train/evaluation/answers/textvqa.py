"""TextVQA: VQA's agreement on M4C's form of the answers (Singh et al. 2019; MMF's evaluator).

The question of an answer is found as LLaVA's script does it, by image and words of the prompt, with
the three prompt forms that are in use. Which form the papers' figures have is not stated: report
which one yours have.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tap_engine.schemas.errors import SourceError
from tap_engine.train.evaluation.answers.raw import percent, read_json
from tap_engine.train.evaluation.answers.texts import m4c_form, soft_accuracy

PROMPT = "{question}\nAnswer the question using a single word or phrase."
PROMPT_WITH_OCR = (
    "{question}\nReference OCR token: {tokens}\nAnswer the question using a single word or phrase."
)

_OLD_FORM = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)


def accuracy(said: str, answers: Sequence[str]) -> float:
    """One prediction's score in 0..1."""
    return soft_accuracy(m4c_form(said), range(len(answers)), [m4c_form(one) for one in answers])


def score(annotations: Sequence[Mapping[str, Any]], said: Mapping[int, str]) -> dict[str, float]:
    """Accuracies in percent.

    Args:
        annotations: of the official json.
        said: question id -> prediction.

    Returns:
        `accuracy_of_answered`, the official mean, `accuracy_of_all`, where missing answers count as
        wrong, the counts `answered` and `missing`, and `question/ID`.
    """
    values = {
        row["question_id"]: accuracy(said[row["question_id"]], row["answers"])
        for row in annotations
        if row["question_id"] in said
    }
    every = [values.get(row["question_id"], 0.0) for row in annotations]
    return {
        "accuracy_of_answered": percent(list(values.values())),
        "accuracy_of_all": percent(every),
        "answered": float(len(values)),
        "missing": float(len(annotations) - len(values)),
    } | {f"question/{name}": 100 * value for name, value in values.items()}


def read_answers(path: str | Path, annotations: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Answers in LLaVA's form, whose `question_id` is the image's: question id -> text.

    Raises:
        SourceError: missing, or an answer whose question is not there.
    """
    known = {(row["image_id"], row["question"].lower()): row["question_id"] for row in annotations}
    said = {}
    try:
        lines = Path(path).read_text("utf-8").split("\n")
        for line in lines:
            if line.strip():
                row = json.loads(line)
                place = row["question_id"], question_of(row["prompt"]).lower()
                said[known[place]] = str(row["text"])
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(f"{path}: an answer without its question: {error}") from error
    return said


def question_of(prompt: str) -> str:
    """The question in a prompt, which may hold OCR tokens before or after it.

    Raises:
        ValueError: a prompt of another form.
    """
    old = _OLD_FORM.search(prompt) if prompt.startswith("OCR tokens: ") else None
    if old:
        return old[1]
    lines = prompt.split("\n")
    if len(lines) == 3 and "Reference OCR token: " in prompt:
        return lines[1] if prompt.startswith("Reference OCR token:") else lines[0]
    if len(lines) == 2:
        return lines[0]
    raise ValueError(f"no question is found in the prompt {prompt[:80]!r}")


def read_annotations(path: str | Path) -> list[dict[str, Any]]:
    """Questions with ten answers each.

    Raises:
        SourceError: missing or damaged.
    """
    return list(read_json(path)["data"])

"""GQA: equal texts, by type of question (Hudson and Manning 2019; the official eval.py).

Consistency, validity, plausibility and grounding need files that testdev does not have, and are not
computed.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tap_engine.train.evaluation.answers.raw import percent, read_json, read_raw

PROMPT = "{question}\nAnswer the question using a single word or phrase."

_NO_STEP = ("exist", "query: name", "choose name")
"""Operations that do not count as a step of reasoning, by the official script."""


def form(text: str) -> str:
    """What the converters make of a raw answer: full stops at its end go, lower case."""
    return text.rstrip(".").lower()


def score(questions: Mapping[str, Mapping[str, Any]], said: Mapping[str, str]) -> dict[str, float]:
    """Accuracies in percent of the balanced questions; a missing prediction counts as wrong.

    Args:
        questions: of the official json.
        said: question id -> prediction, after `form`.

    Returns:
        `accuracy`, `binary`, `open`, `distribution`, `balanced`, and per type of question
        `structural/...`, `semantic/...` with their counts, `steps/N` and `words/N`.
    """
    groups: defaultdict[str, list[float]] = defaultdict(list)
    gold: defaultdict[str, Counter[str]] = defaultdict(Counter)
    given: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, question in questions.items():
        if not question["isBalanced"]:
            continue
        answer, text = question["answer"], said.get(name, "")
        value = float(text == answer)
        types = question["types"]
        kind = "open" if types["structural"] == "query" else "binary"
        for group in (
            "accuracy",
            kind,
            f"structural/{types['structural']}",
            f"semantic/{types['semantic']}",
            f"steps/{_steps(question)}",
            f"words/{len(question['question'].split())}",
        ):
            groups[group].append(value)
        if (group := question["groups"]["global"]) is not None:
            gold[group][answer] += 1
            given[group][text] += 1
    result = {name: percent(values) for name, values in groups.items()}
    counted = {
        f"{name}/questions": float(len(values))
        for name, values in groups.items()
        if name.startswith(("structural/", "semantic/"))
    }
    whole = {"balanced": float(len(groups["accuracy"])), "distribution": _distance(gold, given)}
    return result | counted | whole


def read_answers(
    raw: str | Path, questions: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, float]]:
    """Raw answers, and the counts `missing` (of the balanced), `unknown` and `duplicates`."""
    found = read_raw(raw, questions)
    said = {str(name): form(text) for name, text in found.texts.items()}
    balanced = [name for name, question in questions.items() if question["isBalanced"]]
    return said, {
        "missing": float(sum(name not in said for name in balanced)),
        "unknown": float(found.unknown),
        "duplicates": float(found.duplicates),
    }


def submission(said: Mapping[str, str]) -> list[dict[str, str]]:
    """The official result file."""
    return [{"questionId": name, "prediction": text} for name, text in said.items()]


def read_questions(path: str | Path) -> dict[str, Any]:
    """Questions by id.

    Raises:
        SourceError: missing or damaged.
    """
    return dict(read_json(path))


def _steps(question: Mapping[str, Any]) -> int:
    operations = (f"{one['operation']}: {one['argument']}" for one in question["semantic"])
    return sum(not any(name in one for name in _NO_STEP) for one in operations)


def _distance(gold: Mapping[str, Counter[str]], given: Mapping[str, Counter[str]]) -> float:
    """Chi square between the answers that were right and those given, per group of questions."""
    total = weighted = 0.0
    for group, answers in gold.items():
        questions = answers.total()
        square = sum((given[group][text] - n) ** 2 / n for text, n in answers.items())
        weighted += square * questions
        total += questions
    return weighted / total / 100 if total else 0.0

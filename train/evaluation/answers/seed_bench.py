"""SEED-Bench: the letter of the right choice (Li et al. 2023), compared as in LLaVA's script.

SEED's own script ranks the choices by loss, which chat models that only write cannot do.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tap_engine.train.evaluation.answers.raw import percent, read_json, read_raw

PROMPT = (
    "{question}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\n"
    "Answer with the option's letter from the given choices directly."
)


def score(
    questions: Sequence[Mapping[str, Any]], types: Mapping[int, str], said: Mapping[str, str]
) -> dict[str, float]:
    """Accuracies in percent: `all`, `image`, `video`, `type/NAME`; missing answers are wrong.

    Args:
        questions: of the official json.
        types: number of a type -> its name.
        said: question id -> text; it must be the letter and nothing else.
    """
    groups: defaultdict[str, list[float]] = defaultdict(list)
    single = {}
    for question in questions:
        value = float(said.get(str(question["question_id"]), "") == question["answer"])
        kind = types[question["question_type_id"]]
        media = "image" if question["data_type"] == "image" else "video"
        for name in ("all", media, f"type/{kind}"):
            groups[name].append(value)
        single[f"question/{question['question_id']}"] = value
    return {name: percent(values) for name, values in groups.items()} | single


def read_answers(
    raw: str | Path, questions: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, str], dict[str, float]]:
    """Raw answers, and the counts `missing`, `unknown` and `duplicates`."""
    known = {str(question["question_id"]) for question in questions}
    found = read_raw(raw, known, lambda row: str(row["question_id"]))
    said = {str(name): text for name, text in found.texts.items()}
    return said, {
        "missing": float(len(known) - len(said)),
        "unknown": float(found.unknown),
        "duplicates": float(found.duplicates),
    }


def submission(said: Mapping[str, str]) -> list[dict[str, Any]]:
    """The official result file, one json line each."""
    return [{"question_id": name, "prediction": text} for name, text in said.items()]


def read_questions(path: str | Path) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Questions, and names of their types by number.

    Raises:
        SourceError: missing or damaged.
    """
    content = read_json(path)
    return content["questions"], {v: k for k, v in content["question_type"].items()}

"""VQA-v2: agreement with ten people (Goyal et al. 2017; the GT-Vision-Lab evaluation code).

Ten equal answers are compared to the letter, and only then: that is the code's rule, on purpose.
Other readings are printed beside it by their own names.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tap_engine.schemas.errors import SchemaError
from tap_engine.train.evaluation.answers.raw import percent, read_json, read_raw
from tap_engine.train.evaluation.answers.texts import m4c_form, one_line, soft_accuracy, vqa_form

PROMPT = "{question}\nAnswer the question using a single word or phrase."


def score(annotations: Sequence[Mapping[str, Any]], said: Mapping[int, str]) -> dict[str, float]:
    """Accuracies in percent: `overall`, `answer_type/...`, `question_type/...`, `question/ID`.

    Args:
        annotations: with ten answers each.
        said: question id -> prediction.

    Raises:
        SchemaError: the ids differ; the official code stops as well.
    """
    ids = {row["question_id"] for row in annotations}
    if ids != said.keys():
        raise SchemaError(
            f"{len(ids - said.keys())} questions have no prediction and "
            f"{len(said.keys() - ids)} predictions no question; the official script stops here"
        )
    groups: defaultdict[str, list[float]] = defaultdict(list)
    single = {}
    for row in annotations:
        value = accuracy(said[row["question_id"]], row["answers"])
        single[f"question/{row['question_id']}"] = 100 * value
        for name in (
            "overall",
            f"answer_type/{row['answer_type']}",
            f"question_type/{row['question_type']}",
        ):
            groups[name].append(value)
    return {name: percent(values) for name, values in groups.items()} | single


def accuracy(said: str, answers: Sequence[Mapping[str, Any]], *, always: bool = False) -> float:
    """One prediction's score in 0..1.

    Args:
        said: as the model put it.
        answers: ten records with `answer`.
        always: normalise even if all ten are equal, as some re-implementations do.
    """
    said, texts = one_line(said), [one_line(one["answer"]) for one in answers]
    if always or len(set(texts)) > 1:
        said, texts = vqa_form(said), [vqa_form(text) for text in texts]
    people = [{**one, "answer": text} for one, text in zip(answers, texts, strict=True)]
    return soft_accuracy(said, people, texts)


def converted(raw: str | Path, ids: Sequence[int]) -> tuple[dict[int, str], dict[str, float]]:
    """Raw answers as LLaVA's and Bunny's converters bring them to the server.

    Returns:
        Question id -> normalised answer, "" where there is none; and the counts `missing`,
        `unknown`, `duplicates`, `broken_lines`.
    """
    found = read_raw(raw, set(ids))
    said = {name: m4c_form(found.texts.get(name, "")) for name in ids}
    counts = {
        "missing": len(ids) - len(found.texts),
        "unknown": found.unknown,
        "duplicates": found.duplicates,
        "broken_lines": found.broken_lines,
    }
    return said, {name: float(value) for name, value in counts.items()}


def submission(said: Mapping[int, str]) -> list[dict[str, Any]]:
    """The official result file."""
    return [{"question_id": name, "answer": text} for name, text in said.items()]


def read_annotations(path: str | Path) -> list[dict[str, Any]]:
    """Annotations of the official json.

    Raises:
        SourceError: missing or damaged.
    """
    return list(read_json(path)["annotations"])

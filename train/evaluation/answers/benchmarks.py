"""The five benchmarks of TAPv2-Chat by name: files in, official numbers out."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.replacing import replacing
from tap_engine.train.evaluation.answers import gqa, mmbench, seed_bench, textvqa, vqa_v2

Scored = tuple[dict[str, float], list[dict[str, Any]]]
"""Numbers by name, and the rows of the official result file."""


def score_answers(benchmark: str, questions: str | Path, answers: str | Path) -> Scored:
    """Score a model's raw answers.

    Args:
        benchmark: of `BENCHMARKS`.
        questions: the benchmark's own file; of VQA-v2 and TextVQA the one with people's answers.
        answers: json lines with `question_id` and `text`; of TextVQA also `prompt`.

    Raises:
        ConfigError: no such benchmark.
        SourceError: a file is missing or of another form.
    """
    if benchmark not in BENCHMARKS:
        raise ConfigError(f"expected one of {', '.join(BENCHMARKS)}, got {benchmark!r}")
    return BENCHMARKS[benchmark](questions, answers)


def write_result_file(path: Path, rows: list[dict[str, Any]]) -> None:
    """The official result file: json lines for a name that ends so, else one json list."""
    with replacing(path) as partial:
        if path.suffix == ".jsonl":
            partial.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
        else:
            partial.write_text(json.dumps(rows), "utf-8")


def _vqa_v2(questions: str | Path, answers: str | Path) -> Scored:
    people = vqa_v2.read_annotations(questions)
    said, counts = vqa_v2.converted(answers, [row["question_id"] for row in people])
    scores = vqa_v2.score(people, said)
    every = [
        vqa_v2.accuracy(said[row["question_id"]], row["answers"], always=True) for row in people
    ]
    # Another reading that is in use, under a name of its own.
    scores["other_reading/always_normalised"] = 100 * sum(every) / max(len(every), 1)
    return scores | counts, vqa_v2.submission(said)


def _textvqa(questions: str | Path, answers: str | Path) -> Scored:
    people = textvqa.read_annotations(questions)
    said = textvqa.read_answers(answers, people)
    rows = [{"question_id": name, "answer": text} for name, text in said.items()]
    return textvqa.score(people, said), rows


def _gqa(questions: str | Path, answers: str | Path) -> Scored:
    asked = gqa.read_questions(questions)
    said, counts = gqa.read_answers(answers, asked)
    return gqa.score(asked, said) | counts, list(gqa.submission(said))


def _mmbench(questions: str | Path, answers: str | Path) -> Scored:
    rows = mmbench.read_questions(questions)
    said, counts = mmbench.read_answers(answers, rows)
    return mmbench.score(rows, said) | counts, list(mmbench.submission(rows, said))


def _seed_bench(questions: str | Path, answers: str | Path) -> Scored:
    asked, types = seed_bench.read_questions(questions)
    said, counts = seed_bench.read_answers(answers, asked)
    return seed_bench.score(asked, types, said) | counts, seed_bench.submission(said)


BENCHMARKS: Mapping[str, Callable[[str | Path, str | Path], Scored]] = MappingProxyType(
    {
        "vqa-v2": _vqa_v2,
        "textvqa": _textvqa,
        "gqa": _gqa,
        "mmbench": _mmbench,
        "seed-bench": _seed_bench,
    }
)

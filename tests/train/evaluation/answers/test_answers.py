"""Scorers against numbers worked out by hand from the benchmarks' published rules."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tap_engine.jobs.train_cli import main
from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.train.evaluation.answers import gqa, mmbench, seed_bench, textvqa, vqa_v2
from tap_engine.train.evaluation.answers.texts import m4c_form, vqa_form


@pytest.mark.parametrize(
    ("text", "vqa", "m4c"),
    [
        ("The  Cat", "cat", "cat"),
        ("an apple a day", "apple day", "apple day"),
        ("None", "0", "0"),
        ("ten, three", "10 3", "10 3"),
        ("dont", "don't", "don't"),
        ("Id've", "id've", "id've"),
        ("somebody'd", "somebodyd", "somebodyd"),
        ("men's", "men's", "men 's"),
        # A mark beside a blank goes; else it becomes a blank; a number with a comma lets all go.
        ("red, blue", "red blue", "red blue"),
        ("red,blue", "red blue", "redblue"),
        ("1,000/day", "1000day", "1000 day"),
        ("t-shirt", "t shirt", "t shirt"),
        ("t -shirt", "t shirt", "t shirt"),
        # A full stop stays before a digit only; the 33rd stays as well.
        ("5.", "5", "5"),
        (".5", ".5", ".5"),
        ("5.5", "5.5", "5.5"),
        ("." * 40, "." * 8, "." * 8),
    ],
)
def test_forms_of_a_text(text: str, vqa: str, m4c: str) -> None:
    assert (vqa_form(text), m4c_form(text)) == (vqa, m4c)


def people(*texts: str) -> list[dict[str, object]]:
    return [{"answer": text, "answer_id": number} for number, text in enumerate(texts)]


@pytest.mark.parametrize(("matches", "value"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_agreement_with_ten_people_leaves_each_out_in_turn(matches: int, value: float) -> None:
    """Of ten, `matches` said hat: leaving one of them out lowers the count for that one only."""
    texts = ["hat"] * matches + ["bag"] * (5 - matches) + ["cup"] * 5
    assert vqa_v2.accuracy("Hat.", people(*texts)) == pytest.approx(value)
    assert textvqa.accuracy("Hat.", texts) == pytest.approx(value)


def test_ten_equal_answers_are_compared_to_the_letter_in_vqa_v2() -> None:
    equal = people(*["yes"] * 10)
    assert vqa_v2.accuracy("Yes", equal) == 0
    assert vqa_v2.accuracy("Yes", equal, always=True) == 1
    assert vqa_v2.accuracy(" yes\n", equal) == 1
    assert textvqa.accuracy("Yes", ["yes"] * 10) == 1
    assert vqa_v2.accuracy("Yes", people(*["yes"] * 9, "no")) == 1


def test_people_with_one_number_are_left_out_together() -> None:
    twins = [{"answer": "hat", "answer_id": 1}] * 4 + people(*["bag"] * 6)
    # Leaving a twin out leaves all four out: no match for them, 4 matches for the other six.
    assert vqa_v2.accuracy("hat", twins) == pytest.approx(6 / 10)


def test_vqa_v2_by_types_and_its_converter(tmp_path: Path) -> None:
    rows = [
        {
            "question_id": number,
            "answer_type": kind,
            "question_type": "what",
            "answers": people(*["hat"] * 5, *["bag"] * 5),
        }
        for number, kind in enumerate(("other", "other", "number"))
    ]
    scores = vqa_v2.score(rows, {0: "hat", 1: "no", 2: "bag"})
    assert scores["overall"] == pytest.approx(200 / 3)
    assert (scores["answer_type/other"], scores["answer_type/number"]) == (50, 100)
    with pytest.raises(SchemaError, match="1 questions have no prediction and 1 predictions no"):
        vqa_v2.score(rows, {0: "hat", 1: "no", 9: "bag"})
    raw = tmp_path / "raw.jsonl"
    lines = [{"question_id": 0, "text": "x"}, {"question_id": 0, "text": "Hat."}]
    lines += [{"question_id": 77, "text": "hat"}]
    raw.write_text("\n".join([*map(json.dumps, lines), "{broken"]))
    said, counts = vqa_v2.converted(raw, [0, 1, 2])
    assert said == {0: "hat", 1: "", 2: ""}
    assert counts == {"missing": 2, "unknown": 1, "duplicates": 1, "broken_lines": 1}
    assert vqa_v2.submission(said)[0] == {"question_id": 0, "answer": "hat"}


def test_textvqa_finds_the_question_in_every_form_of_prompt(tmp_path: Path) -> None:
    rows = [
        {"question_id": n, "image_id": "im", "question": f"What IS {n}?", "answers": ["hat"] * 10}
        for n in range(4)
    ]
    tail = "Answer the question using a single word or phrase."
    prompts = [
        f"What is 0?\n{tail}",
        f"What is 1?\nReference OCR token: a, b\n{tail}",
        f"Reference OCR token: a, b\nWhat is 2?\n{tail}",
    ]
    answers = tmp_path / "answers.jsonl"
    texts = ["hat", "bag", "A hat!"]
    answers.write_text(
        "\n".join(
            json.dumps({"question_id": "im", "prompt": prompt, "text": text})
            for prompt, text in zip(prompts, texts, strict=True)
        )
    )
    scores = textvqa.score(rows, textvqa.read_answers(answers, rows))
    assert scores["accuracy_of_answered"] == pytest.approx(200 / 3)
    assert (scores["accuracy_of_all"], scores["missing"]) == (50, 1)
    answers.write_text(json.dumps({"question_id": "im", "prompt": "x\ny", "text": "z"}))
    with pytest.raises(SourceError, match="an answer without its question"):
        textvqa.read_answers(answers, rows)


def question(answer: str, structural: str, *, balanced: bool = True) -> dict[str, object]:
    return {
        "answer": answer,
        "isBalanced": balanced,
        "question": "Is it?",
        "types": {"structural": structural, "semantic": "obj"},
        "groups": {"global": "hats"},
        "semantic": [
            {"operation": "select", "argument": "x"},
            {"operation": "exist", "argument": "?"},
        ],
    }


def test_gqa() -> None:
    questions = {
        "1": question("yes", "verify"),
        "2": question("yes", "verify"),
        "3": question("no", "query"),
        "4": question("no", "query", balanced=False),
    }
    assert [gqa.form(text) for text in ("Yes..", "no. ", "A.B.")] == ["yes", "no. ", "a.b"]
    scores = gqa.score(questions, {"1": "yes", "2": "no", "4": "no"})
    assert scores["accuracy"] == pytest.approx(100 / 3)
    assert (scores["binary"], scores["open"], scores["balanced"]) == (50, 0, 3)
    assert scores["structural/verify/questions"] == 2
    assert scores["steps/1"] == scores["accuracy"], "`exist` is no step"
    # Right: yes 2, no 1. Given: yes 1, no 1, nothing 1. (1 - 2)^2 / 2 + 0 = 1/2, in hundredths.
    assert scores["distribution"] == pytest.approx(0.005)


OPTIONS = {"A": "a red hat", "B": "two hats", "C": "a bag", "D": "nothing"}


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("B", "B"),
        ("(C)", "C"),
        ("The answer is D.", "D"),
        ("A or B", ""),
        ("A is what I would choose here because of it", ""),
        ("it is clearly one of them, A I say so", "A"),
        ("b", ""),
        ("answer is b", "B"),
        ("it is not A; the right answer is **B** and I am quite sure of that", "B"),
        ("Two HATS", "B"),
        ("a red hat and a bag", ""),
        ("Z", "Z"),
        ("Cannot determine the answer", "Z"),
        ("Failed to obtain answer via API, B", ""),
        ("two hats " + "x" * 70, ""),
    ],
)
def test_mmbench_reads_a_choice_by_rules(answer: str, choice: str) -> None:
    assert mmbench.choice_of(answer, OPTIONS) == choice


def test_mmbench_circular_counts_a_question_if_all_rotations_are_right() -> None:
    def row(index: int, answer: str) -> dict[str, str]:
        labels = {"answer": answer, "category": "c", "l2-category": "logic_reasoning"}
        return {"index": str(index), **OPTIONS, **labels}

    rows = [row(1, "A"), row(1_000_001, "B"), row(2, "C"), row(1_000_002, "D")]
    scores = mmbench.score(rows, {1: "A", 1_000_001: "B", 2: "C", 1_000_002: "A"})
    assert (scores["vanilla/overall"], scores["circular/overall"]) == (100, 50)
    assert scores["vanilla_all_rows/l2/LR"] == 75
    scores = mmbench.score(rows, {1: "A", 2: "C", 1_000_002: "D"})
    assert (scores["circular/overall"], scores["missing_rows"]) == (50, 1)
    # A missing answer is read as "nan", which an option can be found in.
    odd = [rows[0] | {"A": "an", "B": "x", "C": "y", "D": "z"}]
    assert mmbench.score(odd, {})["vanilla/overall"] == 100


def test_seed_bench_takes_the_letter_and_nothing_else() -> None:
    questions = [
        {"question_id": n, "answer": "A", "question_type_id": 1, "data_type": kind}
        for n, kind in (("1", "image"), (2, "image"), ("v3", "video"))
    ]
    scores = seed_bench.score(questions, {1: "Counting"}, {"1": "A", "2": "A.", "v3": "A"})
    assert (scores["image"], scores["video"]) == (50, 100)
    assert scores["all"] == scores["type/Counting"] == pytest.approx(200 / 3)


def test_the_command_scores_and_writes_the_official_file(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps({"1": question("yes", "verify")}))
    (tmp_path / "a.jsonl").write_text(json.dumps({"question_id": "1", "text": "Yes."}))
    out = tmp_path / "official.json"
    arguments = [str(tmp_path / "q.json"), str(tmp_path / "a.jsonl")]
    found = CliRunner().invoke(
        main, ["score-answers", "gqa", *arguments, "--out", str(out), "--json"]
    )
    assert found.exit_code == 0, found.output
    assert json.loads(found.output)["accuracy"] == 100
    assert json.loads(out.read_text()) == [{"questionId": "1", "prediction": "yes"}]
    wrong = CliRunner().invoke(main, ["score-answers", "vqa", *arguments])
    assert wrong.exit_code == 1 and "expected one of vqa-v2, textvqa, gqa" in wrong.output
    missing = CliRunner().invoke(main, ["score-answers", "gqa", "x.json", arguments[1]])
    assert missing.exit_code == 1 and "x.json: expected a json file" in missing.output

"""Rows as people write them: what is kept, what is changed, what is refused and how."""

import pytest

from tap_engine.pipeline.conversations.rows import RowRefused, label_of, read_row
from tap_engine.schemas.conversations import Conversation, Turn


def row(*turns: tuple[str, object], **more: object) -> dict[str, object]:
    return {"conversations": [{"from": role, "value": value} for role, value in turns], **more}


def pairs(found: dict[str, object]) -> list[tuple[str, str]]:
    return read_row(found).conversation.pairs


def test_a_plain_row_loses_its_marker_only() -> None:
    read = read_row(
        row(("human", "<image>\nWhich hat?"), ("gpt", "The tall one."), image="a/b.jpg")
    )
    turns = (Turn("user", "Which hat?"), Turn("assistant", "The tall one."))
    assert read.conversation == Conversation(turns=turns, image="a/b.jpg")
    assert read.notes == []


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("Which hat?\n<image>", "Which hat?"),
        ("<image>Which hat?", "Which hat?"),
        ("Which <image>hat?", "Which hat?"),
        ("<image>\n", ""),
        ("Which <Image> hat?", "Which <Image> hat?"),
        ("Which\r\nhat?  ", "Which\nhat?"),
        ("\ud55c\u0301 <b>hat</b>\t1", "\ud55c\u0301 <b>hat</b>\t1"),
        ("Which\x00 hat?", "Which hat?"),
    ],
)
def test_texts_stay_to_the_letter_but_for_the_marker_and_blanks(question: str, text: str) -> None:
    assert pairs(row(("human", question), ("gpt", "Yes."), image="a.jpg")) == [(text, "Yes.")]


def test_orders_that_can_be_mended_are() -> None:
    read = read_row(row(("gpt", "Hello!"), ("human", "A?"), ("gpt", "B."), ("human", "C?")))
    assert read.conversation.pairs == [("A?", "B.")]
    assert read.notes == ["leading answer skipped", "trailing question dropped"]


def test_other_names_of_roles_and_turns() -> None:
    messages = [{"role": " User ", "content": "A?"}, {"role": "assistant", "content": "B."}]
    assert pairs({"messages": messages, "images": []}) == [("A?", "B.")]
    parts = [{"type": "image"}, {"type": "text", "text": "A?"}]
    found = read_row(row(("human", parts), ("gpt", "B."), image=["x.jpg"]))
    assert (found.conversation.image, found.conversation.pairs) == ("x.jpg", [("A?", "B.")])
    assert read_row(row(("system", "Be short."), ("user", "A?"), ("gpt", "B."))).conversation == (
        Conversation(turns=(Turn("user", "A?"), Turn("assistant", "B.")), system="Be short.")
    )


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "row is not an object"),
        ([], "row is not an object"),
        ({}, "no turns"),
        ({"conversations": "hello"}, "no turns"),
        ({"conversations": [None]}, "a turn is not an object"),
        ({"conversations": [{"value": "A?"}]}, "no role"),
        ({"conversations": [{"from": "human", "text": "A?"}]}, "no value"),
        (row(("tool", "A?"), ("gpt", "B.")), "unknown role"),
        (row(("human", "A?"), ("system", "S"), ("gpt", "B.")), "system turn in the middle"),
        (row(("human", "A?"), ("human", "B?"), ("gpt", "C.")), "bad alternation"),
        (row(("gpt", "A."), ("gpt", "B."), ("human", "C?"), ("gpt", "D.")), "bad alternation"),
        (row(("human", "A?")), "no answer"),
        (row(("gpt", "A.")), "no question"),
        (row(("human", "A?"), ("gpt", "  ")), "empty answer"),
        (row(("human", ""), ("gpt", "B.")), "empty question"),
        (row(("human", "A?"), ("gpt", 3)), "value is not text"),
        (row(("human", "A?"), ("gpt", None)), "value is not text"),
        (row(("human", "A?"), ("gpt", "\ud83d")), "half a surrogate pair"),
        (row(("human", "<image>A?"), ("gpt", "B.")), "marker without image"),
        (row(("human", "A?"), ("gpt", "<image>"), image="a.jpg"), "marker in an answer"),
        (row(("human", "<image><image>"), ("gpt", "B."), image="a.jpg"), "two markers"),
        (row(("human", "A?"), ("gpt", "B."), image=["a.jpg", "b.jpg"]), "two images"),
        (row(("human", "A?"), ("gpt", "B."), image=7), "image name is not text"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(found: object, reason: str) -> None:
    with pytest.raises(RowRefused) as refused:
        read_row(found)
    assert refused.value.reason == reason


def test_a_label_is_text_whatever_it_was() -> None:
    assert [label_of({"id": value}) for value in (7, "07", None, 2**70)] == [
        "7",
        "07",
        None,
        "1180591620717411303424",
    ]
    assert label_of("no row") is None

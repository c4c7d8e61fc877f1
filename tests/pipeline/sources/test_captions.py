import json

import pytest

from tap_engine.pipeline.sources.captions import RULES, CleaningCounts, clean

CASE, CHARACTERS, INNER, OUTER, STOP = RULES


@pytest.mark.parametrize(
    ("raw", "cleaned", "rules"),
    [
        ("man wearing a red shirt", "man wearing a red shirt", []),
        ("A Man", "a man", [CASE]),
        ("shade is along the street ", "shade is along the street", [OUTER]),
        ("a man.  ", "a man", [OUTER, STOP]),
        ("a man . .", "a man", [STOP]),
        ("a  man\ton a\nhorse", "a man on a horse", [INNER]),
        ("cafÉ crème", "cafe creme", [CASE, CHARACTERS]),
        ("cafe\u0301", "cafe", [CHARACTERS]),
        ("½ of a sign—30° ™", "half of a sign-30 degree", [CHARACTERS, OUTER]),
        ("man’s “stop” sign…", 'man\'s "stop" sign', [CHARACTERS]),  # noqa: RUF001
        ("st. john's, no. 5", "st. john's, no. 5", []),
        ("naïve", "naïve", []),
        (" . ", "", [OUTER, STOP]),
        ("?!", "", []),
        ("", "", []),
        ("\xa0\u2003", "", [OUTER]),
    ],
)
def test_rules(raw, cleaned, rules) -> None:
    assert clean(raw) == (cleaned, rules)
    assert clean(cleaned) == (cleaned, []), "a cleaned phrase stays as it is"


def test_counts_add_up_and_travel_as_json() -> None:
    counts = CleaningCounts()
    for phrase in ("A man.", "a man", "A dog ", "naïve", "..."):
        counts.clean(phrase)
    assert (counts.phrases, counts.empty, counts.not_ascii) == (5, 1, 1)
    assert counts.rules == {CASE: 2, OUTER: 1, STOP: 2}
    assert CleaningCounts.from_json(json.loads(json.dumps(counts.to_json()))) == counts
    text = "\n".join(counts.lines())
    assert "cleaning of 5 phrases" in text
    assert f"{CASE:<30} {2:>10}  40.00%" in text

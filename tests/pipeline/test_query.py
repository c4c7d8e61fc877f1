import pytest

from tap_engine.pipeline.query import resolve_concepts
from tap_engine.schemas.errors import ConfigError

NAMES = ["cat", "dog", "bird's nest"]


@pytest.mark.parametrize(
    ("written", "lance"),
    [
        ("concept = 'dog'", "concept_ids[1] = 1"),
        ("area > 9 AND Concept <> 'cat'", "area > 9 AND concept_ids[1] <> 0"),
        ("concept = 'bird''s nest'", "concept_ids[1] = 2"),
        ("concept NOT IN ('dog', 'cat')", "concept_ids[1] NOT IN (1, 0)"),
        ("has_concept('dog')", "array_has(concept_ids, arrow_cast(1, 'UInt16'))"),
        ("concept='dog' OR concept = 'cat'", "concept_ids[1] = 1 OR concept_ids[1] = 0"),
        # what stands in a text or a quoted name is no word of ours
        ("caption LIKE '%concept = ''dog''%'", "caption LIKE '%concept = ''dog''%'"),
        ("caption = 'has_concept(' OR area = 1", "caption = 'has_concept(' OR area = 1"),
        (
            "caption = 'concept = ' AND concept = 'dog'",
            "caption = 'concept = ' AND concept_ids[1] = 1",
        ),
        ("\"concept = 'dog'\" = 1", "\"concept = 'dog'\" = 1"),
        ("concept_entropy < 1", "concept_entropy < 1"),
    ],
)
def test_names_become_ids(written: str, lance: str) -> None:
    assert resolve_concepts(written, NAMES) == lance


def test_an_unknown_name_is_answered_with_close_ones() -> None:
    with pytest.raises(ConfigError, match=r"no concept 'nest' among 3; close ones: bird's nest"):
        resolve_concepts("concept = 'nest'", NAMES)

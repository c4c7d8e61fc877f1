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


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("file_name = 'a.jpg'", "file_name = 'a.jpg'"),
        ("area > 9 AND File_Name LIKE 'train/%'", "File_Name LIKE 'train/%'"),
        ("file_name NOT IN ('a', 'b''c') OR area = 1", "file_name NOT IN ('a', 'b''c')"),
    ],
)
def test_file_names_become_image_ids(written: str, asked: str) -> None:
    seen = []

    def of_files(condition: str) -> list[int]:
        seen.append(condition)
        return [7, 9]

    expected = written.replace(asked, "image_id IN (7, 9)")
    assert resolve_concepts(written, NAMES, of_files) == expected and seen == [asked]
    assert "image_id IN (-1)" in resolve_concepts(written, NAMES)
    untouched = "caption = 'file_name = ''a'' '"
    assert resolve_concepts(untouched, NAMES, of_files) == untouched


def test_an_unknown_name_is_answered_with_close_ones() -> None:
    with pytest.raises(ConfigError, match=r"no concept 'nest' among 3; close ones: bird's nest"):
        resolve_concepts("concept = 'nest'", NAMES)

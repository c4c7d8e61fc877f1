from dataclasses import replace
from pathlib import Path

import pytest

from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.train.evaluation.published import LVIS_NAMES, PUBLISHED, REFCOCOG, VG_GLAMM, VG_GRIT
from tap_engine.train.evaluation.report import Score, load_scores, tabulate, to_json, to_markdown
from tap_engine.train.evaluation.stamps import Stamp

LVIS = Score(name="mine", stamp=replace(LVIS_NAMES, split="abc"), metrics={"AP": 0.5, "APr": -1.0})


def test_our_row_stands_beside_the_published_ones_with_their_source() -> None:
    (table,) = tabulate([LVIS])
    text = to_markdown([table])
    assert "| **mine** | 50.0 | - | ours |" in text
    assert "| TAP-H v1.1 | 59.6 | 61.6 | [1] |" in text
    assert "| EVA-CLIP-E on image crops | 64.3 | 72.4 | [2] |" in text
    assert "[1] official notebooks" in text and "not stated there: split" in text
    names = {row["name"]: row for row in to_json([table])[0]["rows"]}
    assert names["TAP-L v1.0"]["metrics"]["AP"] == 0.587
    assert table.left_out == ()


def test_published_rows_of_another_test_are_left_out_and_counted() -> None:
    """232,935 regions against one region an image: the mix-up this exists to prevent."""
    subset = Score(name="mine", stamp=VG_GLAMM, metrics={"CIDEr": 1.8})
    (table,) = tabulate([subset])
    assert {row.name for row in table.published} == {
        "AlphaCLIP + LLaVA",
        "GLaMM",
        "ControlCap",
        "DynRefer",
    }
    left = {row.name: why for row, why in table.left_out}
    assert "regions: 5000 against 232935" in left["TAP-L v1.1"]
    full = Score(name="mine", stamp=VG_GRIT, metrics={"CIDEr": 1.5})
    names = {row.name for row in tabulate([full])[0].published}
    assert "TAP-L v1.1" in names and "ControlCap" not in names and "GPT4RoI-7B" not in names


def test_text_processing_and_box_source_separate() -> None:
    plain = Score(
        name="m", stamp=replace(VG_GRIT, text_processing="lower-cased words"), metrics={"CIDEr": 1}
    )
    assert tabulate([plain])[0].published == ()
    detector = Score(name="m", stamp=replace(LVIS_NAMES, box_source="rpn"), metrics={"AP": 1})
    assert tabulate([detector])[0].published == ()


def test_a_protocol_alone_is_no_evidence_of_the_same_data() -> None:
    unknown = Score(name="m", stamp=Stamp(protocol="captions"), metrics={"CIDEr": 1})
    assert tabulate([unknown])[0].published == ()
    named = Score(name="m", stamp=replace(REFCOCOG, regions=2573), metrics={"CIDEr": 1})
    rows = tabulate([named])[0].published
    assert {row.name for row in rows} >= {"TAP-L", "TAPv2-XL (stage 2)"}
    assert "regions" in named.stamp.unverified(rows[0].stamp)


def test_unlike_scores_are_refused_unless_apart() -> None:
    other = replace(LVIS, name="other", stamp=replace(LVIS.stamp, split="xyz", images=10))
    with pytest.raises(SchemaError, match="other and mine cannot be compared: images: 10 against"):
        tabulate([LVIS, other])
    assert [len(t.scores) for t in tabulate([LVIS, other, LVIS], apart=True)] == [2, 1]
    masks = replace(LVIS, stamp=Stamp(protocol="lvis-segm"))
    assert len(tabulate([LVIS, masks])) == 2, "another protocol is another table"


def test_a_score_survives_its_file(tmp_path: Path) -> None:
    score = replace(LVIS, notes=("n",), per_category={"cat": 0.5}, made={"truth": "t"})
    score.save(tmp_path / "score.json")
    assert load_scores(tmp_path) == load_scores(tmp_path / "score.json") == [score]
    replace(score, name="other").save(tmp_path / "deeper" / "score.json")
    assert {found.name for found in load_scores(tmp_path)} == {"mine", "other"}
    with pytest.raises(SourceError, match=r"no score\.json in this folder"):
        load_scores(Path(__file__).parent)
    with pytest.raises(SourceError, match="no such score file"):
        Score.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"name": 1}')
    with pytest.raises(SchemaError, match="expected a score"):
        Score.load(tmp_path / "bad.json")


def test_every_published_row_is_complete() -> None:
    assert len(PUBLISHED) == len({(row.name, row.source, row.stamp) for row in PUBLISHED})
    for row in PUBLISHED:
        assert row.source and row.metrics
        assert all(0 < value < 2.1 for value in row.metrics.values()), row.name

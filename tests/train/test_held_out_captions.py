"""What captions should say, against phrases written by hand."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tap_engine.schemas.truth import Thing, Truth
from tap_engine.train.held_out_captions import colour_said, measure_captions, names_it
from tap_engine.train.held_out_data import open_measured
from tests.train.small_store import make_store
from tests.train.test_held_out import Oracle

TINTS = frozenset(("red", "orange"))


@pytest.mark.parametrize(
    ("caption", "noun", "colour", "said", "tint"),
    [
        ("a small red apple left of a banana", "apple", "red", True, "red"),
        ("apple", "apple", None, True, None),
        ("a large apple on the grass", "apple", None, True, None),
        ("an orange", "orange", None, True, None),
        ("an orange orange in the sky", "orange", "orange", True, "orange"),
        ("a teddy bear", "bear", None, False, "teddy"),
        ("a bear above a teddy bear", "bear", None, True, None),
        ("a red teddy bear", "teddy bear", "red", True, "red"),
        ("an apple left of a red bear", "bear", "red", False, None),
        ("A Small Octopus", "octopus (animal)", None, True, None),
        ("grass in the foreground", "grass", None, True, None),
        ("", "apple", "red", False, None),
        ("a an small", "apple", None, False, None),
        ("a dog a dog", "dog", None, False, "dog"),
    ],
)
def test_noun_and_colour_are_those_of_the_region_itself(caption, noun, colour, said, tint):
    assert names_it(caption, Thing("object", noun, colour), TINTS) == said
    assert colour_said(caption) == tint


class Writer(Oracle):
    """Says for each box what `say` gives for its place among all boxes."""

    class_names = ("pear", "apple")

    def __init__(self, say):
        super().__init__("apple")
        self.say, self.asked = say, 0

    def prompt(self, points, labels, wanted):
        (found,) = super().prompt(points, labels, wanted)
        captions = [self.say(self.asked + place) for place in range(len(points))]
        self.asked += len(points)
        yield replace(found, captions=captions)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store with captions "word k" and a truth table: tinted apples, pears, surfaces, parts."""
    root = tmp_path_factory.mktemp("captions")
    store = make_store(root / "s", 6, source="vg", captions=True, boxes=True, splits=("val",))
    rows, texts = [], []
    for stored in open_measured(str(store)).first(6):
        for row in stored.regions.to_pylist():
            texts.append(row["caption"])
            kind = ("object", "object", "stuff", "part")[len(rows) % 4]
            concept = ("apple", "pear", "grass", "apple")[len(rows) % 4]
            tint = "red" if len(rows) % 8 == 0 else None
            rows.append((stored.image_id, row["region_id"], kind, concept, tint))
    names = ["image_id", "region_id", "kind", "concept", "tint"]
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    pq.write_table(table, root / "truth.parquet")
    return store, Truth.read(root / "truth.parquet"), texts


def test_figures_equal_counting_by_hand(world):
    store, truth, texts = world
    reader = open_measured(str(store))
    figures = measure_captions(
        Writer(lambda k: ("a red apple", "a pear", "grass", "x")[k % 4]),
        reader,
        images=6,
        split="val",
        truth=truth,
    )
    found = figures.summary()
    assert figures.references == [[text] for text in texts] and figures.images == 6
    assert found["caption_noun/object"] == found["caption_noun/stuff"] == 1.0
    assert found["caption_colour/object"] == 1.0
    assert found["caption_colour_most_frequent/object"] == 1.0
    objects = [t for t in figures.things if t.kind == "object"]
    apples = sum(t.concept == "apple" for t in objects) / len(objects)
    assert found["caption_noun_top1/object"] == pytest.approx(apples), "the head says apple"
    assert found["caption_noun_most_frequent/object"] == pytest.approx(max(apples, 1 - apples))
    assert found["caption_CIDEr"] == 0.0, "no word of the references"
    wrong = measure_captions(Writer(lambda k: "a pear"), reader, images=6, truth=truth).summary()
    assert wrong["caption_noun/object"] == pytest.approx(1 - apples)
    assert wrong["caption_colour/object"] == wrong["caption_noun/stuff"] == 0.0
    for text in ("exact noun, object", "exact colour", "CIDEr", "always the most frequent"):
        assert text in figures.table()


def test_the_references_themselves_score_ten(world):
    store, _, texts = world
    figures = measure_captions(Writer(texts.__getitem__), open_measured(str(store)), images=6)
    found = figures.summary()
    assert found["caption_CIDEr"] > 2 and found["caption_ROUGE-L"] == pytest.approx(1.0)
    assert not any("noun" in name for name in found)


def test_phrases_of_one_box_are_one_question(tmp_path):
    import lance

    store = make_store(tmp_path / "s", 1, source="vg", captions=True, boxes=True, first_id=2)
    path = str(store / "regions.lance")
    table = lance.dataset(path).to_table()
    at = table.column_names.index("bbox_xywh")
    first = table["bbox_xywh"].combine_chunks().take(pa.array([0] * len(table)))
    lance.write_dataset(table.set_column(at, table.schema.field(at), first), path, mode="overwrite")
    figures = measure_captions(Writer(lambda k: "word 0"), open_measured(str(store)), images=1)
    assert figures.captions == ["word 0"]
    assert sorted(figures.references[0]) == sorted(table["caption"].to_pylist())
    assert len(figures.references[0]) == len(table) > 1


def test_other_splits_are_left_out(world):
    store, truth, _ = world
    reader = open_measured(str(store))
    figures = measure_captions(Writer(lambda k: ""), reader, images=6, split="test", truth=truth)
    assert figures.captions == [] and figures.images == 0

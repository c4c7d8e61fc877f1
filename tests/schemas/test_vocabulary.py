import json

import pytest

from tap_engine.schemas.errors import ConfigError, SchemaError
from tap_engine.schemas.vocabulary import Vocabulary, load_vocabulary, merge
from tests.support import shared_data

LABEL_SETS = {
    "COCO_CLASS_NAMES": "coco",
    "LVIS_CLASS_NAMES": "lvis",
    "ADE20K_CLASS_NAMES": "ade20k",
    "OBJECTS365_CLASS_NAMES": "objects365",
    "OPEN_IMAGES_V4_BOXABLE_CLASS_NAMES": "openimages",
    "VISUAL_GENOME_CLASS_NAMES": "visual-genome",
}


def test_merge_follows_the_papers_rule() -> None:
    merged = merge(
        "m",
        {
            "coco": ["Dog", "hot dog", "bus", "glass"],
            "lvis": ["hot_dog", "buses", "dogs", "semi-truck"],
            "ade20k": ["semi-truck", "glasses"],
        },
    )
    assert merged.names == ("bus", "dog", "glass", "hot dog", "semi truck", "semi-truck")
    assert merged.sources[3] == ("coco", "lvis")
    assert merged.sources[5] == ("ade20k",)


def test_the_shipped_vocabulary_is_what_the_six_lists_give() -> None:
    lists = json.loads(shared_data("concept_lists.json").read_text())
    rebuilt = merge("merged-2560", {LABEL_SETS[k]: v for k, v in lists.items()})
    assert len(rebuilt) == 2560
    assert rebuilt == load_vocabulary("merged-2560")


def test_the_shipped_vocabulary_has_2560_concepts() -> None:
    vocabulary = load_vocabulary("merged-2560")
    assert len(vocabulary) == 2560
    assert vocabulary.fingerprint == "725a8709a181883e"
    assert vocabulary.sources[vocabulary.ids["person"]]


def test_files_of_every_kind_are_read(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("# mine\ncat\n\nred dog\n")
    (tmp_path / "b.json").write_text('["cat", "red dog"]')
    lvis = {"categories": [{"id": 2, "name": "cat"}, {"id": 1, "name": "red_dog"}]}
    (tmp_path / "c.json").write_text(json.dumps(lvis))
    loaded = [load_vocabulary(str(tmp_path / name)) for name in ("a.txt", "b.json", "c.json")]
    assert {v.names for v in loaded} == {("cat", "red dog")}
    assert len({v.fingerprint for v in loaded}) == 1
    (tmp_path / "d.tsv").write_text("cat\tcoco,lvis\nred dog\n")
    assert load_vocabulary(str(tmp_path / "d.tsv")).sources == (("coco", "lvis"), ())


def test_wrong_files_say_what_was_expected(tmp_path) -> None:
    with pytest.raises(ConfigError, match="merged-2560"):
        load_vocabulary("merged-9999")
    (tmp_path / "x.json").write_text('{"labels": []}')
    with pytest.raises(SchemaError, match="categories"):
        load_vocabulary(str(tmp_path / "x.json"))
    with pytest.raises(SchemaError, match="'cat' twice"):
        Vocabulary("v", ("cat", "dog", "cat"))


def test_more_names_than_ids_are_refused(tmp_path) -> None:
    # Ids are stored in 16 bits; 22,000 classes and more fit, WordNet does not.
    assert len(Vocabulary("most", tuple(f"name {k}" for k in range(65_536)))) == 65_536
    path = tmp_path / "wordnet.txt"
    path.write_text("\n".join(f"name {k}" for k in range(65_537)))
    with pytest.raises(SchemaError, match=r"65,537 concepts; a store holds at most 65,536"):
        load_vocabulary(str(path))


def test_files_of_other_programs(tmp_path) -> None:
    path = tmp_path / "bom.txt"
    path.write_bytes("\ufeffdog\ncat\n".encode())
    assert load_vocabulary(str(path)).names == ("dog", "cat")
    for name, content in (("latin.txt", b"caf\xe9\n"), ("names.txt.gz", b"\x1f\x8b\x08\0\xff")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SchemaError, match=rf"{name}: expected a text file in UTF-8"):
            load_vocabulary(str(tmp_path / name))
    for content in ('{"categories": [{"id": 1, "name": null}]}', '["dog", null]', "[" * 100_000):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(SchemaError, match=r"x.json: expected a json list of names"):
            load_vocabulary(str(tmp_path / "x.json"))

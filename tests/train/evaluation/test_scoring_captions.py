import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tap_engine.schemas.errors import ConfigError, SchemaError, SourceError
from tap_engine.train.evaluation import scoring_captions
from tap_engine.train.evaluation.scoring_captions import PLAIN, PTB, score_captions
from tests.support import shared_data

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java on this machine")


@needs_java
def test_tokens_are_those_of_the_penn_treebank_and_lines_stay_in_step() -> None:
    texts = [
        "A café, with ½ a “quoted” cat -- it's here!",
        "",
        "two\nlines",
        "line\u2028separator",
        "(stop)",
    ]
    assert scoring_captions._ptb_tokens(texts) == [
        "a café with 1/2 a quoted cat it 's here",
        "",
        "two lines",
        "line separator",
        "-lrb- stop -rrb-",  # brackets stay: the official list writes them in capitals
    ]


def test_without_java_the_rest_comes_and_is_marked() -> None:
    references = {1: ["A red car.", "the car, red"], 2: ["a dog on a mat"]}
    captions = {1: "a red car", 2: "A dog on a mat!"}
    found = score_captions(references, captions, java=False)
    assert "METEOR" not in found.metrics
    assert found.metrics["BLEU@1"] == pytest.approx(1.0, abs=1e-6)
    assert found.metrics["ROUGE-L"] == pytest.approx(1.0, abs=1e-6)
    assert found.text_processing == PLAIN
    assert "apt-get install default-jre-headless" in found.notes[0]


def test_a_dead_meteor_is_an_error_not_a_hang(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """pycocoevalcap keeps its lock when Java dies, and waits for it when it is collected."""
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(SourceError, match="2 GB"):
        scoring_captions._meteor({1: ["a cat"]}, {1: ["a cat"]})


def test_every_region_needs_one_caption() -> None:
    references = {1: ["a cat"], 2: ["a dog"]}
    with pytest.raises(SchemaError, match="1 of 2 regions have no caption, such as 2"):
        score_captions(references, {1: "a cat"})
    with pytest.raises(SchemaError, match="such as 3"):
        score_captions(references, {1: "a cat", 2: "a dog", 3: "a cow"})
    with pytest.raises(SchemaError, match="no captions"):
        score_captions({}, {})


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tap-engine\[caption-eval\]"):
        score_captions({1: ["a"]}, {1: "a"})


@pytest.fixture(scope="module")
def one_meteor() -> Iterator[None]:
    """METEOR takes half a minute to load its paraphrases: once for all tests here."""
    from pycocoevalcap.meteor import meteor

    shared = meteor.Meteor()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meteor, "Meteor", lambda: shared)
        yield


@needs_java
@pytest.mark.slow
@pytest.mark.usefixtures("one_meteor")
@pytest.mark.parametrize("which", ["good", "bad"])
def test_published_caption_numbers_come_out(which: str) -> None:
    folder = shared_data("oracles/caption_clipscore")
    expected = json.loads((folder / "expected.json").read_text())["clipscore"][which]
    references = json.loads((folder / "refs.json").read_text())
    captions = json.loads((folder / f"{which}_captions.json").read_text())
    found = score_captions(references, captions)
    bleu = [found.metrics[f"BLEU@{n}"] for n in range(1, 5)]
    assert bleu == pytest.approx(expected["Bleu"], abs=6e-5)
    assert found.metrics["METEOR"] == pytest.approx(expected["METEOR"], abs=6e-5)
    assert found.metrics["ROUGE-L"] == pytest.approx(expected["ROUGE_L"], abs=6e-5)
    assert found.metrics["CIDEr"] == pytest.approx(expected["CIDEr"], abs=6e-5)
    assert found.text_processing == PTB

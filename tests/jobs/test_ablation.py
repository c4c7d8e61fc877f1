import json
from dataclasses import replace
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from tap_engine.jobs.train_cli import main
from tap_engine.model.text_tokenizer import load_tokenizer, train_bpe
from tap_engine.schemas.tables import concepts_schema
from tap_engine.schemas.vocabulary import DEFAULT_VOCABULARY, load_vocabulary
from tap_engine.train.ablation import AblationRequest, pretraining, tuning, variants
from tap_engine.train.opening import open_run
from tests.train.small_run import SETTINGS, small_config
from tests.train.small_store import EMBEDDING_DIM, make_store, vectors


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A made-up store with the shipped vocabulary, which the sample world's names are of."""
    root = make_store(tmp_path / "store", 6)
    names = load_vocabulary(DEFAULT_VOCABULARY).names
    text = np.random.default_rng(0).standard_normal((len(names), EMBEDDING_DIM))
    unit = vectors((text / np.linalg.norm(text, axis=1, keepdims=True)).astype("f4"), pa.float32())
    ids = np.arange(len(names), dtype=np.int32)
    columns = [ids, list(names), [[]] * len(names), unit, unit]
    table = pa.table(columns, schema=concepts_schema(EMBEDDING_DIM))
    lance.write_dataset(table, str(root / "concepts.lance"), mode="overwrite")
    return root


CAPTIONED = (
    ("mask-mask-token", "masks alone, mask token", "mask"),
    ("concept-mask-token", "masks and concepts, mask token", "mask"),
    ("feature-semantic-token", "masks and features, semantic token", "semantic"),
    ("concept-semantic-token", "masks and concepts, semantic token", "semantic"),
)


def test_each_caption_variant_starts_from_its_own_pre_training(tmp_path: Path) -> None:
    make_store(tmp_path / "vg", 4, source="vg", captions=True, taught=False)
    request = AblationRequest(
        stores=("s",),
        out=tmp_path / "out",
        recipe="smoke",
        overrides=("train.steps=1", "model.image_size=64"),
        limit=1,
        captions=str(tmp_path / "vg"),
        caption_overrides=("train.steps=2",),
    )
    found = variants(request)
    assert [v.folder for v in found[:3]] == ["concept", "feature", "mask"]
    assert tuple((v.folder, v.name) for v in found[3:]) == tuple(c[:2] for c in CAPTIONED)
    for variant, (folder, _, prompt) in zip(found[3:], CAPTIONED, strict=True):
        config = tuning(request, variant)
        assert config.model.text.prompt == prompt and config.init.text is False
        assert config.init.weights == str(tmp_path / "out" / folder.split("-")[0] / "run")
        assert config.train.steps == 2 and config.model.image_size == 64
        assert load_tokenizer(config.init.tokenizer).vocab_size <= config.model.text.vocab_size
    assert len(variants(replace(request, model="m"))) == 2
    assert [v.folder for v in variants(replace(request, captions=""))] == ["concept", "feature"]


def test_tables_of_scale_text_and_masks_vary_what_they_say(tmp_path: Path) -> None:
    request = AblationRequest(
        stores=("s",),
        out=tmp_path,
        recipe="sample",
        overrides=("train.steps=100",),
        limit=1,
        table="masks",
    )
    assert [v.folder for v in variants(request)] == ["concept", "mask", "sam"]
    configs = [pretraining(request, v) for v in variants(request)]
    assert [c.loss.concept > 0 for c in configs] == [True, False, False]
    assert [c.model.decoder.semantic for c in configs] == [True, True, False]
    assert {c.train.steps for c in configs} == {100}

    scaled = replace(request, table="scale")
    configs = [pretraining(scaled, v) for v in variants(scaled)]
    found = [(c.stream.share, c.train.steps) for c in configs]
    assert found == [(0.5, 50), (0.5, 100), (1.0, 100)], "the variant wins over --set"

    (tmp_path / "tokenizer.json").write_text("{}")  # as if learned before
    spoken = replace(
        request, table="text", captions="c", caption_overrides=("model.text.depth=12",)
    )
    first, *tuned = variants(spoken)
    assert first.tasks == () and first.folder == "concept"
    sizes = [tuning(spoken, v).model.text for v in tuned]
    assert [(t.depth, t.embed_dim) for t in sizes] == [(6, 128), (8, 128), (12, 128), (6, 192)]
    assert len(variants(replace(spoken, model="m"))) == 4
    assert len(variants(replace(spoken, caption_overrides=("model.text.depth=4",)))) == 1 + 3


@pytest.mark.slow
def test_both_tokens_of_one_model_are_tuned_and_compared(tmp_path: Path, store: Path) -> None:
    """The model speaks already, yet both start from a text decoder that knows nothing."""
    captioned = make_store(tmp_path / "vg", 4, source="vg", captions=True, taught=False)
    train_bpe([f"word {k}" for k in range(99)], 300).save(tmp_path / "tokenizer.json")
    speaking = open_run(
        small_config(store, f"init.tokenizer={tmp_path / 'tokenizer.json'}"), tmp_path / "speaking"
    )
    speaking.save()
    steps = ("train.steps=2", "train.batch=2", "train.images=2", "log.tensorboard=false")
    arguments = ["ablate", "--out", str(tmp_path / "out"), "--model", str(tmp_path / "speaking")]
    arguments += ["--captions", str(captioned), "--limit", "1"]
    arguments += [part for setting in SETTINGS for part in ("--set", setting)]
    arguments += [part for setting in steps for part in ("--set-captions", setting)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.count("but the text decoder's, which starts at random") == 2
    (table,) = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["name"] for row in table["rows"]] == [CAPTIONED[1][1], CAPTIONED[3][1]]
    assert all("CIDEr" in row["metrics"] for row in table["rows"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "--store"),
        (("--model", "x"), "give --captions"),
        (("--store", "s", "--table", "text"), "give --captions"),
        (("--store", "s", "--table", "6c"), "there are tasks, masks, scale, text"),
        (("--model", "x", "--captions", "c", "--table", "scale"), "--store instead of --model"),
    ],
)
def test_what_an_ablation_needs_is_said(tmp_path: Path, given: tuple[str, ...], message: str):
    result = CliRunner().invoke(main, ["ablate", "--out", str(tmp_path), *given])
    assert result.exit_code == 1 and message in result.output


@pytest.mark.slow
def test_variants_are_trained_measured_and_set_side_by_side(tmp_path: Path, store: Path) -> None:
    sets = [part for setting in (*SETTINGS, "train.steps=2") for part in ("--set", setting)]
    arguments = ["ablate", "--store", str(store), "--out", str(tmp_path / "out"), "--limit", "1"]
    arguments += ["--recipe", "smoke", *sets]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    (report,) = (tmp_path / "out").glob("report.json")
    tables = {table["stamp"]["protocol"]: table for table in json.loads(report.read_text())}
    assert tables.keys() == {"coco-segm", "coco-bbox", "names"}
    for table in tables.values():
        names = [row["name"] for row in table["rows"]]
        assert names == ["concept prediction", "feature prediction"]
    settings = [
        json.loads((tmp_path / "out" / name / "run" / "config.json").read_text())["loss"]
        for name in ("concept", "feature")
    ]
    assert [loss["concept_loss"] for loss in settings] == ["kl", "feature"]
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 0, again.output
    assert "predicted 0 images" in again.output, "a second call only reports"


@pytest.mark.slow
def test_masks_with_and_without_concepts_are_compared(tmp_path: Path, store: Path) -> None:
    sets = [part for setting in (*SETTINGS, "train.steps=2") for part in ("--set", setting)]
    arguments = ["ablate", "--table", "masks", "--store", str(store), "--limit", "1"]
    arguments += ["--out", str(tmp_path / "out"), "--recipe", "smoke", *sets]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    tables = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {table["stamp"]["protocol"] for table in tables} == {"coco-segm", "prompts"}
    for table in tables:
        names = [row["name"] for row in table["rows"]]
        assert names == ["masks and concepts", "masks alone", "masks alone, five tokens"]

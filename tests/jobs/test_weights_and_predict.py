import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tap_engine.jobs import tap_cli, train_cli
from tap_engine.model.checkpoint import ModelCard, read_card, save_model
from tap_engine.model.concepts import ConceptTable
from tap_engine.model.config import PRESETS, DecoderConfig
from tap_engine.model.official_weights import (
    RELEASED_MD5,
    RELEASED_TOKENIZER,
    model_shapes,
    read_official,
    released_as,
)
from tap_engine.model.text_tokenizer import train_bpe
from tap_engine.schemas import rle
from tests.model.small import small_config, small_model
from tests.scenes import write_tiny_clip


def run(*arguments: object):
    main = tap_cli.main if arguments[0] == "predict" else train_cli.main
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tap")
    tokenizer = train_bpe(["a red apple", "a blue house"], 300)
    save_model(folder, small_model().state_dict(), ModelCard(config=small_config()))
    names = ("cat", "dog", "tree", "sky")
    ConceptTable(names, torch.randn(4, 16), 22.0).save(folder / "concepts.safetensors")
    tokenizer.save(folder)
    rgb = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(folder / "photo.png")
    sketch = np.zeros((48, 80), np.uint8)
    sketch[20:24, 10:60] = 255
    Image.fromarray(sketch).save(folder / "sketch.png")
    return folder


def test_predict_writes_a_picture_and_json(folder, tmp_path) -> None:
    out, report = tmp_path / "out.png", tmp_path / "out.json"
    result = run(
        "predict", folder / "photo.png", "--model", folder, "--box", "2,3,40,30", "--box",
        "0,0,80,48", "--point", "10,10 20,20,0", "--mask", folder / "sketch.png",
        "--out", out, "--json", report,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"wrote {out}" in result.output
    assert Image.open(out).size == (1120, 672), "a small picture is enlarged"
    regions = json.loads(report.read_text())
    assert [next(iter(r["prompt"])) for r in regions] == ["box", "box", "points", "mask"]
    assert regions[2]["prompt"]["labels"] == [1, 0]
    for region in regions:
        mask = rle.decode(region["segmentation"]["counts"], tuple(region["segmentation"]["size"]))
        assert mask.sum() == region["area"]
        assert len(region["concepts"]) == 4
        assert isinstance(region["caption"], str)


def test_predict_prints_json_alone(folder, tmp_path) -> None:
    result = run(
        "predict", folder / "photo.png", "--model", folder, "--box", "2,3,40,30",
        "--concepts", "sky,cat", "--json", "-", "--out", tmp_path / "a.jpg",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (region,) = json.loads(result.output)
    assert {c["name"] for c in region["concepts"]} == {"sky", "cat"}


def test_predict_says_what_the_checkpoint_lacks(folder, tmp_path) -> None:
    save_model(tmp_path, small_model().state_dict(), ModelCard(config=small_config()))
    out = ("--out", tmp_path / "a.png")
    result = run("predict", folder / "photo.png", "--model", tmp_path, "--box", "2,3,40,30", *out)
    assert result.exit_code == 0, result.output
    assert "no names: " in result.output and "no captions: " in result.output
    assert "0: region  iou" in result.output


def test_predict_with_names_that_a_teacher_embeds(folder, tmp_path) -> None:
    teacher = write_tiny_clip(tmp_path / "clip")  # its embeddings are 32 wide
    options = ("--concepts", "zebra crossing,newt", "--teacher", teacher, "--json", "-")
    prompt = ("--box", "2,3,40,30", "--out", tmp_path / "a.png")
    result = run("predict", folder / "photo.png", "--model", folder, *prompt, *options)
    assert result.exit_code == 1
    assert "width 16, the concept table has 32" in result.output
    decoder = DecoderConfig(num_heads=4, mlp_dim=48, sem_hidden_dim=40, sem_embed_dim=32)
    card = ModelCard(config=small_config(decoder=decoder))
    save_model(tmp_path / "wide", small_model(decoder=decoder).state_dict(), card)
    result = run("predict", folder / "photo.png", "--model", tmp_path / "wide", *prompt, *options)
    assert result.exit_code == 0, result.output
    (region,) = json.loads(result.output)
    assert {c["name"] for c in region["concepts"]} == {"zebra crossing", "newt"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --box, --point or --mask"),
        (["--box", "1,2,3"], "expected left,top,right,bottom in px"),
        (["--point", "1"], "expected x,y or x,y,label"),
        (["--point", "500,1"], "off the image of 80 x 48 px"),
        (["--mask", "nothing.png"], "no image 'nothing.png'"),
        (["--box", "1,2,30,40", "--concepts", "sky,bird"], "'bird'"),
        (["--box", "1,2,30,40", "--teacher", "sample"], "give both"),
        (["--box", "1,2,30,40", "--out", "a.xyz"], "expected a name that ends"),
        (["--box", "1,2,30,40", "--precision", "int8"], "expected one of auto, fp32, fp16, bf16"),
        (["--box", "1,2,30,40", "--device", "gpu"], "expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_predict_says_what_is_wrong(folder, options, message) -> None:
    result = run("predict", folder / "photo.png", "--model", folder, *options)
    # What the command line itself shows to be wrong is 2, as for an option that does not exist.
    assert result.exit_code == (2 if "a.xyz" in options else 1)
    assert message in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A pickle of TAP-B's names and shapes; its values are zeros."""
    path = tmp_path_factory.mktemp("official") / "tap_b.pkl"
    shapes = model_shapes(PRESETS["tap-b"])
    index = "rel_pos_embed.index"
    weights = {
        # float16 keeps the file small; a real one has float32
        name: np.zeros(shape, np.int64 if index in name else np.float16)
        for name, shape in shapes.items()
    }
    path.write_bytes(pickle.dumps(weights))
    return path


@pytest.mark.slow
def test_official_weights_there_and_back(official, tmp_path) -> None:
    result = run("convert-weights", official, tmp_path / "tap-b")
    assert result.exit_code == 0, result.output
    assert "tap-b, 537 tensors, 175,349,896 values" in result.output
    assert "not one of the released files" in result.output
    assert read_card(tmp_path / "tap-b").tokenizer is None
    result = run("convert-weights", tmp_path / "tap-b", tmp_path / "back.pkl")
    assert result.exit_code == 0, result.output
    before, after = read_official(official), read_official(tmp_path / "back.pkl")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_released_weights_know_their_tokenizer(official, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(RELEASED_MD5, released_as(official)[0][:6], "tap_vit_b_v1_1")
    result = run("convert-weights", official, tmp_path)
    assert "the released tap_vit_b_v1_1" in result.output
    assert read_card(tmp_path).tokenizer == RELEASED_TOKENIZER


def test_concepts_there_and_back(tmp_path) -> None:
    embeddings = torch.nn.functional.normalize(torch.randn(8, 3), dim=0)
    source = tmp_path / "c.pkl"
    source.write_bytes(pickle.dumps([(embeddings * 100).numpy(), ["a", "b", "c"]]))
    result = run("convert-weights", source, tmp_path / "tap")
    assert result.exit_code == 0, result.output
    assert "3 concepts of width 8, logit scale 100" in result.output
    result = run("convert-weights", tmp_path / "tap" / "concepts.safetensors", tmp_path / "d.pkl")
    assert result.exit_code == 0, result.output
    weights, names = pickle.loads((tmp_path / "d.pkl").read_bytes())
    np.testing.assert_allclose(weights, embeddings * 100, rtol=1e-5)
    assert names == ["a", "b", "c"]


def test_conversions_that_make_no_sense(folder, tmp_path) -> None:
    for source, target, message in [
        (tmp_path / "no.pkl", tmp_path, "no file"),
        (folder, tmp_path / "x", "a checkpoint of this project already"),
        (folder / "photo.png", tmp_path / "x", "not a readable pickle"),
        (folder / "photo.png", tmp_path / "x.pkl", "name a folder"),
    ]:
        result = run("convert-weights", source, target)
        assert result.exit_code == 1
        assert message in result.output

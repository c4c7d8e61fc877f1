import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from tap_engine.jobs.eval_commands import register
from tap_engine.model.checkpoint import ModelCard, save_model
from tap_engine.model.concepts import ConceptTable
from tap_engine.schemas.errors import ConfigError
from tap_engine.train.evaluation.data_choice import _split_numbers
from tests.model.small import small_config
from tests.support import GOLDEN, shared_data
from tests.train.evaluation.eval_world import detector_results, small_tap, write_coco

LVIS = GOLDEN / "lvis_small"
app = typer.Typer()
register(app)


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    return result.exit_code, result.stdout, result.stderr


def lvis_score(out: Path, *extra: object) -> tuple[int, str, str]:
    files = ("--truth", LVIS / "truth.json", "--predictions", LVIS / "bbox.json")
    return run("score", "--protocol", "lvis-bbox", *files, "--out", out, *extra)


def test_score_writes_a_table_and_machine_readable_files(tmp_path: Path) -> None:
    code, out, err = lvis_score(tmp_path, "--name", "detector")
    assert code == 0, err
    assert "| **detector** | 34.9 | 55.9 | 39.5 |" in out
    assert "605 predictions read" in err
    assert (tmp_path / "report.md").read_text() in out
    score = json.loads((tmp_path / "score.json").read_text())
    expected = json.loads((LVIS / "expected.json").read_text())["metrics"]["bbox"]
    assert score["metrics"] == pytest.approx(expected, abs=1e-9)
    assert score["stamp"]["images"] == 12
    assert "30 detections beyond 300 per image left out" in score["notes"]
    assert len(score["per_category"]) > 3
    report = json.loads((tmp_path / "report.json").read_text())
    assert report[0]["rows"][0]["metrics"] == score["metrics"]


def test_report_sets_like_scores_side_by_side_and_refuses_unlike_ones(tmp_path: Path) -> None:
    lvis_score(tmp_path / "a", "--name", "one")
    lvis_score(tmp_path / "b", "--name", "two")
    code, out, _ = run("report", tmp_path / "a", tmp_path / "b", "--out", tmp_path)
    assert code == 0
    assert "**one**" in out and "**two**" in out
    content = json.loads((tmp_path / "b" / "score.json").read_text())
    content["stamp"]["box_source"] = "another detector"
    content["stamp"]["regions"] = 3
    (tmp_path / "b" / "score.json").write_text(json.dumps(content))
    code, _, err = run("report", tmp_path / "a", tmp_path / "b")
    assert code == 1
    assert "SchemaError: two and one cannot be compared: regions: 3 against" in err
    code, out, _ = run("report", tmp_path / "a", tmp_path / "b", "--apart", "--json")
    assert code == 0
    assert len(json.loads(out)) == 2


def test_plain_caption_files_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)  # Java is tested elsewhere
    (tmp_path / "t.json").write_text(json.dumps({"r1": ["a red car"], "r2": ["a dog", "one dog"]}))
    (tmp_path / "p.json").write_text(json.dumps({"r1": "a red car", "r2": "one dog"}))
    files = ("--truth", tmp_path / "t.json", "--predictions", tmp_path / "p.json")
    code, out, err = run("score", "--protocol", "captions", *files)
    assert code == 0, err
    assert "regions 2; references 3" in out
    assert "text_processing lower-cased words" in out
    assert "Note: no Java" in out
    assert "METEOR |" not in out
    (tmp_path / "p.json").write_text(json.dumps([{"id": 1, "caption": "x"}]))
    code, _, err = run("score", "--protocol", "captions", *files)
    assert code == 1 and "the truth is plain json" in err


def test_region_captions_score_with_several_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    images = [{"id": 1, "height": 9, "width": 9}]
    regions = [
        {"id": i, "image_id": 1, "bbox": [0, 0, 5, 5], "caption": text}
        for i, text in ((7, "a red car"), (8, "a dog"))
    ]
    (tmp_path / "t.json").write_text(json.dumps({"images": images, "annotations": regions}))
    said = [{"image_id": 1, "region_id": i, "caption": "a red car"} for i in (7, 8)]
    (tmp_path / "p.json").write_text(json.dumps(said))
    files = ("--truth", tmp_path / "t.json", "--predictions", tmp_path / "p.json")
    code, out, err = run("score", "--protocol", "captions", *files, "--box-source", "gt", "--json")
    assert code == 0, err
    (table,) = json.loads(out)
    assert table["stamp"]["references"] == table["stamp"]["boxes"] == 2
    assert table["rows"][0]["metrics"]["BLEU@1"] == pytest.approx(4 / 6, abs=1e-6)
    (tmp_path / "p.json").write_text(json.dumps(said + said[:1]))
    code, _, err = run("score", "--protocol", "captions", *files)
    assert code == 1 and "region 7 has two captions" in err


def test_mistakes_are_one_line_without_a_traceback(tmp_path: Path) -> None:
    files = ("--truth", tmp_path / "no.json", "--predictions", LVIS / "bbox.json")
    code, _, err = run("score", "--protocol", "coco-bbox", *files)
    assert code == 1
    assert err.startswith("SourceError:") and "no such file" in err and "Traceback" not in err
    code, _, err = run("score", "--protocol", "coco", *files)
    assert code == 1 and "known: captions, coco-bbox, lvis-bbox" in err


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO-layout set, a detector's boxes, and a checkpoint folder."""
    folder = tmp_path_factory.mktemp("world")
    write_coco(folder, images=3)
    detector_results(folder, images=3)
    tap = small_tap()
    card = ModelCard(config=small_config())
    save_model(folder / "tap", tap.model.state_dict(), card)
    tap.concepts.save(folder / "tap" / "concepts.safetensors")
    tap.tokenizer.save(folder / "tap")
    return folder


def evaluate(world: Path, *args: object) -> tuple[int, str, str]:
    data = ("--data", world / "truth.json", "--images", world / "images")
    return run("eval", *data, "--device", "cpu", *args)


def test_eval_predicts_scores_and_continues(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)  # Java is tested elsewhere
    model = ("--model", world / "tap", "--out", tmp_path)
    code, out, err = evaluate(world, *model)
    assert code == 0, err
    for protocol in ("coco-segm", "coco-bbox", "names", "captions", "prompts"):
        assert f"## {protocol}" in out
        assert (tmp_path / "scores" / protocol / "score.json").is_file()
    assert "predicted 3 images" in err
    assert "| click 9 oracle |" in out, "wide tables stand on their side"
    code, again, err = evaluate(world, *model)
    assert code == 0 and again == out
    assert "predicted 0 images" in err and "(3 were there before)" in err
    code, out, _ = run("report", tmp_path)
    assert code == 0 and out.count("## ") == 5


def test_eval_takes_a_detectors_boxes(world: Path, tmp_path: Path) -> None:
    model = ("--model", world / "tap", "--out", tmp_path, "--task", "segmentation")
    boxes = ("--boxes", world / "boxes.json", "--box-source", "vitdet-h", "--data-name", "coco")
    code, out, err = evaluate(world, *model, *boxes)
    assert code == 0, err
    assert "15 boxes of" in err
    assert "data coco; images 3; regions 15; boxes 15; box_source vitdet-h" in out
    code, _, err = evaluate(world, *model)
    assert code == 1 and "boxes: 'ground truth' against" in err, "other boxes, other predictions"


def test_eval_of_a_part_and_of_one_rank(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ("--model", world / "tap", "--out", tmp_path, "--task", "names", "--limit", 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    code, out, err = evaluate(world, *model)
    assert code == 0 and out == "", "only rank 0 scores"
    assert "predicted 1 images" in err
    monkeypatch.setenv("RANK", "0")
    code, out, err = evaluate(world, *model)
    assert code == 0, err
    assert "images 2; regions 10" in out


def test_the_teacher_on_crops_is_a_row_of_the_same_test(
    world: Path, tmp_path: Path, tiny_clip: Path
) -> None:
    names = ("--task", "names", "--task", "classification")
    assert evaluate(world, "--model", world / "tap", "--out", tmp_path / "tap", *names)[0] == 0
    crops = ("--crops-with", tiny_clip, "--crop-fill", "mean", "--out", tmp_path / "crops")
    code, out, err = evaluate(world, *crops, *names, "--name", "teacher")
    assert code == 0, err
    assert "**teacher**" in out
    code, out, _ = run("report", tmp_path / "tap", tmp_path / "crops")
    assert code == 0 and out.count("## ") == 2, "two tests, two rows each"
    code, _, err = evaluate(world, *crops, "--task", "captions")
    assert code == 1 and "nothing to do" in err


def test_class_names_come_from_table_teacher_or_checkpoint(
    world: Path, tmp_path: Path, tiny_clip: Path
) -> None:
    """Embedding names with a teacher of another width is refused, not silently wrong."""
    model = ("--model", world / "tap", "--task", "names")
    code, _, err = evaluate(world, *model, "--out", tmp_path / "a", "--teacher", tiny_clip)
    assert code == 1 and "width" in err
    ConceptTable(("x", "y", "z", "w"), torch.randn(4, 16), 22.0).save(tmp_path / "four.safetensors")
    table = ("--concepts", tmp_path / "four.safetensors")
    code, _, err = evaluate(world, *model, "--out", tmp_path / "b", *table)
    assert code == 0, err
    ConceptTable(("cat", "x"), torch.randn(2, 16), 22.0).save(tmp_path / "two.safetensors")
    table = ("--concepts", tmp_path / "two.safetensors")
    code, _, err = evaluate(world, *model, "--out", tmp_path / "c", *table)
    assert code == 1 and "no text embedding here, first 'dog'" in err


def test_the_sample_world_is_a_data_set_like_the_others(
    world: Path, tmp_path: Path, tiny_clip: Path
) -> None:
    crops = ("--crops-with", tiny_clip, "--crop-fill", "mean", "--limit", 2)
    code, out, err = run("eval", "--data", "sample", *crops, "--out", tmp_path, "--task", "names")
    assert code == 0, err
    assert "sample: 2 images" in err
    assert "data sample; images 2;" in out
    prompts = ("--model", world / "tap", "--task", "prompts", "--limit", 1, "--device", "cpu")
    code, out, err = run("eval", "--data", "sample", *prompts, "--out", tmp_path / "p")
    assert code == 0, err
    assert "| box oracle |" in out


def test_eval_options_that_contradict_each_other(world: Path, tmp_path: Path) -> None:
    for args, said in (
        ((), "give --model, or --crops-with"),
        (("--model", world / "tap", "--task", "masks"), "unknown task 'masks'"),
        (("--model", world / "tap", "--precision", "int8"), "precision: expected one of"),
        (
            (
                "--model",
                tmp_path / "none",
            ),
            "no checkpoint",
        ),
    ):
        code, _, err = evaluate(world, "--out", tmp_path / "x", *args)
        assert code == 1 and said in err, err
    own = ("--model", world / "tap", "--out", tmp_path / "y")
    code, _, err = run("eval", "--data", world / "truth.json", *own)
    assert code == 1 and "needs --images" in err


def test_scoring_again_takes_the_same_data_as_eval(world: Path, tmp_path: Path) -> None:
    model = ("--model", world / "tap", "--out", tmp_path / "out", "--device", "cpu")
    sample = ("--data", "sample", "--limit", 1, "--task", "prompts")
    code, first, err = run("eval", *sample, *model, "--name", "tap")
    assert code == 0, err
    again = (
        "--predictions",
        tmp_path / "out" / "prompts",
        "--box-source",
        "gt",
        "--data",
        "sample",
    )
    truth = ("--protocol", "prompts", "--truth", "sample", "--limit", 1, "--name", "tap")
    code, second, err = run("score", *truth, *again)
    assert code == 0, err
    assert second == first
    code, _, err = run("score", "--protocol", "prompts", "--truth", "sample", *again)
    assert code == 1 and "covers 1 of 100 images" in err


def test_a_published_split_selects_images_of_a_store() -> None:
    path = shared_data("densecap_splits.json")
    splits = {name: set(_split_numbers(f"{path}:{name}")) for name in ("train", "val", "test")}
    assert [len(splits[name]) for name in ("train", "val", "test")] == [77_398, 5_000, 5_000]
    assert not splits["train"] & splits["test"] and not splits["val"] & splits["test"]
    with pytest.raises(ConfigError, match=r"--split must be FILE.json:NAME"):
        _split_numbers(f"{path}:other")

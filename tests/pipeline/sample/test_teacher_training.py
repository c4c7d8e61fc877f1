import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tap_engine.pipeline.sample import teacher_scenes, teacher_training
from tap_engine.pipeline.sample.files import SceneName
from tap_engine.pipeline.sample.teacher_accuracy import encode_crops
from tap_engine.pipeline.sample.teacher_crops import crop_scene, prepare_crops
from tap_engine.pipeline.sample.teacher_model import CROPS, new_model
from tap_engine.pipeline.sample.teacher_training import (
    TeacherTrainingConfig,
    train_teacher,
)
from tap_engine.pipeline.teacher import Teacher, TeacherConfig, open_tokenizer
from tap_engine.schemas.errors import ConfigError, SchemaError
from tap_engine.schemas.truth import KINDS
from tap_engine.schemas.vocabulary import load_vocabulary

TINY = TeacherTrainingConfig(
    scenes=6, validation=2, steps=4, batch=16, negatives=8, warmup=2, world_seed=60_001
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("teacher") / "out"
    train_teacher(out, TINY, workers=1)
    return out


def test_the_folder_is_a_teacher_of_the_data_engine(trained: Path) -> None:
    teacher = Teacher(TeacherConfig(name=str(trained), device="cpu"))
    assert (teacher.info.embed_dim, teacher.info.image_px) == (128, 64)
    assert not teacher.info.random_weights
    crops = crop_scene(SceneName(60_001, "validation", 0), 256, CROPS).pixels
    images, texts = teacher.encode_crops(crops), teacher.encode_texts(["a dog", "a cat"])
    assert images.shape == (len(crops), 128)
    assert torch.allclose(images.norm(dim=-1), torch.ones(len(crops)), atol=1e-5)
    assert texts.shape == (2, 128)
    assert not torch.allclose(texts[0], texts[1])
    results = json.loads((trained / "training.json").read_text())["results"]
    assert results["logit_scale"] == pytest.approx(teacher.info.logit_scale, rel=1e-3)
    assert {"kind", "group", "visibility"} <= {row["facet"] for row in results["accuracy"]}


def test_its_tokenizer_is_cut_and_knows_every_concept(trained: Path) -> None:
    tokenizer = open_tokenizer(f"local-dir:{trained}")
    texts = [f"a photo of a {name}." for name in load_vocabulary("merged-2560").names]
    tokens = tokenizer(texts)
    assert tokens.shape == (2560, 32)
    assert tokens.max() == 2047
    assert (tokens[:, -1] == 0).all(), "a text fills the context, so it may have been cut"
    assert len({tuple(row.tolist()) for row in tokens}) == 2560


def test_weights_are_small_and_loaded_as_they_were(trained: Path) -> None:
    path = trained / "open_clip_model.safetensors"
    assert path.stat().st_size < 6e6
    assert {tensor.dtype for tensor in load_file(path).values()} >= {torch.float16, torch.float32}
    loaded = open_clip.create_model(f"local-dir:{trained}")
    for name, tensor in load_file(path).items():
        assert torch.equal(loaded.state_dict()[name].to(tensor.dtype), tensor), name


def test_the_training_input_is_the_engines(trained: Path) -> None:
    crops = crop_scene(SceneName(60_001, "train", 0), 256, CROPS).pixels
    model = open_clip.create_model(f"local-dir:{trained}").eval()
    with torch.inference_mode():
        ours = F.normalize(encode_crops(model, crops), dim=-1)
    theirs = Teacher(TeacherConfig(name=str(trained), device="cpu")).encode_crops(crops)
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_a_stopped_training_ends_with_the_same_weights(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_training, "_CHECKPOINT_S", 0.0)

    class Killed(BaseException):
        pass

    def kill(stage: str, done: int, total: int, text: str) -> None:
        if stage == "train" and done == 3:  # step 3 is done but not yet in a checkpoint
            raise Killed

    out = tmp_path / "out"
    with pytest.raises(Killed):
        train_teacher(out, TINY, workers=1, progress=kill)
    seen = []
    train_teacher(out, TINY, workers=1, progress=lambda stage, done, *_: seen.append((stage, done)))
    assert seen == [("train", 3), ("train", 4)]
    ours, theirs = (load_file(folder / "open_clip_model.safetensors") for folder in (out, trained))
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_other_settings_on_the_same_folder_are_refused(trained: Path) -> None:
    other = TeacherTrainingConfig(
        scenes=6, validation=2, steps=9, batch=16, negatives=8, warmup=2, world_seed=60_001
    )
    with pytest.raises(SchemaError, match="steps: 9 against 4"):
        train_teacher(trained, other, workers=1)


def test_more_crops_a_step_than_concepts_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch must be at most 506"):
        TeacherTrainingConfig(batch=507)


def test_crops_carry_their_truth_and_are_kept(tmp_path: Path) -> None:
    names = [SceneName(60_001, "train", index) for index in range(3)]
    crops = prepare_crops(tmp_path, names, (256, 512), CROPS, workers=1)
    assert set(np.unique(crops.scene_px)) == {256, 512}
    assert set(np.unique(crops.kind)) == set(range(len(KINDS)))
    fewer = prepare_crops(tmp_path / "fewer", names, (256, 512), CROPS, part_share=0.2, workers=1)
    whole = crops.kind != KINDS.index("part")
    assert np.array_equal(
        fewer.take(fewer.kind != KINDS.index("part")).pixels, crops.take(whole).pixels
    )
    assert 0 < (fewer.kind == KINDS.index("part")).sum() < 0.5 * (~whole).sum()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    again = prepare_crops(tmp_path, names, (256, 512), CROPS, workers=1)
    assert np.array_equal(again.pixels, crops.pixels)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}


def test_training_learns_to_tell_a_few_crops_apart(tmp_path: Path) -> None:
    """One scene's objects, seen again and again: the loss must fall far below chance."""
    config = TeacherTrainingConfig(
        scenes=2, validation=1, steps=60, batch=12, negatives=12, warmup=5, world_seed=60_002
    )
    losses = []

    def note(stage: str, done: int, total: int, text: str) -> None:
        if stage == "train":
            losses.append(float(text.split()[1].strip(",")))

    train_teacher(tmp_path, config, workers=1, progress=note)
    # The number is a running mean; chance is ln 24 by image and ln 12 by text, 2.8 on average.
    assert losses[0] > 2.2
    assert losses[-1] < 1.4


def test_whole_scenes_train_the_features_in_place(tmp_path: Path) -> None:
    """Going on from the shipped teacher with whole scenes names things where they stand."""
    config = TeacherTrainingConfig(
        scenes=6,
        validation=2,
        steps=3,
        batch=8,
        negatives=4,
        warmup=1,
        world_seed=60_001,
        whole_scenes=2,
        start="sample",
    )
    train_teacher(tmp_path / "out", config, workers=1)
    names = [SceneName(60_001, "train", index) for index in range(6)]
    scenes = teacher_scenes.prepare_scenes(tmp_path / "out" / "work" / "whole", names, 256)
    assert len(scenes) == 6 and all(len(boxes) for boxes in scenes.boxes)
    batch = teacher_scenes.scene_batch(scenes, 3, np.random.default_rng(0), (0, 0, 0), (1, 1, 1))
    assert batch.images.shape == (3, 3, 256, 256)
    assert len(batch.rois) == len(batch.concepts)
    assert (batch.rois[:, 3:] > batch.rois[:, 1:3]).all()
    model = new_model().eval()
    found = teacher_scenes.encode_in_place(model, batch.images, batch.rois)
    assert found.shape == (len(batch.rois), 128)
    # A picture that is one region's box is pooled as CLIP pools the whole picture.
    one = torch.rand(1, 3, 64, 64)
    roi = torch.tensor([[0.0, 0, 0, 64, 64]])
    torch.testing.assert_close(
        teacher_scenes.encode_in_place(model, one, roi), model.encode_image(one), atol=1e-4, rtol=0
    )
    with pytest.raises(ConfigError, match="no teacher to start from"):
        train_teacher(tmp_path / "other", replace(config, start=str(tmp_path)), workers=1)

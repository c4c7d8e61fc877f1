"""`--data sample` against the files and the truth table that `tap-data sample` writes."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from tap_engine.jobs.eval_commands import register
from tap_engine.jobs.sample_eval import sample_set
from tap_engine.model.checkpoint import ModelCard, save_model
from tap_engine.model.concepts import ConceptTable
from tap_engine.pipeline.sample.world import SampleConfig, write_sample_world
from tap_engine.schemas.truth import OBJECT, read_truth
from tap_engine.schemas.vocabulary import DEFAULT_VOCABULARY, load_vocabulary
from tap_engine.train.evaluation.predictions import read_predictions
from tap_engine.train.evaluation.tasks.names import NAMED
from tests.model.small import small_config, small_model

SCENES = 2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "world"
    config = SampleConfig(scenes=0, validation=SCENES, captioned=0, size=256)
    write_sample_world(out, config, workers=1)
    return out


def objects_of(world: Path) -> dict[tuple[int, int], str]:
    rows = read_truth(world / "truth").to_pylist()
    return {
        (row["image_id"], row["region_id"]): row["concept"] for row in rows if row["kind"] == OBJECT
    }


def test_numbers_names_and_pixels_are_those_of_the_written_world(world: Path) -> None:
    data = sample_set(SCENES)
    ours = {
        (row["image_id"], row["region_id"]): data.truth.categories[row["category_id"]].name
        for row in data.truth.regions.to_pylist()
    }
    assert ours == objects_of(world) and len(ours) > 5
    (tar,) = (world / "validation").glob("*.tar")
    with tarfile.open(tar) as shard:
        members = {Path(member.name).name: member for member in shard}
        for image_id, image in data.truth.images.items():
            file = shard.extractfile(members[image.file_name])
            assert file is not None
            written = np.asarray(Image.open(io.BytesIO(file.read())))
            np.testing.assert_array_equal(data.pixels(image_id), written)


def test_predictions_join_the_truth_table(world: Path, tmp_path: Path) -> None:
    """A region's true category in the prediction is the truth table's concept of that region."""
    save_model(tmp_path / "tap", small_model().state_dict(), ModelCard(config=small_config()))
    names = load_vocabulary(DEFAULT_VOCABULARY).names
    table = ConceptTable(names, torch.randn(len(names), 16), 22.0)
    table.save(tmp_path / "names.safetensors")
    app = typer.Typer()
    register(app)
    arguments = [
        "eval",
        "--data",
        "sample",
        "--limit",
        str(SCENES),
        "--task",
        "names",
        "--device",
        "cpu",
    ]
    arguments += ["--model", str(tmp_path / "tap"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(
        app, [*arguments, "--concepts", str(tmp_path / "names.safetensors")]
    )
    assert result.exit_code == 0, result.output
    rows = [
        row
        for batch in read_predictions(str(tmp_path / "out" / "names"), NAMED)
        for row in batch.to_pylist()
    ]
    said = {
        (row["image_id"], row["region_id"]): table.names[row["category_id"] - 1] for row in rows
    }
    assert said == objects_of(world)

"""Search by words and by a picture: the same numbers as by hand, and what the command writes."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tap_engine.jobs.data_cli import app
from tap_engine.pipeline.nearest import search_image, search_text, stored_teacher
from tap_engine.pipeline.store import Store
from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.tables import REGIONS

pytestmark = pytest.mark.ray


def cosines(store: Store, vector: np.ndarray) -> dict[int, float]:
    table = store.open(REGIONS).to_table(columns=["key", "embedding"])
    found = np.asarray(table["embedding"].to_pylist(), np.float64) @ vector
    return dict(zip(table["key"].to_pylist(), found.tolist(), strict=True))


def test_words_and_pictures_find_by_the_teachers_cosine(built_store, tiny_clip) -> None:
    store = Store(str(built_store))
    with pytest.raises(ConfigError, match="name it with --teacher"):
        stored_teacher(store)
    teacher = stored_teacher(store, name=str(tiny_clip), device="cpu")
    vector = teacher.encode_texts(["a photo of a dog"])[0].numpy()
    found = search_text(store, "dog", teacher, templates=["a photo of a {}"], top=5)
    right = cosines(store, vector)
    assert found.num_rows == 5
    for key, similarity in zip(
        found["key"].to_pylist(), found["similarity"].to_pylist(), strict=True
    ):
        assert similarity == pytest.approx(right[key], abs=2e-3)
    best = sorted(right.values(), reverse=True)[:5]
    np.testing.assert_allclose(found["similarity"].to_numpy(), best, atol=2e-3)
    asked = json.loads(found.schema.metadata[b"tap.search"])
    assert asked == {"text": "dog", "templates": ["a photo of a {}"]}
    rgb = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    seen = search_image(store, rgb, teacher, top=3, columns=["area", "key"])
    assert seen.schema.names == ["area", "key", "similarity"]


def test_the_command_takes_words_a_picture_or_a_key(built_store, tiny_clip, tmp_path) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "crop.png")
    key = str(Store(str(built_store)).open(REGIONS).to_table(columns=["key"])["key"][0])
    named = ["--teacher", str(tiny_clip), "--device", "cpu"]
    for what in (
        ["a red bus", *named],
        ["--image", str(tmp_path / "crop.png"), *named],
        ["--key", key],
    ):
        picture = tmp_path / "found.png"
        arguments = ["search", str(built_store), *what, "--top", "2", "--format", "json"]
        result = CliRunner().invoke(app, [*arguments, "--picture", str(picture)])
        assert result.exit_code == 0, result.output
        assert len([json.loads(line) for line in result.stdout.splitlines()]) == 2
        assert picture.is_file()
        picture.unlink()
    result = CliRunner().invoke(app, ["search", str(built_store)])
    assert result.exit_code != 0 and "one thing to look for" in result.output

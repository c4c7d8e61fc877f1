"""Commands that use the teacher's text tower alone."""

import pickle

import numpy as np
from typer.testing import CliRunner

from tap_engine.jobs.data_cli import app
from tap_engine.pipeline.teacher import Teacher, TeacherConfig


def test_build_concepts_writes_the_official_form(tmp_path, tiny_clip, few_concepts) -> None:
    out = tmp_path / "concepts.pkl"
    command = ["build-concepts", "--out", out, "--teacher", tiny_clip, "--vocabulary", few_concepts]
    result = CliRunner().invoke(app, [str(word) for word in command])
    assert result.exit_code == 0, result.output
    assert "wrote 6 concepts" in result.stdout
    weights, names = pickle.loads(out.read_bytes())
    assert names == ["person", "dog", "cat", "tree", "car", "sky"]
    teacher = Teacher(TeacherConfig(name=str(tiny_clip)))
    texts = teacher.encode_texts([f"a {name}" for name in names]).numpy()
    expected = texts.T * np.float32(teacher.info.logit_scale)
    np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-5)

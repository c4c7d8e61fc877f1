"""The commands of Open-Vocabulary SAM, on files of a minute."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tap_engine.jobs.train_cli import main
from tap_engine.model.ovsam.classes import ClassTable
from tap_engine.train.ovsam.recipes import OVSAM_RECIPES

run = CliRunner().invoke


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def annotations(path, names) -> str:
    content = {"images": [], "annotations": []}
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    path.write_text(json.dumps(content))
    return str(path)


def test_recipes_are_listed_and_shown() -> None:
    found = run(main, ["ovsam-recipes"])
    assert found.exit_code == 0
    assert all(name in found.output for name in OVSAM_RECIPES)
    found = run(main, ["ovsam-recipes", "ovsam_s2c", "--set", "train.steps=7"])
    assert "train.steps=7" in found.output and "optim.clip_norm=5.0" in found.output
    dry = run(main, ["ovsam-run", "--recipe", "ovsam_c2s_lvis", "--out", "x", "--dry-run"])
    assert json.loads(dry.output)["augment"]["scale"] == [0.1, 2.0]
    wrong = run(main, ["ovsam-run", "--recipe", "ovsam_x", "--out", "x"])
    assert wrong.exit_code == 1 and "there are ovsam_s2c" in wrong.output


def test_classes_of_names_with_a_split(tmp_path) -> None:
    (tmp_path / "names.txt").write_text("dog\nsofa; couch; settee\n\ncat\n")
    (tmp_path / "base.txt").write_text("dog\ncat\n")
    out = tmp_path / "classes.safetensors"
    command = ["ovsam-classes", str(out), "--clip", "sample"]
    names = ["--names", str(tmp_path / "names.txt")]
    found = run(main, [*command, *names, "--base", str(tmp_path / "base.txt")])
    assert found.exit_code == 0, found.output
    assert "3 classes of 3 prototypes, 2 base, 1 novel" in found.output
    table = ClassTable.load(out)
    assert table.names == ("dog", "sofa", "cat") and table.kinds.tolist() == [1, 2, 1]
    assert table.prototypes.shape == (3, 3, 128)
    assert np.allclose(table.prototypes.norm(dim=-1), 1, atol=1e-5)
    one = run(main, [*command, *names, "--template", "a {}"])
    assert one.exit_code == 0, one.output
    other = ClassTable.load(out)
    assert not torch.allclose(other.prototypes, table.prototypes)
    wrong = run(main, [*command, *names, "--template", "a thing"])
    assert wrong.exit_code == 1 and "has no {} for the name" in wrong.output
    nothing = run(main, command)
    assert nothing.exit_code == 1 and "give one of --names" in nothing.output


def test_several_annotation_files_give_their_union(tmp_path) -> None:
    out = tmp_path / "classes.safetensors"
    first = annotations(tmp_path / "a.json", ["Dog", "Sofa/couch"])
    second = annotations(tmp_path / "b.json", ["sofa", "cat"])
    command = ["ovsam-classes", str(out), "--clip", "sample"]
    found = run(main, [*command, "--annotations", first, "--annotations", second])
    assert found.exit_code == 0, found.output
    table = ClassTable.load(out)
    assert table.names == ("dog", "sofa", "cat")
    assert table.ids["Sofa/couch"] == table.ids["sofa"] == 1 and table.ids["Dog"] == 0


def test_a_wrong_share_is_refused(tmp_path) -> None:
    command = ["ovsam-dump", str(tmp_path / "d"), "--store", "s", "--teacher", "sample"]
    found = run(main, [*command, "--share", "one of two"])
    assert found.exit_code == 1 and "--share is I/N" in found.output

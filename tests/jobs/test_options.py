from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

from tap_engine.jobs import data_cli
from tap_engine.jobs.options import SetOption, SettingsCommand, build_config
from tap_engine.pipeline.config import BuildConfig, CropOptions, WorkerConfig
from tap_engine.pipeline.recipes import RECIPES, recipe
from tap_engine.pipeline.teacher import TeacherConfig
from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.settings import field_names, shown, with_overrides

OUT = "/somewhere/store"


def config(recipe_name: str = "semantic-sa1b", *overrides: str, **given) -> BuildConfig:
    return build_config(recipe_name, OUT, list(overrides), None, False, **given)


def test_what_is_not_given_is_the_default_of_its_dataclass() -> None:
    assert config(teacher=None, limit=None, vocabulary=None, device=None) == BuildConfig(out=OUT)
    without = config("captions", teacher=None, pretrained=None, download=False)
    assert without == BuildConfig(out=OUT, teacher=None)


def test_options_go_over_the_recipe_and_set_over_both() -> None:
    assert config("sample").teacher == TeacherConfig(name="sample")
    found = config("sample", "limit=7", "teacher.precision=bf16", limit=5, device="cpu")
    assert found.teacher == TeacherConfig(name="sample", device="cpu", precision="bf16")
    assert found.limit == 7
    named = config("captions", "concepts=none", teacher="sample")
    assert named == BuildConfig(out=OUT, teacher=TeacherConfig(name="sample"), concepts="none")
    options = build_config("captions", OUT, None, ["endpoint=http://x:1"], True)
    assert options.take_over and options.storage_options == {"endpoint": "http://x:1"}


@pytest.mark.parametrize(
    ("recipe_name", "overrides", "given", "message"),
    [
        ("semantic", (), {}, "no recipe 'semantic'; there are semantic-sa1b"),
        ("semantic-sa1b", ("crop.fil=black",), {}, "close: crop.fill"),
        ("semantic-sa1b", ("crop.fill=pink",), {}, "takes one of mean, black, keep, got 'pink'"),
        ("semantic-sa1b", ("teacher.precision=float16",), {}, "teacher.precision: expected one of"),
        ("semantic-sa1b", ("workers.actors=-1",), {}, "actors must not be negative"),
        ("captions", (), {"device": "cpu"}, "--device belongs to a teacher"),
    ],
)
def test_mistakes_are_named(recipe_name, overrides, given, message) -> None:
    with pytest.raises(ConfigError, match=message):
        config(recipe_name, *overrides, **given)


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_of_every_recipe_can_be_set_to_itself(name) -> None:
    settings = recipe(name)
    for setting, value in field_names(settings):
        if value is not None or setting != "teacher":
            assert with_overrides(settings, [f"{setting}={shown(value)}"]) == settings, setting


def test_flags_that_became_settings_go_on_working() -> None:
    app = typer.Typer()

    @app.command(cls=SettingsCommand)
    def show(set_: SetOption = None) -> None:
        typer.echo("\n".join(set_ or []))

    line = "--fill black --margin=0.25 --fit squash --seed 3 --compile --precision bf16"
    line += " --batch-size 8 --concepts full --actors 2 --crop-cpus 4 --teacher-gpus 0.5"
    line += " --unit-images 9 --commit-seconds 2.5 --max-reject-share 1 --set limit=4"
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 0, result.output
    found = with_overrides(BuildConfig(), result.stdout.split())
    assert found == BuildConfig(
        teacher=TeacherConfig(seed=3, compile=True, precision="bf16", batch_size=8),
        crop=CropOptions(fill="black", margin=0.25, fit="squash"),
        concepts="full",
        limit=4,
        max_reject_share=1,
        workers=WorkerConfig(actors=2, crop_cpus=4, teacher_gpus=0.5, unit_images=9, commit_s=2.5),
    )
    assert found != replace(found, crop=CropOptions())


def test_every_command_stands_in_a_panel_and_recipes_show_their_settings() -> None:
    assert all(command.rich_help_panel for command in data_cli.app.registered_commands)
    listed = CliRunner().invoke(data_cli.app, ["recipes"]).stdout
    assert all(name in listed for name in RECIPES)
    found = (
        CliRunner()
        .invoke(data_cli.app, ["recipes", "sample", "--set", "workers.commit_s=5"])
        .stdout.splitlines()
    )
    assert {"teacher.name=sample", "workers.commit_s=5.0", "crop.fill=mean"} <= set(found)


def test_the_teacher_s_training_takes_settings_and_lists_them(tmp_path) -> None:
    out = str(tmp_path / "teacher")
    answer = CliRunner().invoke(data_cli.app, ["train-teacher", out, "--set", "stepz=3"])
    assert answer.exit_code == 1
    assert "no setting 'stepz'; there are scenes, validation," in answer.output
    answer = CliRunner().invoke(data_cli.app, ["train-teacher", out, "--set", "steps=0"])
    assert answer.exit_code == 1
    assert "steps must be at least 1, got 0" in answer.output
    assert not (tmp_path / "teacher").exists()

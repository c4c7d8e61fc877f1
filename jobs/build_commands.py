"""Commands of `tap-data` that crop, embed and write: build-semantic, and the recipes of builds."""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from tap_engine.jobs.options import (
    BUILD,
    CpusOption,
    DeviceOption,
    DownloadOption,
    LimitOption,
    OutOption,
    PretrainedOption,
    RayAddressOption,
    RayWheelOption,
    SetOption,
    SettingsCommand,
    StorageOption,
    TakeOverOption,
    TeacherOption,
    VocabularyOption,
    build_config,
)
from tap_engine.jobs.output import (
    FAILED,
    REJECTS_ABOVE_LIMIT,
    command_errors,
)
from tap_engine.jobs.recipe_lists import print_recipes, print_settings
from tap_engine.jobs.source_commands import (
    PHOTOS_HELP,
    SOURCE_HELP,
    open_source,
    source_vocabulary,
)

if TYPE_CHECKING:
    from tap_engine.pipeline.summary import BuildSummary


def register(app: typer.Typer) -> None:
    """Add the commands to `tap-data`."""
    app.command("build-semantic", cls=SettingsCommand, rich_help_panel=BUILD)(build_semantic)
    app.command("recipes", rich_help_panel=BUILD)(recipes)


def build_semantic(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="The images: SA-1B tars, folders of tars or of sa_N.jpg, or the folder "
            "of your own photos."
        ),
    ],
    out: OutOption,
    recipe: Annotated[
        str, typer.Option(help="The settings to start from; `tap-data recipes` lists them.")
    ] = "semantic-sa1b",
    set_: SetOption = None,
    source: Annotated[str, typer.Option(help=SOURCE_HELP)] = "sa1b",
    photos: Annotated[str, typer.Option(help=PHOTOS_HELP)] = "as-is",
    teacher: TeacherOption = None,
    pretrained: PretrainedOption = None,
    vocabulary: VocabularyOption = None,
    limit: LimitOption = None,
    device: DeviceOption = None,
    download: DownloadOption = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Measure a few units, print the plan and its cost, write nothing."
        ),
    ] = False,
    take_over: TakeOverOption = False,
    storage_option: StorageOption = None,
    ray_address: RayAddressOption = None,
    ray_wheel: RayWheelOption = None,
    cpus: CpusOption = None,
) -> None:
    """Crop every masked region, embed it with a CLIP teacher, write a SemanticSA-1B store.

    The same command again continues where it stopped.
    """
    with command_errors():
        from tap_engine.jobs.cluster import ray_session
        from tap_engine.jobs.output import print_estimate

        opened = open_source(sources, source, photos)
        config = build_config(
            recipe,
            out,
            set_,
            storage_option,
            take_over,
            teacher=teacher,
            pretrained=pretrained,
            vocabulary=vocabulary,
            limit=limit,
            device=device,
            download=download,
        )
        if config.vocabulary == "source":
            config = replace(config, vocabulary=source_vocabulary(opened))
        if dry_run:
            from tap_engine.pipeline.estimate import estimate

            print_estimate(estimate(opened, config, typer.echo), out)
            return
        with ray_session(ray_address, cpus, ray_wheel):
            from tap_engine.pipeline.build import build

            summary = build(opened, config, say=typer.echo)
        finish(summary, out, config.max_reject_share)


def recipes(
    name: Annotated[str, typer.Argument(help="Show all settings of this recipe.")] = "",
    set_: SetOption = None,
) -> None:
    """List the recipes of builds, or every setting of one, in the form that --set takes."""
    with command_errors():
        from tap_engine.pipeline.recipes import RECIPES, recipe

        if name:
            print_settings(recipe(name), set_)
        else:
            print_recipes(RECIPES)


def finish(summary: "BuildSummary", out: str, max_reject_share: float) -> None:
    """Print what a build did, and leave with its exit code."""
    from tap_engine.jobs.output import print_build_summary, print_left_out, print_nothing_built

    print_build_summary(summary, out)
    if summary.failed or print_nothing_built(summary):
        sys.exit(FAILED)
    if print_left_out(summary, max_reject_share):
        sys.exit(REJECTS_ABOVE_LIMIT)

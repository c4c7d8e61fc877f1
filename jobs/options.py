"""Options that several commands of `tap-data` share, and how they become settings.

An option stands here once, so that its name and its help are the same everywhere. None has a
default: what is not given stays what the recipe says.
"""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from tap_engine.jobs.output import parse_pairs

if TYPE_CHECKING:
    from tap_engine.pipeline.config import BuildConfig
    from tap_engine.pipeline.store import Store
    from tap_engine.pipeline.teacher import TeacherConfig

BUILD, LOOK, CHANGE, SAMPLE_WORLD = "Build", "Look", "Change", "Sample world"
"""Panels of `tap-data --help`."""

RAY = "Ray"
"""Panel of a command's own help."""

StoreArgument = Annotated[str, typer.Argument(help="The store: a path or URI.")]
OutOption = Annotated[str, typer.Option(help="The store: a folder or s3:// / gs:// prefix.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change a setting: crop.fill=black. `tap-data recipes NAME` lists all of them.",
    ),
]
TeacherOption = Annotated[
    str | None,
    typer.Option(
        help="The CLIP teacher: an open_clip model name, a model folder, an hf-hub: "
        "name, or 'sample'."
    ),
]
PretrainedOption = Annotated[
    str | None,
    typer.Option(help="The model's weights: a tag, a file, or 'none' for random weights."),
]
VocabularyOption = Annotated[
    str | None,
    typer.Option(
        help="The concept names: merged-2560, a file of names, or 'source' for the "
        "labels of your photos."
    ),
]
LimitOption = Annotated[
    int | None, typer.Option(help="Build at most this many images in all; 0 builds everything.")
]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="The device that the teacher runs on: auto, cpu or cuda.", metavar="DEVICE"),
]
DownloadOption = Annotated[
    bool, typer.Option("--download", help="Allow the download of the teacher's weights.")
]
TakeOverOption = Annotated[
    bool,
    typer.Option(
        "--take-over", help="Take the store from another driver whose lease has not expired."
    ),
]
StorageOption = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="An option of Lance's object store; repeatable."),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        help="The address of a running Ray cluster; a local Ray is started by default.",
        rich_help_panel=RAY,
    ),
]
RayWheelOption = Annotated[
    str | None,
    typer.Option(
        help="The wheel of this package that the workers of that cluster install.",
        rich_help_panel=RAY,
    ),
]
CpusOption = Annotated[
    int | None,
    typer.Option(
        help="The number of CPUs that a local Ray may use; all by default.", rich_help_panel=RAY
    ),
]

_OLD_FLAGS = {
    "--seed": "teacher.seed",
    "--concepts": "concepts",
    "--fill": "crop.fill",
    "--fit": "crop.fit",
    "--margin": "crop.margin",
    "--precision": "teacher.precision",
    "--batch-size": "teacher.batch_size",
    "--compile": "teacher.compile",
    "--actors": "workers.actors",
    "--crop-cpus": "workers.crop_cpus",
    "--teacher-gpus": "workers.teacher_gpus",
    "--unit-images": "workers.unit_images",
    "--commit-seconds": "workers.commit_s",
    "--max-reject-share": "max_reject_share",
}
"""Flags of 2026 that are settings now; they go on working, but help does not show them."""


class SettingsCommand(TyperCommand):
    """A command with `--set` that reads flags which became settings as what they are now."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Turns `--fill black` and `--fill=black` into `--set crop.fill=black`."""
        rest: list[str] = []
        words = iter(args)
        for word in words:
            flag, equals, value = word.partition("=")
            if flag not in _OLD_FLAGS:
                rest.append(word)
                if word == "--":
                    rest += words
                continue
            if flag == "--compile":
                value = value or "true"
            elif not equals:
                value = next(words, "")
            rest += ["--set", f"{_OLD_FLAGS[flag]}={value}"]
        return super().parse_args(ctx, rest)


def build_config(
    recipe_name: str,
    out: str,
    overrides: list[str] | None,
    storage_option: list[str] | None,
    take_over: bool,
    **given: Any,
) -> "BuildConfig":
    """The settings of a build: recipe, then options, then `--set`.

    Args:
        recipe_name: see pipeline/recipes.py.
        out: the store.
        overrides: the values of `--set`.
        storage_option: the values of `--storage-option`.
        take_over: whether `--take-over` was given.
        given: `teacher`, `pretrained`, `device`, `download`, `vocabulary`, `limit` as on the
            command line; None where not given.

    Raises:
        ConfigError: no such recipe or setting, or a value that does not fit.
    """
    from dataclasses import replace

    from tap_engine.pipeline.recipes import recipe
    from tap_engine.pipeline.sources.filesystem import absolute_uri
    from tap_engine.pipeline.teacher import TeacherConfig
    from tap_engine.schemas.errors import ConfigError
    from tap_engine.schemas.settings import with_overrides

    config = recipe(recipe_name)
    of_build = {name: given.get(name) for name in ("vocabulary", "limit")}
    config = replace(
        config,
        out=absolute_uri(out),
        storage_options=dict(parse_pairs(storage_option)),
        take_over=take_over,
        **{name: value for name, value in of_build.items() if value is not None},
    )
    if config.teacher is None and given.get("teacher") is not None:
        config = replace(config, teacher=TeacherConfig())
    of_teacher = {
        "name": given.get("teacher"),
        "pretrained": given.get("pretrained"),
        "device": given.get("device"),
        "download": given.get("download") or None,
    }
    chosen = {name: value for name, value in of_teacher.items() if value is not None}
    if config.teacher is not None:
        config = replace(config, teacher=replace(config.teacher, **chosen))
    elif chosen:
        options = ", ".join(f"--{name}" for name in chosen)
        raise ConfigError(f"{options} belongs to a teacher; name one with --teacher")
    return with_overrides(config, overrides or [])


def teacher_config(**given: Any) -> "TeacherConfig":
    """A teacher of the options that were given; None and False stand for the default."""
    from tap_engine.pipeline.teacher import TeacherConfig

    return TeacherConfig(**{name: value for name, value in given.items() if value})


def store_at(uri: str, options: list[str] | None) -> "Store":
    """The store of a command line."""
    from tap_engine.pipeline.sources.filesystem import absolute_uri
    from tap_engine.pipeline.store import Store

    return Store(absolute_uri(uri), dict(parse_pairs(options)))

"""Which source a build reads, by name; and `check-source`, which reads it and writes nothing."""

import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tap_engine.jobs.options import BUILD
from tap_engine.jobs.output import NOT_VALID, command_errors

if TYPE_CHECKING:
    from tap_engine.pipeline.sources.annotated import Problem
    from tap_engine.pipeline.sources.records import Source

SOURCE_HELP = (
    "The form of the images. sa1b or sample: SA-1B's layout. auto: found out from the folder. "
    "coco, panoptic, labelme, sam-json, yolo, masks, label-maps, ade20k: your own photos in that "
    "format. "
    "MODULE:CLASS: a source of your own."
)
PHOTOS_HELP = "How your photos are stored that are PNG or WebP: as-is, or as jpeg."

_SHOWN = 50
"""Problems of one kind that are listed; `--all` lists the rest."""


def open_source(paths: list[str], source: str, photos: str = "as-is") -> "Source":
    """The source that `--source` names; of own photos, says what was found.

    Raises:
        ConfigError: no such source.
        SourceError: nothing to build from.
    """
    from tap_engine.pipeline.sources.sa1b import Sa1bSource
    from tap_engine.schemas.keys import SOURCES

    if ":" in source:
        return _by_module(paths, source)
    if source in SOURCES and source != "coco":
        return Sa1bSource(paths, source)
    from tap_engine.pipeline.sources.detect import find_annotations, is_sa1b, open_folder
    from tap_engine.pipeline.sources.photo_folder import PhotoFolderSource

    if source == "auto" and is_sa1b(paths):
        typer.echo("found SA-1B's layout: sa_N.jpg with sa_N.json, or tars of them")
        return Sa1bSource(paths)
    folder = open_folder(paths)
    found = find_annotations(folder, source)
    for line in found.said:
        typer.echo(f"found {line}" if line is found.said[0] else line)
    return PhotoFolderSource(folder, found, photos)  # type: ignore[arg-type]


def _by_module(paths: list[str], source: str) -> "Source":
    """An instance of a class that the user names, made with the paths; it travels by value."""
    import importlib
    import os

    from ray import cloudpickle

    from tap_engine.schemas.errors import ConfigError

    name, _, attribute = source.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
        made: Source = getattr(module, attribute)(paths)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--source {source!r}: expected MODULE:CLASS: {error}") from error
    cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]
    lacking = [
        word
        for word in (
            "name",
            "captioned",
            "labelled",
            "prepare",
            "settings",
            "shards",
            "index",
            "load",
        )
        if not hasattr(made, word)
    ]
    if lacking:
        raise ConfigError(f"--source {source!r} lacks {', '.join(lacking)} (pipeline/sources)")
    return made


def source_vocabulary(source: "Source") -> Any:
    """`--vocabulary source`: the labels of the source as a vocabulary.

    Raises:
        ConfigError: the source has no labels.
    """
    from tap_engine.schemas.errors import ConfigError
    from tap_engine.schemas.vocabulary import Vocabulary

    labels = getattr(source, "labels", None)
    if labels is None:
        raise ConfigError("--vocabulary source needs own photos with labels (--source auto)")
    names = labels()
    return Vocabulary("source", names, tuple(("source",) for _ in names))


def check_source(
    paths: Annotated[list[str], typer.Argument(help="The folder of photos and annotations.")],
    source: Annotated[str, typer.Option(help=SOURCE_HELP)] = "auto",
    show_all: Annotated[
        bool, typer.Option("--all", help=f"List more than {_SHOWN} problems of one kind.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all problems as json.")] = False,
) -> None:
    """Read a source as a build would, write nothing, list every problem with file and line.

    Exit code 0 where nothing would be left out (notes may be), 4 where something would.
    """
    with command_errors():
        from tap_engine.pipeline.check_source import check

        opened = open_source(paths, source)
        report = check(opened)
        if as_json:
            typer.echo(json.dumps(report.to_json(), indent=1, ensure_ascii=False))
        else:
            for line in _lines(report.problems, show_all):
                typer.echo(line)
            typer.echo(
                f"{report.images:,} photos with {report.regions:,} regions can be built; "
                f"{report.lost:,} problems, {len(report.problems) - report.lost:,} notes"
            )
        if report.lost:
            sys.exit(NOT_VALID)


def _lines(problems: "list[Problem]", show_all: bool) -> list[str]:
    shown: Counter[str] = Counter()
    left: Counter[str] = Counter()
    lines = []
    for problem in problems:
        word = "note" if problem.note else str(problem.reason)
        shown[word] += 1
        if shown[word] > _SHOWN and not show_all:
            left[word] += 1
        else:
            lines.append(f"{'note' if problem.note else 'LOST'} {problem}")
    lines += [
        f"... and {count:,} more of {word} (--all lists them)" for word, count in left.items()
    ]
    return lines


def register(app: typer.Typer) -> None:
    """Adds the commands of this file to `tap-data`."""
    app.command("check-source", rich_help_panel=BUILD)(check_source)

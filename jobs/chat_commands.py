"""Commands of TAPv2-Chat: conversation files into a store."""

import sys
from typing import Annotated

import typer

from tap_engine.jobs.options import BUILD, StorageOption
from tap_engine.jobs.output import FAILED, command_errors, parse_pairs


def register_data(app: typer.Typer) -> None:
    """Adds the data half to `tap-data`."""
    app.command("import-conversations", rich_help_panel=BUILD)(import_conversations)


def import_conversations(
    files: Annotated[
        list[str],
        typer.Argument(help="LLaVA-style json, jsonl or parquet, gzipped or not."),
    ],
    out: Annotated[str, typer.Option(help="The store: a folder or s3:// / gs:// prefix.")],
    images: Annotated[
        str | None,
        typer.Option(help="The folder below which images lie, or a store that holds them."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Write over conversations that are there.")
    ] = False,
    storage_option: StorageOption = None,
) -> None:
    """Read conversations about images, check them, and write them as a table.

    Every row that cannot be used is written to the table `conversation_rejects` with its reason.

    Example: tap-data import-conversations llava_v1_5_mix665k.json --images images --out chat
    """
    with command_errors():
        from pathlib import Path

        from tap_engine.pipeline.conversations.images import ImageFolder, Images, ImageStore
        from tap_engine.pipeline.conversations.importing import import_conversations as run
        from tap_engine.pipeline.sources.filesystem import absolute_uri
        from tap_engine.pipeline.store import Store
        from tap_engine.schemas.errors import ConfigError
        from tap_engine.schemas.tables import IMAGES

        options = dict(parse_pairs(storage_option))
        found: Images | None = None
        if images is not None:
            holder = Store(absolute_uri(images), options)
            if holder.exists(IMAGES):
                found = ImageStore(holder)
            elif Path(images).is_dir():
                found = ImageFolder(Path(images))
            else:
                raise ConfigError(f"--images {images!r} is neither a folder nor a store")
        store = Store(absolute_uri(out), options)
        summary = run(files, found, store, replace=replace, say=typer.echo)
        kept = ", ".join(f"{name} {count:,}" for name, count in sorted(summary.kept.items()))
        typer.echo(f"kept {summary.kept.total():,} conversations ({kept or 'none'}) in {out}")
        for title, counts in (("changed", summary.notes), ("left out", summary.rejects)):
            if counts:
                parts = ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
                typer.echo(f"{title}: {counts.total():,} ({parts})")
        if summary.rejects:
            typer.echo("see table `conversation_rejects` for each row and its reason")
        for problem in summary.unreadable:
            typer.echo(f"SourceError: {problem}", err=True)
        if summary.unreadable:
            sys.exit(FAILED)

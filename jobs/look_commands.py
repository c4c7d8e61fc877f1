"""Commands of `tap-data` that look into a store and change nothing."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tap_engine.jobs.options import LOOK, StorageOption, StoreArgument, store_at
from tap_engine.jobs.output import NOT_VALID, command_errors, new_picture

MAX_KEY = (1 << 63) - 1
"""Keys are int64 (schemas/keys.py; not imported here, so that --help stays instant)."""


def register(app: typer.Typer) -> None:
    """Add the commands to `tap-data`."""
    app.command("verify", rich_help_panel=LOOK)(verify)
    app.command("inspect", rich_help_panel=LOOK)(inspect)
    app.command("query", rich_help_panel=LOOK)(query)
    app.command("picture", rich_help_panel=LOOK)(picture)


def verify(
    store: StoreArgument,
    storage_option: StorageOption = None,
) -> None:
    """Check every promise of a store; the exit code is 0 if all hold, 4 if one does not."""
    with command_errors():
        from tap_engine.pipeline.verify import verify as run

        report = run(store_at(store, storage_option), say=lambda text: typer.echo(f"... {text}"))
        for line in report.checks:
            typer.echo(f"ok   {line}")
        for line in report.problems:
            typer.echo(f"BAD  {line}")
        typer.echo(f"{len(report.checks)} checks passed, {len(report.problems)} failed")
        if not report.ok:
            sys.exit(NOT_VALID)


def inspect(
    store: StoreArgument,
    key: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MAX_KEY,
            help="The key of one region: shows its row and concepts, saves its picture.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="The number of concepts to show.")] = 5,
    png: Annotated[
        str | None, typer.Option(help="The file for the picture; region_KEY.png by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print json.")] = False,
    storage_option: StorageOption = None,
) -> None:
    """Show what is in a store, or one region by key."""
    with command_errors():
        from tap_engine.jobs.output import print_overview, print_region
        from tap_engine.pipeline.inspection import overview, save_picture, view_region

        opened = store_at(store, storage_option)
        if key is None:
            print_overview(overview(opened), as_json)
            return
        region = view_region(opened, key, top=top)
        path = png or f"region_{key}.png"
        save_picture(region.picture, path)
        print_region(region, path, as_json)


def query(
    store: StoreArgument,
    filter: Annotated[
        str | None,
        typer.Option(
            help="A condition in Lance's SQL, with two words of ours: concept = 'dog', "
            "has_concept('dog')."
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="The columns, comma-separated; `concept` and `concepts` give names."),
    ] = None,
    limit: Annotated[
        int,
        typer.Option(
            max=MAX_KEY, help="The number of rows at most; 0 gives all. On a screen 20 by default."
        ),
    ] = -1,
    format: Annotated[
        str, typer.Option(help="The form: table, json (one object per line), csv or parquet.")
    ] = "table",
    out: Annotated[
        str | None, typer.Option(help="The file to write; standard output by default.")
    ] = None,
    storage_option: StorageOption = None,
) -> None:
    """List regions that match a filter."""
    with command_errors():
        from tap_engine.jobs.output import write_rows
        from tap_engine.pipeline.query import Query, run_query

        wanted = [c.strip() for c in columns.split(",")] if columns else None
        rows = limit if limit >= 0 else (0 if out else 20)
        batches = run_query(
            store_at(store, storage_option), Query(filter=filter, columns=wanted, limit=rows)
        )
        write_rows(batches, format, out)


def picture(
    store: StoreArgument,
    out: Annotated[Path, typer.Option(callback=new_picture, help="The PNG file to write.")],
    images: Annotated[
        int, typer.Option(min=1, help="The number of images: the first N of the store.")
    ] = 6,
    truth: Annotated[
        Path | None,
        typer.Option(help="The truth table of sample scenes; wrong names are then marked."),
    ] = None,
) -> None:
    """Draw images of a store with their masks and the most probable concept of each."""
    with command_errors():
        from tap_engine.pipeline.picture import draw_picture, read_scenes

        scenes = read_scenes(store, images, truth)
        out.parent.mkdir(parents=True, exist_ok=True)
        wrong = "; on white where the truth is another" if truth else ""
        draw_picture(scenes, title=f"Most probable concept of every mask{wrong}").save(out)
    shown = sum(len(scene.regions) for scene in scenes)
    typer.echo(f"drew {len(scenes):,} images with {shown:,} masks: {out}")

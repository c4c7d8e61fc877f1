"""Commands of `tap-data` that look for regions by what they look like: search, nearest."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tap_engine.jobs.options import (
    LOOK,
    DeviceOption,
    DownloadOption,
    PretrainedOption,
    StorageOption,
    StoreArgument,
    TeacherOption,
    store_at,
)
from tap_engine.jobs.output import command_errors, new_picture

if TYPE_CHECKING:
    import pyarrow as pa

    from tap_engine.pipeline.store import Store

MAX_KEY = (1 << 63) - 1
"""Keys are int64 (schemas/keys.py; not imported here, so that --help stays instant)."""

TopOption = Annotated[int, typer.Option(help="The number of regions to show.")]
FilterOption = Annotated[
    str | None,
    typer.Option(help="Search only regions that match this condition; as in `query`."),
]
ColumnsOption = Annotated[
    str | None, typer.Option(help="The columns, comma-separated; as in `query`.")
]
FormatOption = Annotated[
    str, typer.Option(help="The form: table, json (one object per line), csv or parquet.")
]
ResultOption = Annotated[
    str | None, typer.Option(help="The file to write; standard output by default.")
]
PictureOption = Annotated[
    Path | None,
    typer.Option(callback=new_picture, help="Draw what was found on one sheet: a PNG file."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `tap-data`."""
    app.command("search", rich_help_panel=LOOK)(search)
    app.command("nearest", rich_help_panel=LOOK)(nearest)


def search(
    store: StoreArgument,
    text: Annotated[
        str | None, typer.Argument(help='What to look for in words: "a red bus".')
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="Look for what this picture shows; crop it to the thing.")
    ] = None,
    key: Annotated[
        int | None,
        typer.Option(min=0, max=MAX_KEY, help="Look for what this stored region looks like."),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="What is put around the words at {}; repeatable, several are averaged. "
            "By default the words are taken as they are."
        ),
    ] = None,
    top: TopOption = 8,
    filter: FilterOption = None,
    columns: ColumnsOption = None,
    format: FormatOption = "table",
    out: ResultOption = None,
    picture: PictureOption = None,
    teacher: TeacherOption = None,
    pretrained: PretrainedOption = None,
    device: DeviceOption = None,
    download: DownloadOption = False,
    storage_option: StorageOption = None,
) -> None:
    """List the regions that look most like a text, a picture or a stored region.

    Texts and pictures are embedded by the store's own teacher. The `sample` teacher knows drawings
    only. Example: tap-data search store "a red bus" --top 12 --picture found.png
    """
    with command_errors():
        from tap_engine.pipeline import nearest as searching
        from tap_engine.schemas.errors import ConfigError

        if [text, image, key].count(None) != 2:
            raise ConfigError("give one thing to look for: a text, --image or --key")
        if template and text is None:
            raise ConfigError("--template goes around a text: give one")
        opened = store_at(store, storage_option)
        wanted = _columns(columns)
        if key is not None:
            found = searching.nearest_regions(opened, key, top=top, filter_=filter, columns=wanted)
        else:
            loaded = searching.stored_teacher(
                opened,
                name=teacher,
                pretrained=pretrained,
                device=device or "auto",
                download=download,
            )
            if text is not None:
                templates = tuple(template or searching.AS_TYPED)
                found = searching.search_text(
                    opened,
                    text,
                    loaded,
                    templates=templates,
                    top=top,
                    filter_=filter,
                    columns=wanted,
                )
                said = ", ".join(repr(one.format(text)) for one in templates)
                typer.echo(f"looked for {said} with {loaded.info.name}", err=True)
            else:
                from tap_engine.model.image_input import open_image

                assert image is not None
                found = searching.search_image(
                    opened, open_image(image), loaded, top=top, filter_=filter, columns=wanted
                )
        _show(opened, found, format, out, picture)


def nearest(
    store: StoreArgument,
    key: Annotated[
        int,
        typer.Option(
            min=0, max=MAX_KEY, help="The key of the region to start from; `query` lists keys."
        ),
    ],
    top: TopOption = 8,
    filter: FilterOption = None,
    columns: ColumnsOption = None,
    format: FormatOption = "table",
    out: ResultOption = None,
    picture: PictureOption = None,
    storage_option: StorageOption = None,
) -> None:
    """List the regions whose embeddings are most similar to those of one region."""
    with command_errors():
        from tap_engine.pipeline.nearest import nearest_regions

        opened = store_at(store, storage_option)
        found = nearest_regions(opened, key, top=top, filter_=filter, columns=_columns(columns))
        _show(opened, found, format, out, picture)


def _columns(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",")] if text else None


def _show(
    store: "Store", found: "pa.RecordBatch", format_: str, out: str | None, picture: Path | None
) -> None:
    from tap_engine.jobs.output import write_rows

    write_rows([found], format_, out)
    if picture is None:
        return
    from tap_engine.pipeline.inspection import draw_regions
    from tap_engine.schemas.errors import ConfigError

    if "key" not in found.schema.names:
        raise ConfigError("--picture needs the column key: add it to --columns")
    if not found.num_rows:
        typer.echo("nothing was found, so there is no picture", err=True)
        return
    texts = [f"{value:.3f}" for value in found["similarity"].to_pylist()]
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw_regions(store, found["key"].to_pylist(), texts).save(picture)
    typer.echo(f"drew {found.num_rows} regions: {picture}", err=True)

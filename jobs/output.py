"""What all commands print: errors in one line, summaries that say what to do next."""

import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pyarrow as pa

    from tap_engine.pipeline.estimate import Estimate
    from tap_engine.pipeline.inspection import RegionView, StoreOverview
    from tap_engine.pipeline.summary import BuildSummary

FAILED = 1
REJECTS_ABOVE_LIMIT = 3
NOT_VALID = 4
INTERRUPTED = 130

TRAIN, EVALUATE, PUBLISH = "Train", "Evaluate", "Publish"
"""Panels of `tap-train --help`."""


def add_version(app: typer.Typer) -> None:
    """Give a program `--version`; with it, a program of one command still names that command."""

    def show(wanted: bool) -> None:
        if wanted:
            from tap_engine import __version__

            typer.echo(f"tap-engine {__version__}")
            raise typer.Exit

    @app.callback()
    def options(
        version: Annotated[
            bool,
            typer.Option("--version", help="Print the version.", callback=show, is_eager=True),
        ] = False,
    ) -> None:
        pass


@contextmanager
def command_errors() -> Iterator[None]:
    """Turn errors that a user can mend into a message and exit code 1, without a traceback."""
    from tap_engine.schemas.errors import TapError

    try:
        yield
    except TapError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(FAILED)
    except KeyboardInterrupt as error:
        typer.echo("interrupted; the same command continues", err=True)
        sys.exit(128 + getattr(error, "signal", 2))
    except BrokenPipeError:
        # Whoever read the output has seen enough: `| head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(FAILED)
    except OSError as error:
        # A path or a disk that the user can mend: which, and the system's words.
        places = [str(p) for p in (error.filename, error.filename2) if p]
        words = error.strerror or (str(error).strip().splitlines() or [type(error).__name__])[-1]
        typer.echo(f"{type(error).__name__}: {': '.join([*places, words[:300]])}", err=True)
        sys.exit(FAILED)
    except Exception as error:
        # Damaged files, as the libraries that read them say it.
        if type(error).__module__.split(".")[0] not in ("pyarrow", "safetensors_rust"):
            raise
        typer.echo(f"{type(error).__name__}: {str(error)[:300]}", err=True)
        sys.exit(FAILED)


def local_folder(path: Path | str, option: str = "--out") -> Path:
    """A folder that a command will write to, made now: not after hours of work.

    Raises:
        ConfigError: it is a URI, a file stands there, or it cannot be made.
    """
    from tap_engine.schemas.errors import ConfigError

    place = _local(path, option)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{option} {place} cannot be made: {error.strerror}") from error
    if not os.access(place, os.W_OK):
        raise ConfigError(f"{option} {place} cannot be written: permission denied")
    return place


def local_file(path: Path | str, option: str, endings: tuple[str, ...] = ()) -> Path:
    """A file that a command will write, whose folder is made now.

    Raises:
        ConfigError: it is a URI, of another ending, a folder, or its folder cannot be written.
    """
    from tap_engine.schemas.errors import ConfigError

    place = _local(path, option)
    if endings and place.suffix.lower() not in endings:
        raise ConfigError(f"{option} {place}: expected a name that ends in {', '.join(endings)}")
    if place.is_dir():
        raise ConfigError(f"{option} {place} is a folder, expected a file")
    local_folder(place.parent, option)
    return place


def local_only(value: Path | None) -> Path | None:
    """Callback of an option that names a folder: no URI, which would become a folder `s3:`."""
    return _checked(value, lambda path: _local(path, "the path"))


def new_file(value: Path | None) -> Path | None:
    """Callback of an option that names a file to write: its folder is made, before any work."""
    return (
        value if str(value) == "-" else _checked(value, lambda path: local_file(path, "the path"))
    )


def new_picture(value: Path | None) -> Path | None:
    """The same for a picture, whose ending says its form."""
    return _checked(value, lambda path: local_file(path, "the path", PICTURES))


def _checked(value: Path | None, check: Callable[[Path], Path]) -> Path | None:
    from tap_engine.schemas.errors import ConfigError

    try:
        return None if value is None else check(value)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Endings of pictures that Pillow writes."""


def _local(path: Path | str, option: str) -> Path:
    from tap_engine.schemas.errors import ConfigError

    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):  # Path makes s3:/ of s3://
        raise ConfigError(
            f"{option} {path} must be a local file or folder; copy the result to the bucket "
            "afterwards"
        )
    return Path(path)


def print_build_summary(summary: "BuildSummary", out: str) -> None:
    """Prints counts, seconds per stage, what was left out, and what to run next."""
    typer.echo(
        f"built {summary.images:,} images and {summary.regions:,} regions in "
        f"{summary.seconds:.1f} s ({summary.built_before:,} of {summary.total_images:,} images "
        "were there before)"
    )
    if summary.stage_seconds:
        stages = ", ".join(f"{name} {spent:.1f}" for name, spent in summary.stage_seconds.items())
        typer.echo(f"seconds by stage, all workers together: {stages}")
    left_out = summary.rejected_images + summary.rejected_regions
    if left_out:
        reasons = ", ".join(f"{count:,} {name}" for name, count in summary.rejects.most_common())
        typer.echo(f"left out: {left_out:,} ({reasons}); see table `rejects`")
    for failure in summary.failed:
        typer.echo(f"FAILED unit, tried again by the same command: {failure}", err=True)
    typer.echo(f"next: tap-data verify {out}")


def print_nothing_built(summary: "BuildSummary") -> bool:
    """Whether the store holds no image at all; says so, as an empty store is of no use."""
    if summary.images or summary.built_before:
        return False
    reasons = ", ".join(f"{count:,} {name}" for name, count in summary.rejects.most_common())
    typer.echo(
        f"nothing was built: the store holds no image ({reasons or 'the source is empty'}); "
        "`tap-data check-source` lists why. Own photos with COCO-style json, masks or the like are "
        "read by --source auto",
        err=True,
    )
    return True


def print_left_out(summary: "BuildSummary", limit: float) -> bool:
    """Tells whether more than `limit` was left out, and prints it."""
    if summary.reject_share <= limit:
        return False
    typer.echo(
        f"{summary.reject_share:.2%} was left out, more than max_reject_share={limit:g} allows; "
        "the store is complete and valid without it",
        err=True,
    )
    return True


def parse_pairs(options: list[str] | None) -> list[tuple[str, str]]:
    """KEY=VALUE options of a command.

    Raises:
        ConfigError: one without "=".
    """
    from tap_engine.schemas.errors import ConfigError

    pairs = []
    for option in options or []:
        key, sign, value = option.partition("=")
        if not sign:
            raise ConfigError(f"--storage-option must be KEY=VALUE, got {option!r}")
        pairs.append((key, value))
    return pairs


def print_estimate(found: "Estimate", out: str) -> None:
    """Prints the plan of a build and its cost."""
    from tap_engine.pipeline.estimate import gigabytes

    about = "" if found.exact else "about "
    typer.echo(
        f"input: {found.shards:,} shards of {gigabytes(found.shard_bytes)}, {about}"
        f"{found.images:,} images, about {found.regions:,} regions "
        f"(from {found.sampled_images} sampled images)"
    )
    typer.echo(f"store: about {gigabytes(found.store_bytes)} at {out}")
    typer.echo(
        f"crops: {1000 * found.prepare_s:.1f} core-ms per image to read, decode and crop, "
        f"{found.core_hours:,.2f} core-hours in all"
    )
    if found.crops_per_s and found.teacher_hours is not None:
        typer.echo(
            f"teacher: {found.crops_per_s:,.0f} crops/s on {found.device} here, "
            f"{found.teacher_hours:,.2f} device-hours in all"
        )
    if found.layout:
        typer.echo(f"this machine would start {found.layout.describe()}")
    for warning in found.warnings:
        typer.echo(f"WARNING: {warning}")
    typer.echo("nothing was written; the same command without --dry-run builds")


def print_overview(found: "StoreOverview", as_json: bool) -> None:
    """Prints rows, columns, sources, rejects and provenance of a store."""
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=1))
        return
    for table, rows in found.rows.items():
        typer.echo(f"{table}: {rows:,} rows")
        for column in found.columns[table]:
            typer.echo(f"    {column}")
    sources = ", ".join(f"{name} {count:,}" for name, count in found.sources.items())
    units = f", in {found.units:,} units" if found.units else ""
    typer.echo(f"images by source: {sources or 'none'}{units}")
    reasons = ", ".join(f"{name} {count:,}" for name, count in found.rejects.items())
    typer.echo(f"rejects: {reasons or 'none'}")
    for part, value in (*found.settings.items(), ("made", found.made)):
        typer.echo(f"{part}: {json.dumps(value)}")


def print_region(region: "RegionView", path: str, as_json: bool) -> None:
    """Prints one region's row and concepts."""
    concepts = [{"name": name, "probability": round(share, 4)} for name, share in region.concepts]
    if as_json:
        typer.echo(json.dumps({**region.row, "concepts": concepts, "picture": path}))
        return
    for name, value in region.row.items():
        typer.echo(f"{name}: {value}")
    for name, share in region.concepts:
        typer.echo(f"    {share:7.3f}  {name}")
    typer.echo(f"picture: {path}")


def write_rows(batches: Iterable["pa.RecordBatch"], format_: str, out: str | None) -> None:
    """Rows as a text table, json lines, csv or parquet; batch by batch but for the text table.

    Raises:
        ConfigError: an unknown format, or parquet to the screen.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    from tap_engine.schemas.errors import ConfigError
    from tap_engine.schemas.filesystem import open_filesystem

    if format_ not in ("table", "json", "csv", "parquet"):
        raise ConfigError(f"--format must be table, json, csv or parquet, got {format_!r}")
    if format_ == "parquet" and out is None:
        raise ConfigError("--format parquet needs --out FILE")
    batches = iter(batches)
    first = next(batches)  # before the file is made: a bad filter must not leave an empty one
    count = 0

    def all_batches() -> Iterator["pa.RecordBatch"]:
        nonlocal count
        for batch in itertools.chain([first], batches):
            count += batch.num_rows
            yield batch

    if out is None and format_ in ("table", "json"):
        rows = (row for batch in all_batches() for row in batch.to_pylist())
        lines = (
            _text_table(first.schema.names, list(rows))
            if format_ == "table"
            else (json.dumps(row, default=_plain) for row in rows)
        )
        for line in lines:
            typer.echo(line)
        return
    sink: Any
    if out is None:
        sink = pa.PythonFile(sys.stdout.buffer, mode="w")
    else:
        filesystem, path = open_filesystem(out)
        sink = filesystem.open_output_stream(path)
    with sink:
        if format_ == "parquet":
            with pa.parquet.ParquetWriter(sink, first.schema) as parquet:
                for batch in all_batches():
                    parquet.write_batch(batch)
        elif format_ == "csv":
            flat = _flat_schema(first.schema)
            with pa.csv.CSVWriter(sink, flat) as csv:
                for batch in all_batches():
                    csv.write_batch(_flat_batch(batch, flat))
        else:
            for batch in all_batches():
                for row in batch.to_pylist():
                    sink.write((json.dumps(row, default=_plain) + "\n").encode())
    if out is not None:
        typer.echo(f"wrote {count:,} rows to {out}", err=True)


def _text_table(names: list[str], rows: list[dict[str, Any]]) -> Iterator[str]:
    cells = [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(names, *cells, strict=True)]
    for line in (names, ["-" * width for width in widths], *cells):
        yield "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
    yield f"{len(rows):,} rows"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        shown = ", ".join(_cell(item) for item in value[:8])
        return f"[{shown}{', ...' if len(value) > 8 else ''}]"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return "" if value is None else str(value)


def _plain(value: Any) -> Any:
    """Bytes of an RLE are ASCII; anything else json does not know is shown as text."""
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def _flat_schema(schema: "pa.Schema") -> "pa.Schema":
    """CSV knows no lists and no dictionaries: they become text."""
    import pyarrow as pa

    nested = (pa.types.is_nested, pa.types.is_dictionary, pa.types.is_binary)
    return pa.schema(
        [
            pa.field(f.name, pa.string()) if any(is_a(f.type) for is_a in nested) else f
            for f in schema
        ]
    )


def _flat_batch(batch: "pa.RecordBatch", flat: "pa.Schema") -> "pa.RecordBatch":
    import pyarrow as pa

    columns = []
    for field, column in zip(flat, batch.columns, strict=True):
        if field.type == column.type:
            columns.append(column)
        else:
            values = (_plain(v) if isinstance(v, bytes) else v for v in column.to_pylist())
            texts = [v if isinstance(v, str) else json.dumps(v, default=_plain) for v in values]
            columns.append(pa.array(texts, pa.string()))
    return pa.record_batch(columns, schema=flat)

"""What the commands that train share: their options, and how a run ends."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Change a setting, such as train.steps=100; repeatable."
    ),
]
ResumeOption = Annotated[
    str,
    typer.Option(
        help="'auto' continues from the newest checkpoint, 'never' refuses to; or a checkpoint "
        "folder."
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")
]


@contextmanager
def training_session() -> Iterator[None]:
    """Ends a run: a stop that was asked for becomes its exit code, and the processes part."""
    from tap_engine.train import distributed
    from tap_engine.train.loop import Interrupted

    try:
        yield
    except Interrupted as stopped:
        if distributed.is_main():
            typer.echo(f"{stopped}; the same command goes on")
        sys.exit(128 + stopped.signal)
    finally:
        distributed.stop()

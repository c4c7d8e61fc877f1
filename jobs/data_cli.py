"""The program `tap-data`: builds stores, looks into them and changes them."""

import typer

from tap_engine.jobs import (
    build_commands,
    caption_commands,
    change_commands,
    chat_commands,
    look_commands,
    sample_commands,
    search_commands,
    source_commands,
)
from tap_engine.jobs.output import add_version

app = typer.Typer(
    help="Build, inspect and check SemanticSA-1B stores.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
add_version(app)
for commands in (
    build_commands,
    source_commands,
    caption_commands,
    look_commands,
    search_commands,
    change_commands,
    sample_commands,
):
    commands.register(app)
chat_commands.register_data(app)


def main() -> None:
    """Entry point of `tap-data`."""
    app()

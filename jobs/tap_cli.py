"""The program `tap`: uses a model. It imports no training code and no Ray."""

import typer

from tap_engine.jobs import chat_commands, everything_commands, predict_commands
from tap_engine.jobs.output import add_version

main = typer.Typer(
    help="Use a TAP model: masks, names and captions of any region of a picture.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

add_version(main)
predict_commands.register(main)
everything_commands.register(main)
chat_commands.register(main)

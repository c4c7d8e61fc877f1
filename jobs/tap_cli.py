"""`tap`: use a model. No training code and no Ray are imported here; one file per command group."""

import typer

from tap_engine.jobs import chat_commands, predict_commands
from tap_engine.jobs.output import add_version

main = typer.Typer(
    help="Use a TAP model: masks, names and captions of any region of a picture.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

add_version(main)
predict_commands.register(main)
chat_commands.register(main)

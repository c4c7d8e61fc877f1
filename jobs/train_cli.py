"""The program `tap-train`: trains and evaluates models."""

from pathlib import Path
from typing import Annotated

import typer

from tap_engine.jobs import (
    chat_commands,
    eval_commands,
    ovsam_commands,
    ovsam_eval_commands,
    predict_commands,
    train_commands,
)
from tap_engine.jobs.output import PUBLISH, add_version, command_errors

main = typer.Typer(
    help="Train and evaluate TAP models. `tap` uses them, `tap-data` builds what they learn from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def convert_weights(
    source: Annotated[
        Path,
        typer.Argument(
            help="The file to convert: an official .pkl (model or concepts), or one of ours."
        ),
    ],
    target: Annotated[
        Path, typer.Argument(help="The folder or .safetensors to write; a .pkl converts back.")
    ],
) -> None:
    """Convert official weights or concepts to safetensors, without running the pickle; or back."""
    with command_errors():
        from tap_engine.model.weight_conversion import convert

        for line in convert(source, target):
            typer.echo(line)


add_version(main)
train_commands.register(main)
eval_commands.register(main)
chat_commands.register_training(main)
ovsam_commands.register(main)
ovsam_eval_commands.register(main)
main.command("convert-weights", rich_help_panel=PUBLISH)(convert_weights)
predict_commands.register(main, hidden=True)  # its place is `tap`

if __name__ == "__main__":  # torchrun -m tap_engine.jobs.train_cli
    main()

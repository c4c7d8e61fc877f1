"""The command of `tap` that looks without being asked: everything."""

from pathlib import Path
from typing import Annotated

import typer

from tap_engine.jobs.output import command_errors


def register(app: typer.Typer) -> None:
    """Add the command to a program."""
    app.command("everything")(everything)


def everything(
    photos: Annotated[Path, typer.Argument(help="A photo, or a folder of photos.")],
    model: Annotated[
        Path,
        typer.Option(
            help="The model: a checkpoint folder, a .safetensors file, or 'sample' (it knows "
            "drawings only)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write pictures and json to.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change a setting of SAM's generator: points_per_side=16, crop_n_layers=1, "
            "pred_iou_thresh=0.7, ...; repeatable.",
        ),
    ] = None,
    pictures: Annotated[bool, typer.Option(help="Draw the masks on their photos.")] = True,
    device: Annotated[str, typer.Option(help="The device: auto, cpu, cuda or cuda:1.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="The precision of the arithmetic: auto, fp32, fp16 or bf16.")
    ] = "fp32",
) -> None:
    """Find every region of photos; write pictures, COCO json, labelme json and SAM-style json.

    Example: tap everything photos --model checkpoints/tap-b --out found --set points_per_side=16
    """
    with command_errors():
        from tap_engine.model.everything import EverythingConfig
        from tap_engine.model.everything_files import run_everything
        from tap_engine.model.predictor import Tap
        from tap_engine.schemas.precision import check_precision
        from tap_engine.schemas.settings import with_overrides

        check_precision(precision, "--precision")
        config = with_overrides(EverythingConfig(), set_ or [])
        tap = Tap.from_pretrained(model, device=device, precision=precision)  # type: ignore[arg-type]
        for line in run_everything(photos, tap, out, config, pictures=pictures):
            typer.echo(line)

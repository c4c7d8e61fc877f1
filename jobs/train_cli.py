"""`tap-train`: thin commands that parse, call one function and print one summary."""

from pathlib import Path
from typing import Annotated

import typer

from tap_engine.jobs import eval_commands, train_commands
from tap_engine.jobs.output import command_errors

main = typer.Typer(
    help="Train, evaluate and use TAP models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@main.command("convert-weights")
def convert_weights(
    source: Annotated[Path, typer.Argument(help="Official .pkl (model or concepts), or ours.")],
    target: Annotated[Path, typer.Argument(help="Folder or .safetensors; .pkl for the way back.")],
) -> None:
    """Official weights and concepts to safetensors, without running the pickle; and back."""
    with command_errors():
        from tap_engine.jobs.weight_conversion import convert

        for line in convert(source, target):
            typer.echo(line)


@main.command()
def predict(
    image: Annotated[Path, typer.Argument(help="A picture in any usual format.")],
    model: Annotated[Path, typer.Option(help="Checkpoint folder or .safetensors file.")],
    box: Annotated[
        list[str] | None, typer.Option(help="left,top,right,bottom px; a region each.")
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(help='x,y px, several of one region as "x,y x,y,0" (0: not in it).'),
    ] = None,
    mask: Annotated[
        list[Path] | None, typer.Option(help="Picture of a mask or sketch; inside is not black.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Picture to write; default IMAGE.tap.png, here.")
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Regions as json; - prints them.")
    ] = None,
    concepts: Annotated[
        str | None, typer.Option(help="Only these names: a vocabulary file, or a,b,c.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Teacher of this model, to embed names it has no table of.")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Names a region.")] = 5,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = "cpu",
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Masks, names and captions of prompted regions, as a picture and as json."""
    with command_errors():
        from tap_engine.jobs.prediction import PredictRequest, run_prediction

        request = PredictRequest(
            image=image,
            model=model,
            boxes=box or [],
            points=point or [],
            masks=mask or [],
            out=out,
            json_out=json_out,
            concepts=concepts,
            teacher=teacher,
            top_k=top_k,
            device=device,
            precision=precision,
        )
        for line in run_prediction(request):
            typer.echo(line)


train_commands.register(main)
eval_commands.register(main)

if __name__ == "__main__":  # torchrun -m tap_engine.jobs.train_cli
    main()

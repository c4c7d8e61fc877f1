"""Commands of `tap` that ask a model about regions of a picture: predict."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tap_engine.jobs.output import command_errors, new_file, new_picture

if TYPE_CHECKING:
    from tap_engine.model.concepts import ConceptTable


def register(app: typer.Typer, *, hidden: bool = False) -> None:
    """Add the commands to a program; hidden from its help where they belong to another."""
    app.command("predict", hidden=hidden)(predict)


def predict(
    image: Annotated[Path, typer.Argument(help="A picture in any usual format.")],
    model: Annotated[
        Path, typer.Option(help="The model: a checkpoint folder, a .safetensors file, or 'sample'.")
    ],
    box: Annotated[
        list[str] | None,
        typer.Option(help="A box in px as left,top,right,bottom; repeatable, one region per box."),
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(
            help='Clicks in px as x,y; "x,y x,y,0" are two of one region, the second outside it.'
        ),
    ] = None,
    mask: Annotated[
        list[Path] | None,
        typer.Option(
            help="A picture of a mask or sketch: what is not black is inside; repeatable."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            callback=new_picture,
            help="The picture to write; IMAGE.tap.png in this folder by default.",
        ),
    ] = None,
    json_out: Annotated[
        Path | None,
        typer.Option(
            "--json",
            callback=new_file,
            help="The json file to write; - prints json instead of text.",
        ),
    ] = None,
    concepts: Annotated[
        str | None, typer.Option(help="The names to choose from: a vocabulary file, or a,b,c.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="The CLIP teacher of this model, which embeds names that the model's table lacks."
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(help="The number of names per region.")] = 5,
    device: Annotated[str, typer.Option(help="The device: auto, cpu, cuda or cuda:1.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="The precision of the arithmetic: auto, fp32, fp16 or bf16.")
    ] = "fp32",
) -> None:
    """Predict mask, name and caption of prompted regions; write a picture and json."""
    with command_errors():
        from tap_engine.model.prediction import PredictRequest, run_prediction

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
        for line in run_prediction(request, _embed):
            typer.echo(line)


def _embed(names: tuple[str, ...], teacher: str) -> "ConceptTable":
    from tap_engine.jobs.data_engine import embed_names  # the data engine, only where needed

    return embed_names(names, teacher)

"""Commands of `tap` that ask a model about prompted regions of a picture: predict."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tap_engine.jobs.output import command_errors

if TYPE_CHECKING:
    from tap_engine.model.concepts import ConceptTable


def register(app: typer.Typer, *, hidden: bool = False) -> None:
    """Add the commands to a program; hidden from its help where they belong to another."""
    app.command("predict", hidden=hidden)(predict)


def predict(
    image: Annotated[Path, typer.Argument(help="A picture in any usual format.")],
    model: Annotated[Path, typer.Option(help="Checkpoint folder or .safetensors file.")],
    box: Annotated[
        list[str] | None, typer.Option(help="left,top,right,bottom px; one region for each.")
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
    top_k: Annotated[int, typer.Option(help="Names per region.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16 or bf16.")] = "fp32",
) -> None:
    """Masks, names and captions of prompted regions, as a picture and as json."""
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

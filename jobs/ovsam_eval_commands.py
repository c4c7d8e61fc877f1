"""Commands that measure Open-Vocabulary SAM: the interactive protocol, and each stage's figures."""

from pathlib import Path
from typing import Annotated

import typer

from tap_engine.jobs.output import EVALUATE, command_errors

Store = Annotated[str, typer.Option(help="Store of sample-world scenes that were not trained on.")]
TruthFile = Annotated[str, typer.Option(help="Truth table of these scenes: file or folder.")]
Images = Annotated[int, typer.Option(help="How many of its images.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to `tap-train`."""
    app.command("ovsam-eval", rich_help_panel=EVALUATE)(interactive)
    app.command("ovsam-distilled", rich_help_panel=EVALUATE)(distilled)
    app.command("ovsam-sample", rich_help_panel=EVALUATE)(sample)


def interactive(
    model: Annotated[Path, typer.Argument(help="Run or checkpoint of stage 2.")],
    annotations: Annotated[Path, typer.Option(help="Annotations in COCO's or LVIS's form.")],
    images: Annotated[Path, typer.Option(help="Folder of the pictures.")],
    out: Annotated[Path, typer.Option(help="Folder of answers and report; goes on there.")],
    split: Annotated[str, typer.Option(help="coco: 48 base, 17 novel; lvis: 866, 337.")] = "coco",
    prompt: Annotated[str, typer.Option(help="box, or point: the centre of each mask.")] = "box",
    leak: Annotated[
        bool,
        typer.Option(
            "--leak-ground-truth-boxes",
            help="Read regions from true boxes for points too, as the paper's Table 1 does.",
        ),
    ] = False,
    table: Annotated[
        Path | None, typer.Option("--classes", help="Class table; the model's own by default.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Only the first so many pictures; 0 for all.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
) -> None:
    """IoU and accuracy of base and novel classes, prompts from ground truth."""
    with command_errors():
        from tap_engine.model.ovsam.classes import ClassTable
        from tap_engine.model.ovsam.predictor import OpenVocabularySam
        from tap_engine.train.checkpoint import model_folder
        from tap_engine.train.ovsam.interactive_run import InteractiveRequest, evaluate_interactive

        request = InteractiveRequest(
            annotations=annotations,
            images=images,
            out=out,
            split=split,
            prompt=prompt,
            leak=leak,
            limit=limit,
        )
        predictor = OpenVocabularySam.from_pretrained(model_folder(model), device=device)
        if table is not None:
            predictor.set_concepts(ClassTable.load(table))
        report = evaluate_interactive(predictor, request, typer.echo)
    if leak:
        typer.echo("regions were read from ground-truth boxes: comparable with the paper alone")
    for name, value in report["figures"].items():
        typer.echo(f"{name:12} {value:.3f}")


def distilled(
    model: Annotated[Path, typer.Argument(help="Run or checkpoint of stage 1.")],
    store: Store,
    truth: TruthFile,
    teacher: Annotated[str, typer.Option(help="The TAP that taught it.")] = "sample",
    images: Images = 60,
    as_json: Annotated[bool, typer.Option("--json", help="One line of json.")] = False,
) -> None:
    """Stage 1: squared error left, and masks of the teacher's untouched decoder."""
    with command_errors():
        import json

        from tap_engine.model.checkpoint import load_model
        from tap_engine.model.ovsam.checkpoint import load_ovsam
        from tap_engine.schemas.truth import Truth
        from tap_engine.train.checkpoint import model_folder
        from tap_engine.train.held_out_data import open_measured
        from tap_engine.train.ovsam.measure import distilled_figures, scenes_of

        scenes = list(scenes_of(open_measured(store), Truth.read(truth), images))
        student = load_ovsam(model_folder(model))
        figures = distilled_figures(student, load_model(model_folder(Path(teacher))), scenes)
    if as_json:
        typer.echo(json.dumps(figures))
        return
    for name, value in figures.items():
        typer.echo(f"{name:12} {value:.3f}")


def sample(
    model: Annotated[Path, typer.Argument(help="Run or checkpoint of stage 2.")],
    store: Store,
    truth: TruthFile,
    clip: Annotated[
        str, typer.Option(help="The whole CLIP, for the image-crop rows; none without.")
    ] = "",
    prompt: Annotated[str, typer.Option(help="box, or point: the centre of each mask.")] = "box",
    images: Images = 60,
    as_json: Annotated[bool, typer.Option("--json", help="One line of json.")] = False,
) -> None:
    """Stage 2: accuracy of head, frozen CLIP and both, and IoU, beside the image-crop baselines."""
    with command_errors():
        import json

        from tap_engine.jobs.ovsam_classes import crop_encoders
        from tap_engine.model.ovsam.predictor import OpenVocabularySam
        from tap_engine.schemas.errors import ConfigError
        from tap_engine.schemas.truth import Truth
        from tap_engine.train.checkpoint import model_folder
        from tap_engine.train.held_out_data import open_measured
        from tap_engine.train.ovsam.measure import naming_scores, scenes_of, table_of

        if prompt not in ("box", "point"):
            raise ConfigError(f"--prompt must be box or point, got {prompt!r}")
        scenes = list(scenes_of(open_measured(store), Truth.read(truth), images))
        predictor = OpenVocabularySam.from_pretrained(model_folder(model))
        crops = crop_encoders(clip) if clip else None
        scores = naming_scores(predictor, scenes, prompt=prompt, crops=crops)
    if as_json:
        typer.echo(json.dumps({name: score.figures() for name, score in scores.items()}))
    else:
        typer.echo(table_of(scores))

"""Evaluation commands of `tap-train`: predict, score, compare."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tap_engine.jobs.output import EVALUATE, command_errors, local_only
from tap_engine.train.evaluation.tasks import task_names

if TYPE_CHECKING:
    from tap_engine.train.evaluation.report import Score
    from tap_engine.train.evaluation.request import DataEngine


def register(app: typer.Typer) -> None:
    """Add the commands to `tap-train`."""
    for name, command in (
        ("eval", evaluate),
        ("score", score),
        ("report", report),
        ("ablate", ablate),
    ):
        app.command(name, rich_help_panel=EVALUATE)(command)


def evaluate(
    data: Annotated[
        str,
        typer.Option(
            help="The data: 'sample', a COCO, LVIS or GRiT json, a refs(umd).p, or a store."
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="The model: a run folder or a checkpoint folder.")
    ] = None,
    out: Annotated[
        str, typer.Option(help="The folder or URI for predictions, scores and report.")
    ] = "eval",
    task: Annotated[
        list[str] | None,
        typer.Option(
            help=f"The evaluation: {', '.join(task_names())}; repeatable. By default all that "
            "data and model allow."
        ),
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="The folder with the images of a json or pickle.")
    ] = None,
    boxes: Annotated[
        str | None,
        typer.Option(
            help="A detector's results (.json) as box prompts for segmentation; ground "
            "truth boxes by default."
        ),
    ] = None,
    truth: Annotated[str | None, typer.Option(help="The truth table of a sample store.")] = None,
    instances: Annotated[
        str | None, typer.Option(help="The instances.json that belongs to a refs pickle.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="The part to use: val, train or test of a refs pickle, or "
            "FILE.json:NAME of a store."
        ),
    ] = None,
    references: Annotated[
        str,
        typer.Option(
            help="What is one question: a 'region', a 'sentence' of a refs pickle, or a "
            "'box' of a store."
        ),
    ] = "region",
    concepts: Annotated[
        str | None, typer.Option(help="A concepts.safetensors with the data's class names.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="The CLIP model that embeds the class names if there is no --concepts."),
    ] = None,
    crops_with: Annotated[
        str | None, typer.Option(help="Classify crops with this CLIP model instead of --model.")
    ] = None,
    crop_fill: Annotated[
        str, typer.Option(help="What a crop shows outside of the mask: keep, mean or black.")
    ] = "keep",
    limit: Annotated[int, typer.Option(min=0, help="Use only the first N images; 0 uses all.")] = 0,
    device: Annotated[str, typer.Option(help="The device: auto, cpu, cuda or cuda:1.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="The precision of the arithmetic: auto, fp32, fp16 or bf16.")
    ] = "fp32",
    chunk: Annotated[
        int,
        typer.Option(
            min=1, help="The number of prompts that are decoded at a time; it bounds memory."
        ),
    ] = 64,
    name: Annotated[str | None, typer.Option(help="The name of the row in the tables.")] = None,
    data_name: Annotated[
        str,
        typer.Option(
            help="The name of the data set, which files do not record: coco, lvis, refcocog, ..."
        ),
    ] = "",
    box_source: Annotated[
        str,
        typer.Option(
            help="The detector that made --boxes, such as vitdet-h; the file's name by default."
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print json instead of a table.")] = False,
) -> None:
    """Let a model answer the papers' evaluations, then score its answers.

    The same command again continues where it stopped. Under torchrun, ranks share the images.
    """
    with command_errors():
        from tap_engine.train.evaluation.data_choice import DataChoice
        from tap_engine.train.evaluation.request import EvalRequest, run_evaluation

        choice = DataChoice(
            name=data,
            references=references,
            images=images,
            instances=instances,
            split=split,
            truth_table=truth,
            limit=limit,
        )
        request = EvalRequest(
            model=model,
            crops_with=crops_with,
            crop_fill=crop_fill,
            data=choice,
            out=out,
            tasks=tuple(task or ()),
            boxes=boxes,
            concepts=concepts,
            teacher=teacher,
            device=device,
            precision=precision,
            chunk=chunk,
            name=name,
            data_name=data_name,
            box_source=box_source,
        )
        scores = run_evaluation(request, _data_engine(), _progress)
        if scores:
            folder = None if "://" in out else Path(out)
            if folder is not None:
                _save(scores, folder)
            _show(scores, folder, as_json=as_json)


def ablate(
    out: Annotated[
        Path, typer.Option(callback=local_only, help="The folder for runs, predictions and report.")
    ],
    store: Annotated[
        list[str] | None,
        typer.Option(help="A store of the sample world to pre-train on; repeatable."),
    ] = None,
    captions: Annotated[
        str,
        typer.Option(
            help="A captioned store; adds the ablation of semantic token against mask token."
        ),
    ] = "",
    model: Annotated[
        str, typer.Option(help="The model to tune on --captions, instead of pre-training one.")
    ] = "",
    recipe: Annotated[
        str, typer.Option(help="The recipe that all pre-trainings start from.")
    ] = "sample",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change a setting of all pre-trainings."),
    ] = None,
    table: Annotated[
        str,
        typer.Option(
            help="The ablation: tasks (concepts or features, which token), masks (what concepts "
            "cost the masks), scale (images and steps), or text (size of the text decoder)."
        ),
    ] = "tasks",
    set_captions: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Change a setting of all caption tunings."),
    ] = None,
    limit: Annotated[int, typer.Option(help="The number of held-out scenes; 0 takes 100.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print json instead of a table.")] = False,
) -> None:
    """Train the papers' ablations on the sample world and set their scores side by side.

    The same command again continues where it stopped.
    """
    with command_errors():
        from tap_engine.train.ablation import AblationRequest, run_ablation
        from tap_engine.train.loop import Interrupted

        request = AblationRequest(
            stores=tuple(store or ()),
            out=out,
            recipe=recipe,
            overrides=tuple(set_ or ()),
            limit=limit,
            captions=captions,
            caption_overrides=tuple(set_captions or ()),
            model=model,
            table=table,
        )
        try:
            scores = run_ablation(request, _data_engine(), _progress)
        except Interrupted as stopped:
            typer.echo(f"{stopped}; the same command goes on", err=True)
            sys.exit(128 + stopped.signal)
        _show(scores, out, as_json=as_json)


def score(
    protocol: Annotated[
        str,
        typer.Option(
            help="The protocol: coco-segm, coco-bbox, lvis-segm, lvis-bbox, or another task's name."
        ),
    ],
    truth: Annotated[
        str,
        typer.Option(
            help="The ground truth: a COCO, LVIS or GRiT json, 'sample', a refs(umd).p, or a store."
        ),
    ],
    predictions: Annotated[
        str,
        typer.Option(
            help="The predictions: COCO results (.json), .parquet, .lance, or a folder "
            "that `eval` wrote."
        ),
    ],
    name: Annotated[str, typer.Option(help="The name of the row in the tables.")] = "this run",
    data: Annotated[
        str,
        typer.Option(
            help="The name of the data set, which files do not record: coco, lvis, refcocog, ..."
        ),
    ] = "",
    box_source: Annotated[
        str,
        typer.Option(
            help="The origin of the box prompts, which files do not record: gt, vitdet-h, ..."
        ),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            callback=local_only, help="The folder for score.json, report.md and report.json."
        ),
    ] = None,
    instances: Annotated[
        str | None, typer.Option(help="The instances.json that belongs to a refs pickle.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="The part to use: val, train or test of a refs pickle, or "
            "FILE.json:NAME of a store."
        ),
    ] = None,
    references: Annotated[
        str,
        typer.Option(
            help="What is one question: a 'region', a 'sentence' of a refs pickle, or a "
            "'box' of a store."
        ),
    ] = "region",
    truth_table: Annotated[
        str | None, typer.Option(help="The truth table of a sample store.")
    ] = None,
    limit: Annotated[
        int,
        typer.Option(
            help="Score only the first N images: the N that was given to `eval`. 0 scores all."
        ),
    ] = 0,
    partial: Annotated[
        bool, typer.Option("--partial", help="Score the images that were predicted so far.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print json instead of a table.")] = False,
) -> None:
    """Score a prediction file, from whatever program, with the official metrics.

    This needs no model. Published scores of the same test stand beside the result.
    """
    with command_errors():
        from tap_engine.train.evaluation import score_files

        config = score_files.ScoreConfig(
            protocol=protocol, name=name, data=data, box_source=box_source, partial=partial
        )
        if truth.endswith(".json") and not limit:
            found = score_files.score_files(config, truth, predictions, _progress)
        else:
            from tap_engine.jobs.sample_eval import sample_set
            from tap_engine.train.evaluation.data_choice import DataChoice, evaluation_set

            choice = DataChoice(
                name=truth,
                references=references,
                instances=instances,
                split=split,
                truth_table=truth_table,
                limit=limit,
            )
            truth_set = evaluation_set(choice, sample_set)
            found = score_files.score(config, truth_set.truth, predictions, _progress)
        if out is not None:
            _save([found], out)
        _show([found], out, as_json=as_json)


def report(
    scores: Annotated[
        list[Path],
        typer.Argument(
            help="The scores: score.json files, or folders that `score` or `eval` wrote."
        ),
    ],
    apart: Annotated[
        bool,
        typer.Option(
            "--apart", help="Print one table per test where the scores are of different tests."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(callback=local_only, help="The folder for report.md and report.json."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print json instead of a table.")] = False,
) -> None:
    """Print scores in one table with the published ones; scores of different tests are refused."""
    with command_errors():
        from tap_engine.train.evaluation.report import load_scores

        found = [score for path in scores for score in load_scores(path)]
        _show(found, out, apart=apart, as_json=as_json)


def _save(scores: list["Score"], out: Path) -> None:
    """One score beside its report; several, of an evaluation, in a folder each."""
    from tap_engine.train.evaluation.report import SCORE_FILE

    for found in scores:
        place = out if len(scores) == 1 else out / "scores" / found.stamp.protocol
        found.save(place / SCORE_FILE)


def _show(
    scores: list["Score"], out: Path | None, *, apart: bool = False, as_json: bool = False
) -> None:
    from tap_engine.train.evaluation.report import tabulate, to_json, to_markdown

    tables = tabulate(scores, apart=apart)
    machine, human = json.dumps(to_json(tables), indent=1), to_markdown(tables)
    typer.echo(machine if as_json else human)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.md").write_text(human)
        (out / "report.json").write_text(machine + "\n")
        typer.echo(f"written: {out}/report.md and report.json", err=True)


def _data_engine() -> "DataEngine":
    from tap_engine.jobs.crop_baseline import CropClassifier
    from tap_engine.jobs.data_engine import embed_names
    from tap_engine.jobs.sample_eval import sample_set
    from tap_engine.train.evaluation.request import DataEngine

    return DataEngine(
        draw_samples=sample_set, embed_names=embed_names, classify_crops=CropClassifier
    )


def _progress(line: str) -> None:
    typer.echo(line, err=True)

"""Commands of `tap-train` that train and measure: run, recipes, measure, export, gate."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tap_engine.jobs.output import (
    EVALUATE,
    PUBLISH,
    TRAIN,
    command_errors,
    local_only,
    new_file,
    new_picture,
)
from tap_engine.jobs.recipe_lists import print_recipes, print_settings
from tap_engine.jobs.train_options import (
    DryRunOption,
    ResumeOption,
    SetOption,
    training_session,
)

if TYPE_CHECKING:
    from tap_engine.train.config import TrainConfig

TruthOption = Annotated[
    str, typer.Option(help="The truth table of a sample-world store: a file or folder.")
]


def register(app: typer.Typer) -> None:
    """Adds the commands to `tap-train`."""
    app.command("run", rich_help_panel=TRAIN)(run)
    app.command("recipes", rich_help_panel=TRAIN)(recipes)
    app.command("tokenizer", rich_help_panel=TRAIN)(tokenizer)
    app.command("gate", rich_help_panel=TRAIN)(gate)
    app.command("measure", rich_help_panel=EVALUATE)(measure)
    app.command("export", rich_help_panel=PUBLISH)(export)


def run(
    recipe: Annotated[
        str, typer.Option(help="The settings to start from; `tap-train recipes` lists them.")
    ],
    out: Annotated[Path, typer.Option(callback=local_only, help="The folder of the run.")],
    store: Annotated[
        list[str] | None, typer.Option(help="A store to train on; repeatable, several are joined.")
    ] = None,
    captions: Annotated[
        str, typer.Option(help="A captioned store, for phases that learn captions alone.")
    ] = "",
    held_out: Annotated[
        str, typer.Option(help="A store to measure on while training; it is not trained on.")
    ] = "",
    truth: TruthOption = "",
    resume: ResumeOption = "auto",
    set_: SetOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Train a model, or continue the run in --out; under torchrun in many processes."""
    with command_errors():
        import json
        from dataclasses import replace

        from tap_engine.schemas.settings import with_overrides
        from tap_engine.train.recipes import phases

        def settled(config: "TrainConfig") -> "TrainConfig":
            # Not as overrides: a path may have a comma.
            stream, held = config.stream, config.held_out
            if store:
                stream = replace(stream, stores=tuple(store))
            held = replace(held, store=held_out or held.store, truth=truth or held.truth)
            return with_overrides(replace(config, stream=stream, held_out=held), set_ or [])

        configs = [(name, settled(config)) for name, config in phases(recipe)]
        if dry_run:
            shown = {name: config.to_dict() for name, config in configs}
            one = len(configs) == 1
            typer.echo(json.dumps(shown.popitem()[1] if one else shown, indent=1))
            return

        from tap_engine.train import distributed
        from tap_engine.train.phases import plan_phases, train_phases

        with training_session():
            planned = plan_phases(configs, out, captions, typer.echo)
            steps = train_phases(planned, resume, typer.echo)
            is_main = distributed.is_main()
        if is_main:
            typer.echo(f"done: {steps:,} steps; next: tap-train measure {out} --store STORE")


def recipes(
    name: Annotated[str, typer.Argument(help="Show all settings of this recipe.")] = "",
    set_: SetOption = None,
) -> None:
    """List the recipes, or all settings of one in the form that --set takes."""
    with command_errors():
        from tap_engine.train.recipes import RECIPES, phases

        if not name:
            print_recipes(RECIPES)
            return
        found = phases(name)
        for number, (phase, config) in enumerate(found, 1):
            if len(found) > 1:
                typer.echo(f"# phase {number}: {phase}")
            print_settings(config, set_)


def measure(
    model: Annotated[
        Path,
        typer.Argument(
            help="The model: a run folder, a checkpoint folder, a .safetensors, or 'sample'."
        ),
    ],
    store: Annotated[str, typer.Option(help="The store to measure on.")],
    truth: TruthOption = "",
    images: Annotated[
        int | None, typer.Option(help="The number of its images to measure on.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="The split of a captioned store: val (default), test or train."),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            callback=new_picture, help="A PNG to write, with the truth beside the prediction."
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print json instead of tables.")] = False,
) -> None:
    """Measure a model on held-out images, beside simple baselines and its teacher."""
    with command_errors():
        import json
        from dataclasses import replace

        from tap_engine.train.held_out import HeldOutConfig, report_checkpoint

        config = HeldOutConfig(store=store, truth=truth)
        config = config if images is None else replace(config, images=images)
        config = config if split is None else replace(config, split=split)
        reports = report_checkpoint(model, config, picture)
        if json_:
            typer.echo(json.dumps({k: v for r in reports for k, v in r.summary().items()}))
        else:
            typer.echo("\n\n".join(report.table() for report in reports))
        if picture is not None and not json_:
            typer.echo(f"picture: {picture}")


def export(
    model: Annotated[Path, typer.Argument(help="The model: a run folder or a checkpoint folder.")],
    out: Annotated[Path, typer.Argument(callback=local_only, help="The folder to write.")],
    half: Annotated[
        bool, typer.Option(help="Write the parameters in float16, at half the size.")
    ] = False,
) -> None:
    """Write the model alone, ready for `tap predict`, without what only training needs."""
    with command_errors():
        from tap_engine.train.checkpoint import export_model

        files = export_model(model, out, half=half)
        for file in files:
            typer.echo(f"{file} {file.stat().st_size / 1e6:.2f} MB")


def gate(
    name: Annotated[str, typer.Argument(help="The gate: overfit, quick or losses.")],
    out: Annotated[Path, typer.Option(callback=local_only, help="The folder for the runs.")],
    store: Annotated[list[str], typer.Option(help="A store of the sample world to train on.")],
    held_out: Annotated[str, typer.Option(help="A store of the sample world to measure on.")] = "",
    truth: TruthOption = "",
    set_: SetOption = None,
) -> None:
    """Check that training learns: train for minutes and compare the figures with their bars.

    overfit: the model learns eight scenes by heart. quick: it names and segments unseen scenes
    after a few CPU-minutes. losses: the KL loss beats the feature loss with three seeds, several
    weights and the same budget.
    """
    with command_errors():
        from tap_engine.train.gates import run_gate

        passed = run_gate(
            name,
            out,
            stores=tuple(store),
            held_out=held_out,
            truth=truth,
            overrides=set_ or [],
        )
        sys.exit(0 if passed else 1)


def tokenizer(
    store: Annotated[list[str], typer.Option(help="A captioned store; repeatable.")],
    out: Annotated[
        Path, typer.Option(callback=new_file, help="The file to write, such as tokenizer.json.")
    ],
    size: Annotated[
        int, typer.Option(help="The number of token ids; the papers have 32,000.")
    ] = 32_000,
    split: Annotated[str, typer.Option(help="The split to learn from; empty takes all.")] = "train",
) -> None:
    """Learn a byte-pair tokenizer from the captions of stores."""
    with command_errors():
        from tap_engine.train.caption_tokens import learn_tokenizer

        found, captions = learn_tokenizer(store, size, split)
        path = found.save(out)
        typer.echo(
            f"{path}: {found.vocab_size:,} ids from {captions:,} captions, fingerprint "
            f"{found.fingerprint}; next: tap-train run --recipe RECIPE --store {store[0]} "
            f"--set init.weights=CHECKPOINT --set init.tokenizer={path} --out RUN"
        )

"""Commands that train Open-Vocabulary SAM: dump, classes, run."""

from pathlib import Path
from typing import Annotated

import typer

from tap_engine.jobs.output import TRAIN, command_errors
from tap_engine.jobs.recipe_lists import print_recipes, print_settings
from tap_engine.jobs.train_options import (
    DryRunOption,
    ResumeOption,
    SetOption,
    training_session,
)


def register(app: typer.Typer) -> None:
    """Adds the commands to `tap-train`."""
    app.command("ovsam-run", rich_help_panel=TRAIN)(run)
    app.command("ovsam-recipes", rich_help_panel=TRAIN)(recipes)
    app.command("ovsam-dump", rich_help_panel=TRAIN)(dump)
    app.command("ovsam-classes", rich_help_panel=TRAIN)(classes)


def run(
    recipe: Annotated[str, typer.Option(help="See `tap-train ovsam-recipes`.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    store: Annotated[
        list[str] | None, typer.Option(help="Store to train on; several are joined.")
    ] = None,
    resume: ResumeOption = "auto",
    set_: SetOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Train Open-Vocabulary SAM, or go on training; the same under torchrun."""
    with command_errors():
        import json
        from dataclasses import replace

        from tap_engine.schemas.settings import with_overrides
        from tap_engine.train.ovsam.recipes import ovsam_recipe

        config = ovsam_recipe(recipe)
        if store:  # not as an override: a path may have a comma
            config = replace(config, stream=replace(config.stream, stores=tuple(store)))
        config = with_overrides(config, set_ or [])
        if dry_run:
            typer.echo(json.dumps(config.to_dict(), indent=1))
            return

        from tap_engine.train.loop import train
        from tap_engine.train.ovsam.run import open_ovsam_run

        with training_session():
            opened = open_ovsam_run(config, out, resume)
            train(opened)
        opened.log.say(f"done: {opened.step:,} steps in {out}")


def recipes(
    name: Annotated[str, typer.Argument(help="Show all settings of this recipe.")] = "",
    set_: SetOption = None,
) -> None:
    """List the recipes, or all settings of one in the form that --set takes."""
    with command_errors():
        from tap_engine.train.ovsam.recipes import OVSAM_RECIPES, ovsam_recipe

        if name:
            print_settings(ovsam_recipe(name), set_)
        else:
            print_recipes(OVSAM_RECIPES)


def dump(
    out: Annotated[Path, typer.Argument(help="A new folder, or one to continue.")],
    store: Annotated[str, typer.Option(help="Store whose pictures the teacher sees.")],
    teacher: Annotated[
        str, typer.Option(help="Folder of transformers' SamModel, a TAP checkpoint, or sample.")
    ],
    image_px: Annotated[int, typer.Option(help="Side of the teacher's input.")] = 1024,
    images: Annotated[int, typer.Option(help="Pictures computed at a time.")] = 4,
    share: Annotated[str, typer.Option(help="I/N: the I-th of N processes, from 0.")] = "0/1",
    split: Annotated[str, typer.Option(help="Only this split; empty for all.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
) -> None:
    """Write a teacher's features of all pictures once, for --set init.features=OUT/features.lance.

    The same command again continues where it stopped.
    """
    with command_errors():
        from tap_engine.model.device import resolve_device
        from tap_engine.schemas.errors import ConfigError
        from tap_engine.schemas.progress import Progress
        from tap_engine.train.ovsam.dump import DumpConfig, dump_features
        from tap_engine.train.ovsam.teachers import open_teacher

        place, _, number = share.partition("/")
        if not (place.isdigit() and number.isdigit()):
            raise ConfigError(f"--share is I/N, such as 0/4, got {share!r}")
        config = DumpConfig(
            store=store,
            out=out,
            image_px=image_px,
            images=images,
            split=split,
            share=int(place),
            shares=int(number),
        )
        where = resolve_device(device)
        bars: list[Progress] = []

        def show(done: int, total: int) -> None:
            if not bars:
                bars.append(Progress(total, unit="images"))
            bars[0].update(done)

        added = dump_features(config, open_teacher(teacher).to(where), where, show)
        if bars:
            bars[0].close()
    typer.echo(f"{added:,} pictures added to {out / 'features.lance'}")


def classes(
    out: Annotated[Path, typer.Argument(help="File to write, such as classes.safetensors.")],
    clip: Annotated[
        str, typer.Option(help="The CLIP: a folder of open_clip's form, or open_clip's name.")
    ],
    names: Annotated[
        Path | None, typer.Option(help="Text file, a class a line: its name, its synonyms after ;")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="Or the truth table of a sample world: its objects.")
    ] = None,
    annotations: Annotated[
        list[Path] | None,
        typer.Option(
            help="Or an annotation file in COCO's or LVIS's form; several give the union."
        ),
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="Text file with the names of the base classes.")
    ] = None,
    base_share: Annotated[
        float, typer.Option(help="Or this share of the classes, drawn by --seed; 0 for no split.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    template: Annotated[
        list[str] | None,
        typer.Option(help="A sentence with {} for the name; the method's 14 by default."),
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Weights of an open_clip name: a tag or a file.")
    ] = None,
    download: Annotated[
        bool, typer.Option(help="Fetch these weights if they are missing.")
    ] = False,
) -> None:
    """Text prototypes of class names: what the second stage learns and predictions are made of."""
    with command_errors():
        from tap_engine.jobs.ovsam_classes import make_class_file

        table = make_class_file(
            out,
            clip=clip,
            pretrained=pretrained,
            download=download,
            names=names,
            truth=truth,
            annotations=annotations,
            base=base,
            base_share=base_share,
            seed=seed,
            templates=tuple(template or ()),
        )
    kinds = table.kinds.tolist()
    typer.echo(
        f"{out}: {len(kinds):,} classes of {table.prototypes.shape[1]} prototypes, "
        f"{kinds.count(1):,} base, {kinds.count(2):,} novel, fingerprint {table.fingerprint}"
    )

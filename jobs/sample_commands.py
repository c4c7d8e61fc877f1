"""Commands of the sample world: draw it, train its teacher, measure with its truth."""

from pathlib import Path
from typing import Annotated

import typer

from tap_engine.jobs.options import SAMPLE_WORLD
from tap_engine.jobs.output import command_errors


def register(app: typer.Typer) -> None:
    """Add the commands to `tap-data`."""
    app.command("sample", rich_help_panel=SAMPLE_WORLD)(sample)
    app.command("sample-shipped", rich_help_panel=SAMPLE_WORLD)(sample_shipped)
    app.command("sample-sprites", rich_help_panel=SAMPLE_WORLD)(sample_sprites)
    app.command("sample-accuracy", rich_help_panel=SAMPLE_WORLD)(sample_accuracy)
    app.command("train-teacher", rich_help_panel=SAMPLE_WORLD)(train_teacher)


def sample(
    out: Annotated[Path, typer.Argument(help="A new folder, or one to continue.")],
    scenes: Annotated[
        int, typer.Option(help="The number of training scenes, written in SA-1B's layout.")
    ] = 500,
    validation: Annotated[
        int | None,
        typer.Option(help="The number of scenes to measure on; a fifth of --scenes by default."),
    ] = None,
    captioned: Annotated[
        int | None,
        typer.Option(
            help="The number of captioned scenes, written in Visual Genome's layout; a "
            "fifth of --scenes by default."
        ),
    ] = None,
    size: Annotated[int, typer.Option(help="The side of a scene in px, usually 256 or 512.")] = 512,
    seed: Annotated[
        int, typer.Option(help="The seed of the world; another seed gives other scenes.")
    ] = 0,
    group: Annotated[
        list[str] | None, typer.Option(help="Draw only things of this group; repeatable.")
    ] = None,
    workers: Annotated[int, typer.Option(help="The number of processes; 0 chooses.")] = 0,
) -> None:
    """Draw a made-up world whose truth is known: shards, captions and a truth table.

    The same seed gives the same bytes. The same command again continues where it stopped.
    """
    import time

    from tap_engine.pipeline.sample.world import SampleConfig, write_sample_world
    from tap_engine.schemas.progress import Progress

    with command_errors():
        config = SampleConfig(
            scenes=scenes,
            validation=scenes // 5 if validation is None else validation,
            captioned=scenes // 5 if captioned is None else captioned,
            size=size,
            seed=seed,
            groups=tuple(group or ()),
        )
        start = time.monotonic()
        bar = Progress(sum(config.counts().values()), unit="scenes")
        summary = write_sample_world(
            out, config, workers=workers, progress=lambda done, _: bar.update(done)
        )
        bar.close()
    spent = time.monotonic() - start
    rate = f", {summary.scenes / spent:.1f} per second" if summary.scenes else ""
    typer.echo(
        f"drew {summary.scenes:,} scenes with {summary.regions:,} regions in {spent:.1f} s{rate} "
        f"({summary.scenes_before:,} were there before)"
    )
    typer.echo(
        f"next: tap-data build-semantic {out / 'train'} --source sample --teacher sample --out ..."
    )


def sample_shipped(out: Annotated[Path, typer.Argument(help="A new folder.")]) -> None:
    """Copy the scenes that come with the package: 256 px, the same bytes everywhere."""
    from tap_engine.pipeline.sample.world import copy_shipped_scenes

    with command_errors():
        copy_shipped_scenes(out)
    typer.echo(
        f"next: tap-data build-semantic {out / 'train'} --source sample --teacher sample ..."
    )


def sample_sprites(
    out: Annotated[
        Path,
        typer.Argument(
            help="The folder for the sheet; the package's own replaces the shipped one."
        ),
    ],
    font: Annotated[
        Path | None, typer.Option(help="The file NotoColorEmoji.ttf; it is looked for by default.")
    ] = None,
) -> None:
    """Draw the sprite sheet of the sample world again, from the font."""
    from tap_engine.pipeline.sample.sprites import make_sprites

    with command_errors():
        made = make_sprites(out, font)
    typer.echo(
        f"drew {len(made['glyphs'])} drawings of {made['font']} {made['font_version']} "
        f"into {out} (pixels {made['pixels']})"
    )


def train_teacher(
    out: Annotated[Path, typer.Argument(help="A new folder, or one to continue.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change a setting: steps=4000. An unknown name lists all of them.",
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option(help="The number of threads that torch uses on the CPU.")
    ] = 1,
    workers: Annotated[int, typer.Option(help="The number of processes that draw; 0 chooses.")] = 0,
) -> None:
    """Train the `sample` teacher from scratch on crops of the sample world.

    The same command again continues where it stopped.
    """
    with command_errors():
        import torch

        from tap_engine.pipeline.sample.accuracy import format_accuracy
        from tap_engine.pipeline.sample.teacher_training import TeacherTrainingConfig
        from tap_engine.pipeline.sample.teacher_training import train_teacher as train
        from tap_engine.schemas.progress import Progress
        from tap_engine.schemas.settings import with_overrides

        config = with_overrides(TeacherTrainingConfig(), set_ or [])
        torch.set_num_threads(threads)
        bars: dict[str, Progress] = {}

        def show(stage: str, done: int, total: int, text: str) -> None:
            bar = bars.setdefault(stage, Progress(total, done, unit=stage))
            bar.update(done, text, force=done == total)
            if done == total:
                bar.close()

        rows = train(out, config, workers=workers, progress=show)
    typer.echo(format_accuracy(rows))
    typer.echo(f"wrote {out}; next: tap-data build-semantic ... --teacher {out}")


def sample_accuracy(
    store: Annotated[str, typer.Argument(help="A store built from sample scenes.")],
    truth: Annotated[Path, typer.Option(help="The folder `truth` that `sample` wrote, or a file.")],
    split: Annotated[
        str | None, typer.Option(help="Count only regions of this split: train or val.")
    ] = None,
    at_least: Annotated[
        float, typer.Option(help="Exit with code 1 if the top-1 of objects is below this.")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of json.")] = False,
) -> None:
    """Measure how often the top concept of a region is the true one."""
    import json
    from dataclasses import asdict

    with command_errors():
        from tap_engine.pipeline.sample.accuracy import format_accuracy, measure_store

        found = measure_store(store, truth, split=split)
    if as_json:
        typer.echo(json.dumps(asdict(found) | {"objects_top1": found.objects_top1}))
    else:
        typer.echo(format_accuracy(found.rows))
        if found.not_in_store or found.without_truth:
            typer.echo(
                f"{found.not_in_store:,} regions of the truth table are not in the store, "
                f"{found.without_truth:,} of the store are not in the truth table"
            )
        typer.echo(f"concept accuracy of objects: {found.objects_top1:.3f}")
    if found.objects_top1 < at_least:
        typer.echo(f"below the {at_least} that was asked for", err=True)
        raise typer.Exit(1)

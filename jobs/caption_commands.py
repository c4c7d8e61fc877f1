"""Commands of captioned data: import Visual Genome, plan the mixture with SA-1B."""

import sys
from typing import Annotated

import typer

from tap_engine.jobs.output import FAILED, command_errors


def register(app: typer.Typer) -> None:
    """Add the commands to `tap-data`."""
    app.command("import-visual-genome")(import_visual_genome)


def import_visual_genome(
    regions: Annotated[str, typer.Option(help="region_descriptions.json of v1.0 or v1.2.")],
    image_data: Annotated[str, typer.Option(help="image_data.json.")],
    images: Annotated[
        list[str],
        typer.Option(help="Folder of N.jpg, or with VG_100K and VG_100K_2 in it; repeatable."),
    ],
    out: Annotated[str, typer.Option(help="The store: a folder or s3:// / gs:// prefix.")],
    splits: Annotated[str | None, typer.Option(help="densecap_splits.json.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Embed the boxes too; names as for build-semantic.")
    ] = None,
    pretrained: Annotated[str | None, typer.Option(help="As for build-semantic.")] = None,
    vocabulary: Annotated[str, typer.Option(help="With --teacher: for the concepts.")] = (
        "merged-2560"
    ),
    concepts: Annotated[str, typer.Option(help="With --teacher: top:K, full or none.")] = "top:64",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    download: Annotated[bool, typer.Option("--download", help="Allow fetching weights.")] = False,
    limit: Annotated[int, typer.Option(help="At most this many images in all; 0 for all.")] = 0,
    actors: Annotated[int, typer.Option(help="Workers; 0 chooses.")] = 0,
    unit_images: Annotated[int, typer.Option(help="Images a unit of work; 0 chooses.")] = 0,
    max_reject_share: Annotated[
        float, typer.Option(help="Above this share left out, the exit code is 3.")
    ] = 0.01,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Ignore another driver's unexpired lease.")
    ] = False,
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster.")] = None,
    ray_wheel: Annotated[str | None, typer.Option(help="Wheel to ship to its workers.")] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs of the local Ray; all by default.")] = None,
    storage_option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for Lance's object store; repeatable.")
    ] = None,
) -> None:
    """Write a store of Visual Genome's boxes and phrases, cleaned and raw.

    Missing photos, empty boxes and empty phrases go to `rejects`. The same command again continues.
    """
    with command_errors():
        from tap_engine.jobs.cluster import ray_session
        from tap_engine.jobs.output import (
            REJECTS_ABOVE_LIMIT,
            parse_pairs,
            print_build_summary,
            print_left_out,
        )
        from tap_engine.pipeline.build import build
        from tap_engine.pipeline.config import BuildConfig, WorkerConfig
        from tap_engine.pipeline.filesystem import absolute_uri
        from tap_engine.pipeline.index_cache import FOLDER
        from tap_engine.pipeline.teacher import TeacherConfig
        from tap_engine.pipeline.visual_genome import VisualGenomeSource

        config = BuildConfig(
            out=absolute_uri(out),
            teacher=(
                TeacherConfig(name=teacher, pretrained=pretrained, device=device, download=download)
                if teacher
                else None
            ),
            vocabulary=vocabulary,
            concepts=concepts,
            limit=limit,
            max_reject_share=max_reject_share,
            take_over=take_over,
            storage_options=dict(parse_pairs(storage_option)),
            workers=WorkerConfig(actors=actors, unit_images=unit_images),
        )
        folder = f"{config.out}/{FOLDER}"
        source = VisualGenomeSource(
            regions, image_data, images, folder, splits=splits, say=typer.echo
        )
        with ray_session(ray_address, cpus, ray_wheel):
            summary = build(source, config, say=typer.echo)
        for line in source.counts.lines():
            typer.echo(line)
        print_build_summary(summary, out)
        if summary.failed:
            sys.exit(FAILED)
        if print_left_out(summary, max_reject_share):
            sys.exit(REJECTS_ABOVE_LIMIT)

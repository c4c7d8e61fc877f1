"""Commands of captioned data: import Visual Genome, plan the mixture with SA-1B."""

import sys
from typing import Annotated

import typer

from tap_engine.jobs.output import FAILED, command_errors


def register(app: typer.Typer) -> None:
    """Add the commands to `tap-data`."""
    app.command("import-visual-genome")(import_visual_genome)
    app.command("mix")(mix)


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
        from tap_engine.pipeline.sources.filesystem import absolute_uri
        from tap_engine.pipeline.sources.visual_genome import VisualGenomeSource
        from tap_engine.pipeline.teacher import TeacherConfig

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
        source = VisualGenomeSource(regions, image_data, images, splits)
        with ray_session(ray_address, cpus, ray_wheel):
            summary = build(source, config, say=typer.echo)
        for line in source.counts.lines():
            typer.echo(line)
        print_build_summary(summary, out)
        if summary.failed:
            sys.exit(FAILED)
        if print_left_out(summary, max_reject_share):
            sys.exit(REJECTS_ABOVE_LIMIT)


def mix(
    stores: Annotated[
        list[str], typer.Option(help="Store of SA-1B or of captioned images; repeatable.")
    ],
    out: Annotated[str, typer.Option(help="Where table `mixture` goes: a new folder or prefix.")],
    subsets: Annotated[int, typer.Option(help="How many.")] = 4,
    regions: Annotated[str, typer.Option(help="Of each subset: 100M, 250k, 5000.")] = "100M",
    share: Annotated[
        list[str] | None,
        typer.Option(help="SOURCE=SHARE of each subset's regions; repeatable. Default: vg=0.04."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed draws other images.")] = 0,
    storage_option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for Lance's object store; repeatable.")
    ] = None,
) -> None:
    """Plan CaptionSA-400M: which images each subset trains on; nothing is copied.

    Reads counts of images only. Small stores give small subsets with the same shares.
    """
    with command_errors():
        from tap_engine.jobs.output import parse_pairs
        from tap_engine.pipeline.mixing import (
            MixConfig,
            plan_mixture,
            read_pools,
            report_lines,
            write_mixture,
        )
        from tap_engine.pipeline.sources.filesystem import absolute_uri
        from tap_engine.pipeline.store import Store

        options = dict(parse_pairs(storage_option))
        config = MixConfig(
            subsets=subsets,
            regions=_count(regions),
            shares=dict(_shares(share or ["vg=0.04"])),
            seed=seed,
        )
        mixture = plan_mixture(
            read_pools([Store(absolute_uri(store), options) for store in stores]), config
        )
        written = write_mixture(Store(absolute_uri(out), options), mixture, config)
        for line in report_lines(mixture, config):
            typer.echo(line)
        typer.echo(
            f"wrote {mixture.table.num_rows:,} rows to table `mixture` of {out}"
            if written
            else f"the same mixture is in {out} already"
        )
        typer.echo(f"next: tap-train run --set stream.mixture={out}, with the same stores")


def _count(text: str) -> int:
    from tap_engine.schemas.errors import ConfigError

    factors = {"k": 1_000, "M": 1_000_000, "G": 1_000_000_000}
    factor = factors.get(text[-1:], 1)
    try:
        return round(float(text.rstrip("kMG") if factor > 1 else text) * factor)
    except (ValueError, OverflowError):
        raise ConfigError(f"--regions must be a number such as 100M, got {text!r}") from None


def _shares(options: list[str]) -> list[tuple[str, float]]:
    from tap_engine.schemas.errors import ConfigError

    pairs = []
    for option in options:
        name, _, value = option.partition("=")
        try:
            pairs.append((name, float(value)))
        except ValueError:
            raise ConfigError(
                f"--share must be SOURCE=SHARE such as vg=0.04, got {option!r}"
            ) from None
    return pairs

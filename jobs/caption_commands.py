"""Commands of captioned data: import Visual Genome, plan the mixture with SA-1B."""

from typing import Annotated

import typer

from tap_engine.jobs.build_commands import finish
from tap_engine.jobs.options import (
    BUILD,
    CpusOption,
    DeviceOption,
    DownloadOption,
    LimitOption,
    OutOption,
    PretrainedOption,
    RayAddressOption,
    RayWheelOption,
    SetOption,
    SettingsCommand,
    StorageOption,
    TakeOverOption,
    TeacherOption,
    VocabularyOption,
    build_config,
    store_at,
)
from tap_engine.jobs.output import command_errors


def register(app: typer.Typer) -> None:
    """Add the commands to `tap-data`."""
    app.command("import-visual-genome", cls=SettingsCommand, rich_help_panel=BUILD)(
        import_visual_genome
    )
    app.command("mix", rich_help_panel=BUILD)(mix)


def import_visual_genome(
    regions: Annotated[
        str, typer.Option(help="The file region_descriptions.json of Visual Genome 1.0 or 1.2.")
    ],
    image_data: Annotated[str, typer.Option(help="The file image_data.json.")],
    images: Annotated[
        list[str],
        typer.Option(help="A folder with N.jpg, or with VG_100K and VG_100K_2; repeatable."),
    ],
    out: OutOption,
    splits: Annotated[
        str | None, typer.Option(help="The file densecap_splits.json, which says what is held out.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="The settings to start from; `tap-data recipes` lists them.")
    ] = "captions",
    set_: SetOption = None,
    teacher: TeacherOption = None,
    pretrained: PretrainedOption = None,
    vocabulary: VocabularyOption = None,
    limit: LimitOption = None,
    device: DeviceOption = None,
    download: DownloadOption = False,
    take_over: TakeOverOption = False,
    storage_option: StorageOption = None,
    ray_address: RayAddressOption = None,
    ray_wheel: RayWheelOption = None,
    cpus: CpusOption = None,
) -> None:
    """Write a store of Visual Genome's boxes with their phrases, cleaned and raw.

    Missing photos, empty boxes and empty phrases go to `rejects`. With --teacher the boxes are
    embedded as well. The same command again continues where it stopped.
    """
    with command_errors():
        from tap_engine.jobs.cluster import ray_session
        from tap_engine.pipeline.sources.visual_genome import VisualGenomeSource

        config = build_config(
            recipe,
            out,
            set_,
            storage_option,
            take_over,
            teacher=teacher,
            pretrained=pretrained,
            vocabulary=vocabulary,
            limit=limit,
            device=device,
            download=download,
        )
        source = VisualGenomeSource(regions, image_data, images, splits)
        with ray_session(ray_address, cpus, ray_wheel):
            from tap_engine.pipeline.build import build

            summary = build(source, config, say=typer.echo)
        for line in source.counts.lines():
            typer.echo(line)
        finish(summary, out, config.max_reject_share)


def mix(
    stores: Annotated[
        list[str], typer.Option(help="A store of SA-1B or of captioned images; repeatable.")
    ],
    out: Annotated[str, typer.Option(help="The new folder or prefix for the table `mixture`.")],
    subsets: Annotated[int, typer.Option(help="The number of subsets.")] = 4,
    regions: Annotated[
        str, typer.Option(help="The number of regions per subset, such as 100M, 250k or 5000.")
    ] = "100M",
    share: Annotated[
        list[str] | None,
        typer.Option(
            help="A source's share of each subset's regions, as SOURCE=SHARE; "
            "repeatable. vg=0.04 by default."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="The seed of the drawing; another seed draws other images.")
    ] = 0,
    storage_option: StorageOption = None,
) -> None:
    """Plan CaptionSA-400M: which images each subset trains on; nothing is copied.

    The plan needs only the counts of images. Small stores give small subsets with the same shares.
    """
    with command_errors():
        from tap_engine.pipeline.mixing import (
            MixConfig,
            plan_mixture,
            read_pools,
            report_lines,
            write_mixture,
        )

        config = MixConfig(
            subsets=subsets,
            regions=_count(regions),
            shares=dict(_shares(share or ["vg=0.04"])),
            seed=seed,
        )
        mixture = plan_mixture(
            read_pools([store_at(store, storage_option) for store in stores]), config
        )
        written = write_mixture(store_at(out, storage_option), mixture, config)
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

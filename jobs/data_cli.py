"""`tap-data`: thin commands that parse, call one function and print one summary."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tap_engine.jobs import caption_commands, chat_commands, sample_commands
from tap_engine.jobs.output import (
    FAILED,
    NOT_VALID,
    REJECTS_ABOVE_LIMIT,
    add_version,
    command_errors,
    parse_pairs,
)

if TYPE_CHECKING:
    from tap_engine.pipeline.store import Store

app = typer.Typer(
    help="Build, inspect and check SemanticSA-1B stores.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

MAX_KEY = (1 << 63) - 1
"""Keys are int64 (schemas/keys.py; not imported here, so that --help stays instant)."""


add_version(app)


@app.command("build-semantic")
def build_semantic(
    sources: Annotated[
        list[str], typer.Argument(help="SA-1B tars, folders of tars or of sa_N.jpg; paths or URIs.")
    ],
    out: Annotated[str, typer.Option(help="The store: a folder or s3:// / gs:// prefix.")],
    teacher: Annotated[
        str, typer.Option(help="open_clip model name, model folder, hf-hub: name, or 'sample'.")
    ] = "EVA02-E-14-plus",
    pretrained: Annotated[
        str | None, typer.Option(help="Weight tag or file of that model; 'none' for random ones.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random weights.")] = 0,
    source: Annotated[str, typer.Option(help="Source name in the keys: sa1b, sample.")] = "sa1b",
    vocabulary: Annotated[str, typer.Option(help="merged-2560 or a file.")] = "merged-2560",
    concepts: Annotated[str, typer.Option(help="Per region: top:K, full or none.")] = "top:64",
    fill: Annotated[str, typer.Option(help="Outside the mask: mean, black or keep.")] = "mean",
    fit: Annotated[str, typer.Option(help="Box to square: pad or squash.")] = "pad",
    margin: Annotated[float, typer.Option(help="Context round the box, share of a side.")] = 0.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16 or bf16.")] = "auto",
    batch_size: Annotated[int, typer.Option(help="Crops a forward pass; 0 chooses.")] = 0,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the teacher.")] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Allow fetching the teacher's weights.")
    ] = False,
    limit: Annotated[int, typer.Option(help="At most this many images in all; 0 for all.")] = 0,
    actors: Annotated[int, typer.Option(help="Workers with a teacher each; 0 chooses.")] = 0,
    crop_cpus: Annotated[int, typer.Option(help="CPUs (threads) a worker; 0 chooses.")] = 0,
    teacher_gpus: Annotated[
        float | None, typer.Option(help="GPUs a worker, fractions allowed; default one if any.")
    ] = None,
    unit_images: Annotated[int, typer.Option(help="Images a unit of work; 0 chooses.")] = 0,
    commit_seconds: Annotated[float, typer.Option(help="Time between commits.")] = 60.0,
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and its cost; write nothing.")
    ] = False,
) -> None:
    """Crop every masked region, embed it with a CLIP teacher, write a SemanticSA-1B store.

    The same command again continues where it stopped.
    """
    with command_errors():
        from tap_engine.jobs.cluster import ray_session
        from tap_engine.jobs.output import print_build_summary, print_estimate, print_left_out
        from tap_engine.pipeline.build import build
        from tap_engine.pipeline.config import BuildConfig, CropOptions, WorkerConfig
        from tap_engine.pipeline.sources.filesystem import absolute_uri
        from tap_engine.pipeline.sources.sa1b import Sa1bSource
        from tap_engine.pipeline.teacher import TeacherConfig

        config = BuildConfig(
            out=absolute_uri(out),
            teacher=TeacherConfig(
                name=teacher,
                pretrained=pretrained,
                seed=seed,
                device=device,
                precision=precision,
                batch_size=batch_size,
                compile=compile,
                download=download,
            ),
            crop=CropOptions(fill=fill, fit=fit, margin=margin),  # type: ignore[arg-type]
            vocabulary=vocabulary,
            concepts=concepts,
            limit=limit,
            max_reject_share=max_reject_share,
            take_over=take_over,
            storage_options=dict(parse_pairs(storage_option)),
            workers=WorkerConfig(
                actors=actors,
                crop_cpus=crop_cpus,
                teacher_gpus=teacher_gpus,
                unit_images=unit_images,
                commit_s=commit_seconds,
            ),
        )
        if dry_run:
            from tap_engine.pipeline.estimate import estimate

            print_estimate(estimate(Sa1bSource(sources, source), config, typer.echo), out)
            return
        with ray_session(ray_address, cpus, ray_wheel):
            summary = build(Sa1bSource(sources, source), config, say=typer.echo)
        print_build_summary(summary, out)
        if summary.failed:
            sys.exit(FAILED)
        if print_left_out(summary, max_reject_share):
            sys.exit(REJECTS_ABOVE_LIMIT)


@app.command("build-concepts")
def build_concepts(
    out: Annotated[str, typer.Option(help="File to write, in the official two-element form.")],
    teacher: Annotated[str, typer.Option(help="As for build-semantic.")] = "EVA02-E-14-plus",
    pretrained: Annotated[str | None, typer.Option(help="As for build-semantic.")] = None,
    vocabulary: Annotated[str, typer.Option(help="merged-2560 or a file.")] = "merged-2560",
    template: Annotated[
        list[str] | None, typer.Option(help="With {}; several are averaged. Default: 'a {}'.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    download: Annotated[bool, typer.Option("--download", help="Allow fetching weights.")] = False,
) -> None:
    """Embed a vocabulary with a teacher's text tower and write its projection weights.

    A store's own `concepts` table is written by build-semantic and replaced by reproject.
    """
    with command_errors():
        from tap_engine.pipeline.concepts import (
            SOURCE_TEMPLATES,
            embed_concepts,
            write_official_weights,
        )
        from tap_engine.pipeline.teacher import Teacher, TeacherConfig
        from tap_engine.schemas.vocabulary import load_vocabulary

        words = load_vocabulary(vocabulary)
        config = TeacherConfig(
            name=teacher, pretrained=pretrained, device=device, download=download
        )
        model = Teacher(config)
        templates = tuple(template or SOURCE_TEMPLATES)
        embeddings = embed_concepts(model, words.names, templates).numpy()
        write_official_weights(out, embeddings, words.names, model.info.logit_scale)
        typer.echo(
            f"wrote {len(words):,} concepts x {embeddings.shape[1]} of {words.name!r}, templates "
            f"{list(templates)}, logit scale {model.info.logit_scale:.2f} to {out}"
        )


@app.command()
def reproject(
    store: Annotated[str, typer.Argument(help="Path or URI of a store.")],
    vocabulary: Annotated[str, typer.Option(help="merged-2560 or a file.")],
    teacher: Annotated[str, typer.Option(help="The store's own.")] = "EVA02-E-14-plus",
    pretrained: Annotated[str | None, typer.Option(help="The store's own.")] = None,
    seed: Annotated[int, typer.Option(help="Of random weights.")] = 0,
    concepts: Annotated[str, typer.Option(help="Per region: top:K, full or none.")] = "top:64",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    download: Annotated[bool, typer.Option("--download", help="Allow fetching weights.")] = False,
    storage_option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for Lance's object store; repeatable.")
    ] = None,
) -> None:
    """Change a store's vocabulary; needs the teacher's text tower, not its image tower."""
    with command_errors():
        from tap_engine.pipeline.reproject import ReprojectConfig
        from tap_engine.pipeline.reproject import reproject as run
        from tap_engine.pipeline.teacher import TeacherConfig

        config = ReprojectConfig(
            teacher=TeacherConfig(
                name=teacher, pretrained=pretrained, seed=seed, device=device, download=download
            ),
            vocabulary=vocabulary,
            concepts=concepts,
        )
        count = run(_store(store, storage_option), config, say=typer.echo)
        typer.echo(f"{count:,} regions now have concepts of {vocabulary!r}")
        typer.echo(f"next: tap-data verify {store}")


@app.command()
def verify(
    store: Annotated[str, typer.Argument(help="Path or URI of a store.")],
    storage_option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for Lance's object store; repeatable.")
    ] = None,
) -> None:
    """Check every promise a store makes; exit code 0 when all hold, 4 when one does not."""
    with command_errors():
        from tap_engine.pipeline.verify import verify as run

        report = run(_store(store, storage_option), say=lambda text: typer.echo(f"... {text}"))
        for line in report.checks:
            typer.echo(f"ok   {line}")
        for line in report.problems:
            typer.echo(f"BAD  {line}")
        typer.echo(f"{len(report.checks)} checks passed, {len(report.problems)} failed")
        if not report.ok:
            sys.exit(NOT_VALID)


@app.command()
def inspect(
    store: Annotated[str, typer.Argument(help="Path or URI of a store.")],
    key: Annotated[
        int | None,
        typer.Option(min=0, max=MAX_KEY, help="One region: its row, concepts, picture."),
    ] = None,
    top: Annotated[int, typer.Option(help="How many concepts.")] = 5,
    png: Annotated[str | None, typer.Option(help="Where the picture goes; region_KEY.png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    storage_option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for Lance's object store; repeatable.")
    ] = None,
) -> None:
    """Show what is in a store, or one region by key."""
    with command_errors():
        from tap_engine.jobs.output import print_overview, print_region
        from tap_engine.pipeline.inspection import overview, save_picture, view_region

        opened = _store(store, storage_option)
        if key is None:
            print_overview(overview(opened), as_json)
            return
        region = view_region(opened, key, top=top)
        path = png or f"region_{key}.png"
        save_picture(region.picture, path)
        print_region(region, path, as_json)


@app.command()
def query(
    store: Annotated[str, typer.Argument(help="Path or URI of a store.")],
    filter: Annotated[
        str | None,
        typer.Option(help="Lance SQL; also: concept = 'dog', has_concept('dog')."),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Comma-separated; also: concept, concepts.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Rows; 0 for all. Default: 20 to the screen.")] = -1,
    format: Annotated[str, typer.Option(help="table, json (lines), csv or parquet.")] = "table",
    out: Annotated[str | None, typer.Option(help="File; standard output by default.")] = None,
    storage_option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for Lance's object store; repeatable.")
    ] = None,
) -> None:
    """Regions that match a filter."""
    with command_errors():
        from tap_engine.jobs.output import write_rows
        from tap_engine.pipeline.query import Query, run_query

        wanted = [c.strip() for c in columns.split(",")] if columns else None
        rows = limit if limit >= 0 else (0 if out else 20)
        batches = run_query(
            _store(store, storage_option), Query(filter=filter, columns=wanted, limit=rows)
        )
        write_rows(batches, format, out)


@app.command()
def nearest(
    store: Annotated[str, typer.Argument(help="Path or URI of a store.")],
    key: Annotated[
        int,
        typer.Option(min=0, max=MAX_KEY, help="The region to start from; `query` lists keys."),
    ],
    top: Annotated[int, typer.Option(help="How many.")] = 8,
    filter: Annotated[
        str | None, typer.Option(help="Search only regions that match; as for query.")
    ] = None,
    format: Annotated[str, typer.Option(help="table, json (lines) or csv.")] = "table",
    storage_option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for Lance's object store; repeatable.")
    ] = None,
) -> None:
    """Regions whose embeddings are nearest to one region's."""
    with command_errors():
        from tap_engine.jobs.output import write_rows
        from tap_engine.pipeline.nearest import nearest_regions

        found = nearest_regions(_store(store, storage_option), key, top=top, filter_=filter)
        write_rows([found], format, None)


@app.command()
def picture(
    store: Annotated[str, typer.Argument(help="Path or URI of a store.")],
    out: Annotated[Path, typer.Option(help="PNG to write.")],
    images: Annotated[int, typer.Option(help="The store's first N images.")] = 6,
    truth: Annotated[
        Path | None, typer.Option(help="Truth table of sample scenes: marks what is wrong.")
    ] = None,
) -> None:
    """Draw a store's masks with their most probable concepts."""
    with command_errors():
        from tap_engine.pipeline.picture import draw_picture, read_scenes

        scenes = read_scenes(store, images, truth)
        out.parent.mkdir(parents=True, exist_ok=True)
        wrong = "; on white where the truth is another" if truth else ""
        draw_picture(scenes, title=f"Most probable concept of every mask{wrong}").save(out)
    shown = sum(len(scene.regions) for scene in scenes)
    typer.echo(f"drew {len(scenes):,} images with {shown:,} masks: {out}")


def _store(uri: str, options: list[str] | None) -> "Store":
    from tap_engine.pipeline.sources.filesystem import absolute_uri
    from tap_engine.pipeline.store import Store

    return Store(absolute_uri(uri), dict(parse_pairs(options)))


caption_commands.register(app)
sample_commands.register(app)
chat_commands.register_data(app)


def main() -> None:
    """Entry point of `tap-data`."""
    app()

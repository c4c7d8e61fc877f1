"""Commands of `tap-data` that change a store's vocabulary or write one for others."""

from typing import Annotated

import typer

from tap_engine.jobs.options import (
    BUILD,
    CHANGE,
    DeviceOption,
    DownloadOption,
    PretrainedOption,
    SetOption,
    SettingsCommand,
    StorageOption,
    StoreArgument,
    TeacherOption,
    VocabularyOption,
    store_at,
    teacher_config,
)
from tap_engine.jobs.output import command_errors, local_file


def register(app: typer.Typer) -> None:
    """Add the commands to `tap-data`."""
    app.command("reproject", cls=SettingsCommand, rich_help_panel=CHANGE)(reproject)
    app.command("build-concepts", rich_help_panel=BUILD)(build_concepts)


def reproject(
    store: StoreArgument,
    vocabulary: Annotated[
        str, typer.Option(help="The concept names: merged-2560, or a file of names.")
    ],
    teacher: TeacherOption = None,
    pretrained: PretrainedOption = None,
    device: DeviceOption = None,
    download: DownloadOption = False,
    set_: SetOption = None,
    storage_option: StorageOption = None,
) -> None:
    """Change a store's vocabulary; needs the teacher's text tower, not its image tower.

    The teacher must be the one that made the store. --set changes `concepts`, `teacher.seed`,
    `teacher.precision`, `source_templates` and `target_templates`.
    """
    with command_errors():
        from tap_engine.pipeline.reproject import ReprojectConfig
        from tap_engine.pipeline.reproject import reproject as run
        from tap_engine.schemas.settings import with_overrides

        config = ReprojectConfig(
            teacher=teacher_config(
                name=teacher, pretrained=pretrained, device=device, download=download
            ),
            vocabulary=vocabulary,
        )
        config = with_overrides(config, set_ or [])
        count = run(store_at(store, storage_option), config, say=typer.echo)
        typer.echo(f"{count:,} regions now have concepts of {config.vocabulary!r}")
        typer.echo(f"next: tap-data verify {store}")


def build_concepts(
    out: Annotated[
        str, typer.Option(help="The file to write, in the form of the official concept files.")
    ],
    teacher: TeacherOption = None,
    pretrained: PretrainedOption = None,
    vocabulary: VocabularyOption = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="A sentence with {} for the name; several are averaged. 'a {}' by default."
        ),
    ] = None,
    device: DeviceOption = None,
    download: DownloadOption = False,
) -> None:
    """Embed a vocabulary with a teacher's text tower and write its projection weights.

    A store's own `concepts` table is written by build-semantic and replaced by reproject.
    """
    with command_errors():
        from tap_engine.model.concepts import ConceptTable
        from tap_engine.model.official_weights import write_official_concepts
        from tap_engine.pipeline.concepts import (
            SOURCE_TEMPLATES,
            check_template,
            embed_concepts,
            same_text,
        )
        from tap_engine.pipeline.teacher import Teacher
        from tap_engine.schemas.vocabulary import DEFAULT_VOCABULARY, load_vocabulary

        words = load_vocabulary(vocabulary or DEFAULT_VOCABULARY)
        templates = tuple(template or SOURCE_TEMPLATES)
        for text in templates:
            check_template(text)
        local_file(out, "--out")
        config = teacher_config(
            name=teacher, pretrained=pretrained, device=device, download=download
        )
        model = Teacher(config)
        for name in same_text(model, words.names, templates):
            typer.echo(
                f"WARNING: the teacher cuts {name!r:.80} to the text of an earlier name; the two "
                "will have one embedding",
                err=True,
            )
        embeddings = embed_concepts(model, words.names, templates)
        write_official_concepts(out, ConceptTable(words.names, embeddings, model.info.logit_scale))
        typer.echo(
            f"wrote {len(words):,} concepts x {embeddings.shape[1]} of {words.name!r}, templates "
            f"{list(templates)}, logit scale {model.info.logit_scale:.2f} to {out}"
        )

"""Opens a store for a build: makes its tables, or checks that their settings are the same."""

from collections.abc import Callable

import pyarrow as pa

from tap_engine.pipeline.concepts import concepts_table, embed_concepts, parse_top_k
from tap_engine.pipeline.config import BuildConfig, build_settings
from tap_engine.pipeline.sources.records import Source
from tap_engine.pipeline.store import Store
from tap_engine.pipeline.teacher import Teacher, pending_download
from tap_engine.schemas.errors import SchemaError
from tap_engine.schemas.progress import Say
from tap_engine.schemas.provenance import software
from tap_engine.schemas.store_settings import TeacherInfo
from tap_engine.schemas.tables import (
    CONCEPTS,
    IMAGES,
    REGIONS,
    REJECTS,
    concepts_schema,
    images_schema,
    regions_schema,
    rejects_schema,
)
from tap_engine.schemas.vocabulary import load_vocabulary


def open_store(
    source: Source,
    store: Store,
    config: BuildConfig,
    describe: Callable[[], tuple[TeacherInfo, pa.Table]],
    say: Say,
) -> None:
    """Create the tables, or check that the existing ones were made with the same settings.

    Args:
        source: the source of the rows.
        store: the store they will go to.
        config: the settings of the build.
        describe: loads the teacher and says what it is, as `describe_teacher` does; called for a
            new store only, since it takes a while.
        say: told what takes a while.

    Raises:
        SchemaError: the store was made with other settings.
    """
    if store.exists(IMAGES):
        known = store.settings().teacher
        if config.teacher and known is None:
            raise SchemaError(
                f"the store {store.uri} was built without a teacher, this run names "
                f"{config.teacher.name!r}. Leave the teacher out, or name another --out"
            )
        wanted = build_settings(config, source, known if config.teacher else None)
        wanted.provenance().require_same(store.provenance(REGIONS), f"the store {store.uri}")
        return
    info, concepts = None, concepts_schema(0).empty_table()
    if config.teacher:
        if (pending := pending_download(config.teacher)) and config.teacher.download:
            say(f"downloading {pending}")
        concept_count = len(load_vocabulary(config.vocabulary))
        parse_top_k(config.concepts, concept_count)  # before minutes of embedding
        say(f"loading teacher {config.teacher.name} to embed {concept_count:,} concepts")
        info, concepts = describe()
        if info.random_weights:
            say("WARNING: the teacher has random weights; embeddings and concepts mean nothing")
    settings = build_settings(config, source, info)
    provenance = settings.provenance(software())
    regions = regions_schema(
        settings.embed_dim,
        settings.top_k,
        captioned=source.captioned,
        labelled=source.labelled,
    )
    # `images` last: its presence says that the others are there.
    content = {
        CONCEPTS: concepts,
        REJECTS: rejects_schema().empty_table(),
        REGIONS: regions.empty_table(),
        IMAGES: images_schema(captioned=source.captioned).empty_table(),
    }
    for table, rows in content.items():
        if not store.exists(table):
            store.create(table, rows, provenance)


def describe_teacher(config: BuildConfig) -> tuple[TeacherInfo, pa.Table]:
    """What the teacher of a build is, and the `concepts` table that it makes.

    Raises:
        ConfigError: it cannot be loaded, or a template has no "{}".
    """
    assert config.teacher is not None
    teacher, vocabulary = Teacher(config.teacher), load_vocabulary(config.vocabulary)
    source, target = (
        embed_concepts(teacher, vocabulary.names, templates).numpy()
        for templates in (config.source_templates, config.target_templates)
    )
    return teacher.info, concepts_table(vocabulary, source, target)

"""Gives a built store another vocabulary: new concept columns from the stored embeddings.

The teacher's image tower is not needed again, only its text tower. New columns are computed
beside the old ones, then take their place. Every step can be repeated: a killed run is continued
by the same command (its projection, a product of matrices, from the start), and `verify` tells a
half-done store by its provenance.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

import lance
import pyarrow as pa
import torch

from tap_engine.pipeline.concepts import (
    SOURCE_TEMPLATES,
    TARGET_TEMPLATES,
    ConceptPacker,
    concepts_table,
    embed_concepts,
    parse_top_k,
)
from tap_engine.pipeline.ledger import Ledger
from tap_engine.pipeline.store import Store
from tap_engine.pipeline.teacher import Teacher, TeacherConfig
from tap_engine.schemas.errors import ConfigError, SchemaError
from tap_engine.schemas.progress import Say
from tap_engine.schemas.provenance import METADATA_KEY
from tap_engine.schemas.store_settings import StoreSettings
from tap_engine.schemas.tables import CONCEPTS, IMAGES, REGIONS, REJECTS, concept_fields
from tap_engine.schemas.vocabulary import load_vocabulary

_PENDING_KEY = "tap.reproject"
"""Settings of the columns being computed, in the metadata of `regions` until they are in place."""

_PREFIX = "next_"
_BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ReprojectConfig:
    """Settings of new concepts for a store.

    Attributes:
        teacher: the store's own teacher; its weight hash is compared.
        vocabulary: a shipped name or a file.
        source_templates, target_templates: prompts of the concept weights.
        concepts: "top:K", "full" or "none".
    """

    teacher: TeacherConfig
    vocabulary: str
    source_templates: tuple[str, ...] = SOURCE_TEMPLATES
    target_templates: tuple[str, ...] = TARGET_TEMPLATES
    concepts: str = "top:64"


def reproject(store: Store, config: ReprojectConfig, *, say: Say = print) -> int:
    """Replace the concept columns and the `concepts` table; returns the regions reprojected.

    Raises:
        SchemaError: the teacher is not the one that made the embeddings.
        StoreError: a build is at work on this store.
    """
    stored = store.settings()
    if stored.teacher is None:
        raise ConfigError(f"{store.uri} holds no embeddings to project")
    vocabulary = load_vocabulary(config.vocabulary)
    top_k = parse_top_k(config.concepts, len(vocabulary))
    teacher = Teacher(config.teacher)
    expected = stored.teacher.weights_sha256
    if teacher.info.weights_sha256 != expected:
        raise SchemaError(
            f"{store.uri} was built with weights {expected[:16]}..., this teacher has "
            f"{teacher.info.weights_sha256[:16]}...; concepts must come from the same model"
        )
    settings = replace(
        stored,
        vocabulary=vocabulary.describe(),
        source_templates=config.source_templates,
        target_templates=config.target_templates,
        top_k=top_k,
    )
    with Ledger(store):
        if settings.provenance().differences(store.provenance(IMAGES)):
            say(f"embedding {len(vocabulary):,} concepts")
            source, target = (
                embed_concepts(teacher, vocabulary.names, templates).numpy()
                for templates in (config.source_templates, config.target_templates)
            )
            packer = ConceptPacker.of(target, teacher.info.logit_scale, top_k).to(teacher.device)
            say(f"projecting {store.open(REGIONS).count_rows():,} regions")
            _project(store, settings, packer, teacher.device)
            _swap(store, settings)
            provenance = settings.provenance(store.provenance(REGIONS).made).to_json()
            _replace_concepts(store, concepts_table(vocabulary, source, target), provenance)
            # `images` last: as long as it differs, a repeated command does everything again.
            for table in (REJECTS, REGIONS, IMAGES):
                store.open(table).update_schema_metadata({METADATA_KEY: provenance})
    return store.open(REGIONS).count_rows()


def _project(
    store: Store, settings: StoreSettings, packer: ConceptPacker, device: torch.device
) -> None:
    """Write the new columns beside the old ones, in one commit; a killed attempt leaves none."""
    regions = store.open(REGIONS)
    text = json.dumps(settings.to_json(), sort_keys=True)
    pending = (regions.schema.metadata or {}).get(_PENDING_KEY.encode(), b"").decode()
    if pending != text:
        if leftovers := [n for n in regions.schema.names if n.startswith(_PREFIX)]:
            regions.drop_columns(leftovers)
        store.open(REGIONS).update_schema_metadata({_PENDING_KEY: text})
        regions = store.open(REGIONS)
    elif any(name.startswith(_PREFIX) for name in regions.schema.names):
        return
    if not packer.top_k or not regions.count_rows():
        return
    fields = [field.with_name(_PREFIX + field.name) for field in concept_fields(packer.top_k)]
    schema = pa.schema(fields)

    # Without Lance's checkpoint file: it unpickles what it finds there, does not know which store
    # its batches are of, and the start of a driver removes the files that it names.
    @lance.batch_udf(output_schema=schema)
    def project(batch: pa.RecordBatch) -> pa.RecordBatch:
        column = batch.column("embedding")
        vectors = column.flatten().to_numpy().reshape(len(column), -1)
        columns = packer.pack(torch.tensor(vectors, device=device))
        return pa.record_batch(columns, schema=schema)

    regions.add_columns(project, read_columns=["embedding"], batch_size=_BATCH_ROWS)


def _swap(store: Store, settings: StoreSettings) -> None:
    """Let the new columns take the names of the old; metadata only."""
    names = [field.name for field in concept_fields(1)]
    for name in names:
        schema = store.open(REGIONS).schema
        if settings.top_k and _PREFIX + name not in schema.names:
            continue  # done by an earlier attempt, or an empty table
        if name in schema.names:
            store.open(REGIONS).drop_columns([name])
        if _PREFIX + name in schema.names:
            change: Any = {"path": _PREFIX + name, "name": name}
            store.open(REGIONS).alter_columns(change)


def _replace_concepts(store: Store, content: pa.Table, provenance: str) -> None:
    schema = content.schema.with_metadata({METADATA_KEY: provenance})
    lance.write_dataset(
        content.cast(schema),
        store.table_uri(CONCEPTS),
        mode="overwrite",
        storage_options=store.options,
    )

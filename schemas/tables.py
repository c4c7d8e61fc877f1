"""Arrow schemas of the five tables of a store: the contract between the two halves.

A store is one folder or object-store prefix; each table is a Lance dataset `<store>/<name>.lance`.
Units stand in the field metadata under `unit`. A changed meaning gets a new column name and a
higher SCHEMA_VERSION, never a new meaning under an old name.
"""

import pyarrow as pa

from tap_engine.schemas.errors import SchemaError

SCHEMA_VERSION = 1

IMAGES, REGIONS, CONCEPTS, REJECTS, MIXTURE = "images", "regions", "concepts", "rejects", "mixture"

SOURCE_TYPE = pa.dictionary(pa.int8(), pa.string())

SPLITS = ("train", "val", "test")
"""Words of a `split` column, null where the data set's split does not name the image. Plain text:
Arrow cannot join the dictionaries that Lance returns for columns with nulls."""


def table_uri(store: str, table: str) -> str:
    """Path or URI of a table inside a store."""
    return f"{store.rstrip('/')}/{table}.lance"


def _field(name: str, type_: pa.DataType, *, null: bool = False, unit: str = "") -> pa.Field:
    return pa.field(name, type_, nullable=null, metadata={"unit": unit} if unit else None)


def images_schema(*, captioned: bool = False) -> pa.Schema:
    """One row per image; `jpeg` holds the file's own bytes (stored as a Lance blob).

    A JPEG, or of a person's own photos a PNG or WebP (`--photos as-is`).

    Args:
        captioned: adds `split`, a word of SPLITS or null.
    """
    fields = [
        _field("image_id", pa.int64()),
        _field("source", SOURCE_TYPE),
        _field("unit", pa.int64()),
        _field("file_name", pa.string()),
        _field("width", pa.int32(), unit="px"),
        _field("height", pa.int32(), unit="px"),
        _field("jpeg", pa.large_binary()),
        _field("region_count", pa.int32()),
    ]
    if captioned:
        fields.append(_field("split", pa.string(), null=True))
    return pa.schema(fields)


def regions_schema(
    embedding_dim: int, top_k: int, *, captioned: bool = False, labelled: bool = False
) -> pa.Schema:
    """One row per mask or box.

    Args:
        embedding_dim: D, width of the teacher's embedding; 0 leaves the embedding out.
        top_k: K, how many concepts are kept; 0 leaves the concept columns out.
        captioned: adds `caption_raw` and `split`.
        labelled: adds `label`, the source's own name of the region, null where it gives none.

    Columns that need explaining: `key` see keys.py; `rle` COCO compressed counts, null for
    boxes; `embedding` L2-normalised float16 [D]; `concept_ids` uint16 [K] most probable first;
    `concept_probs` float16 [K] probabilities of the full distribution, not renormalised;
    `concept_entropy` of the full distribution; `caption` null where the source has none, cleaned
    where it has one; `caption_raw` as in the source's file; `split` as in `images`.
    """
    fields = [
        _field("key", pa.int64()),
        _field("image_id", pa.int64()),
        _field("region_id", pa.int64()),
        _field("source", SOURCE_TYPE),
        _field("unit", pa.int64()),
        _field("bbox_xywh", pa.list_(pa.float32(), 4), unit="px"),
        _field("area", pa.int32(), unit="px"),
        _field("rle", pa.binary(), null=True),
        _field("predicted_iou", pa.float32(), null=True),
        _field("stability_score", pa.float32(), null=True),
    ]
    if embedding_dim:
        fields.append(_field("embedding", pa.list_(pa.float16(), embedding_dim)))
    if embedding_dim and top_k:
        fields += concept_fields(top_k)
    fields.append(_field("caption", pa.string(), null=True))
    if labelled:
        fields.append(_field("label", pa.string(), null=True))
    if captioned:
        fields.append(_field("caption_raw", pa.string(), null=True))
        fields.append(_field("split", pa.string(), null=True))
    return pa.schema(fields)


def concept_fields(top_k: int) -> list[pa.Field]:
    """The columns that are derived from embedding and vocabulary (`tap-data reproject`)."""
    return [
        _field("concept_ids", pa.list_(pa.uint16(), top_k)),
        _field("concept_probs", pa.list_(pa.float16(), top_k)),
        _field("concept_entropy", pa.float32(), unit="nat"),
    ]


def concepts_schema(embedding_dim: int) -> pa.Schema:
    """One row per concept; both embeddings unit length, without the logit scale.

    `source_embedding` projects the student's prediction, `target_embedding` the teacher's
    embedding (asymmetric distillation, TAP paper appendix B, Algorithm 1). A store without a
    teacher (`embedding_dim` 0) has neither, and no rows.
    """
    fields = [
        _field("concept_id", pa.int32()),
        _field("name", pa.string()),
        _field("sources", pa.list_(pa.string())),
    ]
    if embedding_dim:
        vector = pa.list_(pa.float32(), embedding_dim)
        fields += [_field("source_embedding", vector), _field("target_embedding", vector)]
    return pa.schema(fields)


def rejects_schema() -> pa.Schema:
    """One row per rejected image or region; rejects.py lists the values of `stage` and `reason`."""
    return pa.schema(
        [
            _field("unit", pa.int64()),
            _field("image_id", pa.int64(), null=True),
            _field("region_id", pa.int64(), null=True),
            _field("stage", pa.string()),
            _field("reason", pa.string()),
            _field("detail", pa.string()),
        ]
    )


def mixture_schema() -> pa.Schema:
    """One row per image of a subset of CaptionSA-400M; a plan, the pixels stay in `images`."""
    return pa.schema(
        [
            _field("subset", pa.int32()),
            _field("image_id", pa.int64()),
            _field("source", SOURCE_TYPE),
            _field("regions", pa.int32()),
        ]
    )


def check_columns(found: pa.Schema, expected: pa.Schema, table: str) -> None:
    """Raise unless every expected column is there with its type; more columns are allowed.

    Raises:
        SchemaError: names the table, the column and both types.
    """
    for field in expected:
        index = found.get_field_index(field.name)
        if index < 0:
            raise SchemaError(
                f"table {table!r} lacks column {field.name!r} ({field.type}); "
                f"it has {', '.join(found.names)}"
            )
        if found.field(index).type != field.type:
            raise SchemaError(
                f"table {table!r} column {field.name!r}: expected {field.type}, found "
                f"{found.field(index).type}; was it built with another teacher or setting? "
                f"`tap-data inspect` shows what made it"
            )

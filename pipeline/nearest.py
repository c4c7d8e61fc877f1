"""Finds the regions that look most like a text, a picture or a region, by cosine.

Lance searches: exact where the table has no vector index, through the index where it has one.
"""

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tap_engine.pipeline.concepts import check_template, embed_concepts
from tap_engine.pipeline.crop import crop_regions
from tap_engine.pipeline.key_index import rows_of_keys
from tap_engine.pipeline.query import FILE_NAME, NAMED, concept_names, resolve_filter, with_names
from tap_engine.pipeline.store import Store
from tap_engine.pipeline.teacher import Teacher, TeacherConfig
from tap_engine.schemas.errors import ConfigError, SchemaError, StoreError
from tap_engine.schemas.tables import REGIONS

Vector = npt.NDArray[np.float32]

AS_TYPED = ("{}",)
"""The template of a search text: a phrase is taken as it was typed."""


def search_text(
    store: Store,
    text: str,
    teacher: Teacher,
    *,
    templates: Sequence[str] = AS_TYPED,
    top: int = 8,
    filter_: str | None = None,
    columns: Sequence[str] | None = None,
) -> pa.RecordBatch:
    """The regions whose embeddings are nearest to a text's, by the teacher's text tower.

    Args:
        store: the store.
        text: words.
        teacher: the store's own teacher, see `stored_teacher`.
        templates: what is put around the words at "{}"; several are averaged.
        top: see `search_vector`, as the next two.
        filter_: a condition.
        columns: what to give.

    Returns:
        As `search_vector`; the schema's metadata `tap.search` has text and templates as json.

    Raises:
        ConfigError: an empty text, a template without "{}", or as `search_vector`.
    """
    if not text.strip():
        raise ConfigError("the search text is empty")
    for template in templates:
        check_template(template)
    vector = embed_concepts(teacher, [text], templates)[0].numpy()
    found = search_vector(store, vector, top=top, filter_=filter_, columns=columns)
    asked = json.dumps({"text": text, "templates": list(templates)}, ensure_ascii=False)
    return found.replace_schema_metadata({"tap.search": asked})


def search_image(
    store: Store,
    image_rgb: npt.NDArray[np.uint8],
    teacher: Teacher,
    *,
    top: int = 8,
    filter_: str | None = None,
    columns: Sequence[str] | None = None,
) -> pa.RecordBatch:
    """The regions whose embeddings are nearest to a whole picture's, cropped as the store's were.

    Args:
        store: the store.
        image_rgb: [H, W, 3] uint8.
        teacher: the store's own teacher, see `stored_teacher`.
        top: see `search_vector`, as the next two.
        filter_: a condition.
        columns: what to give.
    """
    crop = store.settings().crop
    if crop is None:
        raise ConfigError(f"{store.uri} has no embeddings: it was built without a teacher")
    box = [[0, 0, image_rgb.shape[1], image_rgb.shape[0]]]
    vector = teacher.encode_crops(crop_regions(image_rgb, [None], box, crop))[0].cpu().numpy()
    return search_vector(store, vector, top=top, filter_=filter_, columns=columns)


def nearest_regions(
    store: Store,
    key: int,
    *,
    top: int = 8,
    filter_: str | None = None,
    columns: Sequence[str] | None = None,
) -> pa.RecordBatch:
    """The regions whose embeddings are nearest to one region's, without itself.

    Args:
        store: the store.
        key: the key of the region to start from.
        top: see `search_vector`, as the next two.
        filter_: a condition.
        columns: what to give.

    Returns:
        As `search_vector`.

    Raises:
        StoreError: no such key.
        ConfigError: as `search_vector`.
    """
    dataset = store.open(REGIONS)
    if "embedding" not in dataset.schema.names:
        raise ConfigError(f"{store.uri} has no embeddings: it was built without a teacher")
    own = rows_of_keys(dataset, [key], ["embedding"])
    vector = own["embedding"].combine_chunks().flatten().to_numpy()
    return search_vector(store, vector, top=top, filter_=filter_, columns=columns, without=key)


def search_vector(
    store: Store,
    vector: npt.NDArray[np.floating],
    *,
    top: int = 8,
    filter_: str | None = None,
    columns: Sequence[str] | None = None,
    without: int | None = None,
) -> pa.RecordBatch:
    """The regions whose embeddings are nearest to a vector.

    Cost: reads every embedding that the filter leaves, 2 D bytes each.

    Args:
        store: the store.
        vector: [D] in the teacher's space, of any length above 0.
        top: the number of regions; fewer if the store has fewer.
        filter_: a condition as in query.py; None searches all regions.
        columns: columns as in query.py; by default key, image_id, region_id, and concept where the
            store keeps concepts.
        without: the key of a region that is left out.

    Returns:
        The columns, `similarity` (cosine, float32) after the first three of the default, else
        last; the most similar first.

    Raises:
        StoreError: the table cannot be read.
        ConfigError: no embeddings, `top` below one, an unknown column, or a filter that Lance does
            not understand.
    """
    if top < 1:
        raise ConfigError(f"--top must be at least 1, got {top}")
    dataset = store.open(REGIONS)
    stored = dataset.schema.names
    if "embedding" not in stored:
        raise ConfigError(f"{store.uri} has no embeddings: it was built without a teacher")
    named = "concept_ids" in stored
    names = concept_names(store)
    wanted = list(columns or ["key", "image_id", "region_id", *(["concept"] if named else [])])
    known = [*stored, *(NAMED if named else ()), FILE_NAME]
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(f"no column {unknown[0]!r}; there are {', '.join(known)}")
    conditions = [] if without is None else [f"key != {without}"]
    if filter_:
        conditions.append(f"({resolve_filter(store, filter_, names)})")
    read = [name for name in wanted if name in stored]
    if any(name in NAMED for name in wanted):
        read += ["concept_ids", "concept_probs"]
    read += ["image_id"] * (FILE_NAME in wanted)
    try:
        found = dataset.to_table(
            columns=[*dict.fromkeys(read), "_distance"],
            filter=" AND ".join(conditions) or None,
            prefilter=True,
            nearest={
                "column": "embedding",
                "q": np.asarray(vector, np.float16),
                "k": top,
                "metric": "cosine",
            },
        )
    except (ValueError, OSError) as error:
        if not filter_:
            raise StoreError(
                f"{dataset.uri} cannot be read, ask `tap-data verify`: {str(error)[:300]}"
            ) from error
        raise ConfigError(f"filter {filter_!r}: {str(error)[:400]}") from error
    whole = pa.record_batch(
        [column.combine_chunks() for column in found.columns], schema=found.schema
    )
    answer = with_names(store, whole, wanted, names)
    place = len(wanted) if columns else 3
    similarity = pa.array((1 - found["_distance"].to_numpy()).astype(np.float32))
    arrays, titles = list(answer.columns), list(answer.schema.names)
    arrays.insert(place, similarity)
    titles.insert(place, "similarity")
    return pa.record_batch(arrays, names=titles)


def stored_teacher(
    store: Store,
    *,
    name: str | None = None,
    pretrained: str | None = None,
    device: str = "auto",
    download: bool = False,
) -> Teacher:
    """The teacher that made a store, loaded; its weights are compared.

    Args:
        store: the store.
        name: its name where the store's own is not enough: a model folder is stored without its
            path.
        pretrained: the same of its weights.
        device: see `TeacherConfig.device`.
        download: see `TeacherConfig.download`.

    Raises:
        ConfigError: the store has no teacher, or it is not on this machine.
        SchemaError: another teacher than the store's.
    """
    stored = store.settings().teacher
    if stored is None:
        raise ConfigError(f"{store.uri} has no embeddings: it was built without a teacher")
    if name is None:
        name, pretrained = stored.name, pretrained or stored.pretrained
    try:
        teacher = Teacher(
            TeacherConfig(name=name, pretrained=pretrained, device=device, download=download)
        )
    except ConfigError as error:
        raise ConfigError(
            f"the store's teacher is {stored.name} ({stored.pretrained}); name it with --teacher "
            f"and --pretrained: {error}"
        ) from error
    if teacher.info.weights_sha256 != stored.weights_sha256:
        raise SchemaError(
            f"{store.uri} was built with weights {stored.weights_sha256[:16]}..., this teacher has "
            f"{teacher.info.weights_sha256[:16]}...; a search must use the same model"
        )
    return teacher

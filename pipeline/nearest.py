"""Finds the regions that look most like a region, by the cosine of their embeddings.

Lance searches: exact where the table has no vector index, through the index where it has one.
"""

import numpy as np
import pyarrow as pa

from tap_engine.pipeline.key_index import rows_of_keys
from tap_engine.pipeline.query import concept_names, resolve_filter
from tap_engine.pipeline.store import Store
from tap_engine.schemas.errors import ConfigError, StoreError
from tap_engine.schemas.tables import REGIONS


def nearest_regions(
    store: Store, key: int, *, top: int = 8, filter_: str | None = None
) -> pa.RecordBatch:
    """The regions whose embeddings are nearest to one region's, without itself.

    Cost: reads every embedding that the filter leaves, 2 D bytes each.

    Args:
        store: the store.
        key: the key of the region to start from.
        top: the number of regions; fewer if the store has fewer.
        filter_: a condition as in query.py; None searches all regions.

    Returns:
        Columns key, image_id, region_id, similarity (cosine, float32), and concept where the store
        keeps concepts; the most similar first.

    Raises:
        StoreError: no such key.
        ConfigError: `top` below one, or a filter Lance does not understand.
    """
    if top < 1:
        raise ConfigError(f"--top must be at least 1, got {top}")
    dataset = store.open(REGIONS)
    if "embedding" not in dataset.schema.names:
        raise ConfigError(f"{store.uri} has no embeddings: it was built without a teacher")
    own = rows_of_keys(dataset, [key], ["embedding"])
    named = "concept_ids" in dataset.schema.names
    names = concept_names(store)
    wanted = f"key != {key}"
    if filter_:
        wanted += f" AND ({resolve_filter(store, filter_, names)})"
    columns = ["key", "image_id", "region_id", *(["concept_ids"] if named else [])]
    try:
        found = dataset.to_table(
            columns=[*columns, "_distance"],
            filter=wanted,
            prefilter=True,
            nearest={
                "column": "embedding",
                "q": own["embedding"].combine_chunks().flatten().to_numpy(),
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
    distance = found["_distance"].to_numpy()
    answer = {name: found[name].combine_chunks() for name in ("key", "image_id", "region_id")}
    answer["similarity"] = pa.array((1 - distance).astype(np.float32))
    if named:
        answer["concept"] = pa.array([names[ids[0]] for ids in found["concept_ids"].to_pylist()])
    return pa.record_batch(answer)

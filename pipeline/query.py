"""Queries of regions: names of concepts for people become ids for Lance.

A filter is Lance's SQL (DataFusion) over the columns of `regions`, plus three words of ours:
    concept = 'dog', concept != 'dog', concept IN ('dog', 'cat')    the most probable concept
    has_concept('dog')                                              among the stored top K
    file_name = 'a.jpg', file_name LIKE 'train/%', IN (...)         of the region's image
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tap_engine.pipeline.store import Store
from tap_engine.schemas.errors import ConfigError, SchemaError, StoreError
from tap_engine.schemas.tables import CONCEPTS, IMAGES, REGIONS

DEFAULT_COLUMNS = (
    "key",
    "image_id",
    "region_id",
    "area",
    "bbox_xywh",
    "label",
    "concept",
    "concept_entropy",
)
NAMED = ("concept", "concepts")
"""Columns of ours: the top concept's name, and `name probability` of the stored ones."""

FILE_NAME = "file_name"
"""A column of `images` that queries over regions know as well."""

_MOST_FILES = 100_000

_LITERAL = r"'(?:[^']|'')*'"
_WORDS = re.compile(
    rf"""
    \bconcept\s*(?P<comparison>=|!=|<>)\s*(?P<one>{_LITERAL})
    | \bconcept\s+(?P<membership>(?:NOT\s+)?IN)
        \s*\(\s*(?P<several>{_LITERAL}(?:\s*,\s*{_LITERAL})*)\s*\)
    | \bhas_concept\s*\(\s*(?P<has>{_LITERAL})\s*\)
    | (?P<files>\bfile_name\s*(?:=|!=|<>|(?:\bNOT\s+)?\bLIKE\b)\s*{_LITERAL}
        | \bfile_name\s+(?:NOT\s+)?IN\s*\(\s*{_LITERAL}(?:\s*,\s*{_LITERAL})*\s*\))
    | {_LITERAL} | "[^"]*"
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""Our words, or else a text or quoted column, which is matched so that nothing inside it is."""


@dataclass(frozen=True)
class Query:
    """A query of the table `regions`.

    Attributes:
        filter: Lance SQL with the words above; None for all rows.
        columns: stored columns, `concept`, `concepts` and `file_name`; None for what a person
            wants to see.
        limit: rows at most; 0 for all.
    """

    filter: str | None = None
    columns: Sequence[str] | None = None
    limit: int = 0


def run_query(store: Store, query: Query) -> Iterator[pa.RecordBatch]:
    """Matching rows, batch by batch, in storage order; at least one (maybe empty) batch.

    Raises:
        ConfigError: an unknown column or concept, or a filter Lance does not understand.
    """
    dataset = store.open(REGIONS)
    names = concept_names(store)
    has_concepts = "concept_ids" in dataset.schema.names
    columns = query.columns or _default_columns(dataset.schema.names)
    ours = (*NAMED, FILE_NAME)
    unknown = [c for c in columns if c not in dataset.schema.names and c not in ours]
    if unknown:
        raise ConfigError(
            f"no column {unknown[0]!r}; there are {', '.join((*dataset.schema.names, *ours))}"
        )
    if not has_concepts and any(c in NAMED for c in columns):
        raise ConfigError("this store keeps no concepts (--concepts none); `tap-data reproject`")
    stored = [c for c in columns if c in dataset.schema.names]
    needed = [c for c in ("concept_ids", "concept_probs") if any(n in NAMED for n in columns)]
    needed += ["image_id"] * (FILE_NAME in columns)
    try:
        scanner = dataset.scanner(
            columns=list(dict.fromkeys([*stored, *needed])),
            filter=resolve_filter(store, query.filter, names) if query.filter else None,
            limit=query.limit or None,
        )
        empty = pa.Table.from_batches([], scanner.projected_schema)
        some = False
        for batch in scanner.to_batches():
            some = True
            yield with_names(store, batch, columns, names)
        if not some:
            yield with_names(
                store,
                pa.record_batch([c.combine_chunks() for c in empty.columns], schema=empty.schema),
                columns,
                names,
            )
    except (ValueError, OSError) as error:
        if not query.filter:
            raise StoreError(
                f"{dataset.uri} cannot be read, ask `tap-data verify`: {str(error)[:300]}"
            ) from error
        raise ConfigError(f"filter {query.filter!r}: {str(error)[:400]}") from error


def _default_columns(names: Sequence[str]) -> list[str]:
    """Concepts where the store keeps them, captions where it has them."""
    kept = [c for c in DEFAULT_COLUMNS if c in names or (c in NAMED and "concept_ids" in names)]
    return kept + [c for c in ("caption", "split") if "split" in names]


def concept_names(store: Store) -> list[str]:
    """Names in id order."""
    return store.open(CONCEPTS).to_table(columns=["name"]).column("name").to_pylist()


def resolve_filter(store: Store, filter_: str, names: Sequence[str]) -> str:
    """The filter in Lance's own words; see `resolve_concepts`."""
    images = store.open(IMAGES)

    def of_files(condition: str) -> list[int]:
        found = images.to_table(columns=["image_id"], filter=condition, limit=_MOST_FILES + 1)
        if len(found) > _MOST_FILES:
            raise ConfigError(f"{condition} fits more than {_MOST_FILES:,} images; narrow it down")
        return found.column("image_id").to_pylist()

    return resolve_concepts(filter_, names, of_files)


def resolve_concepts(
    filter_: str, names: Sequence[str], of_files: Callable[[str], list[int]] = lambda _: []
) -> str:
    """The filter with names of concepts and files turned into ids.

    Args:
        filter_: with our words.
        names: of concepts, in id order.
        of_files: ids of the images that a condition on `file_name` fits.

    Raises:
        ConfigError: a name that is not in the vocabulary.
    """
    ids = {name: index for index, name in enumerate(names)}

    def number(literal: str) -> str:
        name = literal[1:-1].replace("''", "'")
        if name not in ids:
            close = [n for n in names if name.lower() in n or n in name.lower()][:5]
            hint = f"; close ones: {', '.join(close)}" if close else ""
            raise ConfigError(f"no concept {name!r} among {len(names):,}{hint}")
        return str(ids[name])

    def resolved(match: re.Match[str]) -> str:
        if match["comparison"]:
            return f"concept_ids[1] {match['comparison']} {number(match['one'])}"
        if match["membership"]:
            numbers = ", ".join(number(text) for text in re.findall(_LITERAL, match["several"]))
            return f"concept_ids[1] {match['membership']} ({numbers})"
        if match["has"]:
            return f"array_has(concept_ids, arrow_cast({number(match['has'])}, 'UInt16'))"
        if match["files"]:
            ids_of_images = ", ".join(map(str, of_files(match["files"])))
            return f"image_id IN ({ids_of_images or -1})"
        return match[0]

    return _WORDS.sub(resolved, filter_)


def with_names(
    store: Store, batch: pa.RecordBatch, columns: Sequence[str], names: Sequence[str]
) -> pa.RecordBatch:
    """The columns asked for, `concept` and `concepts` made of ids and probabilities.

    Args:
        store: asked for the names of files.
        batch: the stored columns; with `concept_ids` and `concept_probs` where names are asked for.
        columns: stored columns and NAMED.
        names: of all concepts, in id order.
    """
    arrays = []
    for column in columns:
        if column == FILE_NAME:
            arrays.append(_file_names(store, batch.column("image_id")))
            continue
        if column not in NAMED:
            arrays.append(batch.column(column))
            continue
        ids = batch.column("concept_ids")
        if not isinstance(ids.type, pa.FixedSizeListType):
            raise SchemaError(f"column 'concept_ids' is {ids.type}, expected a fixed-size list")
        width = ids.type.list_size
        matrix = ids.flatten().to_numpy().reshape(-1, width)
        lookup = np.asarray(names, object)
        if column == "concept":
            arrays.append(pa.array(lookup[matrix[:, 0]], pa.string()))
        else:
            probs = batch.column("concept_probs").flatten().to_numpy().reshape(-1, width)
            arrays.append(
                pa.array(
                    [
                        [f"{lookup[i]} {p:.3f}" for i, p in zip(row, row_probs, strict=True)]
                        for row, row_probs in zip(matrix, probs, strict=True)
                    ],
                    pa.list_(pa.string()),
                )
            )
    return pa.record_batch(arrays, names=list(columns))


def _file_names(store: Store, image_ids: pa.Array) -> pa.Array:
    distinct = image_ids.unique().to_pylist()
    if not distinct:
        return pa.array([], pa.string())
    table = store.open(IMAGES).to_table(
        columns=["image_id", FILE_NAME], filter=f"image_id IN ({', '.join(map(str, distinct))})"
    )
    pairs = zip(table["image_id"].to_pylist(), table[FILE_NAME].to_pylist(), strict=True)
    known = dict(pairs)
    return pa.array([known.get(number) for number in image_ids.to_pylist()], pa.string())

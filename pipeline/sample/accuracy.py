"""Measures how often a store, or a teacher, names the sample world's regions rightly.

A region is right when its most probable concept, of all concepts of the vocabulary, is the one of
the truth table. A part counts as right with its object's concept: often a part cannot show that,
so its share is a description, not a score.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tap_engine.pipeline.sources.filesystem import absolute_uri
from tap_engine.pipeline.store import Store
from tap_engine.schemas.errors import ConfigError, SchemaError, SourceError
from tap_engine.schemas.tables import CONCEPTS, REGIONS, SPLITS
from tap_engine.schemas.truth import OBJECT, read_truth

VISIBILITY_STEPS = (0.0, 0.6, 0.8, 0.95)
"""Where the classes of visibility begin; the last is "as good as whole"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyRow:
    """One line of a report.

    Attributes:
        facet: what the line breaks down by: kind, visibility, group, tint, ...
        value: value of the facet. Lines of other facets than kind are about objects alone.
        regions: the number of regions.
        top1: share whose most probable concept is right.
        top5: share with the right one among the five most probable; None where fewer were kept.
        entropy: mean entropy of the concept distribution, nats.
    """

    facet: str
    value: str
    regions: int
    top1: float
    top5: float | None
    entropy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreAccuracy:
    """A report on a store.

    Attributes:
        rows: one row per region that is in the store and in the truth table.
        without_truth: regions of the store that the truth table lacks.
        not_in_store: regions of the truth table, on images that the store has, that it lacks.
    """

    rows: list[AccuracyRow]
    without_truth: int
    not_in_store: int

    @property
    def objects_top1(self) -> float:
        """The headline: top-1 of all objects."""
        return next(row.top1 for row in self.rows if (row.facet, row.value) == ("kind", OBJECT))


def accuracy_rows(
    *,
    top_ids: npt.NDArray[np.integer],
    entropy: npt.NDArray[np.floating],
    concept: npt.NDArray[np.integer],
    facets: Mapping[str, Sequence[str]],
    visibility: npt.NDArray[np.floating],
) -> list[AccuracyRow]:
    """The report's lines.

    Args:
        top_ids: [N, K] concept ids, most probable first.
        entropy: [N] nats.
        concept: [N] the right ids; -1 for a concept that the vocabulary does not have.
        facets: words to break down by, N each; "kind" must be among them.
        visibility: [N] in 0..1.
    """
    hits = top_ids == concept[:, None]
    values = {name: np.asarray(words, object) for name, words in facets.items()}
    steps = [*VISIBILITY_STEPS, np.inf]
    names = [f"{low:.2f}-{min(high, 1):.2f}" for low, high in pairwise(steps)]
    bins = np.digitize(visibility, VISIBILITY_STEPS) - 1
    values["visibility"] = np.asarray([names[i] for i in bins], object)
    objects = values["kind"] == OBJECT
    rows = []
    for facet in ("kind", "visibility", *sorted(facets.keys() - {"kind"})):
        scope = np.ones(len(concept), bool) if facet == "kind" else objects
        for value in sorted(set(values[facet][scope])):
            chosen = scope & (values[facet] == value)
            rows.append(
                AccuracyRow(
                    facet=facet,
                    value=str(value),
                    regions=int(chosen.sum()),
                    top1=float(hits[chosen, 0].mean()),
                    top5=float(hits[chosen, :5].any(1).mean()) if hits.shape[1] >= 5 else None,
                    entropy=float(np.mean(entropy[chosen])),
                )
            )
    return rows


def measure_store(store: str, truth: str | Path, *, split: str | None = None) -> StoreAccuracy:
    """Compare a store's concepts with the truth table; reads ids and concepts, no embeddings.

    Args:
        store: folder or URI of the store.
        truth: the table, or the folder of it.
        split: "train" or "val", to measure on one of them only.

    Raises:
        ConfigError: an unknown split.
        StoreError: no store there.
        SourceError: none of its regions is in the truth table.
        SchemaError: the store was built without concepts.
    """
    known = read_truth(truth)
    if split is not None:
        if split not in SPLITS:
            raise ConfigError(f"split must be {', '.join(SPLITS)}, got {split!r}")
        known = known.filter(pc.equal(known["split"], split))
    tables = Store(absolute_uri(store))
    names = tables.open(CONCEPTS).to_table(columns=["concept_id", "name"])
    ids = dict(zip(names["name"].to_pylist(), names["concept_id"].to_pylist(), strict=True))
    regions = tables.open(REGIONS)
    if "concept_ids" not in regions.schema.names:
        raise SchemaError(f"{store} was built with --concepts none; `tap-data reproject` adds them")
    stored = regions.to_table(columns=["image_id", "region_id", "concept_ids", "concept_entropy"])
    keys = ["image_id", "region_id"]
    # Joins do not carry list columns: join row numbers, take the lists afterwards.
    numbered = stored.select(keys).append_column("row", pa.array(np.arange(len(stored))))
    joined = known.join(numbered, keys, join_type="inner")
    if not len(joined):
        raise SourceError(
            f"no region of {store} is in the truth table {truth}; was it built from these scenes, "
            "with --source sample?"
        )
    at = joined["row"].to_numpy()
    top = stored["concept_ids"].combine_chunks()
    ids_of = top.flatten().to_numpy().reshape(len(stored), -1)[at]
    rows = accuracy_rows(
        top_ids=ids_of.astype(np.int64),
        entropy=stored["concept_entropy"].to_numpy()[at],
        concept=np.array([ids.get(name, -1) for name in joined["concept"].to_pylist()]),
        facets={
            "kind": joined["kind"].to_pylist(),
            "group": joined["concept_group"].to_pylist(),
            "tint": [tint or "none" for tint in joined["tint"].to_pylist()],
        },
        visibility=joined["visibility"].to_numpy(),
    )
    images = pc.is_in(known["image_id"], value_set=pc.unique(stored["image_id"].combine_chunks()))
    return StoreAccuracy(
        rows=rows,
        without_truth=len(stored) - len(joined),
        not_in_store=int(pc.sum(images).as_py() or 0) - len(joined),
    )


def format_accuracy(rows: Sequence[AccuracyRow]) -> str:
    """The report as an aligned text table."""
    lines = [f"{'facet':<12}{'value':<14}{'regions':>9}{'top-1':>8}{'top-5':>8}{'entropy':>9}"]
    for row in rows:
        top5 = "" if row.top5 is None else f"{row.top5:.3f}"
        lines.append(
            f"{row.facet:<12}{row.value:<14}{row.regions:>9,}{row.top1:>8.3f}{top5:>8}"
            f"{row.entropy:>9.2f}"
        )
    return "\n".join(lines)

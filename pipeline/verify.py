"""Checks that a store holds what it promises; every check streams in bounded memory.

Counts per unit, unique and sorted-together keys, agreement of images and regions, norms, NaN,
concept columns, provenance of all tables, freshness of the indices.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tap_engine.pipeline.store import Store, blob_bytes, scan
from tap_engine.schemas import rle, tables
from tap_engine.schemas.errors import SchemaError
from tap_engine.schemas.keys import split_key
from tap_engine.schemas.rejects import Reason, Stage
from tap_engine.schemas.store_settings import StoreSettings

Result = TypeVar("Result")

_NORM_TOLERANCE = 2e-3
"""A unit vector of float16 values: rounding moves the norm by at most 2^-11 of it."""

_PROB_TOLERANCE = 2e-2
"""Sum of up to 2,560 float16 probabilities, each rounded by at most 2^-11 of itself."""


@dataclass
class VerifyReport:
    """Checks that were made, and the problems found.

    Attributes:
        checks: a line for each check that passed.
        problems: a line for each that did not, with numbers and an example.
    """

    checks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, name: str, problem: str | None) -> None:
        """Note the outcome of one check; None is good."""
        if problem is None:
            self.checks.append(name)
        else:
            self.problems.append(f"{name}: {problem}")

    @property
    def ok(self) -> bool:
        """No problem was found."""
        return not self.problems


def verify(
    store: Store, *, jpeg_sample: int = 64, say: Callable[[str], None] = lambda text: None
) -> VerifyReport:
    """Check a whole store.

    Args:
        store: the store.
        jpeg_sample: number of images, evenly spread, whose bytes are read and checked.
        say: told what is being checked.

    Raises:
        StoreError: a table is missing.
        SchemaError: provenance is damaged.
    """
    report = VerifyReport()
    images, regions, rejects, concepts = (
        store.open(name)
        for name in (tables.IMAGES, tables.REGIONS, tables.REJECTS, tables.CONCEPTS)
    )
    say("schemas and provenance")
    top_k = _check_schemas(store, images, regions, rejects, concepts, report)

    # A file that is damaged is found and named; what does not need its table is checked as well.
    say("images")
    found = _read(report, tables.IMAGES, lambda: _check_images(images, report), images)
    if found is not None:
        say(f"{regions.count_rows():,} regions")
        size = concepts.count_rows()
        check = partial(_check_regions, regions, *found, top_k, size, report)
        _read(report, tables.REGIONS, check, regions)
    if "split" in regions.schema.names:
        say("captions")
        _read(report, "captions", lambda: _check_captions(images, regions, report))
    _read(report, tables.REJECTS, lambda: _check_rejects(rejects, report), rejects)
    _read(report, "indices", lambda: _check_indices(regions, images, report))
    _read(report, "image files", lambda: _check_jpegs(images, jpeg_sample, report))
    return report


def _read(
    report: VerifyReport,
    what: str,
    check: Callable[[], Result],
    dataset: lance.LanceDataset | None = None,
) -> Result | None:
    try:
        return check()
    except (OSError, ValueError, pa.ArrowException) as error:
        words = (str(error).strip().splitlines() or [repr(error)])[0]
        files = _damaged_files(dataset) if dataset is not None else []
        named = f"{', '.join(files[:3])}: " if files else ""
        report.add(f"{what} can be read", f"{named}damaged or gone: {words[:300]}")
        return None


def _damaged_files(dataset: lance.LanceDataset) -> list[str]:
    """Data files of fragments that cannot be read."""
    found = []
    for fragment in dataset.get_fragments():
        try:
            for _ in fragment.to_batches(columns=dataset.schema.names[:1]):
                pass
        except (OSError, ValueError, pa.ArrowException):
            found += [f"data/{file.path}" for file in fragment.metadata.files]
    return found


def _check_schemas(
    store: Store,
    images: lance.LanceDataset,
    regions: lance.LanceDataset,
    rejects: lance.LanceDataset,
    concepts: lance.LanceDataset,
    report: VerifyReport,
) -> int:
    provenance = {
        name: store.provenance(name)
        for name in (tables.IMAGES, tables.REGIONS, tables.REJECTS, tables.CONCEPTS)
    }
    differing = {
        line
        for name, other in provenance.items()
        for line in other.differences(provenance[tables.REGIONS])
    }
    report.add("all tables have one provenance", "; ".join(sorted(differing)) or None)
    settings = StoreSettings.of(provenance[tables.REGIONS])
    dim, top_k, captioned = settings.embed_dim, settings.top_k, settings.captioned
    labelled = settings.labelled
    problem = None
    try:
        of_images = tables.images_schema(captioned=captioned)
        of_regions = tables.regions_schema(dim, top_k, captioned=captioned, labelled=labelled)
        without_jpeg = [f for f in of_images if f.name != "jpeg"]
        tables.check_columns(images.schema, pa.schema(without_jpeg), tables.IMAGES)
        tables.check_columns(regions.schema, of_regions, tables.REGIONS)
        tables.check_columns(rejects.schema, tables.rejects_schema(), tables.REJECTS)
        tables.check_columns(concepts.schema, tables.concepts_schema(dim), tables.CONCEPTS)
    except SchemaError as error:
        problem = str(error)
    report.add("columns are those of the contract", problem)
    vocabulary = settings.vocabulary.size if settings.vocabulary else 0
    found = concepts.count_rows()
    report.add(
        "the concepts table holds the whole vocabulary",
        None if vocabulary == found else f"{vocabulary} in provenance, {found} rows",
    )
    return top_k


def _check_images(
    images: lance.LanceDataset, report: VerifyReport
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids in order, and their region counts and sizes [N, 2] (height, width)."""
    columns = ["image_id", "unit", "region_count", "width", "height"]
    table = images.to_table(columns=columns)
    ids, units, counts, width, height = (table.column(name).to_numpy() for name in columns)
    order = np.argsort(ids, kind="stable")
    ids, counts = ids[order], counts[order].astype(np.int64)
    repeated = ids[1:][ids[1:] == ids[:-1]]
    report.add(
        f"{len(ids):,} image ids are unique",
        f"{len(repeated)} repeated, such as {repeated[0]}" if len(repeated) else None,
    )
    small = int(((width < 1) | (height < 1)).sum())
    report.add("image sizes are positive", f"{small} are not" if small else None)
    report.add("rows of a unit lie together in images", _scattered(units))
    return ids, counts, np.stack([height, width], -1)[order].astype(np.int64)


def _check_regions(
    regions: lance.LanceDataset,
    image_ids: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    sizes_hw: npt.NDArray[np.int64],
    top_k: int,
    vocabulary: int,
    report: VerifyReport,
) -> None:
    # Keys are kept for one image at a time only; whole images lie together (checked below).
    found = np.zeros(len(image_ids), np.int64)
    unknown = disordered = wrong_image = bad_norm = not_finite = bad_concepts = bad_shape = 0
    example: dict[str, int] = {}
    units: list[npt.NDArray[np.int64]] = []
    last_key = last_image = -1
    seen_again: set[int] = set()
    finished = np.zeros(len(image_ids), bool)
    for batch in _region_batches(regions, top_k):
        key = batch.column("key").to_numpy()
        image = batch.column("image_id").to_numpy()
        units.append(_runs(batch.column("unit").to_numpy()))
        wrong = split_key(key)[0] != image
        wrong_image += int(wrong.sum())
        place = np.searchsorted(image_ids, image)
        known = place < len(image_ids)
        known[known] = image_ids[place[known]] == image[known]
        if not known.all():
            unknown += int((~known).sum())
            example.setdefault("unknown", int(key[~known][0]))
        np.add.at(found, place[known], 1)
        if known.any():
            wrong = _bad_shapes(batch.filter(pa.array(known)), sizes_hw[place[known]])
            if wrong.any():
                bad_shape += int(wrong.sum())
                example.setdefault("shape", int(key[known][wrong][0]))
        previous_key = np.concatenate([[last_key], key[:-1]])
        previous_image = np.concatenate([[last_image], image[:-1]])
        same = image == previous_image
        bad = same & (key <= previous_key)
        if bad.any():
            disordered += int(bad.sum())
            example.setdefault("disordered", int(key[bad][0]))
        # an image that starts again after another one has come in between
        starts, times = np.unique(place[known & ~same], return_counts=True)
        again = finished[starts] | (times > 1)
        seen_again.update(image_ids[starts[again]].tolist()[:10])
        finished[starts] = True
        last_key, last_image = int(key[-1]), int(image[-1])
        if "embedding" in batch.schema.names:
            vectors = _matrix(batch.column("embedding")).astype(np.float32)
            norms = np.linalg.norm(vectors, axis=1)
            finite = np.isfinite(norms)
            not_finite += int((~finite).sum())
            bad_norm += int((np.abs(norms[finite] - 1) > _NORM_TOLERANCE).sum())
        if top_k:
            bad_concepts += _bad_concepts(batch, vocabulary)

    def count(name: str, number: int, text: str, key: str = "") -> None:
        tail = f", such as key {example[key]}" if key in example else ""
        report.add(name, f"{number:,} {text}{tail}" if number else None)

    count("region keys belong to their image", wrong_image, "do not")
    count("masks fit their image, areas and boxes their masks", bad_shape, "do not", "shape")
    count("every region's image is in images", unknown, "regions without image", "unknown")
    count(
        "region keys are unique and ascending within an image", disordered, "are not", "disordered"
    )
    again = f"{len(seen_again)} or more do not, such as {min(seen_again)}" if seen_again else None
    report.add("regions of an image lie together", again)
    report.add(
        "rows of a unit lie together in regions",
        _scattered(np.concatenate(units)) if units else None,
    )
    differing = np.flatnonzero(found != counts)
    problem = None
    if len(differing):
        first = differing[0]
        problem = (
            f"{len(differing):,} images differ, such as {image_ids[first]}: "
            f"region_count {counts[first]}, {found[first]} rows"
        )
    report.add(f"{int(found.sum()):,} regions agree with the images' counts", problem)
    if "embedding" in regions.schema.names:
        count("embeddings are finite", not_finite, "are not")
        count("embeddings have unit length", bad_norm, "do not")
    if top_k:
        count("concepts are known, sorted and probable", bad_concepts, "rows are not")


def _check_captions(
    images: lance.LanceDataset, regions: lance.LanceDataset, report: VerifyReport
) -> None:
    empty = regions.count_rows(
        filter="caption IS NULL OR caption = '' OR caption_raw IS NULL OR caption_raw = ''"
    )
    report.add("every region has a caption, clean and raw", f"{empty:,} do not" if empty else None)
    for table, dataset in ((tables.IMAGES, images), (tables.REGIONS, regions)):
        words = set(dataset.to_table(columns=["split"]).column("split").unique().to_pylist())
        strange = words - {*tables.SPLITS, None}
        report.add(
            f"every split in {table} is a known word",
            f"found {', '.join(sorted(strange))}" if strange else None,
        )
    differing = 0
    for split in (*tables.SPLITS, None):
        where = "split IS NULL" if split is None else f"split = '{split}'"
        counts = images.to_table(columns=["region_count"], filter=where).column(0)
        differing += abs(sum(counts.to_numpy().tolist()) - regions.count_rows(filter=where))
    report.add(
        "regions are of their images' splits", f"{differing:,} are not" if differing else None
    )


def _region_batches(regions: lance.LanceDataset, top_k: int) -> Iterator[pa.RecordBatch]:
    columns = ["key", "image_id", "unit", "rle", "bbox_xywh", "area"]
    columns += [name for name in ("embedding",) if name in regions.schema.names]
    if top_k:
        columns += ["concept_ids", "concept_probs", "concept_entropy"]
    return scan(regions, columns)


def _bad_shapes(batch: pa.RecordBatch, sizes_hw: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which rows have a mask that is none of their image's size, or an area or box of another.

    A region without a mask is a box: on the image, of the area that it says.
    """
    boxes = _matrix(batch.column("bbox_xywh")).astype(np.float64)
    areas = batch.column("area").to_numpy().astype(np.int64)
    counts = batch.column("rle")
    masked = counts.is_valid().to_numpy(zero_copy_only=False)
    bad = np.ones(len(areas), bool)
    filled = counts.fill_null(b"")
    _, places, content = filled.buffers()
    offsets = np.frombuffer(places, "<i4")[filled.offset : filled.offset + len(filled) + 1]
    data = np.frombuffer(content, np.uint8) if content is not None else np.empty(0, np.uint8)
    found, tight = rle.measure(data, offsets, sizes_hw)
    bad[masked] = ((found != areas) | (found <= 0) | (tight != boxes).any(1))[masked]
    right, bottom = boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]
    inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2:] > 0).all(1)
    inside &= (right <= sizes_hw[:, 1] + 0.5) & (bottom <= sizes_hw[:, 0] + 0.5) & (areas > 0)
    bad[~masked] = ~inside[~masked]
    return bad


def _bad_concepts(batch: pa.RecordBatch, vocabulary: int) -> int:
    ids = _matrix(batch.column("concept_ids"))
    probs = _matrix(batch.column("concept_probs")).astype(np.float32)
    entropy = batch.column("concept_entropy").to_numpy()
    good = (ids < vocabulary).all(1) & (probs >= 0).all(1) & (np.diff(probs, axis=1) <= 0).all(1)
    good &= probs.sum(1) <= 1 + _PROB_TOLERANCE
    good &= np.isfinite(entropy) & (entropy > -1e-3) & (entropy <= np.log(vocabulary) + 1e-3)
    return int((~good).sum())


def _check_rejects(rejects: lance.LanceDataset, report: VerifyReport) -> None:
    known = {str(stage) for stage in Stage}, {str(reason) for reason in Reason}
    table = rejects.to_table(columns=["stage", "reason"])
    for name, words in zip(("stage", "reason"), known, strict=True):
        strange = set(table.column(name).unique().to_pylist()) - words
        report.add(
            f"every reject's {name} is a known word",
            f"found {', '.join(sorted(strange))}" if strange else None,
        )


def _check_indices(
    regions: lance.LanceDataset, images: lance.LanceDataset, report: VerifyReport
) -> None:
    for dataset, column, table in ((regions, "key", "regions"), (images, "image_id", "images")):
        if not dataset.count_rows():
            continue
        names = [i.name for i in dataset.describe_indices() if column in i.field_names]
        problem: str | None = "there is none; build-semantic makes it at its end"
        if names:
            behind = int(dataset.stats.index_stats(names[0])["num_unindexed_rows"])
            problem = f"{behind:,} rows are not in it" if behind else None
        report.add(f"the index on {table}.{column} is up to date", problem)


def _check_jpegs(images: lance.LanceDataset, sample: int, report: VerifyReport) -> None:
    rows = images.count_rows()
    places = sorted({int(place) for place in np.linspace(0, rows - 1, min(sample, rows))})
    damaged = [
        place
        for place, jpeg in zip(places, blob_bytes(images, "jpeg", places), strict=True)
        if not jpeg.startswith((b"\xff\xd8", b"\x89PNG", b"RIFF"))
    ]
    report.add(
        f"{len(places)} sampled image files are JPEG, PNG or WebP",
        f"row {damaged[0]} is not, and {len(damaged) - 1} more" if damaged else None,
    )


def _matrix(column: pa.Array) -> npt.NDArray[Any]:
    """fixed_size_list column -> [N, K] array without a copy."""
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def _runs(units: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Values with immediate repetitions dropped."""
    return units[np.concatenate([[True], units[1:] != units[:-1]])]


def _scattered(units: npt.NDArray[np.int64]) -> str | None:
    if not len(units):
        return None
    starts = _runs(units)
    values, times = np.unique(starts, return_counts=True)
    many = values[times > 1]
    return f"{len(many):,} units are scattered, such as {many[0]}" if len(many) else None

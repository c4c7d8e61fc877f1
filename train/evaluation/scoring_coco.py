"""COCO and LVIS average precision of a prediction file, in bounded memory.

AP is a mean over categories, and nothing of one category enters another's (but for LVIS's limit
of 300 detections per image, which is applied first). So predictions are dealt out to files on disk
by category, and faster-coco-eval, a C++ form of the official scorer, sees one category at a time:
20,000 images times 1,203 categories in its own tables would be 24 million mostly empty cells.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as mask_api

from tap_engine.schemas.errors import SchemaError
from tap_engine.schemas.progress import Progress
from tap_engine.train.evaluation.ground_truth import GroundTruth
from tap_engine.train.evaluation.predictions import INSTANCES

Kind = Literal["bbox", "segm"]

COCO_MAX_DETECTIONS = (1, 10, 100)
LVIS_MAX_DETECTIONS = 300
AREAS = ("all", "small", "medium", "large")
_SPILLS = 64
_IOU_50, _IOU_75 = 0, 5


@dataclass(frozen=True, kw_only=True)
class DetectionScores:
    """Scores that COCO's and LVIS's tables print.

    Attributes:
        metrics: AP, AP50, AP75, APs, APm, APl, then AR1, AR10, AR100 (COCO) or APr, APc, APf, AR
            (LVIS), then ARs, ARm, ARl; in [0, 1], -1 where there is no ground truth.
        per_category: category name -> AP; only those with ground truth.
        predictions: rows read.
        scored: rows left after LVIS's limit an image.
        unknown: rows of categories that the truth does not have; left out, as officially.
    """

    metrics: dict[str, float]
    per_category: dict[str, float]
    predictions: int
    scored: int
    unknown: int

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, in words."""
        counts = {
            "detections beyond 300 per image left out": self.predictions - self.scored,
            "detections of categories that the truth does not have left out": self.unknown,
        }
        return tuple(f"{count:,} {note}" for note, count in counts.items() if count)


def score_detections(
    truth: GroundTruth,
    batches: Iterable[pa.RecordBatch],
    kind: Kind,
    *,
    lvis: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    spill_folder: str | None = None,
) -> DetectionScores:
    """Official AP and AR of detections.

    Args:
        truth: truth with categories; with LVIS's `frequency`, and negative categories, for
            `lvis`.
        batches: rows of predictions.INSTANCES, in any order.
        kind: what overlaps, boxes or masks.
        lvis: federated matching and at most 300 detections per image over all categories.
        progress: called with a line now and then.
        spill_folder: the folder for temporary files; the system's own by default.

    Raises:
        SchemaError: predictions of unknown images or of category 0, masks of another size than
            their image, `kind` missing from a row, or truth without what `lvis` needs.
    """
    if lvis and not truth.is_lvis:
        raise SchemaError(
            f"{truth.name}: LVIS scoring needs `frequency` r, c or f on every category, and "
            "`neg_category_ids` on the images (without them no detection of an absent category "
            "would ever count as wrong); use a coco-* protocol for other data"
        )
    if kind == "segm":
        truth.require_masks()
    with tempfile.TemporaryDirectory(prefix="tap-score-", dir=spill_folder) as folder:
        spill = _Spill(Path(folder), truth, kind, lvis)
        for batch in batches:
            spill.add(batch)
        kept = _limit_per_image(spill, LVIS_MAX_DETECTIONS) if lvis else None
        progress(f"{spill.rows:,} predictions read")
        tables = _CategoryTables(truth, lvis)
        report = Progress(len(truth.categories), unit="categories", say=progress)
        for done, (category_id, rows) in enumerate(spill.by_category(kept), start=1):
            tables.add(category_id, _evaluate(truth, category_id, rows, kind, lvis))
            report.update(done)
    scored = spill.rows if kept is None else int(kept.sum())
    return DetectionScores(
        metrics=tables.metrics(),
        per_category=tables.per_category(),
        predictions=spill.rows,
        scored=scored,
        unknown=spill.unknown,
    )


class _Spill:
    """Predictions on disk, dealt out by category, and what LVIS's limit needs in memory."""

    def __init__(self, folder: Path, truth: GroundTruth, kind: Kind, lvis: bool) -> None:
        self._truth = truth
        self._kind = kind
        self._judged = _judged_pairs(truth) if lvis else None
        self._places = {category: place for place, category in enumerate(truth.categories)}
        self._paths = [folder / f"{i}.arrow" for i in range(min(_SPILLS, len(self._places)))]
        self._sinks: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        self._sizes = {image_id: row.size_hw for image_id, row in truth.images.items()}
        self.rows = self.unknown = 0
        self.image_ids: list[npt.NDArray[np.int64]] = []
        self.scores: list[npt.NDArray[np.float64]] = []

    def add(self, batch: pa.RecordBatch) -> None:
        image_ids = batch["image_id"].to_numpy()
        categories = batch["category_id"].to_numpy()
        self._check(batch, image_ids, categories)
        self.image_ids.append(image_ids)
        self.scores.append(batch["score"].to_numpy())
        numbered = batch.append_column("row", pa.array(np.arange(batch.num_rows) + self.rows))
        self.rows += batch.num_rows
        counted = np.isin(categories, list(self._places))
        self.unknown += int((~counted).sum())
        if self._judged is not None:
            counted &= np.isin(_pairs(image_ids, categories), self._judged, kind="sort")
        numbered, categories = numbered.filter(pa.array(counted)), categories[counted]
        spills = np.array([self._places[c] for c in categories.tolist()]) % len(self._paths)
        for spill in np.unique(spills).tolist():
            part = numbered.take(pa.array(np.flatnonzero(spills == spill)))
            if spill not in self._sinks:
                self._sinks[spill] = pa.ipc.new_stream(str(self._paths[spill]), part.schema)
            self._sinks[spill].write_batch(part)

    def _check(self, batch: pa.RecordBatch, image_ids: Any, categories: Any) -> None:
        if unknown := set(image_ids.tolist()) - self._sizes.keys():
            raise SchemaError(
                f"predictions name image {min(unknown)}, which {self._truth.name} does not have; "
                "is it the truth of another split?"
            )
        if 0 in categories and 0 not in self._places:
            raise SchemaError(
                f"predictions name category 0, which {self._truth.name} does not have (it has "
                f"{min(self._places)}..{max(self._places)}); were categories numbered contiguously?"
            )
        wanted = "bbox_xywh" if self._kind == "bbox" else "rle"
        if batch[wanted].null_count:
            raise SchemaError(f"{batch[wanted].null_count} predictions have no {wanted!r}")
        if self._kind == "segm":
            sizes = zip(batch["height"].to_pylist(), batch["width"].to_pylist(), strict=True)
            for image_id, size in zip(image_ids.tolist(), sizes, strict=True):
                if size != self._sizes[image_id]:
                    raise SchemaError(
                        f"image {image_id}: a predicted mask is {size} (height, width), the image "
                        f"{self._sizes[image_id]}; masks must be of the original size"
                    )

    def by_category(self, kept: npt.NDArray[np.bool_] | None) -> Iterator[tuple[int, pa.Table]]:
        """Every category once, with its rows in file order; none where it has none."""
        for sink in self._sinks.values():
            sink.close()
        for spill, path in enumerate(self._paths):
            categories = [
                c for c, place in self._places.items() if place % len(self._paths) == spill
            ]
            if spill not in self._sinks:
                yield from ((category, INSTANCES.empty_table()) for category in categories)
                continue
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_stream(source).read_all()
                if kept is not None:
                    table = table.filter(pa.array(kept[table["row"].to_numpy()]))
                for category in categories:
                    yield category, table.filter(pc.equal(table["category_id"], category))
            path.unlink()


def _pairs(image_ids: Any, categories: Any) -> npt.NDArray[np.int64]:
    return np.asarray(image_ids, np.int64) << 16 | np.asarray(categories, np.int64)


def _judged_pairs(truth: GroundTruth) -> npt.NDArray[np.int64]:
    """(image, category) pairs where LVIS knows the answer: annotated, or verified absent.

    A detection of any other pair is neither right nor wrong. faster-coco-eval drops it as well, but
    only after its tables are built (and it fails on an image of which everything is dropped).
    """
    regions = truth.regions
    annotated = _pairs(regions["image_id"].to_numpy(), regions["category_id"].to_numpy())
    absent = [
        _pairs(np.full(len(image.negative), image.image_id), image.negative)
        for image in truth.images.values()
        if image.negative
    ]
    return np.unique(np.concatenate([annotated, *absent]))


def _limit_per_image(spill: _Spill, limit: int) -> npt.NDArray[np.bool_]:
    """[rows] true for the `limit` highest scores of each image; ties by file order, as in LVIS."""
    if not spill.rows:
        return np.zeros(0, np.bool_)
    image_ids, scores = np.concatenate(spill.image_ids), np.concatenate(spill.scores)
    order = np.lexsort((-scores, image_ids))
    ordered = image_ids[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    kept = np.zeros(len(order), np.bool_)
    kept[order[place < limit]] = True
    return kept


def _evaluate(
    truth: GroundTruth, category_id: int, rows: pa.Table, kind: Kind, lvis: bool
) -> Mapping[str, Any] | None:
    """faster-coco-eval's tables for one category; None where it has neither truth nor rows."""
    regions = truth.regions_of_category(category_id)
    image_ids = np.union1d(regions["image_id"].to_numpy(), rows["image_id"].to_numpy()).tolist()
    if not image_ids:
        return None
    images = [_image_entry(truth, image_id, lvis) for image_id in image_ids]
    category = truth.categories[category_id]
    categories = [
        {"id": category_id, "name": category.name, "frequency": category.frequency or "f"}
    ]
    sizes = {image["id"]: [image["height"], image["width"]] for image in images}
    sides = []
    for table in (regions, rows):
        side = COCO()
        annotations = _annotations(table, sizes, kind)
        side.dataset = {"images": images, "categories": categories, "annotations": annotations}
        side.createIndex()
        sides.append(side)
    run = COCOeval_faster(*sides, iouType=kind, lvis_style=lvis)
    run.params.maxDets = [LVIS_MAX_DETECTIONS] if lvis else list(COCO_MAX_DETECTIONS)
    run.evaluate()
    run.accumulate()
    tables: Mapping[str, Any] = run.eval
    return tables


def _image_entry(truth: GroundTruth, image_id: int, lvis: bool) -> dict[str, Any]:
    image = truth.images[image_id]
    entry: dict[str, Any] = {
        "id": image_id,
        "height": image.size_hw[0],
        "width": image.size_hw[1],
    }
    if lvis:
        entry["neg_category_ids"] = list(image.negative or ())
        entry["not_exhaustive_category_ids"] = list(image.not_exhaustive)
    return entry


def _annotations(
    table: pa.Table, sizes: Mapping[int, list[int]], kind: Kind
) -> list[dict[str, Any]]:
    """COCO's own entries of rows of ground_truth.REGIONS or predictions.INSTANCES.

    Numbers start at 1: the scorer reads a matched id of 0 as no match.
    """
    columns = {name: table[name].to_pylist() for name in ("image_id", "category_id")}
    predicted = "score" in table.column_names
    if predicted:
        columns["score"] = table["score"].to_pylist()
    else:
        columns["area"] = table["area"].to_pylist()
        columns["iscrowd"] = table["crowd"].cast(pa.int8()).to_pylist()
    if kind == "bbox":
        columns["bbox"] = table["bbox_xywh"].to_pylist()
    else:
        columns["segmentation"] = [
            {"size": sizes[image_id], "counts": counts.as_py().decode("ascii")}
            for image_id, counts in zip(columns["image_id"], table["rle"], strict=True)
        ]
    if predicted:
        columns["area"] = _areas(table, columns, kind)
    return [
        dict(zip(["id", *columns], [number, *values], strict=True))
        for number, values in enumerate(zip(*columns.values(), strict=True), start=1)
    ]


def _areas(table: pa.Table, columns: Mapping[str, list[Any]], kind: Kind) -> list[float]:
    """What S/M/L cut detections by: the row's own word, else its mask, else its box."""
    if kind == "bbox":
        measured = [width * height for _, _, width, height in columns["bbox"]]
    else:
        measured = mask_api.area(columns["segmentation"]).tolist() if table.num_rows else []
    stated = table["area"].to_pylist()
    return [own if own is not None else other for own, other in zip(stated, measured, strict=True)]


class _CategoryTables:
    """Precision [T, R, K, A, M] and recall [T, K, A, M], filled one category at a time."""

    def __init__(self, truth: GroundTruth, lvis: bool) -> None:
        limits = 1 if lvis else len(COCO_MAX_DETECTIONS)
        self._truth = truth
        self._lvis = lvis
        self._places = {category: place for place, category in enumerate(truth.categories)}
        self.precision = np.full((10, 101, len(self._places), len(AREAS), limits), -1.0)
        self.recall = np.full((10, len(self._places), len(AREAS), limits), -1.0)

    def add(self, category_id: int, tables: Mapping[str, Any] | None) -> None:
        if tables is not None:
            place = self._places[category_id]
            self.precision[:, :, place] = np.asarray(tables["precision"])[:, :, 0]
            self.recall[:, place] = np.asarray(tables["recall"])[:, 0]

    def metrics(self) -> dict[str, float]:
        ap = {
            "AP": _mean(self.precision[:, :, :, 0, -1]),
            "AP50": _mean(self.precision[_IOU_50, :, :, 0, -1]),
            "AP75": _mean(self.precision[_IOU_75, :, :, 0, -1]),
        }
        ap |= {
            f"AP{area[0]}": _mean(self.precision[:, :, :, place, -1])
            for place, area in enumerate(AREAS)
            if place
        }
        if self._lvis:
            for frequency in "rcf":
                mine = [
                    place
                    for category, place in self._places.items()
                    if self._truth.categories[category].frequency == frequency
                ]
                ap[f"AP{frequency}"] = _mean(self.precision[:, :, mine, 0, -1])
            ap["AR"] = _mean(self.recall[:, :, 0, -1])
        else:
            for place, limit in enumerate(COCO_MAX_DETECTIONS):
                ap[f"AR{limit}"] = _mean(self.recall[:, :, 0, place])
        return ap | {
            f"AR{area[0]}": _mean(self.recall[:, :, place, -1])
            for place, area in enumerate(AREAS)
            if place
        }

    def per_category(self) -> dict[str, float]:
        scores = {
            self._truth.categories[category].name: _mean(self.precision[:, :, place, 0, -1])
            for category, place in self._places.items()
        }
        return {name: score for name, score in scores.items() if score >= 0}


def _mean(table: npt.NDArray[np.float64]) -> float:
    """Mean of what has ground truth; -1 where nothing has, as the official scorers print it."""
    valid = table[table > -1]
    return float(valid.mean()) if valid.size else -1.0

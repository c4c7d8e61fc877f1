"""Scores a prediction file against ground truth, by protocol.

It needs no model and no GPU, runs as often as wanted, and takes anybody's files.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tap_engine.schemas import provenance, values
from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.schemas.filesystem import open_filesystem
from tap_engine.train.evaluation import predictions as tables
from tap_engine.train.evaluation.evaluation import ScoreOptions
from tap_engine.train.evaluation.ground_truth import (
    GroundTruth,
    is_coco_layout,
    read_coco_layout,
)
from tap_engine.train.evaluation.report import Score
from tap_engine.train.evaluation.stamps import GT, Stamp
from tap_engine.train.evaluation.tasks import task, task_of_protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """Settings of scoring.

    Attributes:
        protocol: what scores go by, such as `coco-segm`; see `tasks/`.
        name: what the row is called in reports.
        data: name of the data set, such as coco, lvis, visual-genome, refcocog; "" for unsaid.
        box_source: origin of the box prompts: gt, vitdet-h, or another name; "" for unsaid.
        partial: score only the images that a prediction folder covers.
        spill_folder: the folder for temporary files; the system's own by default.
    """

    protocol: str
    name: str = "this run"
    data: str = ""
    box_source: str = ""
    partial: bool = False
    spill_folder: str | None = None


def score_files(
    config: ScoreConfig,
    truth_path: str,
    predictions: str,
    progress: Callable[[str], None] = lambda _: None,
) -> Score:
    """Score a prediction file against a ground truth file.

    Args:
        config: the protocol.
        truth_path: COCO, LVIS or GRiT json; for captions also {"region": ["text", ...], ...}.
        predictions: see `predictions.read_predictions`; for captions also {"region": "text", ...}.
        progress: called with a line now and then.

    Raises:
        SourceError: a file is not there or cannot be read.
        SchemaError: a file is not of its layout, or the two do not fit each other.
    """
    task_of_protocol(config.protocol)  # a wrong word is said before a long file is read
    if config.protocol == "captions" and (plain := _plain_texts(truth_path)):
        return _score_plain_captions(config, plain, truth_path, predictions)
    masks = config.protocol in task("segmentation").protocols  # others need no polygons' masks
    truth = read_coco_layout(truth_path, masks=masks)
    return score(config, truth, predictions, progress)


def score(
    config: ScoreConfig,
    truth: GroundTruth,
    predictions: str,
    progress: Callable[[str], None] = lambda _: None,
) -> Score:
    """`score_files` with the ground truth at hand, such as that of a store."""
    evaluation = task_of_protocol(config.protocol)
    started = time.monotonic()
    truth = _covered(config, truth, predictions)
    facts: dict[str, Any] = {
        "protocol": config.protocol,
        "data": config.data or None,
        "images": len(truth.images),
        "regions": truth.regions.num_rows,
        "box_source": config.box_source or None,
        "split": truth.fingerprint,
    }
    if config.box_source == GT:
        facts["boxes"] = truth.regions.num_rows
    sizes = {image_id: image.size_hw for image_id, image in truth.images.items()}
    found = evaluation.score(
        truth,
        tables.read_predictions(predictions, evaluation.schema, sizes),
        ScoreOptions(
            protocol=config.protocol,
            where=predictions,
            progress=progress,
            spill_folder=config.spill_folder,
        ),
    )
    return Score(
        name=config.name,
        stamp=Stamp(**{**facts, **found.facts}),
        metrics=dict(found.metrics),
        per_category=dict(found.per_category),
        notes=found.notes,
        made=_made(truth.name, predictions, started),
    )


def _covered(config: ScoreConfig, truth: GroundTruth, predictions: str) -> GroundTruth:
    """The truth of the images that a prediction folder covers; whole for other files."""
    if not tables.is_folder(predictions):
        return truth
    done = tables.open_folder(predictions).done
    if not done:
        raise SourceError(
            f"{predictions}: no predictions in this folder; `tap-train eval` writes one folder per "
            "task, give that one"
        )
    if missing := truth.images.keys() - done:
        if not config.partial:
            raise SchemaError(
                f"{predictions} covers {len(truth.images) - len(missing):,} of "
                f"{len(truth.images):,} images: the run is not finished. Run the same `tap-train "
                "eval` again to continue it, or score what is there with --partial"
            )
        return truth.restricted_to(done)
    return truth


def _plain_texts(path: str) -> dict[int | str, list[str]] | None:
    """Texts of a {"region": "text" or ["text", ...], ...} file; None for any other layout."""
    if not path.endswith(".json") or is_coco_layout(path):
        return None
    filesystem, inner = open_filesystem(path)
    try:
        with filesystem.open_input_stream(inner) as file:
            content = json.loads(file.read())
        return {values.text(key): _texts(found) for key, found in content.items()}
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{path}: {error!s:.200}") from error


def _texts(found: object) -> list[str]:
    """One text or several; a null among several references is left out."""
    if isinstance(found, list):
        return [values.text(text) for text in found if text is not None]
    return [values.text(found)]


def _score_plain_captions(
    config: ScoreConfig, references: dict[int | str, list[str]], truth: str, predictions: str
) -> Score:
    from tap_engine.train.evaluation.scoring_captions import score_captions

    started = time.monotonic()
    said = _plain_texts(predictions)
    if said is None or any(len(texts) != 1 for texts in said.values()):
        raise SchemaError(
            f'{predictions}: the truth is plain json, so predictions must be {{"region": "text", '
            "...}} as well"
        )
    found = score_captions(references, {key: texts[0] for key, texts in said.items()})
    texts = json.dumps(references, sort_keys=True)
    stamp = Stamp(
        protocol=config.protocol,
        data=config.data or None,
        regions=len(references),
        references=sum(map(len, references.values())),
        box_source=config.box_source or None,
        text_processing=found.text_processing,
        split=hashlib.sha256(texts.encode()).hexdigest()[:16],
    )
    made = _made(truth, predictions, started)
    return Score(name=config.name, stamp=stamp, metrics=found.metrics, notes=found.notes, made=made)


def _made(truth: str, predictions: str, started: float) -> dict[str, Any]:
    return {
        "truth": truth,
        "predictions": predictions,
        "seconds": round(time.monotonic() - started, 1),
        **provenance.software(),
    }

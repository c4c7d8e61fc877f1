"""A whole evaluation as a command asks for it: data and model together, predict, wait, score."""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from tap_engine.model.checkpoint import checkpoint_file
from tap_engine.model.concepts import ConceptTable
from tap_engine.model.device import resolve_device
from tap_engine.model.predictor import Tap
from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.precision import check_precision
from tap_engine.schemas.progress import Say
from tap_engine.schemas.shipped import SAMPLE
from tap_engine.schemas.vocabulary import readable_names
from tap_engine.train.checkpoint import model_folder
from tap_engine.train.evaluation import evaluate
from tap_engine.train.evaluation.data_choice import DataChoice, DrawSamples, evaluation_set
from tap_engine.train.evaluation.data_sets import EvalSet
from tap_engine.train.evaluation.detector_boxes import DetectorBoxes
from tap_engine.train.evaluation.evaluate import ImageShare
from tap_engine.train.evaluation.evaluation import Asked, Evaluation, Part, parts_of, possible
from tap_engine.train.evaluation.ground_truth import GroundTruth
from tap_engine.train.evaluation.region_model import Classifier, TapRegions
from tap_engine.train.evaluation.report import Score
from tap_engine.train.evaluation.score_files import ScoreConfig, score
from tap_engine.train.evaluation.stamps import GT
from tap_engine.train.evaluation.tasks import task, task_names


class CropClassifier(Classifier, Protocol):
    """A teacher that names crops of boxes; `settings` say which teacher and which crops."""

    settings: dict[str, Any]


_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataEngine:
    """What an evaluation takes from the data engine; a command passes it in.

    Attributes:
        draw_samples: number of held-out scenes -> the data set `sample`.
        embed_names: names, teacher, device -> their text embeddings.
        classify_crops: truth with class names, teacher, fill, device -> the teacher as a model.
    """

    draw_samples: DrawSamples
    embed_names: Callable[[Sequence[str], str, str], ConceptTable]
    classify_crops: Callable[[GroundTruth, str, str, str], CropClassifier]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRequest:
    """The command's options.

    Attributes:
        data: what to evaluate on.
        out: folder or URI for predictions, scores and report.
        device, precision, chunk: device, precision and prompts at a time of the model.
        crop_fill: keep, mean or black; outside the mask of a crop for `crops_with`.
        model: run or checkpoint folder; None with `crops_with`.
        crops_with: name of a CLIP teacher that classifies crops instead.
        tasks: names of files in `tasks/`; empty for all that model and data allow.
        boxes: a detector's results for segmentation.
        concepts: a concepts.safetensors with the class names.
        teacher: CLIP model that embeds class names where no table has them.
        name, data_name, box_source: words for the report.
    """

    data: DataChoice
    out: str
    device: str
    precision: str
    chunk: int
    crop_fill: str
    model: str | None = None
    crops_with: str | None = None
    tasks: tuple[str, ...] = ()
    boxes: str | None = None
    concepts: str | None = None
    teacher: str | None = None
    name: str | None = None
    data_name: str = ""
    box_source: str = ""


def run_evaluation(request: EvalRequest, engine: DataEngine, say: Say) -> list[Score]:
    """Predict what is missing, then score it; empty on ranks other than 0.

    Raises:
        TapError: options that contradict each other, missing files, other settings than before.
    """
    if (request.model is None) == (request.crops_with is None):
        raise ConfigError("give --model, or --crops-with for the teacher's own crops; not both")
    check_precision(request.precision, "--precision")
    named = [task(name) for name in request.tasks]
    share = ImageShare(
        out=request.out,
        rank=int(os.environ.get("RANK", 0)),
        world=int(os.environ.get("WORLD_SIZE", 1)),
    )
    # Masks of LVIS take a minute to make of polygons: not where no task looks at them.
    masks = not named or any(Part.MASKS in found.data for found in named)
    data = evaluation_set(request.data, engine.draw_samples, masks=masks)
    truth = data.truth
    say(f"{truth.name}: {len(truth.images):,} images, {truth.regions.num_rows:,} regions")
    detector = (
        DetectorBoxes(request.boxes, truth, part=bool(request.data.limit))
        if request.boxes
        else None
    )
    if detector is not None:
        say(f"{len(detector):,} boxes of {request.boxes}")
    tasks = named or _usual(truth)
    _require_possible(tasks, truth)
    if request.crops_with is not None:
        tasks, asked = _ask_crops(request, engine, data, tasks)
    else:
        tasks, asked = _ask_tap(request, engine, data, tasks, detector)
    if not tasks:
        raise ConfigError("nothing to do: the data has nothing that these tasks need")
    if detector is not None and "segmentation" not in {found.name for found in tasks}:
        raise ConfigError("--boxes are for segmentation, which is not among the tasks")
    say(f"tasks: {', '.join(found.name for found in tasks)}")
    quiet: Say = say if share.rank == 0 else lambda _: None
    summary = evaluate.run(asked, tasks, share, quiet)
    say(
        f"predicted {summary.predicted:,} images in {summary.seconds:.1f} s "
        f"({summary.before:,} were there before)"
    )
    if share.rank:
        return []
    evaluate.wait_for_ranks(list(truth.images), tasks, share, quiet)
    return [_scored(request, asked, found, say) for found in tasks]


def _usual(truth: GroundTruth) -> list[Evaluation]:
    """All that the data allow; but caption data without masks has classes for its layout's sake."""
    parts = parts_of(truth)
    if Part.CAPTIONS in parts and Part.MASKS not in parts:
        parts -= {Part.CLASSES}
    return possible([task(name) for name in task_names()], parts)


def _require_possible(tasks: Sequence[Evaluation], truth: GroundTruth) -> None:
    allowed = possible([task(name) for name in task_names()], parts_of(truth))
    names = [found.name for found in allowed]
    if impossible := [found.name for found in tasks if found.name not in names]:
        raise ConfigError(
            f"task {impossible[0]!r} needs data that {truth.name} does not have; possible: "
            f"{', '.join(names) or 'none'}"
        )


def _ask_tap(
    request: EvalRequest,
    engine: DataEngine,
    data: EvalSet,
    tasks: Sequence[Evaluation],
    detector: DetectorBoxes | None,
) -> tuple[list[Evaluation], Asked]:
    folder = model_folder(Path(str(request.model)))
    precision: Any = request.precision
    tap = Tap.from_pretrained(folder, device=request.device, precision=precision)
    if tap.tokenizer is None and not request.tasks:
        tasks = [found for found in tasks if Part.CAPTIONS not in found.model]
    settings = {"weights": _sha256(checkpoint_file(folder)), "precision": request.precision}
    table = None
    if any(Part.CLASSES in found.model for found in tasks):
        table = _class_names(request, engine, data.truth, tap)
        tap.set_concepts(table)  # refuses a table of another teacher's width
        settings["concepts"] = table.fingerprint
    model = TapRegions(tap, chunk=request.chunk, classes=table)
    return list(tasks), Asked(data=data, model=model, settings=settings, detector=detector)


def _ask_crops(
    request: EvalRequest, engine: DataEngine, data: EvalSet, tasks: Sequence[Evaluation]
) -> tuple[list[Evaluation], Asked]:
    """A teacher on crops only names: other tasks are left out."""
    device = str(resolve_device(request.device))
    teacher = str(request.crops_with)
    crops = engine.classify_crops(data.truth, teacher, request.crop_fill, device)
    kept = [found for found in tasks if found.model <= {Part.CLASSES}]
    return kept, Asked(data=data, model=crops, settings=crops.settings)


def _class_names(
    request: EvalRequest, engine: DataEngine, truth: GroundTruth, tap: Tap
) -> ConceptTable:
    """Text embeddings of the data set's class names, in category order."""
    names = readable_names([category.name for category in truth.categories.values()])
    if request.concepts is not None:
        table = ConceptTable.load(request.concepts)
        if set(names) <= set(table.names) or len(table.names) != len(names):
            return table.subset(names)
        # Official files name classes in their own way, in category order: said, not guessed at.
        other = [pair for pair in zip(table.names, names, strict=True) if pair[0] != pair[1]]
        shown = ", ".join(f"{theirs!r} for class {ours!r}" for theirs, ours in other[:5])
        _LOG.warning(
            "%s has other names than the data's %d classes; they are taken in order: %s%s",
            request.concepts,
            len(names),
            shown,
            f" and {len(other) - 5} more" if len(other) > 5 else "",
        )
        return table
    if request.teacher is not None:
        return engine.embed_names(names, request.teacher, request.device)
    if tap.concepts is None:
        raise ConfigError(
            "the checkpoint has no concepts.safetensors: give --concepts with the class names, or "
            "--teacher to embed them"
        )
    return tap.concepts.subset(names)


def _scored(request: EvalRequest, asked: Asked, found: Evaluation, say: Say) -> Score:
    detected = found.name == "segmentation" and asked.detector is not None
    config = ScoreConfig(
        protocol=found.protocol(asked.data.truth),
        name=request.name or Path(request.model or request.crops_with or "").name,
        data=request.data_name or (SAMPLE if request.data.name == SAMPLE else ""),
        box_source=request.box_source or Path(request.boxes or "").name if detected else GT,
    )
    folder = evaluate.folder_of(request.out, found.name)
    told = score(config, asked.data.truth, folder, say)
    return replace(told, made={**told.made, "settings": asked.settings_of(found)})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]

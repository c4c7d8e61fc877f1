"""What `tap-train eval` does: data and model together, predict, wait, score, report."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tap_engine.jobs.eval_data import DataChoice, evaluation_set
from tap_engine.jobs.sample_eval import SAMPLE
from tap_engine.model.checkpoint import checkpoint_file
from tap_engine.model.concepts import ConceptTable
from tap_engine.model.device import resolve_device
from tap_engine.model.predictor import Tap
from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.precision import check_precision
from tap_engine.schemas.progress import Say
from tap_engine.schemas.vocabulary import readable_names
from tap_engine.train.checkpoint import model_folder
from tap_engine.train.evaluation import evaluate
from tap_engine.train.evaluation.data_sets import EvalSet
from tap_engine.train.evaluation.detector_boxes import DetectorBoxes
from tap_engine.train.evaluation.evaluate import ImageShare, Task
from tap_engine.train.evaluation.ground_truth import GroundTruth
from tap_engine.train.evaluation.region_model import TapRegions
from tap_engine.train.evaluation.report import Score
from tap_engine.train.evaluation.score_files import GT, ScoreConfig, score
from tap_engine.train.evaluation.tasks import classification_tasks, model_tasks

_MASKED = {evaluate.SEGMENTATION, evaluate.PROMPTING}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRequest:
    """The command's options.

    Attributes:
        data: what to evaluate on.
        out: folder or URI for predictions, scores and report.
        device, precision, chunk: of the model.
        crop_fill: keep, mean or black; outside the mask of a crop for `crops_with`.
        model: run or checkpoint folder; None with `crops_with`.
        crops_with: name of a CLIP teacher that classifies crops instead.
        tasks: of `evaluate.SCHEMAS`; empty for all that model and data allow.
        boxes: a detector's results for segmentation.
        concepts: a concepts.safetensors with the class names.
        teacher: CLIP model that embeds class names where no table has them.
        name, data_name, box_source: for the report.
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


def run_evaluation(request: EvalRequest, say: Say) -> list[Score]:
    """Predict what is missing, then score it; empty on ranks other than 0.

    Raises:
        TapError: options that contradict each other, missing files, other settings than before.
    """
    if (request.model is None) == (request.crops_with is None):
        raise ConfigError("give --model, or --crops-with for the teacher's own crops; not both")
    check_precision(request.precision, "--precision")
    if unknown := set(request.tasks) - evaluate.SCHEMAS.keys():
        raise ConfigError(f"unknown task {min(unknown)!r}; there are {', '.join(evaluate.SCHEMAS)}")
    share = ImageShare(
        out=request.out,
        rank=int(os.environ.get("RANK", 0)),
        world=int(os.environ.get("WORLD_SIZE", 1)),
    )
    # Masks of LVIS take a minute to make of polygons: not where no task looks at them.
    masks = not request.tasks or bool(_MASKED & set(request.tasks))
    data = evaluation_set(request.data, masks=masks)
    truth = data.truth
    say(f"{truth.name}: {len(truth.images):,} images, {truth.regions.num_rows:,} regions")
    detector = DetectorBoxes(request.boxes, truth) if request.boxes else None
    if detector is not None:
        say(f"{len(detector):,} boxes of {request.boxes}")
    set_image, tasks = _planned(request, data, detector)
    if not tasks:
        raise ConfigError("nothing to do: the data has nothing that these tasks need")
    if detector is not None and evaluate.SEGMENTATION not in {task.name for task in tasks}:
        raise ConfigError("--boxes are for segmentation, which is not among the tasks")
    say(f"tasks: {', '.join(task.name for task in tasks)}")
    quiet: Say = say if share.rank == 0 else lambda _: None
    image_ids = list(truth.images)
    summary = evaluate.run(image_ids, set_image, tasks, share, quiet)
    say(
        f"predicted {summary.predicted:,} images in {summary.seconds:.1f} s "
        f"({summary.before:,} were there before)"
    )
    if share.rank:
        return []
    evaluate.wait_for_ranks(image_ids, tasks, share, quiet)
    return [_scored(request, truth, task, detector, say) for task in tasks]


def _planned(
    request: EvalRequest, data: EvalSet, detector: DetectorBoxes | None
) -> tuple[Callable[[int], None], list[Task]]:
    possible = _possible(data.truth)
    names = request.tasks or _usual(possible)
    if impossible := [name for name in names if name not in possible]:
        raise ConfigError(
            f"task {impossible[0]!r} needs data that {data.truth.name} does not have; possible: "
            f"{', '.join(possible) or 'none'}"
        )
    device = str(resolve_device(request.device))
    if request.crops_with is not None:
        return _planned_crops(request, data, names, device)
    assert request.model is not None
    precision: Any = request.precision
    folder = model_folder(Path(request.model))
    tap = Tap.from_pretrained(folder, device=device, precision=precision)
    if evaluate.CAPTIONING in names and tap.tokenizer is None and not request.tasks:
        names = tuple(name for name in names if name != evaluate.CAPTIONING)
    settings: dict[str, Any] = {
        "weights": _sha256(checkpoint_file(folder)),
        "precision": request.precision,
    }
    weights = None
    if {evaluate.CLASSIFICATION, evaluate.NAMES} & set(names):
        table = _class_names(request, data.truth, tap, device)
        tap.set_concepts(table)  # refuses a table of another teacher's width
        settings["concepts"] = table.fingerprint
        weights = table.weights()
    model = TapRegions(tap, chunk=request.chunk)
    tasks = model_tasks(names, model, data, settings, weights=weights, detector=detector)
    return lambda image_id: model.set_image(data.pixels(image_id)), tasks


def _planned_crops(
    request: EvalRequest, data: EvalSet, names: Sequence[str], device: str
) -> tuple[Callable[[int], None], list[Task]]:
    from tap_engine.jobs.crop_baseline import CropClassifier
    from tap_engine.pipeline.config import CropOptions
    from tap_engine.pipeline.teacher import Teacher, TeacherConfig

    fill: Any = request.crop_fill
    teacher = Teacher(TeacherConfig(name=str(request.crops_with), device=device))
    crops = CropClassifier(teacher, data, CropOptions(fill=fill))
    settings = {"teacher": teacher.info.weights_sha256, "crop": request.crop_fill}
    return crops.set_image, classification_tasks(names, crops.classify, data.truth, settings)


def _possible(truth: GroundTruth) -> list[str]:
    """Tasks that the ground truth has what they need for."""
    masks = truth.regions["rle"].null_count < truth.regions.num_rows
    named = len(truth.categories) > 0
    needs = {
        evaluate.SEGMENTATION: masks and named,
        evaluate.CLASSIFICATION: named,
        evaluate.NAMES: named,
        evaluate.CAPTIONING: truth.regions["captions"].null_count < truth.regions.num_rows,
        evaluate.PROMPTING: masks,
    }
    return [task for task, met in needs.items() if met]


def _usual(possible: Sequence[str]) -> tuple[str, ...]:
    """All of them; but caption data without masks has its classes for the layout's sake only."""
    if evaluate.CAPTIONING in possible and evaluate.SEGMENTATION not in possible:
        return (evaluate.CAPTIONING,)
    return tuple(possible)


def _class_names(request: EvalRequest, truth: GroundTruth, tap: Tap, device: str) -> ConceptTable:
    """Text embeddings of the data set's class names, in category order."""
    names = readable_names([category.name for category in truth.categories.values()])
    if request.concepts is not None:
        table = ConceptTable.load(request.concepts)
        if len(table.names) == len(names):
            return table  # official files name classes in their own way, in category order
        return table.subset(names)
    if request.teacher is not None:
        from tap_engine.jobs.teacher_names import embed_names

        return embed_names(names, request.teacher, device)
    if tap.concepts is None:
        raise ConfigError(
            "the checkpoint has no concepts.safetensors: give --concepts with the class names, or "
            "--teacher to embed them"
        )
    return tap.concepts.subset(names)


def _scored(
    request: EvalRequest,
    truth: GroundTruth,
    task: Task,
    detector: DetectorBoxes | None,
    say: Say,
) -> Score:
    family = "lvis" if truth.is_lvis else "coco"
    protocol = {
        evaluate.SEGMENTATION: f"{family}-segm",
        evaluate.CLASSIFICATION: f"{family}-bbox",
    }.get(task.name, task.name)
    detected = task.name == evaluate.SEGMENTATION and detector is not None
    source = request.box_source or Path(request.boxes or "").name if detected else GT
    config = ScoreConfig(
        protocol=protocol,
        name=request.name or Path(request.model or request.crops_with or "").name,
        data=request.data_name or (SAMPLE if request.data.name == SAMPLE else ""),
        box_source=source,
    )
    found = score(config, truth, evaluate.folder_of(request.out, task.name), say)
    found = replace(found, made={**found.made, "settings": dict(task.settings)})
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]

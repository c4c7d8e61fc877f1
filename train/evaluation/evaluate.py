"""The evaluation run: images in, prediction parts out, resumable and shared out over ranks.

An image is encoded once and answers every task that still lacks it. What is done is what the parts
say (predictions.py), so a killed run continues with the same command, and a task added later
predicts only what is missing.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tap_engine.schemas.progress import Progress
from tap_engine.schemas.provenance import Provenance, software
from tap_engine.train.evaluation.predictions import (
    CAPTIONS,
    INSTANCES,
    NAMED,
    PROMPTED,
    PredictionWriter,
    open_folder,
)

SEGMENTATION, CLASSIFICATION, NAMES = "segmentation", "classification", "names"
CAPTIONING, PROMPTING = "captions", "prompts"

SCHEMAS: Mapping[str, pa.Schema] = {
    SEGMENTATION: INSTANCES,
    CLASSIFICATION: INSTANCES,
    NAMES: NAMED,
    CAPTIONING: CAPTIONS,
    PROMPTING: PROMPTED,
}
"""Task -> layout of its prediction folder, which has the task's name."""

PredictRows = Callable[[int], pa.RecordBatch]


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of prediction.

    Attributes:
        name: of `SCHEMAS`; also its folder's.
        rows: image id -> its rows, after the image was set.
        settings: what decides the rows; parts of other settings are refused.
    """

    name: str
    rows: PredictRows
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageShare:
    """Which part of the images this process takes, and where predictions go.

    Attributes:
        out: folder or URI; each task's predictions lie in a folder of it.
        rank: 0-based.
        world: how many ranks run.
    """

    out: str
    rank: int = 0
    world: int = 1


@dataclass(frozen=True, slots=True)
class PredictionSummary:
    """What a run did: images predicted now and before, of this rank, and seconds."""

    predicted: int
    before: int
    seconds: float


def run(
    image_ids: Sequence[int],
    set_image: Callable[[int], None],
    tasks: Sequence[Task],
    share: ImageShare,
    progress: Callable[[str], None] = lambda _: None,
) -> PredictionSummary:
    """Predict what is not there yet.

    Args:
        image_ids: all images of the evaluation; ranks take every `world`-th.
        set_image: loads and encodes an image.
        tasks: what to predict.
        share: this rank's part.
        progress: called with a line now and then.

    Raises:
        SchemaError: earlier parts were made with other settings.
        SourceError: an image is missing or cannot be read; what is done stays done.
    """
    mine = image_ids[share.rank :: share.world]
    started = time.monotonic()
    report = Progress(len(mine), unit="images", say=progress)
    predicted = before = 0
    with ExitStack() as stack:
        writers = {task.name: stack.enter_context(_writer(task, share)) for task in tasks}
        for place, image_id in enumerate(mine, start=1):
            todo = [task for task in tasks if image_id not in writers[task.name].done]
            if not todo:
                before += 1
                report.skip()
                continue
            set_image(image_id)
            for task in todo:
                writers[task.name].add(image_id, task.rows(image_id))
            predicted += 1
            report.update(place)
    return PredictionSummary(predicted, before, time.monotonic() - started)


def wait_for_ranks(
    image_ids: Sequence[int],
    tasks: Sequence[Task],
    share: ImageShare,
    progress: Callable[[str], None],
    poll_s: float = 5.0,
) -> None:
    """Return when every image of every task is there; torchrun ends us if another rank fails."""
    for task in tasks:
        while missing := len(set(image_ids) - open_folder(folder_of(share.out, task.name)).done):
            progress(f"waiting for {missing:,} images of other ranks ({task.name})")
            time.sleep(poll_s)


def folder_of(out: str, task: str) -> str:
    """The prediction folder of a task."""
    return f"{out.rstrip('/')}/{task}"


def _writer(task: Task, share: ImageShare) -> PredictionWriter:
    provenance = Provenance({"task": task.name, **task.settings}, software())
    path = folder_of(share.out, task.name)
    return PredictionWriter(path, SCHEMAS[task.name], provenance, rank=share.rank)

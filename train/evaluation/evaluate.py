"""The evaluation run: predicts images into parts, resumable and shared by ranks.

An image is encoded once and answers every task that still lacks it. What is done is what the parts
say (predictions.py), so a killed run continues with the same command, and a task added later
predicts only what is missing.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tap_engine.schemas.progress import Progress
from tap_engine.schemas.provenance import Provenance, software
from tap_engine.train.evaluation.evaluation import Asked, Evaluation
from tap_engine.train.evaluation.predictions import PredictionWriter, open_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageShare:
    """Which part of the images this process takes, and where predictions go.

    Attributes:
        out: folder or URI; each task's predictions lie in a folder of it.
        rank: 0-based.
        world: number of ranks.
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
    asked: Asked,
    tasks: Sequence[Evaluation],
    share: ImageShare,
    progress: Callable[[str], None] = lambda _: None,
) -> PredictionSummary:
    """Predict what is not there yet.

    Args:
        asked: data and model; ranks take every `world`-th image.
        tasks: what to predict.
        share: this rank's part.
        progress: called with a line now and then.

    Raises:
        SchemaError: earlier parts were made with other settings.
        SourceError: an image is missing or cannot be read; what is done stays done.
    """
    for task in tasks:
        task.check(asked.data.truth)
    mine = list(asked.data.truth.images)[share.rank :: share.world]
    started = time.monotonic()
    report = Progress(len(mine), unit="images", say=progress)
    predicted = before = 0
    with ExitStack() as stack:
        writers = {task.name: stack.enter_context(_writer(task, asked, share)) for task in tasks}
        for place, image_id in enumerate(mine, start=1):
            todo = [task for task in tasks if image_id not in writers[task.name].done]
            if not todo:
                before += 1
                report.skip()
                continue
            question = asked.question(image_id)
            for task in todo:
                writers[task.name].add(image_id, task.rows(question))
            predicted += 1
            report.update(place)
    return PredictionSummary(predicted, before, time.monotonic() - started)


def wait_for_ranks(
    image_ids: Sequence[int],
    tasks: Sequence[Evaluation],
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


def _writer(task: Evaluation, asked: Asked, share: ImageShare) -> PredictionWriter:
    provenance = Provenance({"task": task.name, **asked.settings_of(task)}, software())
    path = folder_of(share.out, task.name)
    return PredictionWriter(path, task.schema, provenance, rank=share.rank)

"""Measures a model on held-out images, beside two trivial masks and beside its teacher.

The model is asked, and its answers are counted, by the evaluation's own code: a mask IoU, a top-1
or a CIDEr here is the number that `tap-train eval` gives for the same regions. Masks are compared
at the image's own resolution. Baselines are the filled box and the ellipse inscribed in it (for box
prompts), and the teacher's own names (for concepts). Where the store comes from the sample world,
its truth table says what every region really is.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tap_engine.model.predictor import Tap
from tap_engine.model.prompt_encoder import Label
from tap_engine.schemas.errors import ConfigError, StoreError
from tap_engine.schemas.truth import Truth
from tap_engine.train.checkpoint import model_folder
from tap_engine.train.concepts import ConceptSpace
from tap_engine.train.data.noise import seed_of
from tap_engine.train.data.store_reader import StoredImage, StoreReader
from tap_engine.train.evaluation.evaluation import Question
from tap_engine.train.evaluation.region_model import TapRegions, Wanted, box_prompts
from tap_engine.train.evaluation.tasks.names import true_ranks
from tap_engine.train.evaluation.tasks.prompts import mask_iou, with_padding
from tap_engine.train.held_out_captions import measure_captions
from tap_engine.train.held_out_data import (
    boxes_xyxy_of,
    open_measured,
    pixels_of,
    stored_images,
    teacher_log_probs_of,
    things_of,
)
from tap_engine.train.held_out_picture import draw

KIND_COLUMNS = ("all", "object", "part", "stuff")

Numbers = npt.NDArray[np.float64]
_Masks = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutConfig:
    """Measuring while training.

    Attributes:
        store: a store that is not trained on; empty measures nothing.
        truth: its truth table (sample world), file or folder; empty compares with the teacher only.
        images: the number of its images.
        split: the split to measure on, as in `StreamConfig`.
        every: steps between measurements; the last step is always measured.
    """

    store: str = ""
    truth: str = ""
    images: int = 100
    split: str = "val"
    every: int = 5000

    def __post_init__(self) -> None:
        if self.images < 1 or self.every < 1:
            raise ConfigError("held_out.images and held_out.every must be at least 1")


@dataclass(slots=True)
class HeldOutFigures:
    """One number per region and question; `summary` averages them.

    Attributes:
        values: question -> [N] float, NaN where it does not apply.
        kinds: [N] "object", "part", "stuff", or "" without a truth table.
        images: the number of images they are from.
    """

    values: dict[str, Numbers]
    kinds: npt.NDArray[np.str_]
    images: int

    def summary(self) -> dict[str, float]:
        """Means by "question/kind", over the regions a question applies to."""
        out = {}
        for name, values in self.values.items():
            for kind in KIND_COLUMNS:
                chosen = values if kind == "all" else values[self.kinds == kind]
                chosen = chosen[~np.isnan(chosen)]
                if len(chosen):
                    out[f"{name}/{kind}"] = float(chosen.mean())
        return out

    def table(self) -> str:
        """The summary as text, one question per line."""
        found = self.summary()
        kinds = [k for k in KIND_COLUMNS if any(name.endswith(f"/{k}") for name in found)]
        counts = {k: len(self.kinds) if k == "all" else int((self.kinds == k).sum()) for k in kinds}
        lines = [f"{'':34}" + "".join(f"{k:>9}" for k in kinds)]
        lines.append(
            f"{'regions (' + str(self.images) + ' images)':34}"
            + "".join(f"{counts[k]:>9}" for k in kinds)
        )
        for name in self.values:
            cells = [found.get(f"{name}/{k}") for k in kinds]
            if any(cell is not None for cell in cells):
                shown = "".join(f"{'':>9}" if c is None else f"{c:>9.3f}" for c in cells)
                lines.append(f"{MASK_QUESTIONS[name]:34}{shown}")
        return "\n".join(lines)


MASK_QUESTIONS = {
    "box_iou": "mask IoU, box prompts",
    "filled_iou": "  filled box",
    "ellipse_iou": "  inscribed ellipse",
    "point_iou": "mask IoU, one point",
    "top1_box": "concept top-1, box prompts",
    "top1_point": "concept top-1, one point",
    "teacher_top1": "  teacher's own",
    "agree_box": "same top concept as the teacher",
}
"""Questions in the order of the report; baselines are indented below what they belong to."""


def measure(
    model: TapRegions,
    space: ConceptSpace,
    reader: StoreReader,
    *,
    images: int,
    split: str = "",
    truth: Truth | None = None,
) -> HeldOutFigures:
    """Measures on the first images of a store.

    Args:
        model: asked as the evaluation asks it, about the store's concepts.
        space: the same concepts with the teacher's projection.
        reader: the store, of `open_measured`, with embeddings.
        images: the number of its images, at most.
        split: images of another split are left out; see `HeldOutConfig`.
        truth: what regions really are; without it only the teacher is compared with.
    """
    names = frozenset(space.names)
    columns: dict[str, list[Numbers]] = {name: [] for name in MASK_QUESTIONS}
    kinds: list[str] = []
    count = min(images, reader.rows)
    for stored in stored_images(reader, count, split):
        known = things_of(truth, stored) if truth else [None] * len(stored.regions)
        kinds += [k.kind if k else "" for k in known]
        right = [k.concept if k and k.concept in names else None for k in known]
        for name, values in _measure_image(model, space, stored, right).items():
            columns[name].append(values)
    return HeldOutFigures(
        {name: np.concatenate(parts) if parts else np.empty(0) for name, parts in columns.items()},
        np.array(kinds, np.str_),
        count,
    )


class HeldOutReport(Protocol):
    """Figures of one kind."""

    def summary(self) -> dict[str, float]:
        """By name."""

    def table(self) -> str:
        """For people."""


def measure_all(
    tap: Tap,
    reader: StoreReader,
    config: HeldOutConfig,
    truth: Truth | None,
    space: ConceptSpace | None,
) -> list[HeldOutReport]:
    """Measures everything that model and store allow.

    Masks and concepts where a teacher saw the store; captions where the model writes them and the
    store or the truth table says what they should say.

    Args:
        tap: the model.
        reader: the store, of `open_measured`.
        config: number of images, and their split.
        truth: what regions really are, or None.
        space: concepts of the store, or None.

    Raises:
        StoreError: nothing of that.
    """
    images, split, model = config.images, config.split, TapRegions(tap)
    reports: list[HeldOutReport] = []
    if space is not None and "embedding" in reader.columns and tap.concepts is not None:
        masks = measure(model, space, reader, images=images, split=split, truth=truth)
        reports += [masks] if len(masks.kinds) else []
    if tap.tokenizer is not None:
        captions = measure_captions(model, reader, images=images, split=split, truth=truth)
        reports += [captions] if captions.captions else []
    if not reports:
        raise StoreError(
            f"{reader.uri}: nothing to measure in split {config.split!r}: neither embeddings of a "
            "teacher, nor captions for a model that writes them"
        )
    return reports


def measure_checkpoint(
    path: Path, store: str, *, truth: str = "", images: int = 100
) -> HeldOutFigures:
    """`measure` for a model on disk.

    Args:
        path: run folder, checkpoint folder or .safetensors.
        store: store to measure on.
        truth: its truth table, or "".
        images: the number of its images, at most.
    """
    tap, reader, space = _opened(path, store)
    if space is None:
        raise StoreError(f"{store} has no concepts: no teacher saw it")
    known = Truth.read(truth) if truth else None
    return measure(TapRegions(tap), space, reader, images=images, truth=known)


def report_checkpoint(
    path: Path, config: HeldOutConfig, picture: Path | None
) -> list[HeldOutReport]:
    """`measure_all` for a model on disk.

    Args:
        path: run folder, checkpoint folder or .safetensors.
        config: what to measure on.
        picture: PNG to write, or None: truth left, prediction right.
    """
    tap, reader, space = _opened(path, config.store)
    truth = Truth.read(config.truth) if config.truth else None
    if picture is not None:
        draw(tap, space, reader, 4, config.split).save(picture)
    return measure_all(tap, reader, config, truth, space)


def _opened(path: Path, store: str) -> tuple[Tap, StoreReader, ConceptSpace | None]:
    # The model names the store's concepts, where it has any.
    tap, reader = Tap.from_pretrained(model_folder(path)), open_measured(store)
    space = ConceptSpace.of_store(reader) if reader.has_concepts else None
    if space is not None:
        tap.set_concepts(space.table)
    return tap, reader, space


def _measure_image(
    model: TapRegions, space: ConceptSpace, stored: StoredImage, right: list[str | None]
) -> dict[str, Numbers]:
    model.set_image(pixels_of(stored))
    question = Question(stored.image_id, stored.size_hw, stored.regions, model)
    boxes = boxes_xyxy_of(stored)
    points = _points(question.masks, stored)[:, None].astype(np.float32)
    labels = np.full(points.shape[:2], Label.FOREGROUND, np.int64)
    box_iou, by_box = _told(model, question, *box_prompts(boxes))
    point_iou, by_point = _told(model, question, *with_padding(points, labels))
    columns = {name: place for place, name in enumerate(model.class_names)}
    places = np.array([-1 if name is None else columns[name] for name in right], np.int64)
    teacher = [space.names[i] for i in teacher_log_probs_of(space, stored).argmax(-1).tolist()]
    best = [model.class_names[i] for i in by_box.argmax(axis=1)]
    return {
        "box_iou": box_iou,
        "filled_iou": mask_iou(_filled(boxes, stored.size_hw), question.masks),
        "ellipse_iou": mask_iou(_ellipses(boxes, stored.size_hw), question.masks),
        "point_iou": point_iou,
        "top1_box": _first(by_box, places),
        "top1_point": _first(by_point, places),
        "teacher_top1": np.array(
            [
                np.nan if name is None else top == name
                for top, name in zip(teacher, right, strict=True)
            ]
        ),
        "agree_box": np.array([a == b for a, b in zip(best, teacher, strict=True)], np.float64),
    }


def _told(
    model: TapRegions,
    question: Question,
    points: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
) -> tuple[Numbers, npt.NDArray[np.float32]]:
    """[R] IoU of the chosen masks and [R, C] probabilities, as the evaluation has them."""
    parts = list(question.prompted(points, labels, Wanted(mask=True, embedding=True)))
    chosen = np.concatenate([part.masks[:, 0] for part in parts])
    # float32, as prediction files hold it: `measure` and `eval` give the same number.
    iou = mask_iou(chosen, question.masks).astype(np.float32).astype(np.float64)
    return iou, model.probabilities([part.embeddings for part in parts])


def _first(probabilities: npt.NDArray[np.float32], places: npt.NDArray[np.int64]) -> Numbers:
    """[R] whether the true name came first; NaN where it is not known."""
    ranks, _ = true_ranks(probabilities, places.clip(0))
    return np.where(places < 0, np.nan, ranks == 0)


def _points(masks: _Masks, stored: StoredImage) -> Numbers:
    # One pixel of each mask, (x, y), drawn by the region's key.
    out = []
    for mask, key in zip(masks, stored.regions["key"].to_pylist(), strict=True):
        ys, xs = np.nonzero(mask)
        at = seed_of(key) % len(xs)
        out.append((float(xs[at]), float(ys[at])))
    return np.array(out)


def _grid(size_hw: tuple[int, int]) -> tuple[Numbers, Numbers]:
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    return x[None] + 0.5, y[None] + 0.5


def _filled(boxes: Numbers, size_hw: tuple[int, int]) -> _Masks:
    x, y = _grid(size_hw)
    left, top, right, bottom = (boxes[:, i, None, None] for i in range(4))
    return (x > left) & (x < right) & (y > top) & (y < bottom)


def _ellipses(boxes: Numbers, size_hw: tuple[int, int]) -> _Masks:
    x, y = _grid(size_hw)
    left, top, right, bottom = (boxes[:, i, None, None] for i in range(4))
    across = (2 * x - left - right) / (right - left)
    down = (2 * y - top - bottom) / (bottom - top)
    return across**2 + down**2 <= 1

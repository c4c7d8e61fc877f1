"""How good a model is on images it has not seen, beside what costs nothing and beside its teacher.

Masks are compared at the image's own resolution. Baselines are the filled box and the ellipse
inscribed in it (for box prompts), and the teacher's own names (for concepts). Where the store comes
from the sample world, its truth table says what every region really is.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from tap_engine.model.picture import (
    PAIR_PX,
    Mark,
    Prompt,
    draw_marks,
    draw_sheet,
    region_mark,
    top_level,
)
from tap_engine.model.predictor import Tap
from tap_engine.schemas import rle
from tap_engine.schemas.errors import ConfigError, StoreError
from tap_engine.schemas.truth import Truth
from tap_engine.train.checkpoint import model_folder
from tap_engine.train.concepts import ConceptSpace
from tap_engine.train.data.noise import seed_of
from tap_engine.train.data.store_reader import StoredImage, StoreReader
from tap_engine.train.held_out_captions import draw_captions, measure_captions
from tap_engine.train.held_out_data import (
    boxes_xyxy_of,
    open_measured,
    pixels_of,
    stored_images,
    things_of,
)

KIND_COLUMNS = ("all", "object", "part", "stuff")

Numbers = npt.NDArray[np.float64]
Masks = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutConfig:
    """Measuring while training.

    Attributes:
        store: a store that is not trained on; empty measures nothing.
        truth: its truth table (sample world), file or folder; empty compares with the teacher only.
        images: how many of its images.
        split: as in `StreamConfig`.
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
        images: how many images they are from.
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
    tap: Tap,
    space: ConceptSpace,
    reader: StoreReader,
    *,
    images: int,
    split: str = "",
    truth: Truth | None = None,
) -> HeldOutFigures:
    """Measures on the first images of a store.

    Args:
        tap: the model with the store's concepts.
        space: the same concepts with the teacher's projection.
        reader: the store, of `open_measured`, with embeddings.
        images: how many of its images at most.
        split: images of another split are left out; see `HeldOutConfig`.
        truth: what regions really are; without it only the teacher is compared with.
    """
    ids = {name: index for index, name in enumerate(space.names)}
    columns: dict[str, list[Numbers]] = {name: [] for name in MASK_QUESTIONS}
    kinds: list[str] = []
    count = min(images, reader.rows)
    for stored in stored_images(reader, count, split):
        known = things_of(truth, stored) if truth else [None] * len(stored.regions)
        kinds += [k.kind if k else "" for k in known]
        right = np.array([ids.get(k.concept, -1) if k else -1 for k in known])
        for name, values in _measure_image(tap, space, stored, right).items():
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
    """What model and store allow.

    Masks and concepts where a teacher saw the store; captions where the model writes them and the
    store or the truth table says what they should say.

    Args:
        tap: the model.
        reader: the store, of `open_measured`.
        config: how many images of which split.
        truth: what regions really are, or None.
        space: concepts of the store, or None.

    Raises:
        StoreError: nothing of that.
    """
    images, split = config.images, config.split
    reports: list[HeldOutReport] = []
    if space is not None and "embedding" in reader.columns and tap.concepts is not None:
        masks = measure(tap, space, reader, images=images, split=split, truth=truth)
        reports += [masks] if len(masks.kinds) else []
    if tap.tokenizer is not None:
        captions = measure_captions(tap, reader, images=images, split=split, truth=truth)
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
        images: how many of its images at most.
    """
    tap, reader, space = _opened(path, store)
    if space is None:
        raise StoreError(f"{store} has no concepts: no teacher saw it")
    known = Truth.read(truth) if truth else None
    return measure(tap, space, reader, images=images, truth=known)


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


def draw(
    tap: Tap, space: ConceptSpace | None, reader: StoreReader, count: int, split: str = ""
) -> Image.Image:
    """Draws the first images of a split twice: the truth beside the prediction."""
    if space is not None and "embedding" in reader.columns:
        left = "true masks, the teacher's names"
        pairs = [pair(tap, space, stored) for stored in stored_images(reader, count, split)]
    else:
        left = "boxes with their phrases"
        pairs = [draw_captions(tap, stored) for stored in reader.first(count, split)]
    columns = 2 if len(pairs) == 1 else 4
    heads = (left, "prediction from the boxes") * 2
    return draw_sheet([side for both in pairs for side in both], columns=columns, heads=heads)


def pair(
    tap: Tap, space: ConceptSpace, stored: StoredImage, most: int = 12
) -> tuple[Image.Image, Image.Image]:
    """Draws one image twice.

    Args:
        tap: the model.
        space: concepts of the store.
        stored: an image of `stored_images`, with embeddings.
        most: number of regions shown: the largest that lie inside no larger one.

    Returns:
        The true masks with the teacher's names, and what the model predicts from their boxes.
    """
    rgb = pixels_of(stored)
    masks, boxes = _masks(stored), boxes_xyxy_of(stored)
    largest = np.argsort(-masks.sum((1, 2)), kind="stable")[: 3 * most]
    shown = largest[top_level([masks[i] for i in largest])[:most]]
    scores, names = _teacher(space, stored).exp().max(-1)
    true = []
    for i in shown:
        name = space.names[names[i]]
        true.append(Mark(mask=masks[i], name=name, text=f"{name} {float(scores[i]):.2f}"))
    tap.set_image(rgb)
    found = tap.predict(boxes=boxes[shown]) if len(shown) else []
    predicted = [
        region_mark(region, Prompt(box_xyxy=box))
        for region, box in zip(found, boxes[shown].tolist(), strict=True)
    ]
    return (
        draw_marks(rgb, true, side_px=PAIR_PX),
        draw_marks(rgb, predicted, side_px=PAIR_PX),
    )


def _measure_image(
    tap: Tap, space: ConceptSpace, stored: StoredImage, right: npt.NDArray[np.int64]
) -> dict[str, Numbers]:
    masks, boxes = _masks(stored), boxes_xyxy_of(stored)
    tap.set_image(pixels_of(stored))
    boxed = tap.predict(boxes=boxes, top_k=1, captions=False)
    points = _points(masks, stored)[:, None]
    loose = tap.predict(points=points, top_k=1, captions=False)
    teacher = [space.names[i] for i in _teacher(space, stored).argmax(-1).tolist()]
    by_box = [region.concepts[0].name for region in boxed]
    by_point = [region.concepts[0].name for region in loose]
    truth = [space.names[i] if i >= 0 else None for i in right]

    def share(found: list[str]) -> Numbers:
        return np.array(
            [np.nan if t is None else f == t for f, t in zip(found, truth, strict=True)]
        )

    return {
        "box_iou": _iou(np.stack([r.mask for r in boxed]), masks),
        "filled_iou": _iou(_filled(boxes, stored.size_hw), masks),
        "ellipse_iou": _iou(_ellipses(boxes, stored.size_hw), masks),
        "point_iou": _iou(np.stack([r.mask for r in loose]), masks),
        "top1_box": share(by_box),
        "top1_point": share(by_point),
        "teacher_top1": share(teacher),
        "agree_box": np.array([a == b for a, b in zip(by_box, teacher, strict=True)], np.float64),
    }


def _masks(stored: StoredImage) -> Masks:
    counts = stored.regions["rle"].to_pylist()
    return np.stack([rle.decode(text, stored.size_hw) for text in counts]) > 0


def _teacher(space: ConceptSpace, stored: StoredImage) -> Tensor:
    # [R, C] the teacher's log-probabilities.
    embeddings = np.stack(stored.regions["embedding"].to_numpy(zero_copy_only=False))
    device = space.target_weights.device
    return space.teacher_log_probs(torch.from_numpy(embeddings).to(device)).cpu()


def _points(masks: Masks, stored: StoredImage) -> Numbers:
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


def _filled(boxes: Numbers, size_hw: tuple[int, int]) -> Masks:
    x, y = _grid(size_hw)
    left, top, right, bottom = (boxes[:, i, None, None] for i in range(4))
    return (x > left) & (x < right) & (y > top) & (y < bottom)


def _ellipses(boxes: Numbers, size_hw: tuple[int, int]) -> Masks:
    x, y = _grid(size_hw)
    left, top, right, bottom = (boxes[:, i, None, None] for i in range(4))
    across = (2 * x - left - right) / (right - left)
    down = (2 * y - top - bottom) / (bottom - top)
    return across**2 + down**2 <= 1


def _iou(predicted: Masks, truth: Masks) -> Numbers:
    both = (predicted & truth).sum((1, 2))
    either = (predicted | truth).sum((1, 2))
    return both / np.maximum(either, 1)

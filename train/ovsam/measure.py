"""How well each stage learned, on pictures of the sample world that were not trained on.

Stage 1 is judged by the teacher: its features, and its untouched decoder on the student's features.
Stage 2 by the truth table: accuracy of head, frozen CLIP and both, and IoU, by the protocol of
train/evaluation/interactive.py.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tap_engine.model.image_input import FittedImage, Rgb
from tap_engine.model.ovsam.classes import BASE, NOVEL
from tap_engine.model.ovsam.config import FusionConfig
from tap_engine.model.ovsam.fusion import best_classes, fuse
from tap_engine.model.ovsam.image_input import axis_scales, fit_picture
from tap_engine.model.ovsam.model import OvsamModel, full_size_logits
from tap_engine.model.ovsam.predictor import OpenVocabularySam
from tap_engine.model.prompts import make_prompts
from tap_engine.model.tap import TapModel
from tap_engine.schemas import rle
from tap_engine.schemas.truth import OBJECT, Truth
from tap_engine.train.data.store_reader import StoredImage, StoreReader
from tap_engine.train.evaluation.interactive import InteractiveScore, centre_point, mask_iou
from tap_engine.train.held_out_data import boxes_xyxy_of, pixels_of, stored_images
from tap_engine.train.ovsam.teachers import TapTeacher

SMALL = 0.18
"""A small object: its box's side (the root of its area) is below this share of the picture; 46 px
of 256."""

Masks = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A held-out picture with its objects.

    Attributes:
        pixels: [H, W, 3] uint8.
        masks: [K, H, W] bool.
        boxes: [K, 4] xyxy px.
        names: of K classes.
    """

    pixels: Rgb
    masks: Masks
    boxes: npt.NDArray[np.float64]
    names: tuple[str, ...]


def scenes_of(reader: StoreReader, truth: Truth, count: int) -> Iterator[Scene]:
    """The first `count` pictures of a store with their objects; parts and surfaces are left out."""
    for stored in stored_images(reader, count):
        ids = stored.regions["region_id"].to_pylist()
        things = [truth.rows.get((stored.image_id, region)) for region in ids]
        kept = [i for i, thing in enumerate(things) if thing and thing.kind == OBJECT]
        if kept:
            yield Scene(
                pixels_of(stored),
                _masks(stored, kept),
                boxes_xyxy_of(stored)[kept],
                tuple(thing.concept for i in kept if (thing := things[i])),
            )


def _masks(stored: StoredImage, rows: Sequence[int]) -> Masks:
    counts = stored.regions["rle"]
    found = [rle.decode(counts[row].as_py(), stored.size_hw) for row in rows]
    return np.stack(found).astype(bool)


@torch.inference_mode()
def distilled_figures(
    model: OvsamModel, teacher: TapModel, scenes: Sequence[Scene]
) -> dict[str, float]:
    """Stage 1 on held-out scenes.

    Args:
        model: the student.
        teacher: the TAP that it was distilled from.
        scenes: with their objects; boxes are the prompts.

    Returns:
        "mse_left": the student's squared error over that of the teacher's mean at each position of
        these scenes, which no student knows; IoU of the masks that the teacher's decoder makes of
        the student's features ("box_iou") and of its own ("teacher_iou"), their IoU with each other
        ("agreement"), and of the filled box and its ellipse.
    """
    own = TapTeacher(teacher)
    student, wanted = [], []
    score: dict[str, list[float]] = {
        name: [] for name in ("box_iou", "teacher_iou", "agreement", "filled_box", "ellipse")
    }
    for scene in scenes:
        fitted = fit_picture(scene.pixels, model.config.image_size)
        pixels = torch.from_numpy(fitted.canvas).permute(2, 0, 1)[None]
        content = torch.tensor([fitted.content_hw])
        features = model.adapter(model.backbone(model.normalise(pixels, content)))
        target = own.features(pixels, content)
        student.append(features[0])
        wanted.append(target[0])
        points = scene.boxes.reshape(-1, 2, 2) * axis_scales(fitted)
        corners = torch.from_numpy(points.astype(np.float32))[None]
        labels = torch.tensor([2, 3]).expand(1, len(scene.boxes), 2)
        masks = [
            _full(teacher.decode(x, corners, labels).mask_logits[0, :, 0], model, fitted)
            for x in (features, target)
        ]
        for i, truth in enumerate(scene.masks):
            score["box_iou"].append(mask_iou(masks[0][i], truth))
            score["teacher_iou"].append(mask_iou(masks[1][i], truth))
            score["agreement"].append(mask_iou(masks[0][i], masks[1][i]))
            box, ellipse = _shapes(scene.boxes[i], truth.shape)
            score["filled_box"].append(mask_iou(box, truth))
            score["ellipse"].append(mask_iou(ellipse, truth))
    found, target = torch.stack(student), torch.stack(wanted)
    error = (found - target).square().mean()
    baseline = (target.mean(0) - target).square().mean()
    figures = {"mse_left": (error / baseline).item(), "instances": float(len(score["box_iou"]))}
    return figures | {name: float(np.mean(values)) for name, values in score.items()}


def _full(logits: Tensor, model: OvsamModel, fitted: FittedImage) -> Masks:
    side = model.config.image_size
    large = full_size_logits(logits.float(), (side, side), fitted.content_hw, fitted.image_hw)
    return (large > 0).numpy()


def _shapes(box: npt.NDArray[np.float64], size_hw: tuple[int, ...]) -> tuple[Masks, Masks]:
    """The filled box and the ellipse in it, [H, W] bool each; pixel centres decide."""
    y, x = np.mgrid[: size_hw[0], : size_hw[1]] + 0.5
    x1, y1, x2, y2 = box
    inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
    across, down = (x - (x1 + x2) / 2) / (x2 - x1) * 2, (y - (y1 + y2) / 2) / (y2 - y1) * 2
    return inside, across**2 + down**2 < 1


ImageEncoder = Callable[[Rgb, Masks, npt.NDArray[np.float64]], Tensor]
"""Pixels, masks, boxes of K objects -> [K, E] of the whole CLIP on cut-out pictures."""


@torch.inference_mode()
def naming_scores(
    model: OpenVocabularySam,
    scenes: Sequence[Scene],
    *,
    prompt: str = "box",
    weights: Sequence[tuple[float, float]] = ((0.1, 0.9), (0.3, 0.9), (0.5, 0.9)),
    crops: dict[str, ImageEncoder] | None = None,
) -> dict[str, InteractiveScore]:
    """Every way of naming on the same instances; of each also "... small", small objects alone.

    Args:
        model: of stage 2, with classes and their split.
        scenes: with their objects.
        prompt: "box", or "point", the centre of the mask.
        weights: (alpha, beta) of the fused rows.
        crops: image-crop baselines by name.

    Returns:
        Scores of "head", "feature crop" (frozen CLIP's own region scores), "fused a/b" and the crop
        baselines. IoU is that of the model's masks in every row.
    """
    table = model.concepts
    assert table is not None, "a model of stage 2 has classes"
    ids = {name: index for index, name in enumerate(table.names)}
    base = frozenset(torch.nonzero(table.kinds == BASE).flatten().tolist())
    novel = frozenset(torch.nonzero(table.kinds == NOVEL).flatten().tolist())
    scores: dict[str, InteractiveScore] = {}

    def add(name: str, logits: Tensor, wanted: list[int], ious: list[float], small: Masks) -> None:
        found = best_classes(logits, 1)[0][:, 0].tolist()
        for row, answer in enumerate(found):
            for key in (name, f"{name} small")[: 1 + int(small[row])]:
                score = scores.setdefault(key, InteractiveScore(base, novel))
                score.add(wanted[row], answer, ious[row])

    for scene in scenes:
        kept = [i for i, name in enumerate(scene.names) if name in ids]
        if not kept:
            continue
        masks, boxes = scene.masks[kept], scene.boxes[kept]
        wanted = [ids[scene.names[i]] for i in kept]
        picture = model.set_image(scene.pixels)
        size = picture.fitted.image_hw
        if prompt == "box":
            prompts = make_prompts(size, boxes=boxes)
        else:
            centres = np.stack([centre_point(mask) for mask in masks])
            prompts = make_prompts(size, points=centres[:, None])
        answers = model.answer(picture, prompts.points, prompts.labels)
        found = _full(answers.mask_logits, model.model, picture.fitted)
        ious = [mask_iou(found[i], masks[i]) for i in range(len(masks))]
        sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        small = sides < SMALL * max(size)
        add("head", answers.head_logits, wanted, ious, small)
        add("feature crop", answers.clip_logits, wanted, ious, small)
        seen = (answers.mask_logits > 0).flatten(1).any(1)
        for alpha, beta in weights:
            fusion = FusionConfig(alpha=alpha, beta=beta)
            fused = fuse(answers.head_logits, answers.clip_logits, table.kinds, fusion, seen)
            add(f"fused {alpha:g}/{beta:g}", fused, wanted, ious, small)
        for name, encode in (crops or {}).items():
            logits = model.score(encode(scene.pixels, found, boxes))
            add(name, logits, wanted, ious, small)
    return scores


def table_of(scores: dict[str, InteractiveScore]) -> str:
    """The rows as text: accuracy of all, base, novel and small objects, then IoU."""
    lines = [
        f"{'':24}{'all':>7}{'base':>7}{'novel':>7}{'small':>7}{'IoU':>7}{'IoU_b':>7}{'IoU_n':>7}"
    ]
    for name in (key for key in scores if not key.endswith(" small")):
        all_, small = scores[name].figures(), scores.get(f"{name} small")
        few = small.figures()["Acc"] if small else float("nan")
        parts = [all_["Acc"] / 100, all_["Acc_b"] / 100, all_["Acc_n"] / 100, few / 100]
        parts += [all_["IoU"], all_["IoU_b"], all_["IoU_n"]]
        lines.append(f"{name:24}" + "".join(f"{value:7.3f}" for value in parts))
    count = int(next(iter(scores.values())).figures()["instances"]) if scores else 0
    return "\n".join([*lines, f"{count:,} instances"])

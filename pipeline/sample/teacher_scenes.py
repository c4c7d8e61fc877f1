"""Whole scenes to train a teacher that names things where they stand, not only cut out.

A teacher that has seen masked crops alone is no backbone for whole pictures: its features of a
scene do not say what lies where. Here a step also takes whole scenes, and every thing in them is
named twice: from the scene's own feature map (RoIAlign and the attention pool), and from its box
cut out with its background.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.ops import roi_align

from tap_engine.pipeline.crop import decode_image
from tap_engine.pipeline.sample.files import SceneName, scene_jpeg
from tap_engine.schemas.replacing import replacing
from tap_engine.schemas.truth import PART
from tap_engine.schemas.vocabulary import DEFAULT_VOCABULARY, load_vocabulary

_CHUNK_SCENES = 100


@dataclass(frozen=True, slots=True)
class LabelledScenes:
    """N scenes of one size with their things; parts are left out.

    Attributes:
        jpegs: N compressed pictures.
        boxes: per scene [K, 4] float32 xyxy px.
        concepts: per scene [K] int64, id in merged-2560.
    """

    jpegs: list[bytes]
    boxes: list[npt.NDArray[np.float32]]
    concepts: list[npt.NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.jpegs)


def prepare_scenes(
    folder: Path,
    names: Sequence[SceneName],
    size: int,
    progress: Callable[[int, int], None] | None = None,
) -> LabelledScenes:
    """Many scenes; drawn once and kept in `folder`, which is for this list only.

    Args:
        folder: made where it is missing.
        names: which scenes.
        size: their side, px.
        progress: called with (scenes done, scenes in all).
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = LabelledScenes([], [], [])
    for start in range(0, len(names), _CHUNK_SCENES):
        chunk = names[start : start + _CHUNK_SCENES]
        path = folder / f"{start // _CHUNK_SCENES:05}.npz"
        if not path.exists():
            _write_chunk(path, chunk, size)
        with np.load(path, allow_pickle=False) as arrays:
            ends = np.cumsum(arrays["counts"])[:-1]
            sizes = np.cumsum(arrays["bytes"])[:-1]
            found.jpegs.extend(part.tobytes() for part in np.split(arrays["jpegs"], sizes))
            found.boxes.extend(np.split(arrays["boxes"], ends))
            found.concepts.extend(np.split(arrays["concepts"], ends))
        if progress:
            progress(start + len(chunk), len(names))
    return found


def _write_chunk(path: Path, names: Sequence[SceneName], size: int) -> None:
    ids = load_vocabulary(DEFAULT_VOCABULARY).ids
    jpegs, boxes, concepts = [], [], []
    for name in names:
        scene = name.render(size)
        jpegs.append(np.frombuffer(scene_jpeg(scene), np.uint8))
        things = [region for region in scene.regions if region.kind != PART]
        xywh = np.array([region.bbox_xywh for region in things], np.float32).reshape(-1, 4)
        boxes.append(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1))
        concepts.append(np.array([ids[region.concept] for region in things], np.int64))
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez(
            file,
            jpegs=np.concatenate(jpegs),
            bytes=np.array([len(jpeg) for jpeg in jpegs]),
            boxes=np.concatenate(boxes),
            concepts=np.concatenate(concepts),
            counts=np.array([len(found) for found in concepts]),
        )


@dataclass(frozen=True, slots=True)
class SceneBatch:
    """The scenes of one step.

    Attributes:
        images: [S, 3, H, W] float32, normalised.
        rois: [K, 5] float32: scene, then xyxy px.
        concepts: [K] int64.
    """

    images: Tensor
    rois: Tensor
    concepts: npt.NDArray[np.int64]


def scene_batch(
    scenes: LabelledScenes,
    count: int,
    rng: np.random.Generator,
    mean: Sequence[float],
    std: Sequence[float],
) -> SceneBatch:
    """Some scenes, each mirrored or not and a little lighter or darker.

    Args:
        scenes: to draw from.
        count: the number of scenes.
        rng: decides which, and how they are varied.
        mean: mean of the teacher's pixels, in 0..1.
        std: deviation of the teacher's pixels, in 0..1.
    """
    images, rois, concepts = [], [], []
    for position, index in enumerate(rng.integers(0, len(scenes), count)):
        pixels = decode_image(scenes.jpegs[index]).astype(np.float64)
        boxes = scenes.boxes[index].copy()
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
            boxes[:, [0, 2]] = pixels.shape[1] - boxes[:, [2, 0]]
        pixels = (pixels * rng.uniform(0.88, 1.12, 3)).clip(0, 255) / 255
        images.append((pixels - np.asarray(mean)) / np.asarray(std))
        rois.append(np.concatenate([np.full((len(boxes), 1), position), boxes], axis=1))
        concepts.append(scenes.concepts[index])
    stacked = torch.from_numpy(np.stack(images).astype(np.float32)).permute(0, 3, 1, 2)
    return SceneBatch(
        stacked.contiguous(memory_format=torch.channels_last),
        torch.from_numpy(np.concatenate(rois).astype(np.float32)),
        np.concatenate(concepts),
    )


def encode_in_place(model: Any, images: Tensor, rois: Tensor) -> Tensor:
    """[K, D] float32 features of regions, read from the feature map of their whole picture.

    Args:
        model: an open_clip model whose image tower is a ModifiedResNet.
        images: [S, 3, H, W], normalised.
        rois: [K, 5]: picture, then xyxy px.
    """
    tower = model.visual
    with torch.autocast(images.device.type, torch.bfloat16, enabled=model.training):
        x = tower.stem(images)
        for stage in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
            x = stage(x)
    grid = tower.image_size // 32
    regions = roi_align(x.float(), rois, (grid, grid), 1 / 32, sampling_ratio=0, aligned=True)
    return tower.attnpool(regions).float()


def boxes_with_background(images: Tensor, rois: Tensor, size: int) -> Tensor:
    """[K, 3, size, size]: every region's box, made square around its centre, background and all."""
    centre = (rois[:, 1:3] + rois[:, 3:]) / 2
    half = (rois[:, 3:] - rois[:, 1:3]).amax(1, keepdim=True) / 2
    square = torch.cat([rois[:, :1], centre - half, centre + half], dim=1)
    return roi_align(images, square, (size, size), 1.0, sampling_ratio=0, aligned=True)

"""Labelled crops of the sample world, cut as the data engine cuts them: what a teacher trains on.

Scenes are drawn, compressed to JPEG and decoded again before they are cropped, so that a teacher
meets in a store what it met in training. Chunks of scenes are kept in a folder; a killed run goes
on with the next chunk.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from tap_engine.pipeline.crop import crop_regions, decode_image
from tap_engine.pipeline.sample.files import SceneName, scene_jpeg
from tap_engine.pipeline.sample.layout import TINTS
from tap_engine.schemas import rle
from tap_engine.schemas.replacing import replacing
from tap_engine.schemas.store_settings import CropConfig
from tap_engine.schemas.truth import KINDS, PART
from tap_engine.schemas.vocabulary import DEFAULT_VOCABULARY, load_vocabulary

TINT_WORDS = ("", *TINTS)

_CHUNK_SCENES = 50


@dataclass(frozen=True, slots=True)
class LabelledCrops:
    """N crops with their truth.

    Attributes:
        pixels: [N, S, S, 3] uint8 RGB.
        concept: [N] int16, id in merged-2560.
        kind: [N] int8, index into KINDS.
        tint: [N] int8, index into TINT_WORDS.
        visibility: [N] float32.
        scene_px: [N] int16, side of the scene.
    """

    pixels: npt.NDArray[np.uint8]
    concept: npt.NDArray[np.int16]
    kind: npt.NDArray[np.int8]
    tint: npt.NDArray[np.int8]
    visibility: npt.NDArray[np.float32]
    scene_px: npt.NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.concept)

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> "LabelledCrops":
        """Some of them."""
        return LabelledCrops(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def join(cls, parts: Sequence["LabelledCrops"]) -> "LabelledCrops":
        """One after the other."""
        return cls(
            *(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(cls))
        )


def crop_scene(
    name: SceneName, size: int, config: CropConfig, part_share: float = 1.0
) -> LabelledCrops:
    """The crops of one scene.

    Args:
        name: which.
        size: side of the scene, px.
        config: the rule by which regions become crops.
        part_share: keep this share of its parts; there are more parts than anything else.
    """
    scene = name.render(size)
    chance = name.generator(2).random(len(scene.regions))
    regions = [
        region
        for region, draw in zip(scene.regions, chance, strict=True)
        if region.kind != PART or draw < part_share
    ]
    ids = load_vocabulary(DEFAULT_VOCABULARY).ids
    return LabelledCrops(
        pixels=crop_regions(
            decode_image(scene_jpeg(scene)),
            [rle.runs(region.counts, (size, size)) for region in regions],
            [region.bbox_xywh for region in regions],
            config,
        ),
        concept=np.array([ids[region.concept] for region in regions], np.int16),
        kind=np.array([KINDS.index(region.kind) for region in regions], np.int8),
        tint=np.array([TINT_WORDS.index(region.tint or "") for region in regions], np.int8),
        visibility=np.array([region.visibility for region in regions], np.float32),
        scene_px=np.full(len(regions), size, np.int16),
    )


def prepare_crops(
    folder: Path,
    names: Sequence[SceneName],
    sizes: Sequence[int],
    config: CropConfig,
    *,
    part_share: float = 1.0,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> LabelledCrops:
    """The crops of many scenes, each at every size; drawn once and kept in `folder`.

    About 0.2 MB per scene in memory at a part_share of a quarter.

    Args:
        folder: a folder for this list of scenes only.
        names: which scenes.
        sizes: sides, px; scene k is drawn at sizes[k mod len(sizes)].
        config: the rule by which regions become crops.
        part_share: see `crop_scene`.
        workers: processes; 0 takes one per core.
        progress: called with (scenes done, scenes in all).
    """
    folder.mkdir(parents=True, exist_ok=True)
    tasks = []
    for start in range(0, len(names), _CHUNK_SCENES):
        chunk = [
            (names[k], sizes[k % len(sizes)])
            for k in range(start, min(start + _CHUNK_SCENES, len(names)))
        ]
        tasks.append((folder / f"{start // _CHUNK_SCENES:05}.npz", chunk, config, part_share))
    missing = [task for task in tasks if not task[0].exists()]
    done = len(names) - sum(len(chunk) for _, chunk, _, _ in missing)
    for finished in _run_all(missing, workers or len(os.sched_getaffinity(0))):
        done += finished
        if progress:
            progress(done, len(names))
    return LabelledCrops.join([_read_chunk(task[0]) for task in tasks])


_Task = tuple[Path, list[tuple[SceneName, int]], CropConfig, float]


def _run_all(tasks: Sequence[_Task], workers: int) -> Iterator[int]:
    """Write the chunks, on one process or several; yields the scenes of each as it is done."""
    if workers == 1 or len(tasks) < 2:
        yield from map(_write_chunk, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        yield from pool.map(_write_chunk, tasks)


def _write_chunk(task: _Task) -> int:
    path, chunk, config, part_share = task
    cv2.setNumThreads(1)
    crops = LabelledCrops.join([crop_scene(name, size, config, part_share) for name, size in chunk])
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez(file, **{field.name: getattr(crops, field.name) for field in fields(crops)})
    return len(chunk)


def _read_chunk(path: Path) -> LabelledCrops:
    with np.load(path, allow_pickle=False) as arrays:
        return LabelledCrops(*(arrays[field.name] for field in fields(LabelledCrops)))

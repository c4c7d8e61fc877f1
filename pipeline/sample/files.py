"""One scene of the sample world: its name, its JPEG, its annotations, its rows of the truth table.

Everything about a scene follows from its name. sample/world.py gathers scenes into shards.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from tap_engine.pipeline.sample.captions import compose_captions
from tap_engine.pipeline.sample.drawings import concept_groups, drawings, select
from tap_engine.pipeline.sample.scene import Scene, SceneRegion, render_scene
from tap_engine.schemas.keys import pack_image_id

JPEG_QUALITY = 90

PARTS = ("train", "validation", "captioned-train", "captioned-validation")

SCENES_PER_PART = 10_000_000


@dataclass(frozen=True, slots=True)
class SceneName:
    """Name of a scene of the sample world: everything about it follows from these numbers."""

    seed: int
    part: str
    index: int

    @property
    def number(self) -> int:
        """Image number, unique over seeds, splits and layouts; 1 is the first of seed 0."""
        part = PARTS.index(self.part)
        return (self.seed * 10 + part) * SCENES_PER_PART + self.index + 1

    def generator(self, purpose: int = 0) -> np.random.Generator:
        """The scene's own random numbers; another stream for each purpose."""
        return np.random.default_rng([self.seed, PARTS.index(self.part), self.index, purpose])

    def render(self, size: int, groups: tuple[str, ...] = ()) -> Scene:
        """Draw it."""
        return render_scene(self.generator(), size, select(groups))

    @property
    def split(self) -> str:
        """The word of `tables.SPLITS`."""
        return {"train": "train", "validation": "val"}[self.part.removeprefix("captioned-")]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A scene as files: its JPEG, its annotations, its rows of the truth table."""

    number: int
    jpeg: bytes
    annotations: dict[str, Any]
    truth: list[dict[str, Any]]


def draw_scene(name: SceneName, size: int, groups: tuple[str, ...] = ()) -> Drawn:
    """A scene as files.

    Args:
        name: which one.
        size: its side, px.
        groups: concept groups that may appear; all when empty.
    """
    return files_of(name, name.render(size, groups))


def files_of(name: SceneName, scene: Scene) -> Drawn:
    """The files of a scene that is drawn already: its JPEG, and the numbers of its regions."""
    jpeg = scene_jpeg(scene)
    if name.part.startswith("captioned"):
        return _as_visual_genome(name, scene, jpeg)
    return _as_sa1b(name, scene, jpeg)


def scene_jpeg(scene: Scene) -> bytes:
    """The picture as every reader of the sample world sees it: through JPEG."""
    bgr = cv2.cvtColor(scene.image_rgb, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def _as_sa1b(name: SceneName, scene: Scene, jpeg: bytes) -> Drawn:
    height, width = scene.image_rgb.shape[:2]
    ids = [name.number * 1000 + ordinal for ordinal in range(1, len(scene.regions) + 1)]
    annotations = []
    for annotation_id, region in zip(ids, scene.regions, strict=True):
        left, top, box_width, box_height = region.bbox_xywh
        annotations.append(
            {
                "id": annotation_id,
                "segmentation": {"size": [height, width], "counts": region.counts.decode()},
                # SA-1B's own boxes are one less in width and height than their masks.
                "bbox": [left, top, box_width - 1, box_height - 1],
                "area": region.area,
                # The masks are exact, not predicted.
                "predicted_iou": 1.0,
                "stability_score": 1.0,
                "point_coords": [list(region.point_xy)],
                "crop_box": [0, 0, width, height],
            }
        )
    image = {
        "image_id": name.number,
        "width": width,
        "height": height,
        "file_name": f"sa_{name.number}.jpg",
    }
    truth = [
        _truth_row(
            name,
            "sample",
            region_id,
            region,
            parent_id=ids[region.parent] if region.parent >= 0 else None,
        )
        for region_id, region in zip(ids, scene.regions, strict=True)
    ]
    return Drawn(name.number, jpeg, {"image": image, "annotations": annotations}, truth)


def _as_visual_genome(name: SceneName, scene: Scene, jpeg: bytes) -> Drawn:
    height, width = scene.image_rgb.shape[:2]
    regions, truth = [], []
    captions = compose_captions(scene, name.generator(1))
    for ordinal, (index, phrase) in enumerate(captions, 1):
        region = scene.regions[index]
        region_id = name.number * 1000 + ordinal
        left, top, box_width, box_height = region.bbox_xywh
        regions.append(
            {
                "region_id": region_id,
                "image_id": name.number,
                "x": left,
                "y": top,
                "width": box_width,
                "height": box_height,
                "phrase": phrase,
            }
        )
        truth.append(_truth_row(name, "vg", region_id, region, caption=phrase))
    image = {"image_id": name.number, "width": width, "height": height, "url": None}
    image |= {"coco_id": None, "flickr_id": None}
    return Drawn(name.number, jpeg, {"image": image, "regions": regions}, truth)


def _truth_row(
    name: SceneName,
    source: str,
    region_id: int,
    region: SceneRegion,
    *,
    parent_id: int | None = None,
    caption: str | None = None,
) -> dict[str, Any]:
    return {
        "image_id": pack_image_id(source, name.number),
        "region_id": region_id,
        "source": source,
        "split": name.split,
        "kind": region.kind,
        "concept": region.concept,
        "concept_group": concept_groups()[region.concept],
        "glyph": drawings()[region.drawing].glyph if region.drawing >= 0 else None,
        "tint": region.tint,
        "visibility": region.visibility,
        "area": region.area,
        "parent_id": parent_id,
        "caption": caption,
    }

"""Draws what a store holds: images with their masks and the most probable concept of each mask.

It works on any store of this package; with the sample world's truth table it also marks what is
wrong. A mask inside a larger one is outlined only; the others are coloured and named.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from tap_engine.model.picture import PANEL_PX, UNKNOWN_ABOVE, Mark, draw_marks, draw_sheet
from tap_engine.pipeline.crop import decode_image
from tap_engine.pipeline.sample.drawings import plain_name
from tap_engine.pipeline.sources.filesystem import absolute_uri
from tap_engine.pipeline.store import Store
from tap_engine.schemas import rle
from tap_engine.schemas.errors import SourceError
from tap_engine.schemas.tables import CONCEPTS, IMAGES, REGIONS
from tap_engine.schemas.truth import read_truth

_Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRegion:
    """A mask with what a store says of it.

    Attributes:
        counts: COCO compressed counts.
        concept: the most probable one.
        probability: the probability of that concept.
        entropy: entropy of the distribution, nats.
        truth: the right concept, where it is known.
    """

    counts: bytes
    concept: str
    probability: float
    entropy: float
    truth: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureScene:
    """An image [H, W, 3] uint8 RGB and its regions."""

    image_rgb: _Pixels
    regions: Sequence[PictureRegion]


def read_scenes(store_uri: str, count: int, truth: str | Path | None = None) -> list[PictureScene]:
    """The first images of a store with their masks and top concepts.

    Args:
        store_uri: folder or URI.
        count: the number of images; fewer if the store has fewer.
        truth: the sample world's truth table, to mark what is wrong.

    Raises:
        StoreError: no such store.
        SourceError: the store holds no image, or no concepts.
    """
    store = Store(absolute_uri(store_uri))
    images = store.open(IMAGES)
    table = images.to_table(columns=["image_id"], limit=count)
    ids = table["image_id"].to_pylist()
    regions = store.open(REGIONS)
    if not ids or "concept_ids" not in regions.schema.names:
        raise SourceError(f"{store_uri} holds no images, or was built without concepts")
    names = store.open(CONCEPTS).to_table(columns=["name"])["name"].to_pylist()
    columns = ["image_id", "region_id", "rle", "concept_ids", "concept_probs", "concept_entropy"]
    rows = regions.to_table(columns=columns, filter=f"image_id IN ({', '.join(map(str, ids))})")
    right = _truths(truth, ids) if truth else {}
    scenes = []
    blobs = images.read_blobs("jpeg", indices=list(range(len(ids))))
    for image_id, (_, jpeg) in zip(ids, blobs, strict=True):
        assert jpeg is not None  # the column is not nullable
        image_rgb = decode_image(jpeg)
        scenes.append(
            PictureScene(
                image_rgb=image_rgb,
                regions=[
                    PictureRegion(
                        counts=row["rle"],
                        concept=names[row["concept_ids"][0]],
                        probability=row["concept_probs"][0],
                        entropy=row["concept_entropy"],
                        truth=right.get((image_id, row["region_id"])),
                    )
                    for row in rows.filter(pc.equal(rows["image_id"], image_id)).to_pylist()
                    if row["rle"] is not None
                ],
            )
        )
    return scenes


def draw_picture(
    scenes: Sequence[PictureScene], *, panel_px: int = PANEL_PX, columns: int = 3, title: str = ""
) -> Image.Image:
    """Draws scenes as one sheet; `save` it as PNG.

    Args:
        scenes: at least one.
        panel_px: longer side of one panel; images are fitted into it.
        columns: number of panels per row.
        title: a line above; none where empty.
    """
    panels = [draw_stored(scene, panel_px) for scene in scenes]
    return draw_sheet(panels, columns=columns, title=title)


def draw_stored(scene: PictureScene, panel_px: int) -> Image.Image:
    """Draws one image with coloured, named masks; its longer side becomes `panel_px`."""
    size_hw = scene.image_rgb.shape[:2]
    marks = [_mark(region, rle.decode(region.counts, size_hw)) for region in scene.regions]
    return draw_marks(scene.image_rgb, marks, side_px=panel_px, parts=False)


def _mark(region: PictureRegion, mask: npt.NDArray[np.uint8]) -> Mark:
    name = plain_name(region.concept)
    wrong = region.truth is not None and region.truth != region.concept
    unknown = region.entropy > UNKNOWN_ABOVE
    if wrong:
        text = f"{name}, not {plain_name(region.truth or '')}"
    else:
        text = f"unknown ({name}?)" if unknown else f"{name} {region.probability:.2f}"
    return Mark(mask=mask, name=region.concept, text=text, unknown=unknown, wrong=wrong)


def _truths(truth: str | Path, image_ids: Sequence[int]) -> dict[tuple[int, int], str]:
    table = read_truth(truth)
    wanted = pc.is_in(table["image_id"], value_set=pa.array(image_ids, pa.int64()))
    return {
        (row["image_id"], row["region_id"]): row["concept"]
        for row in table.filter(wanted).to_pylist()
    }

"""A picture of what a store holds: images with their masks and each mask's most probable concept.

Works on any store of this package; of the sample world it can also mark what is wrong. Parts are
outlined only, what lies on top of nothing larger is coloured and named.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from tap_engine.pipeline.crop import decode_image
from tap_engine.pipeline.sample.drawings import plain_name
from tap_engine.pipeline.sources.filesystem import absolute_uri
from tap_engine.pipeline.store import Store
from tap_engine.schemas import rle
from tap_engine.schemas.errors import SourceError
from tap_engine.schemas.tables import CONCEPTS, IMAGES, REGIONS
from tap_engine.schemas.truth import read_truth

UNKNOWN_ABOVE = 3.0
"""Entropy, nats, from which a region's concept is shown as unknown."""

_INSIDE = 0.9
"""A region with this share inside a larger one is a part of it."""

_SURFACE = 0.12
"""A region that covers this share of the image is tinted only lightly."""

_LABEL_PX = 15
_GAP_PX = 10
_PAPER = (250, 250, 248)
_WRONG = (178, 34, 34)

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRegion:
    """A mask with what a store says of it.

    Attributes:
        counts: COCO compressed counts.
        concept: the most probable one.
        probability: of it.
        entropy: of the distribution, nats.
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

    image_rgb: Pixels
    regions: Sequence[PictureRegion]


def read_scenes(store_uri: str, count: int, truth: str | Path | None = None) -> list[PictureScene]:
    """The first images of a store with their masks and top concepts.

    Args:
        store_uri: folder or URI.
        count: how many; fewer where the store has fewer.
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
    scenes: Sequence[PictureScene], *, panel_px: int = 560, columns: int = 3, title: str = ""
) -> Image.Image:
    """A sheet of scenes; `save` it as PNG.

    Args:
        scenes: at least one.
        panel_px: side of one panel; images are fitted into it.
        columns: panels a row.
        title: a line above; none where empty.
    """
    columns = min(columns, len(scenes))
    rows = -(-len(scenes) // columns)
    head = 3 * _LABEL_PX if title else 0
    step = panel_px + _GAP_PX
    size = (columns * step + _GAP_PX, rows * step + _GAP_PX + head)
    sheet = Image.new("RGB", size, _PAPER)
    if title:
        font = ImageFont.load_default(_LABEL_PX * 1.4)
        ImageDraw.Draw(sheet).text((_GAP_PX, _GAP_PX + 4), title, fill=(40, 40, 40), font=font)
    for number, scene in enumerate(scenes):
        row, column = divmod(number, columns)
        panel = draw_stored(scene, panel_px)
        left = _GAP_PX + column * step + (panel_px - panel.width) // 2
        sheet.paste(panel, (left, head + _GAP_PX + row * step))
    return sheet


def draw_stored(scene: PictureScene, panel_px: int) -> Image.Image:
    """One image with coloured, named masks; its longer side becomes `panel_px`."""
    height, width = scene.image_rgb.shape[:2]
    zoom = panel_px / max(height, width)
    out_hw = (round(height * zoom), round(width * zoom))
    method = cv2.INTER_CUBIC if zoom > 1 else cv2.INTER_AREA
    canvas = cv2.resize(scene.image_rgb, (out_hw[1], out_hw[0]), interpolation=method)
    picture = canvas.astype(np.float32)
    covers = [
        rle.decode_scaled(rle.runs(region.counts, (height, width)), (height, width), out_hw)
        for region in scene.regions
    ]
    order = sorted(range(len(covers)), key=lambda k: -covers[k].sum())
    tops = _top_level(covers, order)
    for k in order:
        region, cover = scene.regions[k], covers[k]
        unknown = region.entropy > UNKNOWN_ABOVE
        colour = np.array((120, 120, 120) if unknown else _colour(region.concept), np.float32)
        if k in tops:
            # A surface that fills the picture would drown it in its colour.
            strength = 0.08 if cover.mean() > _SURFACE else 0.26
            picture += (strength * cover)[..., None] * (colour - picture)
        _outline(picture, cover, colour if k in tops else (255, 255, 255), k in tops)
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    _label(image, [(scene.regions[k], covers[k]) for k in order if k in tops])
    return image


def _top_level(covers: Sequence[npt.NDArray[np.float32]], order: Sequence[int]) -> set[int]:
    """Regions that do not lie inside a larger one."""
    tops: list[int] = []
    for k in order:
        inside = covers[k] > 0.5
        area = max(int(inside.sum()), 1)
        if not any((covers[top] > 0.5)[inside].sum() > _INSIDE * area for top in tops):
            tops.append(k)
    return set(tops)


def _outline(
    picture: npt.NDArray[np.float32],
    cover: npt.NDArray[np.float32],
    colour: Sequence[float] | npt.NDArray[np.float32],
    strong: bool,
) -> None:
    contours, _ = cv2.findContours(
        (cover > 0.5).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
    )
    line = np.zeros(cover.shape, np.uint8)
    cv2.drawContours(line, contours, -1, 255, 2 if strong else 1, cv2.LINE_AA)
    share = (line.astype(np.float32) / 255 * (0.95 if strong else 0.35))[..., None]
    picture += share * (np.asarray(colour, np.float32) - picture)


def _label(
    image: Image.Image, regions: Sequence[tuple[PictureRegion, npt.NDArray[np.float32]]]
) -> None:
    """Names on surfaces and at the feet of things, moved aside where they would meet."""
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(_LABEL_PX)
    taken: list[tuple[float, float, float, float]] = []
    for region, cover in regions:
        text, fill, ink = _words(region)
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        width, height = right - left + 10, bottom - top + 8
        centre = _innermost(cover) if cover.mean() > _SURFACE else _foot(cover)
        box = _free_box(centre, (width, height), image.size, taken)
        taken.append(box)
        draw.rounded_rectangle(
            box, radius=5, fill=fill, outline=ink, width=2 if ink == _WRONG else 0
        )
        draw.text((box[0] + 5 - left, box[1] + 4 - top), text, fill=ink, font=font)


def _innermost(cover: npt.NDArray[np.float32]) -> tuple[int, int]:
    """(x, y) of a mask's point farthest from its edge."""
    padded = np.pad((cover > 0.5).astype(np.uint8), 1)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)


def _foot(cover: npt.NDArray[np.float32]) -> tuple[int, int]:
    """(x, y) in the middle of a mask's lower edge, where a label hides least of it."""
    rows, columns = np.nonzero(cover > 0.5)
    if not rows.size:
        return _innermost(cover)
    return int(columns.min() + columns.max()) // 2, int(rows.max())


def _words(region: PictureRegion) -> tuple[str, Colour, Colour]:
    """What a label says, the colour behind it, and the colour of its letters."""
    name = plain_name(region.concept)
    if region.truth is not None and region.truth != region.concept:
        return f"{name}, not {plain_name(region.truth)}", _PAPER, _WRONG
    if region.entropy > UNKNOWN_ABOVE:
        return f"unknown ({name}?)", (110, 110, 110), _PAPER
    red, green, blue = (round(0.55 * value) for value in _colour(region.concept))
    return f"{name} {region.probability:.2f}", (red, green, blue), _PAPER


def _free_box(
    centre: tuple[int, int],
    size: tuple[float, float],
    bounds: tuple[int, int],
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    width, height = size
    for lines in (0, 1, -1, 2, -2, 3, -3):
        left = min(max(centre[0] - width / 2, 2), bounds[0] - width - 2)
        top = min(max(centre[1] - height / 2 + lines * height, 2), bounds[1] - height - 2)
        box = (left, top, left + width, top + height)
        if all(
            box[2] < other[0] or other[2] < box[0] or box[3] < other[1] or other[3] < box[1]
            for other in taken
        ):
            break
    return box


def _colour(concept: str) -> Colour:
    """The same colour for the same concept everywhere; neighbours in the alphabet differ."""
    hue = (sum(ord(letter) * 31**k for k, letter in enumerate(concept)) * 0.618033988749895) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 0.98)
    return round(255 * red), round(255 * green), round(255 * blue)


def _truths(truth: str | Path, image_ids: Sequence[int]) -> dict[tuple[int, int], str]:
    table = read_truth(truth)
    wanted = pc.is_in(table["image_id"], value_set=pa.array(image_ids, pa.int64()))
    return {
        (row["image_id"], row["region_id"]): row["concept"]
        for row in table.filter(wanted).to_pylist()
    }

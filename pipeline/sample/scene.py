"""Draws a layout, with the exact visible mask of every object, part and surface."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from tap_engine.pipeline.sample.drawings import drawings
from tap_engine.pipeline.sample.layout import TINTS, Backdrop, Placement, SceneLayout, plan_layout
from tap_engine.pipeline.sample.sprites import CELL, MAX_PARTS, load_sprites
from tap_engine.pipeline.sample.stuff import paint
from tap_engine.schemas import rle
from tap_engine.schemas.truth import OBJECT, PART, STUFF

MIN_AREA_SHARE = 0.0005
"""Smaller visible regions are in the picture but not annotated: 33 px at 256, 131 at 512."""

_MIN_PART_VISIBLE = 0.5

_WHOLE_OBJECT = 0.92
"""A part that is more of its object's visible pixels than this is the object itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneRegion:
    """One mask with its truth.

    Attributes:
        kind: object, part or stuff.
        concept: a name of the vocabulary; a part has its object's.
        drawing: index into `drawings()`; -1 for stuff.
        tint: colour word, or None.
        visibility: visible share of the whole thing, in what others cover and the edge cuts off;
            for stuff, the share of its surface that no object covers.
        counts: the mask, COCO compressed counts.
        bbox_xywh: box of the mask, px, pixel-edge convention.
        area: px.
        point_xy: a pixel of the mask.
        parent: index of the object in the scene's regions; -1 but for parts.
        ground: the stuff at the foot of an object; None for parts and stuff.
    """

    kind: str
    concept: str
    drawing: int
    tint: str | None
    visibility: float
    counts: bytes
    bbox_xywh: tuple[int, int, int, int]
    area: int
    point_xy: tuple[int, int]
    parent: int = -1
    ground: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A picture and its truth.

    Attributes:
        image_rgb: [S, S, 3] uint8.
        regions: objects from far to near, then parts, then stuff.
    """

    image_rgb: npt.NDArray[np.uint8]
    regions: tuple[SceneRegion, ...]


def render_scene(
    rng: np.random.Generator, size: int, concepts: Mapping[str, Sequence[int]]
) -> Scene:
    """A random scene of `size` x `size` px.

    Args:
        rng: decides everything; the layout does not depend on `size`.
        size: px.
        concepts: which may appear (`sample_concepts.select`).
    """
    return draw_layout(plan_layout(rng, concepts), rng, size)


def draw_layout(layout: SceneLayout, rng: np.random.Generator, size: int) -> Scene:
    """Paint the surfaces, then the objects from far to near.

    Args:
        layout: what stands where.
        rng: draws the textures.
        size: px.
    """
    picture, surface = _paint_backdrop(layout.backdrop, rng, size)
    # Column-major, as run-length masks are: encoding them costs three times less.
    owner = np.zeros((size, size), np.uint8, order="F")
    part_of = np.zeros((size, size), np.uint8, order="F")
    wholes = [
        _draw_object(picture, owner, part_of, placement, number)
        for number, placement in enumerate(layout.placements, 1)
    ]
    image = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    return Scene(image_rgb=image, regions=tuple(_regions(layout, owner, part_of, surface, wholes)))


def _paint_backdrop(
    backdrop: Backdrop, rng: np.random.Generator, size: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """[S, S, 3] float32 RGB and [S, S] which surface is where."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    rows, columns = centres[:, None], centres[None, :]
    surface = np.zeros((size, size), np.uint8)
    for number, (offset, slope, amplitude, waves, phase) in enumerate(backdrop.edges, 1):
        wave = amplitude * np.sin(2 * np.pi * waves * columns + phase)
        surface[rows > offset + slope * (columns - 0.5) + wave] = number
    if backdrop.path:
        near, near_width, far, far_width = backdrop.path
        down = (rows - backdrop.horizon) / (1 - backdrop.horizon)
        middle = far + (near - far) * down
        half = (far_width + (near_width - far_width) * down) / 2
        surface[(np.abs(columns - middle) < half) & (surface > 0)] = len(backdrop.stuff) - 1
    picture = paint(backdrop.stuff[0], rng, size)
    for number, stuff in enumerate(backdrop.stuff[1:], 1):
        np.copyto(picture, paint(stuff, rng, size), where=(surface == number)[..., None])
    return picture, surface


def _draw_object(
    picture: npt.NDArray[np.float32],
    owner: npt.NDArray[np.uint8],
    part_of: npt.NDArray[np.uint8],
    placement: Placement,
    number: int,
) -> npt.NDArray[np.int64]:
    """Draw one object into all three; returns the pixels of its parts with nothing hidden."""
    size = len(picture)
    sprites = load_sprites()
    matrix = placement.affine(size)
    corners = matrix @ np.array([[0, CELL, 0, CELL], [0, 0, CELL, CELL], [1, 1, 1, 1]])
    blur = placement.side * size / 24
    margin = int(4 * blur) + 1 if placement.grounded else 1
    left, top = np.floor(corners.min(axis=1)).astype(int) - margin
    right, bottom = np.ceil(corners.max(axis=1)).astype(int) + 1 + margin
    matrix[:, 2] -= (left, top)
    window = (int(right - left), int(bottom - top))
    drawn = _warp_colours(_coloured(placement, sprites.rgba), matrix, window)
    inside = drawn[..., 3] >= 127.5
    parts = cv2.warpAffine(
        sprites.parts[placement.drawing], matrix, window, flags=cv2.INTER_NEAREST
    )
    # At the outline the colours are interpolated but the labels are not: close the gap.
    parts = np.where(parts == 0, cv2.dilate(parts, np.ones((3, 3), np.uint8)), parts)
    parts = np.where(inside, np.maximum(parts, 1), 0)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, size), min(bottom, size)
    here = (slice(y0, y1), slice(x0, x1))
    there = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    background = 1 - drawn[there][..., 3] / 255
    if placement.grounded:
        shift = np.array([[1, 0, blur], [0, 1, blur]], np.float64)
        shadow = cv2.GaussianBlur(cv2.warpAffine(drawn[..., 3], shift, window), (0, 0), blur)
        background *= 1 - 0.38 / 255 * shadow[there]
    below = picture[here]
    below *= background[..., None]
    below += drawn[there][..., :3]
    visible = inside[there]
    owner[here][visible] = number
    part_of[here][visible] = parts[there][visible]
    return np.bincount(parts[inside], minlength=MAX_PARTS + 1)


def _coloured(placement: Placement, sheet: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The drawing in its tint and light: [CELL, CELL, 4] float32, premultiplied alpha, 0..255."""
    sprite = sheet[placement.drawing].astype(np.float32)
    colour, alpha = sprite[..., :3], sprite[..., 3:]
    if placement.tint:
        luminance = colour @ np.array([0.299, 0.587, 0.114], np.float32) / 255
        dye = np.asarray(TINTS[placement.tint], np.float32)
        # Dark stays dark and white becomes a pale tint, so that the drawing keeps its relief.
        tinted = dye * (0.25 + 0.95 * luminance)[..., None] + 40 * (luminance**3)[..., None]
        colour = colour + placement.strength * (tinted - colour)
    colour = np.clip(colour * placement.light, 0, 255)
    return np.concatenate([colour * (alpha / 255), alpha], axis=-1)


def _warp_colours(
    sprite: npt.NDArray[np.float32], matrix: npt.NDArray[np.float64], window: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Sprite in its window, without aliasing: shrink by area first, then turn."""
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if scale < 0.75:
        small = max(round(CELL * scale), 4)
        shrunk = cv2.resize(sprite, (small, small), interpolation=cv2.INTER_AREA)
        sprite = shrunk.astype(np.float32, copy=False)
        step = CELL / small
        offset = (step - 1) / 2
        matrix = matrix @ np.array([[step, 0, offset], [0, step, offset], [0, 0, 1]])
    method = cv2.INTER_LINEAR if scale < 1 else cv2.INTER_CUBIC
    return np.clip(cv2.warpAffine(sprite, matrix, window, flags=method), 0, 255)


def _regions(
    layout: SceneLayout,
    owner: npt.NDArray[np.uint8],
    part_of: npt.NDArray[np.uint8],
    surface: npt.NDArray[np.uint8],
    wholes: Sequence[npt.NDArray[np.int64]],
) -> list[SceneRegion]:
    least = MIN_AREA_SHARE * owner.size
    objects: list[SceneRegion] = []
    parts: list[SceneRegion] = []
    for number, (placement, whole) in enumerate(zip(layout.placements, wholes, strict=True), 1):
        mask = owner == number
        seen = np.bincount(part_of[mask], minlength=MAX_PARTS + 1)
        if (area := int(seen.sum())) < least:
            continue
        drawing = drawings()[placement.drawing]
        objects.append(
            _region(
                mask,
                kind=OBJECT,
                concept=drawing.concept,
                drawing=placement.drawing,
                tint=placement.tint,
                visibility=area / int(whole.sum()),
                ground=layout.backdrop.stuff[_surface_below(mask, surface)],
            )
        )
        for part in np.flatnonzero(seen):
            enough = seen[part] >= max(2 * least, _MIN_PART_VISIBLE * whole[part])
            if enough and seen[part] <= _WHOLE_OBJECT * area:
                parts.append(
                    _region(
                        mask & (part_of == part),
                        kind=PART,
                        concept=drawing.concept,
                        drawing=placement.drawing,
                        tint=placement.tint,
                        visibility=int(seen[part]) / int(whole[part]),
                        parent=len(objects) - 1,
                    )
                )
    stuff: list[SceneRegion] = []
    for number, name in enumerate(layout.backdrop.stuff):
        there = surface == number
        mask = there & (owner == 0)
        if (area := int(mask.sum())) >= 20 * least:
            stuff.append(
                _region(
                    mask,
                    kind=STUFF,
                    concept=name,
                    drawing=-1,
                    tint=None,
                    visibility=area / int(there.sum()),
                )
            )
    return objects + parts + stuff


def _region(
    mask: npt.NDArray[np.bool_],
    *,
    kind: str,
    concept: str,
    drawing: int,
    tint: str | None,
    visibility: float,
    parent: int = -1,
    ground: str | None = None,
) -> SceneRegion:
    inside = np.flatnonzero(mask.T)
    # The middle pixel in column order lies in the mask however it is shaped.
    column, row = divmod(int(inside[inside.size // 2]), len(mask))
    counts = rle.encode(mask)
    return SceneRegion(
        kind=kind,
        concept=concept,
        drawing=drawing,
        tint=tint,
        visibility=min(visibility, 1.0),
        counts=counts,
        bbox_xywh=rle.bbox_xywh(rle.runs(counts, (len(mask), len(mask))), mask.shape[:2]),
        area=inside.size,
        point_xy=(column, row),
        parent=parent,
        ground=ground,
    )


def _surface_below(mask: npt.NDArray[np.bool_], surface: npt.NDArray[np.uint8]) -> int:
    """Which surface the lowest pixel of an object stands on."""
    row = int(np.flatnonzero(mask.any(axis=1))[-1])
    column = int(np.median(np.flatnonzero(mask[row])))
    return int(surface[row, column])

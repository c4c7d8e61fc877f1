"""Places the things of a scene, before a pixel is drawn.

A layout is resolution-free: positions and sizes are shares of the picture's side, so the same
numbers make the same scene at 256 and at 512 px. Objects are placed far to near; a coarse drawing
of their outlines keeps every object that was placed before recognisable.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

from tap_engine.pipeline.sample.drawings import drawings
from tap_engine.pipeline.sample.sprites import CELL, load_sprites

MIN_OBJECTS, MAX_OBJECTS = 6, 12

TINTS: Mapping[str, tuple[int, int, int]] = {
    "red": (226, 52, 48),
    "orange": (244, 142, 38),
    "yellow": (246, 214, 56),
    "green": (66, 168, 74),
    "blue": (56, 108, 216),
    "purple": (144, 76, 190),
    "pink": (244, 134, 176),
    "gray": (150, 150, 150),
}
"""Colour words of the captions and their RGB."""

TINT_SHARE = 0.3

MIN_VISIBLE = 0.4
"""An object may be covered, or cut by the picture's edge, down to about this share of itself."""

_COARSE = 96
"""Side of the outline drawing that decides what covers what, px."""

_TRIES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Backdrop:
    """The surfaces of a scene.

    Attributes:
        stuff: their names, the far one first.
        edges: between surface k and k+1, the height of the edge as (offset, slope, amplitude,
            waves, phase): y(x) = offset + slope * (x - .5) + amplitude * sin(2 pi waves x + phase).
        path: (near centre, near width, far centre, far width) where the last surface is a strip
            that lies on the one before, from the bottom to the horizon; else None.
        horizon: height at which the ground begins, share of the side; 0 if seen from above.
    """

    stuff: tuple[str, ...]
    edges: tuple[tuple[float, float, float, float, float], ...]
    path: tuple[float, float, float, float] | None
    horizon: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One object of a scene.

    Attributes:
        drawing: index into `drawings()`.
        centre_xy: centre of its cell, shares of the side.
        side: side of its cell, share of the picture's side.
        degrees: rotation, anticlockwise.
        mirrored: flipped left to right.
        tint: a colour word of TINTS, or None for its own colours.
        strength: share of the colours that the tint replaces, 0..1.
        light: factor on its brightness.
        grounded: throws a shadow.
    """

    drawing: int
    centre_xy: tuple[float, float]
    side: float
    degrees: float
    mirrored: bool
    tint: str | None
    strength: float
    light: float
    grounded: bool

    def affine(self, size: int) -> npt.NDArray[np.float64]:
        """[2, 3] matrix from cell pixels to picture pixels, for a picture of `size` px."""
        scale = self.side * size / CELL
        turn = np.deg2rad(self.degrees)
        cos, sin = np.cos(turn) * scale, np.sin(turn) * scale
        flip = -1.0 if self.mirrored else 1.0
        linear = np.array([[cos * flip, sin], [-sin * flip, cos]])
        middle = (CELL - 1) / 2
        target = np.asarray(self.centre_xy) * size - 0.5
        return np.hstack([linear, (target - linear @ [middle, middle])[:, None]])


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneLayout:
    """A whole scene: its surfaces, and its objects from far to near."""

    backdrop: Backdrop
    placements: tuple[Placement, ...]


def plan_layout(rng: np.random.Generator, concepts: Mapping[str, Sequence[int]]) -> SceneLayout:
    """A random scene of MIN_OBJECTS..MAX_OBJECTS different concepts.

    Args:
        rng: decides everything.
        concepts: which may appear, each with the indices of its drawings.
    """
    backdrop = _plan_backdrop(rng)
    wanted = min(int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1)), len(concepts))
    names = list(concepts)
    queue = [int(rng.choice(concepts[names[i]])) for i in rng.permutation(len(names))[: 2 * wanted]]
    open_air = backdrop.stuff[0] == "sky"
    flying = [drawing for drawing in queue[:wanted] if open_air and drawings()[drawing].airborne]
    standing = [drawing for drawing in queue if drawing not in flying]
    # A crowded scene has smaller things, else the last ones would find no room.
    crowd = 1.15 - 0.03 * wanted
    outlines = _Outlines()
    placements = []
    for drawing in flying:
        if placed := _place(rng, backdrop, outlines, drawing, None, crowd):
            placements.append(placed)
    for depth in np.sort(rng.uniform(0.12, 0.96, wanted - len(placements))):
        placed = None
        while placed is None and standing:
            placed = _place(rng, backdrop, outlines, standing.pop(0), float(depth), crowd)
        if placed:
            placements.append(placed)
    return SceneLayout(backdrop=backdrop, placements=tuple(placements))


def _plan_backdrop(rng: np.random.Generator) -> Backdrop:
    kind = rng.choice(["outdoor", "strip", "indoor", "above"], p=[0.35, 0.25, 0.25, 0.15])
    if kind == "above":
        stuff = str(rng.choice(["wood", "sand", "grass", "stone", "water", "snow", "road"]))
        return Backdrop(stuff=(stuff,), edges=(), path=None, horizon=0.0)
    horizon = float(rng.uniform(0.24, 0.46))
    hills = (float(rng.uniform(-0.04, 0.04)), float(rng.uniform(0, 0.025)))
    edge = (horizon, *hills, float(rng.uniform(0.6, 2.2)), float(rng.uniform(0, 6.28)))
    if kind == "indoor":
        far = str(rng.choice(["wall", "wall", "brick", "wood", "stone"]))
        near = str(rng.choice([n for n in ("wood", "stone", "road", "brick") if n != far]))
        level = (float(rng.uniform(0.3, 0.6)), 0.0, 0.0, 1.0, 0.0)
        return Backdrop(stuff=(far, near), edges=(level,), path=None, horizon=level[0])
    grounds = ["grass", "sand", "snow", "water", "stone", "road"]
    ground = str(rng.choice(grounds))
    if kind == "outdoor" and rng.random() < 0.5:
        return Backdrop(stuff=("sky", ground), edges=(edge,), path=None, horizon=horizon)
    if kind == "outdoor":
        near = str(rng.choice([name for name in grounds if name != ground]))
        shore = (float(horizon + rng.uniform(0.15, 0.3)), 0.1 * hills[0], 0.02, edge[3], edge[4])
        return Backdrop(
            stuff=("sky", ground, near), edges=(edge, shore), path=None, horizon=horizon
        )
    ground = str(rng.choice(["grass", "sand", "snow"]))
    strip = str(rng.choice(["road", "stone", "water", "wood"]))
    path = (
        float(rng.uniform(0.25, 0.75)),
        float(rng.uniform(0.25, 0.5)),
        float(rng.uniform(0.35, 0.65)),
        float(rng.uniform(0.03, 0.10)),
    )
    return Backdrop(stuff=("sky", ground, strip), edges=(edge,), path=path, horizon=horizon)


def _place(
    rng: np.random.Generator,
    backdrop: Backdrop,
    outlines: "_Outlines",
    index: int,
    depth: float | None,
    crowd: float,
) -> Placement | None:
    """The best of a few random places; `depth` 0 far .. 1 near, None in the sky."""
    side = float(np.exp(rng.uniform(np.log(0.20), np.log(0.44)))) * crowd
    if depth is not None and backdrop.horizon:
        side *= 0.72 + 0.5 * depth
    calm = 12.0 if backdrop.horizon else 40.0
    degrees = float(rng.uniform(-calm, calm) if rng.random() < 0.8 else rng.uniform(-180, 180))
    tint = str(rng.choice(list(TINTS))) if rng.random() < TINT_SHARE else None
    strength, light = float(rng.uniform(0.45, 0.75)), float(rng.uniform(0.88, 1.08))
    mirrored = bool(rng.random() < 0.5)
    overlapping = rng.random() < 0.35
    best: tuple[float, Placement] | None = None
    for attempt in range(_TRIES):
        placement = Placement(
            drawing=index,
            centre_xy=_somewhere(rng, backdrop, side, depth),
            side=side,
            degrees=degrees,
            mirrored=mirrored,
            tint=tint,
            strength=strength,
            light=light,
            grounded=depth is not None,
        )
        covered = outlines.covered_by(placement)
        if covered is not None and (best is None or covered < best[0]):
            best = (covered, placement)
        if best and (overlapping or best[0] == 0):
            break
        if attempt == _TRIES // 2 and best is None:
            side *= 0.7
    if best is None:
        return None
    outlines.add(best[1])
    return best[1]


def _somewhere(
    rng: np.random.Generator, backdrop: Backdrop, side: float, depth: float | None
) -> tuple[float, float]:
    x = float(rng.uniform(0.06, 0.94))
    if depth is None:
        return x, float(rng.uniform(0.04, backdrop.horizon - 0.02))
    if not backdrop.horizon:
        return x, float(rng.uniform(0.06, 0.94))
    foot = backdrop.horizon + (1.02 - backdrop.horizon) * depth
    return x, foot - 0.42 * side


class _Outlines:
    """A coarse drawing of who is visible where, to refuse places that hide what is there."""

    def __init__(self) -> None:
        self._owner = np.zeros((_COARSE, _COARSE), np.int64)
        self._whole: list[int] = [0]

    def _outline(self, placement: Placement) -> tuple[npt.NDArray[np.bool_], int]:
        """Its pixels in the picture, and how many it would have with nothing cut off."""
        alpha = _coarse_alpha(placement.drawing)
        matrix = placement.affine(_COARSE)
        # The cached outline is a quarter of the cell's size.
        matrix = matrix @ np.array([[4.0, 0, 1.5], [0, 4.0, 1.5], [0, 0, 1]])
        drawn = cv2.warpAffine(alpha, matrix, (_COARSE, _COARSE), flags=cv2.INTER_LINEAR)
        share = abs(float(np.linalg.det(matrix[:, :2])))
        return drawn >= 128, max(int((alpha >= 128).sum() * share), 1)

    def covered_by(self, placement: Placement) -> float | None:
        """Pixels of others it would cover; None where that, or the edge, hides too much."""
        inside, whole = self._outline(placement)
        if inside.sum() < (MIN_VISIBLE + 0.25) * whole:
            return None
        left = np.bincount(self._owner[~inside], minlength=len(self._whole))
        if any(left[k] < MIN_VISIBLE * self._whole[k] for k in range(1, len(self._whole))):
            return None
        return float((self._owner[inside] > 0).sum())

    def add(self, placement: Placement) -> None:
        inside, whole = self._outline(placement)
        self._owner[inside] = len(self._whole)
        self._whole.append(whole)


@cache
def _coarse_alpha(drawing: int) -> npt.NDArray[np.uint8]:
    alpha = load_sprites().rgba[drawing, ..., 3]
    return cv2.resize(alpha, (CELL // 4, CELL // 4), interpolation=cv2.INTER_AREA).astype(np.uint8)

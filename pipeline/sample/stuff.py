"""The painted surfaces of the sample world: sky, grass, sand, water, wall, snow, wood, ...

Each painter gets a random generator and the side of the picture and returns [S, S, 3] float32 RGB
in 0..255. Sizes inside are shares of the side, so a scene looks alike at any resolution.
"""

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]
Painter = Callable[[np.random.Generator, int], Field]

_KNEE = np.float32(0.5)

_SKIES = (
    ((86, 152, 222), (188, 222, 246)),
    ((54, 120, 200), (160, 205, 240)),
    ((120, 186, 226), (214, 236, 240)),
    ((110, 110, 170), (250, 190, 150)),
    ((150, 165, 185), (205, 214, 222)),
    ((30, 40, 90), (110, 100, 150)),
)
"""Colours at the zenith and at the horizon: by day, at dusk, under cloud, at night."""


def paint(stuff: str, rng: np.random.Generator, size: int) -> Field:
    """[S, S, 3] float32 RGB of a surface; `stuff` is one of sample_concepts.STUFF."""
    return _PAINTERS[stuff](rng, size)


def _noise(rng: np.random.Generator, size: int, rows: int, columns: int, octaves: int = 1) -> Field:
    """[S, S] smooth noise about -1..1: `rows` x `columns` cells, then twice as fine an octave."""
    total = np.zeros((size, size), np.float32)
    gain = np.float32(1.0)
    for octave in range(octaves):
        grid = (min(rows << octave, size), min(columns << octave, size))
        cells = rng.random(grid, np.float32) * 2 - 1
        total += gain * _resized(cells, size, cv2.INTER_CUBIC)
        gain *= _KNEE
    return total


def _grain(rng: np.random.Generator, size: int) -> Field:
    """[S, S] noise a pixel wide at 512 px, -1..1."""
    cells = rng.random((512, 512), np.float32) * 2 - 1
    if size == 512:
        return cells
    return _resized(cells, size, cv2.INTER_AREA)


def _resized(field: Field, size: int, method: int) -> Field:
    return cv2.resize(field, (size, size), interpolation=method).astype(np.float32, copy=False)


def _axes(size: int) -> tuple[Field, Field]:
    """Rows [S, 1] and columns [1, S] of pixel centres in 0..1."""
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    return centres[:, None], centres[None, :]


def _colour(rng: np.random.Generator, *palette: tuple[int, int, int], jitter: float = 10) -> Field:
    base = np.asarray(palette[rng.integers(len(palette))], np.float32)
    return base + rng.uniform(-jitter, jitter, 3).astype(np.float32)


def _shade(colour: Field, light: Field) -> Field:
    """A colour [3] times a light field [S, S]."""
    return np.multiply(light[..., None], colour, dtype=np.float32)


def _mix(a: Field, b: Field, share: Field) -> Field:
    """A where share is 0, b where it is 1; share [S, S] or [S, 1]."""
    mixed = np.subtract(b, a)
    mixed *= np.clip(share, 0, 1)[..., None]
    mixed += a
    return mixed


def _sky(rng: np.random.Generator, size: int) -> Field:
    rows, _ = _axes(size)
    top, low = (np.asarray(colour, np.float32) for colour in _SKIES[rng.integers(len(_SKIES))])
    gradient = np.broadcast_to(top + (low - top) * (rows * 1.6)[..., None], (size, size, 3))
    clouds = _noise(rng, size, 5, 3, 4) - rng.uniform(0.1, 0.7)
    white = np.full(3, 250, np.float32) - rng.uniform(0, 20)
    return _mix(gradient, white, np.clip(clouds * 1.3, 0, 0.85))


def _grass(rng: np.random.Generator, size: int) -> Field:
    blades = _noise(rng, size, 40, 160, 2)
    light = 1 + 0.16 * blades + 0.10 * _noise(rng, size, 4, 4, 2)
    light += 0.12 * (_axes(size)[0] - 0.6)
    colour = _colour(rng, (104, 160, 66), (124, 172, 70), (84, 140, 74), (150, 170, 84))
    return _shade(colour, light)


def _sand(rng: np.random.Generator, size: int) -> Field:
    rows, columns = _axes(size)
    bend = _noise(rng, size, 4, 3, 2)
    ripples = np.sin((rows * rng.uniform(40, 70) + columns * rng.uniform(-8, 8) + 3 * bend) * 2)
    light = 1 + 0.035 * ripples + 0.07 * _grain(rng, size) + 0.05 * bend
    return _shade(_colour(rng, (224, 196, 146), (232, 208, 160), (206, 176, 130)), light)


def _water(rng: np.random.Generator, size: int) -> Field:
    waves = _noise(rng, size, 36, 6, 3)
    colour = _colour(rng, (52, 120, 170), (60, 150, 170), (40, 96, 140), (84, 156, 190))
    light = 1 + 0.14 * waves + 0.18 * (_axes(size)[0] - 0.5)
    glints = np.clip(waves - 0.85, 0, 0.5)
    return _mix(_shade(colour, light), np.full(3, 245, np.float32), glints)


def _wall(rng: np.random.Generator, size: int) -> Field:
    rows, columns = _axes(size)
    colour = _colour(
        rng,
        (226, 214, 196),
        (198, 214, 206),
        (214, 196, 204),
        (190, 202, 220),
        (228, 222, 180),
        (186, 170, 160),
        jitter=14,
    )
    light = 1 + 0.02 * _noise(rng, size, 30, 30, 3) - 0.10 * (rows - 0.3)
    pattern = rng.integers(4)
    turns = rng.integers(5, 12)
    if pattern == 1:
        light = light - 0.07 * (np.sin(columns * turns * 2 * np.pi) > 0)
    elif pattern == 2:
        spots = np.sin(columns * turns * 2 * np.pi) * np.sin(rows * turns * 2 * np.pi)
        light = light - 0.10 * (spots > 0.72)
    elif pattern == 3:
        light = light - 0.06 * (np.mod(rows * turns / 2 + 0.5, 1) < 0.04)
    return _shade(colour, light.astype(np.float32))


def _snow(rng: np.random.Generator, size: int) -> Field:
    light = 1 + 0.05 * _noise(rng, size, 4, 3, 3) + 0.025 * _grain(rng, size)
    return _shade(_colour(rng, (232, 240, 250), (238, 240, 246), (222, 232, 246), jitter=4), light)


def _wood(rng: np.random.Generator, size: int) -> Field:
    rows, columns = _axes(size)
    planks = int(rng.integers(4, 9))
    row_of = np.minimum((rows * planks).astype(np.int64), planks - 1)
    joint = rng.random(planks).astype(np.float32)[row_of] * 0.6 + 0.2
    board = row_of * 2 + (columns > joint)
    tone = rng.uniform(0.84, 1.10, 2 * planks).astype(np.float32)[board]
    drift = _noise(rng, size, planks * 2, 2)
    grain = np.sin((rows * 90 + 4 * drift + 7 * tone) * 2.2) * 0.5 + _noise(rng, size, 120, 3, 1)
    light = tone * (1 + 0.05 * grain)
    light[np.broadcast_to(np.mod(rows * planks, 1) < 0.07, light.shape)] *= 0.62
    light[np.abs(columns - joint) < 0.0025] *= 0.62
    colour = _colour(rng, (190, 136, 84), (160, 106, 64), (208, 170, 122), (136, 92, 62))
    if rng.random() < 0.4:
        light = np.ascontiguousarray(light.T)
    return _shade(colour, light)


def _brick(rng: np.random.Generator, size: int) -> Field:
    rows, columns = _axes(size)
    courses = int(rng.integers(8, 15))
    course = (rows * courses).astype(np.int64)
    shifted = columns * courses / 2 + 0.5 * (course % 2)
    brick = course * courses + shifted.astype(np.int64)
    tone = rng.uniform(0.78, 1.14, int(brick.max()) + 1).astype(np.float32)[brick]
    light = tone * (1 + 0.06 * _noise(rng, size, 60, 60, 2) + 0.04 * _grain(rng, size))
    face = _shade(_colour(rng, (176, 88, 66), (158, 74, 60), (190, 116, 86), (150, 100, 84)), light)
    mortar = (np.mod(rows * courses, 1) < 0.12) | (np.mod(shifted, 1) < 0.06)
    return _mix(face, _colour(rng, (206, 198, 186), (170, 164, 156)), mortar.astype(np.float32))


def _road(rng: np.random.Generator, size: int) -> Field:
    rows, columns = _axes(size)
    light = 1 + 0.10 * _grain(rng, size) + 0.06 * _noise(rng, size, 5, 5, 3)
    asphalt = _shade(_colour(rng, (96, 98, 102), (118, 116, 114), (78, 82, 90), jitter=6), light)
    line = rng.uniform(0.35, 0.65) + rng.uniform(-0.25, 0.25) * (rows - 0.7)
    dash = np.mod(rows * rows * 5 + rng.uniform(0, 1), 1) < 0.6
    width = 0.006 + 0.016 * rows
    paint_ = (np.abs(columns - line) < width) & dash
    yellow_or_white = _colour(rng, (236, 234, 226), (232, 196, 84))
    return _mix(asphalt, yellow_or_white, 0.85 * paint_.astype(np.float32))


def _stone(rng: np.random.Generator, size: int) -> Field:
    """Cobbles: the nearest of jittered grid points, dark where two are equally near."""
    cells = int(rng.integers(7, 13))
    grid = max(size * 3 // 8, 64)
    steps = (np.arange(grid, dtype=np.float32) + 0.5) / grid * cells
    jitter = rng.uniform(0.15, 0.85, (cells + 2, cells + 2, 2)).astype(np.float32)
    tones = rng.uniform(0.80, 1.15, (cells + 2, cells + 2)).astype(np.float32)
    row_of, column_of = steps.astype(np.int64)[:, None], steps.astype(np.int64)[None, :]
    first = np.full((grid, grid), 9, np.float32)
    second = first.copy()
    tone = np.ones((grid, grid), np.float32)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            point = jitter[row_of + down + 1, column_of + right + 1]
            gap_y = row_of + down + point[..., 0] - steps[:, None]
            gap_x = column_of + right + point[..., 1] - steps[None, :]
            distance = gap_y * gap_y + gap_x * gap_x
            nearer = distance < first
            second = np.where(nearer, first, np.minimum(second, distance))
            first = np.where(nearer, distance, first)
            tone = np.where(nearer, tones[row_of + down + 1, column_of + right + 1], tone)
    edge = np.sqrt(second) - np.sqrt(first)
    light = tone * np.clip(0.55 + 3.2 * edge, 0.55, 1) * (1.05 - 0.25 * first)
    light = _resized(light, size, cv2.INTER_LINEAR)
    light = light * (1 + 0.05 * _grain(rng, size))
    return _shade(_colour(rng, (150, 150, 152), (168, 158, 144), (128, 134, 142)), light)


_PAINTERS: dict[str, Painter] = {
    "sky": _sky,
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "wall": _wall,
    "snow": _snow,
    "wood": _wood,
    "brick": _brick,
    "road": _road,
    "stone": _stone,
}

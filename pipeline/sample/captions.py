"""Composed captions of a scene's regions, for the Visual Genome side of the sample world.

Every phrase is true of the picture: size, tint, what an object stands on, and where its nearest
neighbour is, all taken from the scene's truth.
"""

import numpy as np

from tap_engine.pipeline.sample.drawings import drawings, plain_name
from tap_engine.pipeline.sample.scene import Scene, SceneRegion
from tap_engine.schemas.truth import OBJECT, STUFF

SMALL_BELOW, LARGE_ABOVE = 0.012, 0.045
"""Shares of the picture that the whole object covers, where "small" ends and "large" begins."""

_PLACES = {
    "sky": "in the sky",
    "grass": "on the grass",
    "sand": "on the sand",
    "water": "in the water",
    "wall": "in front of the wall",
    "snow": "in the snow",
    "wood": "on the wood",
    "brick": "on the brick",
    "road": "on the road",
    "stone": "on the stone",
}


def compose_captions(scene: Scene, rng: np.random.Generator) -> list[tuple[int, str]]:
    """(index of the region, phrase) pairs: two different ones an object, one for each surface."""
    objects = [
        (index, region) for index, region in enumerate(scene.regions) if region.kind == OBJECT
    ]
    captions: list[tuple[int, str]] = []
    for index, region in objects:
        name = _described(region, scene.image_rgb.shape[0])
        phrases = [name]
        if region.ground:
            phrases.append(f"{name} {_PLACES[region.ground]}")
        others = [other for number, other in objects if number != index]
        if others:
            nearest = min(others, key=lambda other: _distance(region, other))
            phrases.append(f"{name} {_relation(region, nearest)} {_named(nearest)}")
        for choice in rng.permutation(len(phrases))[:2]:
            captions.append((index, phrases[choice]))
    for index, region in enumerate(scene.regions):
        if region.kind == STUFF:
            middle = region.bbox_xywh[1] + region.bbox_xywh[3] / 2
            where = "background" if middle < scene.image_rgb.shape[0] / 2 else "foreground"
            captions.append((index, f"{region.concept} in the {where}"))
    return captions


def _described(region: SceneRegion, side: int) -> str:
    """A small red apple."""
    share = region.area / region.visibility / side**2
    words = []
    if share < SMALL_BELOW:
        words.append("small")
    elif share > LARGE_ABOVE:
        words.append("large")
    if region.tint:
        words.append(region.tint)
    article = drawings()[region.drawing].article
    if article and words:
        article = "an" if words[0] == "orange" else "a"
    return " ".join([article, *words, plain_name(region.concept)]).strip()


def _named(region: SceneRegion) -> str:
    return f"{drawings()[region.drawing].article} {plain_name(region.concept)}".strip()


def _centre(region: SceneRegion) -> tuple[float, float]:
    left, top, width, height = region.bbox_xywh
    return left + width / 2, top + height / 2


def _distance(one: SceneRegion, other: SceneRegion) -> float:
    (x, y), (other_x, other_y) = _centre(one), _centre(other)
    return (x - other_x) ** 2 + (y - other_y) ** 2


def _relation(one: SceneRegion, other: SceneRegion) -> str:
    (x, y), (other_x, other_y) = _centre(one), _centre(other)
    if abs(x - other_x) >= abs(y - other_y):
        return "left of" if x < other_x else "right of"
    return "above" if y < other_y else "below"

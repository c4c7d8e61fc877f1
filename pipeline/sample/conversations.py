"""The sample world speaks: detailed captions and questions whose answers the truth knows.

    OUT/images/sa_N.jpg                  scenes, as `tap-data sample` draws them
    OUT/captions_train.json, _val.json   one detailed caption per scene (stage 1)
    OUT/questions_train.json             one conversation of several questions per scene (stage 2)
    OUT/questions_val.json               one question per row; its id ends with its type

The files have LLaVA's form, so `tap-data import-conversations` reads them like anybody's. Where an
answer is one of two, both are equally likely whatever the scenes are like.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from tap_engine.pipeline.sample.drawings import concept_groups, drawings, plain_name
from tap_engine.pipeline.sample.files import SceneName, scene_jpeg
from tap_engine.pipeline.sample.scene import Scene, SceneRegion
from tap_engine.schemas.conversations import IMAGE_MARKER
from tap_engine.schemas.replacing import replacing
from tap_engine.schemas.truth import OBJECT, STUFF

QUESTION_TYPES = (
    "exist",
    "side",
    "height",
    "colour",
    "count",
    "ground",
    "edge",
    "larger",
    "region",
)

RULE = "Answer the question using a single word or phrase."

CAPTION_REQUEST = "Describe the picture in detail."

_COUNTED = {"animal": "animals", "food": "foods", "vehicle": "vehicles", "clothing": "clothes"}

_EDGES = ("on the far left", "on the far right", "at the very top", "at the very bottom")

_PURPOSE = 3
"""The scene's stream of random numbers for questions; captions of regions have 1."""

_CLEAR_OF_MIDDLE = 0.1
_CLEAR_LEAD = 0.04
_CLEARLY_LARGER = 1.5
"""How far from undecided a thing must be to be asked about: shares of a side, ratio of areas."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene; `kind` is of QUESTION_TYPES."""

    kind: str
    text: str
    answer: str


def describe_scene(scene: Scene) -> str:
    """How many things on which grounds, then each thing with colour and place, row by row."""
    things, side = _things(scene), scene.image_rgb.shape[0]
    things.sort(key=lambda thing: (_centre(thing)[1] * 8 // side, _centre(thing)[0]))
    grounds = sorted(_grounds(scene), key=lambda ground: _centre(ground)[1])
    listed = ", ".join(f"{_with_article(thing)} {_place(thing, side)}" for thing in things)
    number = f"{len(things)} thing{'s' * (len(things) != 1)}"
    return f"{number} on {' and '.join(plain_name(g.concept) for g in grounds)}: {listed}."


def ask(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Questions about a scene in random order: two of "exist", at most one of each other type."""
    things, side = _things(scene), scene.image_rgb.shape[0]
    names = [plain_name(thing.concept) for thing in things]
    # Only a thing that is alone of its name can be spoken of.
    alone = [things[i] for i in rng.permutation(len(things)) if names.count(names[i]) == 1]
    found = [*_existence(things, names, rng), *_sides(alone, side, rng)]
    if tinted := [thing for thing in alone if thing.tint]:
        name = plain_name(tinted[0].concept)
        found.append(Question("colour", f"What colour is the {name}?", str(tinted[0].tint)))
    group = list(_COUNTED)[rng.integers(len(_COUNTED))]
    count = sum(concept_groups()[thing.concept] == group for thing in things)
    found.append(Question("count", f"How many {_COUNTED[group]} are there?", str(count)))
    grounds = sorted(_grounds(scene), key=lambda ground: _centre(ground)[1])
    if len(grounds) > 1:
        front = rng.random() < 0.5
        word, ground = ("foreground", grounds[-1]) if front else ("background", grounds[0])
        found.append(Question("ground", f"What is in the {word}?", plain_name(ground.concept)))
    found += [*_extremes(things, side, rng), *_sizes(alone)]
    if things:
        thing = things[rng.integers(len(things))]
        left, top, width, height = (100 * value / side for value in thing.bbox_xywh)
        box = [round(value) for value in (left, top, left + width, top + height)]
        text = f"What is in the region {box}?"
        found.append(Question("region", text, plain_name(thing.concept)))
    return [found[i] for i in rng.permutation(len(found))]


def write_conversations(
    out: Path,
    *,
    scenes: int,
    held_out: int,
    size: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Draw scenes and write their pictures, captions and questions.

    Args:
        out: folder.
        scenes: to train on.
        held_out: other scenes, to measure on.
        size: side of a scene, px.
        seed: another seed gives other scenes.
        progress: told of scenes done.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    done = 0
    for part, split, count in (("train", "train", scenes), ("validation", "val", held_out)):
        captions: list[dict[str, object]] = []
        questions: list[dict[str, object]] = []
        for index in range(count):
            name = SceneName(seed, part, index)
            picture = f"sa_{name.number}.jpg"
            path = out / "images" / picture
            scene = name.render(size)
            if not path.exists():
                with replacing(path) as partial:
                    partial.write_bytes(scene_jpeg(scene))
            asked = ask(scene, name.generator(_PURPOSE))
            told = [(CAPTION_REQUEST, describe_scene(scene))]
            captions.append(_row(str(name.number), picture, told))
            questions += _question_rows(str(name.number), picture, asked, single=split == "val")
            done += 1
            progress(done)
        for kind, rows in (("captions", captions), ("questions", questions)):
            with replacing(out / f"{kind}_{split}.json") as partial:
                partial.write_text(json.dumps(rows), "utf-8")


def _question_rows(
    label: str, picture: str, asked: list[Question], *, single: bool
) -> list[dict[str, object]]:
    if not single:
        pairs = [(f"{question.text}\n{RULE}", question.answer) for question in asked]
        return [_row(label, picture, pairs)] if pairs else []
    return [
        _row(f"{label}/{n}/{q.kind}", picture, [(f"{q.text}\n{RULE}", q.answer)])
        for n, q in enumerate(asked)
    ]


def _row(label: str, picture: str, pairs: list[tuple[str, str]]) -> dict[str, object]:
    turns = []
    for number, (question, answer) in enumerate(pairs):
        marker = f"{IMAGE_MARKER}\n" if number == 0 else ""
        turns.append({"from": "human", "value": f"{marker}{question}"})
        turns.append({"from": "gpt", "value": answer})
    return {"id": label, "image": picture, "conversations": turns}


def _existence(
    things: list[SceneRegion], names: list[str], rng: np.random.Generator
) -> Iterator[Question]:
    if not things:
        return
    there = things[rng.integers(len(things))]
    yield Question("exist", f"Is there {_named(plain_name(there.concept))}?", "yes")
    every = _all_names()
    shuffled = (every[i] for i in rng.permutation(len(every)))
    absent = next(name for name in shuffled if name not in names)
    yield Question("exist", f"Is there {_named(absent)}?", "no")


def _sides(alone: list[SceneRegion], side: int, rng: np.random.Generator) -> Iterator[Question]:
    for axis, kind, at, words in (
        (0, "side", "on", ("left", "right")),
        (1, "height", "at", ("top", "bottom")),
    ):
        # Things stand lower rather than higher: only where both sides have one is the answer open.
        near: list[SceneRegion] = []
        far: list[SceneRegion] = []
        for thing in alone:
            off = _centre(thing)[axis] - side / 2
            if abs(off) > _CLEAR_OF_MIDDLE * side:
                (near, far)[off > 0].append(thing)
        if near and far:
            asked = int(rng.integers(2))
            name = plain_name((near, far)[asked][0].concept)
            text = f"Is the {name} {at} the {words[0]} or {at} the {words[1]}?"
            yield Question(kind, text, words[asked])


def _extremes(things: list[SceneRegion], side: int, rng: np.random.Generator) -> Iterator[Question]:
    """What is farthest to one of the four sides, where one thing leads clearly."""
    way = int(rng.integers(4))
    sign = -1 if way % 2 else 1
    reach = sorted((sign * _centre(thing)[way // 2], n) for n, thing in enumerate(things))
    if len(reach) > 1 and reach[1][0] - reach[0][0] > _CLEAR_LEAD * side:
        where = _EDGES[way]
        yield Question("edge", f"What is {where}?", plain_name(things[reach[0][1]].concept))


def _sizes(alone: list[SceneRegion]) -> Iterator[Question]:
    if len(alone) < 2:
        return
    one, other = alone[:2]
    small, large = sorted((one, other), key=lambda thing: thing.area)
    if large.area > _CLEARLY_LARGER * small.area:
        text = f"Which is larger, the {plain_name(one.concept)} or the {plain_name(other.concept)}?"
        yield Question("larger", text, plain_name(large.concept))


def _things(scene: Scene) -> list[SceneRegion]:
    return [region for region in scene.regions if region.kind == OBJECT]


def _grounds(scene: Scene) -> list[SceneRegion]:
    return [region for region in scene.regions if region.kind == STUFF]


def _centre(region: SceneRegion) -> tuple[float, float]:
    left, top, width, height = region.bbox_xywh
    return left + width / 2, top + height / 2


def _place(region: SceneRegion, side: int) -> str:
    column, row = (min(int(3 * value / side), 2) for value in _centre(region))
    return ("top ", "", "bottom ")[row] + ("left", "middle", "right")[column]


def _with_article(region: SceneRegion) -> str:
    return _named(plain_name(region.concept), region.tint)


def _named(name: str, tint: str | None = None) -> str:
    article = _articles().get(name, "a")
    if tint and article:
        article = "an" if tint == "orange" else "a"
    return " ".join(word for word in (article, tint, name) if word)


@cache
def _articles() -> dict[str, str]:
    return {plain_name(drawing.concept): drawing.article for drawing in drawings()}


@cache
def _all_names() -> tuple[str, ...]:
    return tuple(sorted({plain_name(drawing.concept) for drawing in drawings()}))

"""Questions about scenes against the scene's own truth, looked up again by plain loops."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tap_engine.pipeline.sample.conversations import (
    QUESTION_TYPES,
    RULE,
    ask,
    describe_scene,
    write_conversations,
)
from tap_engine.pipeline.sample.drawings import concept_groups, plain_name
from tap_engine.pipeline.sample.files import SceneName

SIDE = 128


@pytest.fixture(scope="module")
def scenes():
    return [SceneName(5, "train", index).render(SIDE) for index in range(60)]


def named(scene, name: str):
    (found,) = [r for r in scene.regions if r.kind == "object" and plain_name(r.concept) == name]
    return found


def middle(region, axis: int) -> float:
    return region.bbox_xywh[axis] + region.bbox_xywh[axis + 2] / 2


def check(scene, question) -> None:
    """The answer is true of the scene."""
    things = [r for r in scene.regions if r.kind == "object"]
    names = [plain_name(thing.concept) for thing in things]
    text, answer = question.text, question.answer
    if question.kind == "exist":
        name = re.fullmatch(r"Is there (?:an? )?(.+)\?", text)[1]
        assert (answer == "yes") == (name in names)
    elif question.kind in ("side", "height"):
        axis = question.kind == "height"
        name = re.fullmatch(r"Is the (.+) (?:on|at) the \w+ or (?:on|at) the \w+\?", text)[1]
        assert (middle(named(scene, name), axis) > SIDE / 2) == (answer in ("right", "bottom"))
    elif question.kind == "colour":
        assert named(scene, re.fullmatch(r"What colour is the (.+)\?", text)[1]).tint == answer
    elif question.kind == "count":
        word = {"animals": "animal", "foods": "food", "vehicles": "vehicle", "clothes": "clothing"}
        group = word[re.fullmatch(r"How many (.+) are there\?", text)[1]]
        assert int(answer) == sum(concept_groups()[t.concept] == group for t in things)
    elif question.kind == "ground":
        heights = {r.concept: middle(r, 1) for r in scene.regions if r.kind == "stuff"}
        pick = max if "foreground" in text else min
        assert answer == plain_name(pick(heights, key=heights.get))
    elif question.kind == "edge":
        axis = "very" in text
        pick = max if "right" in text or "bottom" in text else min
        assert answer == names[pick(range(len(things)), key=lambda n: middle(things[n], axis))]
    elif question.kind == "larger":
        one, other = re.fullmatch(r"Which is larger, the (.+) or the (.+)\?", text).groups()
        small = other if answer == one else one
        assert answer in (one, other) and named(scene, answer).area > named(scene, small).area
    else:
        box = json.loads(re.search(r"\[.*\]", text)[0])
        boxes = [
            [100 * v / SIDE for v in (x, y, x + w, y + h)]
            for x, y, w, h in (thing.bbox_xywh for thing in things)
        ]
        near = [n for n, b in zip(names, boxes, strict=True) if np.allclose(b, box, atol=0.51)]
        assert answer in near


def test_every_answer_is_true(scenes) -> None:
    seen: Counter[str] = Counter()
    for number, scene in enumerate(scenes):
        for question in ask(scene, np.random.default_rng(number)):
            check(scene, question)
            seen[question.kind] += 1
    assert seen.keys() == set(QUESTION_TYPES)
    assert seen["exist"] == 2 * len(scenes), "as many things that are there as things that are not"


def test_neither_of_two_answers_is_the_likelier_one(scenes) -> None:
    answers: Counter[str] = Counter()
    for seed in range(60):
        for number, scene in enumerate(scenes[:20]):
            found = ask(scene, np.random.default_rng([seed, number]))
            answers.update(q.answer for q in found if q.kind in ("side", "height"))
    for one, other in (("left", "right"), ("top", "bottom")):
        share = answers[one] / (answers[one] + answers[other])
        assert share == pytest.approx(0.5, abs=0.05)


def test_captions_name_every_thing_once(scenes) -> None:
    for scene in scenes:
        caption = describe_scene(scene)
        things = [r for r in scene.regions if r.kind == "object"]
        assert caption.startswith(f"{len(things)} thing")
        listed = caption.split(": ", 1)[1].rstrip(".")
        places = r"(?:top |bottom )?(?:left|middle|right)"
        assert len(re.findall(rf"{places}(?:, |$)", listed)) == len(things)
        for thing in things:
            assert plain_name(thing.concept) in caption


def test_files_are_llava_s_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_conversations(tmp_path / name, scenes=4, held_out=2, size=SIDE, seed=1)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len([path for path in files if path.suffix == ".jpg"]) == 6
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    train = json.loads((tmp_path / "one" / "questions_train.json").read_text())
    held_out = json.loads((tmp_path / "one" / "questions_val.json").read_text())
    assert len(train) == 4 and all(len(row["conversations"]) > 6 for row in train)
    assert train[0]["conversations"][0]["value"].startswith("<image>\n")
    assert all(turn["value"].endswith(RULE) for turn in train[0]["conversations"][::2])
    assert {row["id"].split("/")[2] for row in held_out} <= set(QUESTION_TYPES)
    shared = {row["image"] for row in train} & {row["image"] for row in held_out}
    assert not shared, "no scene is both learned from and measured on"

"""The interactive protocol on a data set in COCO's or LVIS's form: prompts from its annotations.

    OUT/answers.jsonl    a line each picture: answers of its instances; a killed run goes on
    OUT/report.json      figures, and what they were made with

Points come from masks, boxes from `bbox`; nothing else of the ground truth reaches the model. The
released model's point configurations read regions from ground-truth boxes: `leak` does that, and
the report says so.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from tap_engine.model.image_input import open_image
from tap_engine.model.ovsam.classes import BASE, NOVEL
from tap_engine.model.ovsam.model import full_size_logits
from tap_engine.model.ovsam.predictor import EncodedPicture, OpenVocabularySam
from tap_engine.model.prompts import make_prompts
from tap_engine.schemas import rle
from tap_engine.schemas.errors import ConfigError, SourceError
from tap_engine.schemas.replacing import replacing
from tap_engine.train.evaluation.class_splits import coco_split, lvis_split
from tap_engine.train.evaluation.interactive import centre_point, score_answers


@dataclass(frozen=True, slots=True, kw_only=True)
class InteractiveRequest:
    """What to evaluate.

    Attributes:
        annotations: annotation file in COCO's or LVIS's form.
        images: folder of the pictures; LVIS's lie in folders of it named as in `coco_url`.
        out: folder of answers and report.
        split: "coco" (48 base, 17 novel) or "lvis" (866 and 337).
        prompt: "box" or "point".
        leak: read regions from ground-truth boxes even where points are the prompts, as the
            released point configurations do. For comparison with the paper's Table 1 alone.
        limit: the first so many pictures; 0 for all.
    """

    annotations: Path
    images: Path
    out: Path
    split: str = "coco"
    prompt: str = "box"
    leak: bool = False
    limit: int = 0

    def __post_init__(self) -> None:
        if self.split not in ("coco", "lvis") or self.prompt not in ("box", "point"):
            raise ConfigError(
                "split must be coco or lvis and prompt box or point, got "
                f"{self.split!r}, {self.prompt!r}"
            )


def evaluate_interactive(
    model: OpenVocabularySam,
    request: InteractiveRequest,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Answers every instance of the two lists and scores the answers.

    Args:
        model: its class table has the data set's class names, as `ovsam-classes` makes it.
        request: data and protocol.
        say: called with a line now and then.

    Returns:
        The report: figures, settings, counts.

    Raises:
        ConfigError: a class of the lists is not in the model's table, or earlier answers in `out`
            are of other settings.
        SourceError: a picture is missing or unreadable; what is done stays done.
    """
    truth = json.loads(request.annotations.read_text("utf-8"))
    base, novel = coco_split() if request.split == "coco" else lvis_split(truth["categories"])
    names = {int(c["id"]): str(c["name"]) for c in truth["categories"]}
    listed = [i for i in names if i in base | novel]
    assert_known(model, [names[i] for i in listed])
    model.set_concepts([names[i] for i in listed])
    table = model.concepts
    assert table is not None
    kinds = torch.tensor([BASE if i in base else NOVEL for i in listed])
    model.set_concepts(type(table)(table.names, table.prototypes, kinds))
    wanted: dict[int, list[dict[str, Any]]] = {}
    for instance in truth["annotations"]:
        if int(instance["category_id"]) in base | novel and not instance.get("iscrowd"):
            wanted.setdefault(int(instance["image_id"]), []).append(instance)
    images = [image for image in truth["images"] if int(image["id"]) in wanted]
    images = images[: request.limit] if request.limit else images
    settings = {
        "annotations": request.annotations.name,
        "split": request.split,
        "prompt": request.prompt,
        "ground_truth_boxes_leak": request.leak,
        "classes": table.fingerprint,
        "fusion": [model.fusion.alpha, model.fusion.beta],
    }
    answers, done = _earlier(request.out, settings)
    with open(request.out / "answers.jsonl", "a", encoding="utf-8") as file:
        for number, image in enumerate(images, 1):
            image_id = int(image["id"])
            if image_id in done:
                continue
            rows = answer_image(model, image, wanted[image_id], request)
            file.write(json.dumps({"image_id": image_id, "predictions": rows}) + "\n")
            file.flush()
            answers += rows
            if number % 50 == 0:
                say(f"{number:,} of {len(images):,} pictures")
    kept = {int(image["id"]) for image in images}
    scored = {
        "images": images,
        "annotations": [i for rows in (wanted[k] for k in kept) for i in rows],
    }
    score = score_answers(
        scored, {"score_category_ids": listed, "predictions": answers}, base, novel
    )
    report = {
        "figures": score.figures(),
        "pictures": len(images),
        "instances_of_other_classes": len(truth["annotations"]) - sum(map(len, wanted.values())),
        **settings,
    }
    with replacing(request.out / "report.json") as partial:
        partial.write_text(json.dumps(report, indent=1))
    return report


def assert_known(model: OpenVocabularySam, names: list[str]) -> None:
    """Refuses a model without prototypes of these classes.

    Raises:
        ConfigError: names the first.
    """
    known = set(model.concepts.names) if model.concepts is not None else set()
    if missing := [name for name in names if name not in known]:
        raise ConfigError(
            f"the model's class table lacks {len(missing)} of {len(names)} classes, first "
            f"{missing[0]!r}; make one: tap-train ovsam-classes --annotations FILE, and give it "
            "with --classes"
        )


def answer_image(
    model: OpenVocabularySam,
    image: Mapping[str, Any],
    instances: list[dict[str, Any]],
    request: InteractiveRequest,
) -> list[dict[str, Any]]:
    """One answer for each instance of a picture: its mask and a score for every class."""
    rgb = open_image(picture_path(image, request.images))
    size = (rgb.shape[0], rgb.shape[1])
    if size != (image["height"], image["width"]):
        raise SourceError(
            f"picture {image['id']} is {size[1]} x {size[0]} px, its annotations say "
            f"{image['width']} x {image['height']}"
        )
    picture = model.set_image(rgb)
    xywh = np.array([i["bbox"] for i in instances], np.float32).reshape(-1, 4)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + np.maximum(xywh[:, 2:], 1e-3)], axis=1)
    if request.prompt == "box":
        prompts = make_prompts(size, boxes=boxes)
    else:
        points = np.stack([_centre(i, picture) for i in instances])
        prompts = make_prompts(size, points=points[:, None])
    regions = torch.from_numpy(boxes) if request.leak else None
    rows: list[dict[str, Any]] = []
    for start in range(0, len(instances), model.prompts_per_chunk):
        chunk = slice(start, start + model.prompts_per_chunk)
        answers = model.answer(
            picture,
            prompts.points[chunk],
            prompts.labels[chunk],
            regions=regions[chunk] if regions is not None else None,
        )
        side = (model.model.config.image_size,) * 2
        masks = full_size_logits(answers.mask_logits, side, picture.fitted.content_hw, size) > 0
        scores = answers.fused[:, :-1].tolist()
        for instance, mask, row in zip(instances[chunk], masks.cpu().numpy(), scores, strict=True):
            counts = rle.encode(mask).decode()
            rows.append(
                {
                    "annotation_id": int(instance["id"]),
                    "segmentation": {"size": list(size), "counts": counts},
                    "scores": [round(value, 5) for value in row],
                }
            )
    return rows


def _centre(instance: Mapping[str, Any], picture: EncodedPicture) -> npt.NDArray[np.float32]:
    """[2] (x, y) px of the picture: the centre of the mask, found in the input's frame."""
    size, content = picture.fitted.image_hw, picture.fitted.content_hw
    mask = rle.decode(rle.from_coco(instance["segmentation"], size), size)
    resized = cv2.resize(mask, content[::-1], interpolation=cv2.INTER_NEAREST)
    small = np.asarray(resized, np.uint8)
    if not small.any():  # thinner than a pixel of the input
        return centre_point(mask).astype(np.float32)
    scale = np.array([size[1] / content[1], size[0] / content[0]], np.float32)
    return centre_point(small).astype(np.float32) * scale


def picture_path(image: Mapping[str, Any], folder: Path) -> Path:
    """Where a picture lies: by its file_name, or as LVIS has it by the end of its coco_url."""
    if "file_name" in image:
        return folder / image["file_name"]
    return folder.joinpath(*str(image["coco_url"]).rstrip("/").split("/")[-2:])


def _earlier(out: Path, settings: dict[str, Any]) -> tuple[list[dict[str, Any]], set[int]]:
    """Answers of an interrupted run of the same settings."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "settings.json"
    if path.is_file():
        if json.loads(path.read_text()) != settings:
            raise ConfigError(f"{out} holds answers of other settings; give another --out")
    else:
        path.write_text(json.dumps(settings))
    answers, done, whole = [], set(), []
    file = out / "answers.jsonl"
    for line in file.read_text("utf-8").splitlines() if file.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            break  # the line that was being written when the run was killed
        answers += row["predictions"]
        done.add(row["image_id"])
        whole.append(line)
    if file.is_file():
        file.write_text("".join(line + "\n" for line in whole), "utf-8")
    return answers, done

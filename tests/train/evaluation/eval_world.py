"""A small evaluation set of drawn scenes, and a small model with random weights to run on it."""

import json
from pathlib import Path

import numpy as np
import torch

from tap_engine.model.concepts import ConceptTable
from tap_engine.model.predictor import Tap
from tap_engine.model.text_tokenizer import train_bpe
from tap_engine.train.evaluation.data_sets import EvalSet, with_folder
from tap_engine.train.evaluation.ground_truth import read_coco_layout
from tests.model.small import small_model
from tests.scenes import draw_scene

NAMES = ("cat", "dog", "tree", "sky")


def write_coco(folder: Path, images: int = 4, regions: int = 5) -> Path:
    """`truth.json` in COCO's layout with masks, classes and captions, and `images/N.jpg`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    listed, annotations = [], []
    for number in range(1, images + 1):
        jpeg, scene = draw_scene(number, regions=regions)
        (folder / "images" / f"{number}.jpg").write_bytes(jpeg)
        image = scene["image"]
        size = {"height": image["height"], "width": image["width"]}
        listed.append({"id": number, "file_name": f"{number}.jpg", **size})
        for entry in scene["annotations"]:
            category = int(entry["id"]) % len(NAMES)
            left, top, width, height = entry["bbox"]
            annotations.append(
                {
                    "id": entry["id"],
                    "image_id": number,
                    "category_id": 10 * (category + 1),
                    "bbox": [left, top, width + 1, height + 1],
                    "area": entry["area"],
                    "iscrowd": 0,
                    "segmentation": entry["segmentation"],
                    "caption": f"a {NAMES[category]}",
                }
            )
    categories = [{"id": 10 * (i + 1), "name": name} for i, name in enumerate(NAMES)]
    path = folder / "truth.json"
    path.write_text(
        json.dumps({"images": listed, "annotations": annotations, "categories": categories})
    )
    return path


def coco_set(folder: Path, images: int = 4) -> EvalSet:
    truth = read_coco_layout(str(write_coco(folder, images)))
    return with_folder(truth, str(folder / "images"))


def small_tap() -> Tap:
    """Random weights, with concepts and a tokenizer."""
    torch.manual_seed(1)
    table = ConceptTable(NAMES, torch.randn(len(NAMES), 16), 22.0)
    return Tap(
        small_model(), concept_table=table, tokenizer=train_bpe(["a cat", "a dog and a tree"], 300)
    )


def detector_results(folder: Path, images: int = 4) -> Path:
    """Boxes of a made-up detector: the true ones, moved a little, with scores."""
    rng = np.random.default_rng(5)
    content = json.loads((folder / "truth.json").read_text())
    rows = [
        {
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "bbox": [round(float(v), 2) for v in np.array(row["bbox"]) + rng.normal(0, 1, 4)],
            "score": round(float(rng.random()), 3),
        }
        for row in content["annotations"]
        if row["image_id"] <= images
    ]
    path = folder / "boxes.json"
    path.write_text(json.dumps(rows))
    return path

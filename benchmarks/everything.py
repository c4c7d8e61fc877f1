"""Everything mode on drawn scenes: recall and precision against the truth, duplicates, seconds.

    OMP_NUM_THREADS=1 python -m benchmarks.everything --model sample --scenes 20

The upper bound is one prompt per true region, its box: what the model can show when it is told
where to look. Lines after the first of each pair are the same scenes with other thresholds.
"""

import argparse
import io
import json
import tarfile
import time
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from tap_engine.model.everything import EverythingConfig
from tap_engine.model.predictor import Tap
from tap_engine.pipeline.sample.drawings import SAMPLE_DATA
from tap_engine.schemas import rle

RUNS = {
    "SAM's defaults": {},
    "stability 0.8": {"stability_score_thresh": 0.8},
    "IoU 0.6, stability 0.6": {"pred_iou_thresh": 0.6, "stability_score_thresh": 0.6},
    "the same, 16 points a side": {
        "pred_iou_thresh": 0.6,
        "stability_score_thresh": 0.6,
        "points_per_side": 16,
    },
    "IoU 0.6, stability 0.6, crops": {
        "pred_iou_thresh": 0.6,
        "stability_score_thresh": 0.6,
        "crop_n_layers": 1,
        "points_per_side": 16,
    },
}


def read_scenes(count: int):
    """Pictures with their true masks as COCO run lengths, of the shipped validation shard."""
    (shard,) = (SAMPLE_DATA / "scenes" / "validation").glob("*.tar")
    with tarfile.open(shard) as tar:
        for name in sorted(n for n in tar.getnames() if n.endswith(".jpg"))[:count]:
            rgb = np.asarray(Image.open(io.BytesIO(tar.extractfile(name).read())).convert("RGB"))
            rows = json.loads(tar.extractfile(name[:-4] + ".json").read())["annotations"]
            yield rgb, [row["segmentation"] for row in rows]


def score(found: list[list[bytes]], scenes) -> dict[str, float]:
    """Shares over all scenes; a duplicate is a result over IoU .9 with an earlier one."""
    hits = {(side, bar): 0 for side in ("recall", "precision") for bar in (0.5, 0.75)}
    total_found = total_true = duplicates = 0
    for counts, (rgb, truth) in zip(found, scenes, strict=True):
        total_found, total_true = total_found + len(counts), total_true + len(truth)
        if not counts:
            continue
        masks = [{"size": list(rgb.shape[:2]), "counts": one} for one in counts]
        overlap = np.asarray(coco_mask.iou(masks, truth, [0] * len(truth)))
        own = np.asarray(coco_mask.iou(masks, masks, [0] * len(masks)))
        duplicates += int((np.triu(own, 1) > 0.9).any(0).sum())
        for bar in (0.5, 0.75):
            hits["recall", bar] += int((overlap.max(0) >= bar).sum())
            hits["precision", bar] += int((overlap.max(1) >= bar).sum())
    totals = {"recall": total_true, "precision": max(total_found, 1)}
    shares = {f"{side} {bar}": n / totals[side] for (side, bar), n in hits.items()}
    return {"found": total_found, "true": total_true, **shares, "duplicates": duplicates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="sample")
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--only", nargs="*", type=int, help="numbers of the settings to run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tap = Tap.from_pretrained(arguments.model, device="cpu")
    scenes = list(read_scenes(arguments.scenes))
    tap.everything(scenes[0][0], EverythingConfig(points_per_side=2))  # compiles once
    rows = {}
    boxes_found = []
    start = time.process_time()
    for rgb, truth in scenes:
        corners = [
            rle.bbox_xywh(rle.runs(t["counts"], rgb.shape[:2]), rgb.shape[:2]) for t in truth
        ]
        tap.set_image(rgb)
        regions = tap.predict(boxes=[(x, y, x + w, y + h) for x, y, w, h in corners])
        boxes_found.append([rle.encode(region.mask) for region in regions])
    rows["one box per true region"] = boxes_found, time.process_time() - start
    for number, (name, settings) in enumerate(RUNS.items()):
        if arguments.only is not None and number not in arguments.only:
            continue
        config = replace(EverythingConfig(), **settings)
        start = time.process_time()
        found = [[one.counts for one in tap.everything(rgb, config)] for rgb, _ in scenes]
        rows[name] = found, time.process_time() - start
    for name, (found, seconds) in rows.items():
        figures = score(found, scenes)
        shown = " | ".join(f"{v:.3f}" if isinstance(v, float) else f"{v}" for v in figures.values())
        print(f"| {name} | {shown} | {seconds / len(scenes):.2f} |")


if __name__ == "__main__":
    main()

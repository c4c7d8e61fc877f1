"""Scoring at LVIS scale: peak memory and time of ours, of the plain library and of pycocotools.

    python benchmarks/scoring.py --images 20000 --masks-per-image 165      # LVIS val's own size
    python benchmarks/scoring.py --images 1000 --with pycocotools --with unsplit

The set is generated (480 x 640, blobs, 1,203 categories spread like LVIS's: a few frequent, a long
tail; LVIS's federated fields): ground truth as LVIS json, predictions as Parquet parts, as
`tap-train eval` writes them. Each contender runs in a process of its own, so that its peak resident
memory is its own; time is CPU time, for machines that are shared.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from tap_engine.schemas import rle
from tap_engine.schemas.provenance import Provenance
from tap_engine.train.evaluation.ground_truth import read_coco_layout
from tap_engine.train.evaluation.predictions import INSTANCES, PredictionWriter, read_predictions
from tap_engine.train.evaluation.scoring_coco import score_detections

SIZE_HW = (480, 640)
CATEGORIES = 1203
POOL = 4000
TRUTH_PER_IMAGE = 12
TAIL = 10
"""Category number r gets a share of 1 / (r + TAIL): the first 2 % of all, a long tail after it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--masks-per-image", type=int, default=165)
    parser.add_argument("--with", dest="others", action="append", default=[])
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        CONTENDERS[options.contender](Path(options.folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        predictions = generate(Path(folder), options.images, options.masks_per_image)
        made = time.perf_counter() - started
        size = sum(part.stat().st_size for part in Path(folder, "predictions").iterdir())
        print(
            f"{options.images:,} images, {predictions:,} masks, {CATEGORIES:,} categories; "
            f"{size / 1e6:,.0f} MB of Parquet, generated in {made:.0f} s"
        )
        for contender in ["ours", *options.others]:
            command = [sys.executable, __file__, "--contender", contender, "--folder", folder]
            subprocess.run(command, check=True)


def generate(folder: Path, images: int, per_image: int) -> int:
    """Truth and predictions of `images` images; returns how many predictions."""
    rng = np.random.default_rng(0)
    counts, boxes, areas = blob_pool(rng)
    shares = 1.0 / (np.arange(CATEGORIES) + TAIL)
    shares /= shares.sum()
    truth: dict[str, list[object]] = {
        "categories": [
            {
                "id": i + 1,
                "name": f"c{i + 1}",
                "frequency": "f" if i < 405 else "c" if i < 866 else "r",
            }
            for i in range(CATEGORIES)
        ],
        "images": [],
        "annotations": [],
    }
    total = 0
    with PredictionWriter(
        str(folder / "predictions"), INSTANCES, Provenance({"made_by": "benchmarks/scoring.py"})
    ) as writer:
        for image_id in range(1, images + 1):
            here = rng.choice(CATEGORIES, TRUTH_PER_IMAGE, p=shares) + 1
            masks = rng.integers(POOL, size=TRUTH_PER_IMAGE)
            negative = rng.choice(CATEGORIES, min(10, CATEGORIES), replace=False) + 1
            truth["images"].append(
                {
                    "id": image_id,
                    "height": SIZE_HW[0],
                    "width": SIZE_HW[1],
                    "neg_category_ids": [int(c) for c in negative if c not in here],
                    "not_exhaustive_category_ids": [int(here[0])],
                }
            )
            truth["annotations"] += [
                {
                    "id": len(truth["annotations"]) + 1 + i,
                    "image_id": image_id,
                    "category_id": int(here[i]),
                    "iscrowd": 0,
                    "bbox": boxes[masks[i]],
                    "area": areas[masks[i]],
                    "segmentation": {"size": list(SIZE_HW), "counts": counts[masks[i]]},
                }
                for i in range(TRUTH_PER_IMAGE)
            ]
            # A third of the detections hit (the same blob or its neighbour in the pool, which is
            # a slightly larger one); the others are noise of the same categories and elsewhere.
            which = rng.integers(TRUTH_PER_IMAGE, size=per_image)
            hit = rng.random(per_image) < 0.33
            mask = np.where(
                hit,
                masks[which] ^ rng.integers(2, size=per_image),
                rng.integers(POOL, size=per_image),
            )
            kind = np.where(
                hit | (rng.random(per_image) < 0.5),
                here[which],
                rng.choice(CATEGORIES, per_image, p=shares) + 1,
            )
            writer.add(
                image_id,
                prediction_batch(image_id, kind, rng.random(per_image), mask, counts, boxes),
            )
            total += per_image
    (folder / "truth.json").write_text(json.dumps(truth))
    return total


def blob_pool(rng: np.random.Generator) -> tuple[list[str], list[list[float]], list[float]]:
    """`POOL` wobbly ellipses; the odd ones are the even ones before them, a little larger."""
    height, width = SIZE_HW
    rows, columns = np.mgrid[:height, :width]
    counts, boxes, areas = [], [], []
    for index in range(POOL):
        if index % 2 == 0:
            centre = rng.uniform(0.1, 0.9, 2) * SIZE_HW
            radii = np.exp(rng.uniform(np.log(6), np.log(140), 2))
            waves, phase = rng.integers(3, 12), rng.uniform(0, 6)
        scale = 1.0 + 0.15 * (index % 2)
        angle = np.arctan2(rows - centre[0], columns - centre[1])
        reach = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2
        blob = reach < scale * (1 + 0.2 * np.sin(waves * angle + phase))
        encoded = rle.encode(blob)
        lengths = rle.runs(encoded, SIZE_HW)
        counts.append(encoded.decode())
        boxes.append([float(side) for side in rle.bbox_xywh(lengths, SIZE_HW)])
        areas.append(float(rle.area(lengths)))
    return counts, boxes, areas


def prediction_batch(image_id, kind, scores, mask, counts, boxes) -> pa.RecordBatch:
    n = len(mask)
    return pa.RecordBatch.from_pydict(
        {
            "image_id": [image_id] * n,
            "category_id": kind,
            "score": scores,
            "bbox_xywh": [boxes[m] for m in mask],
            "height": [SIZE_HW[0]] * n,
            "width": [SIZE_HW[1]] * n,
            "rle": [counts[m].encode() for m in mask],
            "area": [None] * n,
        },
        schema=INSTANCES,
    )


def ours(folder: Path) -> None:
    started = time.process_time()
    truth = read_coco_layout(str(folder / "truth.json"))
    batches = read_predictions(str(folder / "predictions"), INSTANCES)
    scores = score_detections(truth, batches, "segm", lvis=True, spill_folder=str(folder))
    report("ours, LVIS protocol", started, scores.metrics["AP"])
    if len(truth.images) <= 2000:
        started = time.process_time()
        batches = read_predictions(str(folder / "predictions"), INSTANCES)
        scores = score_detections(truth, batches, "segm", spill_folder=str(folder))
        report("ours, COCO protocol", started, scores.metrics["AP"])


def unsplit(folder: Path) -> None:
    """faster-coco-eval on the whole set at once, LVIS protocol (limit of 300 never reached)."""
    from faster_coco_eval import COCO, COCOeval_faster

    started = time.process_time()
    truth = COCO(str(folder / "truth.json"))
    run = COCOeval_faster(truth, truth.loadRes(as_results(folder)), "segm", lvis_style=True)
    run.params.maxDets = [300]
    run.evaluate()
    run.accumulate()
    run.summarize()
    report("faster-coco-eval, LVIS protocol", started, run.stats[0])


def pycocotools(folder: Path) -> None:
    """The official COCO scorer; it knows no LVIS protocol."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    started = time.process_time()
    truth = COCO(str(folder / "truth.json"))
    run = COCOeval(truth, truth.loadRes(as_results(folder)), "segm")
    run.evaluate()
    run.accumulate()
    run.summarize()
    report("pycocotools, COCO protocol", started, run.stats[0])


def as_results(folder: Path) -> list[dict[str, object]]:
    return [
        {
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "score": row["score"],
            "segmentation": {"size": [row["height"], row["width"]], "counts": row["rle"].decode()},
        }
        for batch in read_predictions(str(folder / "predictions"), INSTANCES)
        for row in batch.to_pylist()
    ]


def report(name: str, started: float, ap: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name}: {time.process_time() - started:.1f} CPU-s, peak {peak:,.0f} MiB, AP {ap:.6f}",
        file=sys.stderr,
        flush=True,
    )


CONTENDERS = {"ours": ours, "unsplit": unsplit, "pycocotools": pycocotools}

if __name__ == "__main__":
    main()

"""Scores that are means over regions: mask IoU per kind of prompt, accuracy of names."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tap_engine.schemas.errors import SchemaError
from tap_engine.train.evaluation.ground_truth import GroundTruth

AREA_LIMITS = {"s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, float("inf"))}
"""COCO's small, medium and large, px^2."""

TOP_K = 5


def score_prompted(truth: GroundTruth, batches: Iterable[pa.RecordBatch]) -> dict[str, float]:
    """Mean IoU of each kind of prompt, over regions.

    Args:
        truth: gives the areas that S/M/L are cut by.
        batches: rows of tasks.prompts.PROMPTED.

    Returns:
        `<prompt>` mean IoU of the mask the model chose; `<prompt> oracle` of the best of its masks;
        `<prompt> s`, `m`, `l` the first by area of the region.

    Raises:
        SchemaError: no rows, or a region that the truth does not have.
    """
    table = _with_truth(truth, pa.Table.from_batches(batches))
    prompts = table["prompt"].to_numpy(zero_copy_only=False)
    routed, oracle = (
        table[name].to_numpy().astype(np.float64) for name in ("routed_iou", "oracle_iou")
    )
    areas = table["area"].to_numpy()
    metrics: dict[str, float] = {}
    for prompt in sorted(set(prompts)):
        mine = prompts == prompt
        metrics[prompt] = float(routed[mine].mean())
        metrics[f"{prompt} oracle"] = float(oracle[mine].mean())
        for size, (low, high) in AREA_LIMITS.items():
            here = mine & (areas >= low) & (areas < high)
            if here.any():
                metrics[f"{prompt} {size}"] = float(routed[here].mean())
    return metrics


def score_names(truth: GroundTruth, batches: Iterable[pa.RecordBatch]) -> dict[str, float]:
    """Scores how often the true name comes first, and among the first five.

    Args:
        truth: the regions named.
        batches: rows of tasks.names.NAMED.

    Returns:
        `top-1` and `top-5` over regions, and `top-1 by class`: the mean over classes of each
        class's top-1, which a frequent class cannot carry.

    Raises:
        SchemaError: no rows, or a region that the truth does not have.
    """
    table = _with_truth(truth, pa.Table.from_batches(batches))
    ranks, categories = table["rank"].to_numpy(), table["category_id"].to_numpy()
    first = ranks == 0
    return {
        "top-1": float(first.mean()),
        "top-5": float((ranks < TOP_K).mean()),
        "top-1 by class": _mean_by_class(first, categories),
    }


def _mean_by_class(right: npt.NDArray[np.bool_], categories: npt.NDArray[np.integer]) -> float:
    _, places = np.unique(categories, return_inverse=True)
    return float((np.bincount(places, right) / np.bincount(places)).mean())


def _with_truth(truth: GroundTruth, predictions: pa.Table) -> pa.Table:
    if not predictions.num_rows:
        raise SchemaError("there are no predictions to score")
    areas = dict(
        zip(truth.regions["region_id"].to_pylist(), truth.regions["area"].to_pylist(), strict=True)
    )
    ids = predictions["region_id"].to_pylist()
    if unknown := next((region_id for region_id in ids if region_id not in areas), None):
        raise SchemaError(
            f"predictions name region {unknown}, which {truth.name} does not have; is it the truth "
            "of another split?"
        )
    return predictions.append_column("area", pa.array([areas[i] for i in ids], pa.float64()))

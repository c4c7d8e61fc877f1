"""A detector's results file as box prompts, looked up by image."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tap_engine.schemas.errors import SchemaError
from tap_engine.train.evaluation.ground_truth import GroundTruth
from tap_engine.train.evaluation.predictions import INSTANCES, read_predictions


@dataclass(frozen=True, slots=True)
class Detected:
    """A detector's boxes on one image: [P, 4] xywh px, [P] categories, [P] scores."""

    boxes_xywh: npt.NDArray[np.float64]
    category_ids: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float64]


class DetectorBoxes:
    """A detector's results file by image; 44 bytes per box in memory (145 MB for LVIS val)."""

    def __init__(self, path: str, truth: GroundTruth, *, part: bool = False) -> None:
        """Read a COCO results file, such as ViTDet-H's.

        Args:
            path: the file.
            truth: the images and categories that are evaluated.
            part: `truth` has some of its images only; boxes of others are left out.

        Raises:
            SchemaError: boxes of images or categories that the truth does not have.
        """
        batches = list(_box_columns(read_predictions(path, INSTANCES), path))
        if not batches:
            raise SchemaError(f"{path}: no boxes")
        image_ids, boxes, categories, scores = (
            np.concatenate(column) for column in zip(*batches, strict=True)
        )
        if part:
            mine = np.isin(image_ids, np.fromiter(truth.images, np.int64))
            image_ids, boxes, categories, scores = (
                column[mine] for column in (image_ids, boxes, categories, scores)
            )
        for what, found, known in (
            ("image", image_ids, truth.images),
            ("category", categories, truth.categories),
        ):
            if unknown := set(np.unique(found).tolist()) - known.keys():
                raise SchemaError(
                    f"{path} has boxes of {what} {min(unknown)}, which {truth.name} does not have"
                )
        order = np.argsort(image_ids, kind="stable")
        self._image_ids = image_ids[order]
        self._boxes, self._categories, self._scores = boxes[order], categories[order], scores[order]
        self.fingerprint = _fingerprint(self._image_ids, self._boxes, self._categories)

    def __len__(self) -> int:
        return len(self._image_ids)

    def of(self, image_id: int) -> Detected:
        """The boxes of an image, in the file's order; possibly none."""
        low, high = np.searchsorted(self._image_ids, [image_id, image_id + 1])
        part = slice(int(low), int(high))
        return Detected(self._boxes[part], self._categories[part], self._scores[part])


def _box_columns(
    batches: Iterator[pa.RecordBatch], path: str
) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    for batch in batches:
        if batch["bbox_xywh"].null_count:
            raise SchemaError(f"{path}: {batch['bbox_xywh'].null_count} detections have no `bbox`")
        yield (
            batch["image_id"].to_numpy(),
            batch["bbox_xywh"].flatten().to_numpy().reshape(-1, 4),
            batch["category_id"].to_numpy(),
            batch["score"].to_numpy(),
        )


def _fingerprint(*columns: npt.NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for column in columns:
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:16]

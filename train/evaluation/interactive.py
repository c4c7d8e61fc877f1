"""The interactive protocol of Open-Vocabulary SAM: prompts from ground truth, IoU and accuracy.

Source: Open-Vocabulary SAM paper, section 4 and Tab. 1: a box or the centre point of every
instance is the prompt; IoU_b and IoU_n are means over the instances of base and novel classes,
Acc is the share of instances that get their class.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from tap_engine.schemas import rle
from tap_engine.schemas.errors import ConfigError, SchemaError

Mask = npt.NDArray[np.uint8] | npt.NDArray[np.bool_]


def centre_point(mask: Mask) -> npt.NDArray[np.int64]:
    """[2] (x, y) px: the pixel deepest inside a [H, W] mask; the first such, row by row.

    What lies beyond the picture counts as outside.

    Raises:
        ConfigError: the mask is empty.
    """
    inside = np.asarray(mask).astype(bool).astype(np.uint8)
    if not inside.any():
        raise ConfigError("an empty mask has no centre point")
    padded = np.pad(inside, 1)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return np.array([x, y], np.int64)


def mask_iou(found: Mask, wanted: Mask) -> float:
    """Intersection over union of two masks of one size; 0 where both are empty."""
    a, b = np.asarray(found).astype(bool), np.asarray(wanted).astype(bool)
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 0.0


@dataclass(slots=True)
class InteractiveScore:
    """IoU and accuracy over instances, added up one by one.

    Attributes:
        base: class ids of the base split.
        novel: class ids of the novel split.
    """

    base: frozenset[int]
    novel: frozenset[int]
    _rows: list[tuple[int, int, float]] = field(default_factory=list)

    def add(self, wanted: int, found: int, iou: float) -> None:
        """One instance: its class, the answer's class, and the mask's IoU at the picture's size."""
        self._rows.append((wanted, found, iou))

    def __len__(self) -> int:
        return len(self._rows)

    def figures(self) -> dict[str, float]:
        """The protocol's figures.

        Returns:
            "instances", "others" (in neither split: in IoU and Acc all the same), "IoU", "IoU_b",
            "IoU_n" in 0..1, "Acc", "Acc_b", "Acc_n" in percent; "IoU_listed" and "Acc_listed" are
            of base and novel instances together. NaN where there is no instance.
        """
        groups: dict[str, Sequence[tuple[int, int, float]]] = {
            "": self._rows,
            "_listed": [row for row in self._rows if row[0] in self.base | self.novel],
            "_b": [row for row in self._rows if row[0] in self.base],
            "_n": [row for row in self._rows if row[0] in self.novel],
        }
        others = len(self._rows) - len(groups["_listed"])
        found = {"instances": float(len(self._rows)), "others": float(others)}
        for name, rows in groups.items():
            found[f"IoU{name}"] = _mean(iou for _, _, iou in rows)
            found[f"Acc{name}"] = 100 * _mean(float(a == b) for a, b, _ in rows)
        return found


def score_answers(
    truth: Mapping[str, Any],
    answers: Mapping[str, Any],
    base: frozenset[int],
    novel: frozenset[int],
) -> InteractiveScore:
    """Scores masks and class scores that any model gave.

    Args:
        truth: a COCO-style annotation file; masks as run lengths or polygons.
        answers: "score_category_ids" [C] and "predictions": a row for each instance with its
            "annotation_id", "segmentation" (run lengths at the picture's size) and "scores" [C].
        base: category ids.
        novel: category ids. Only classes of the two lists can be an answer; instances of others
            are in "others" and in no figure that names a list.

    Raises:
        SchemaError: an instance has no answer, or a mask is of another size than its picture.
    """
    ids = np.asarray(answers["score_category_ids"])
    allowed = np.array([int(i) in base | novel for i in ids])
    given = {int(row["annotation_id"]): row for row in answers["predictions"]}
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    score = InteractiveScore(base, novel)
    for instance in truth["annotations"]:
        row = given.get(int(instance["id"]))
        if row is None:
            raise SchemaError(f"annotation {instance['id']} has no answer")
        size = sizes[instance["image_id"]]
        wanted = rle.decode(rle.from_coco(instance["segmentation"], size), size)
        found = rle.decode(rle.from_coco(row["segmentation"], size), size)
        scores = np.where(allowed, np.asarray(row["scores"], np.float64), -np.inf)
        answer = int(ids[int(scores.argmax())])
        score.add(int(instance["category_id"]), answer, mask_iou(found, wanted))
    return score


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return float(np.mean(listed)) if listed else float("nan")

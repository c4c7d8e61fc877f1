"""The interface of an evaluation: what it needs, its rows, how rows are scored.

One evaluation is one class in one file of `tasks/`, which has its name; nothing else lists it.
CONTRIBUTING.md shows one of ten lines.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tap_engine.schemas import rle
from tap_engine.schemas.boxes import xywh_to_xyxy
from tap_engine.schemas.errors import ConfigError
from tap_engine.train.evaluation.data_sets import EvalSet
from tap_engine.train.evaluation.detector_boxes import Detected, DetectorBoxes
from tap_engine.train.evaluation.ground_truth import GroundTruth
from tap_engine.train.evaluation.region_model import (
    Classifier,
    Predicted,
    RegionModel,
    Wanted,
    box_prompts,
)

Masks = npt.NDArray[np.bool_]
Boxes = npt.NDArray[np.float64]


class Part(StrEnum):
    """What a data set may have, and what a model may answer with."""

    MASKS = "masks"
    CLASSES = "classes"
    CAPTIONS = "captions"


@dataclass(frozen=True, eq=False)
class Question:
    """One image of an evaluation: its true regions, and the model that has just seen it.

    Attributes:
        image_id: the data set's number.
        size_hw: height and width, px.
        regions: rows of the truth, with at least region_id and bbox_xywh.
        model: what is asked.
        detected: a detector's boxes for this image; None where true boxes are the prompts.
        category_ids: [C] categories of the data set, in the order of `classes`.
    """

    image_id: int
    size_hw: tuple[int, int]
    regions: pa.Table
    model: RegionModel | Classifier
    detected: Detected | None = None
    category_ids: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))

    @cached_property
    def region_ids(self) -> list[int]:
        """P ids."""
        return self.regions["region_id"].to_pylist()

    @cached_property
    def boxes_xywh(self) -> Boxes:
        """[P, 4] px."""
        boxes = self.regions["bbox_xywh"].combine_chunks().flatten().to_numpy()
        return boxes.reshape(-1, 4).astype(np.float64)

    @cached_property
    def masks(self) -> Masks:
        """[P, H, W] the true masks; for a question that was `masked`."""
        counts = self.regions["rle"].to_pylist()
        masks = [rle.decode(text, self.size_hw) > 0 for text in counts]
        return np.stack(masks) if masks else np.empty((0, *self.size_hw), np.bool_)

    @cached_property
    def classes(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """[P, C] probabilities of the class names, and [P] IoU estimates of the masks."""
        if not isinstance(self.model, Classifier):
            raise ConfigError("this model names no classes")
        return self.model.classify(self.boxes_xywh, self.regions["rle"].to_pylist())

    def masked(self) -> "Question":
        """The same question about the regions whose mask is there, is not empty, and no crowd."""
        kept = np.array([counts is not None for counts in self.regions["rle"].to_pylist()], bool)
        if "crowd" in self.regions.column_names:
            kept &= ~np.array(self.regions["crowd"].to_pylist(), bool)
        found = self.only(kept)
        return found.only(np.array([mask.any() for mask in found.masks], np.bool_))

    def only(self, kept: Masks) -> "Question":
        """The same question about some regions, [P] bool."""
        return self if kept.all() else replace(self, regions=self.regions.filter(pa.array(kept)))

    def prompted(
        self, points: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], wanted: Wanted
    ) -> Iterator[Predicted]:
        """The model's answers to labelled points [P, K, 2] px, a chunk at a time."""
        if not isinstance(self.model, RegionModel):
            raise ConfigError("this model answers no prompts")
        return self.model.prompt(points, labels, wanted)

    def boxed(self, wanted: Wanted) -> Iterator[Predicted]:
        """The model's answers to the regions' boxes."""
        return self.prompted(*box_prompts(xywh_to_xyxy(self.boxes_xywh)), wanted)

    def rows(self, schema: pa.Schema, **columns: Any) -> pa.RecordBatch:
        """One row for each region: image and region ids, and columns of P values."""
        ids = {
            "image_id": np.full(len(self.region_ids), self.image_id),
            "region_id": self.region_ids,
        }
        return pa.RecordBatch.from_pydict({**ids, **columns}, schema)


def region_schema(**columns: pa.DataType) -> pa.Schema:
    """Prediction rows of one region each: image_id, region_id, and these columns."""
    types = {"image_id": pa.int64(), "region_id": pa.int64(), **columns}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """How rows are scored.

    Attributes:
        protocol: one of the evaluation's `protocols`.
        where: what the rows are of, for messages.
        progress: called with a line now and then.
        spill_folder: the folder for temporary files; the system's own by default.
    """

    protocol: str
    where: str = "predictions"
    progress: Callable[[str], None] = lambda _: None
    spill_folder: str | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """What scoring found.

    Attributes:
        metrics: name -> value; fractions, not percent.
        per_category: category name -> value, where there is one.
        notes: what a reader must know.
        facts: fields of the `Stamp` that only scoring knows.
    """

    metrics: Mapping[str, float]
    per_category: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class Evaluation(ABC):
    """One kind of evaluation; a subclass has no state, and its first docstring line is its help.

    Attributes:
        name: name of the task, its file and its prediction folder.
        schema: columns of its prediction rows.
        data: what the data set must have.
        model: what the model must answer with.
        protocols: names its scores go by; one, its own name, unless it says otherwise.
    """

    name: ClassVar[str]
    schema: ClassVar[pa.Schema]
    data: ClassVar[frozenset[Part] | set[Part]] = frozenset()
    model: ClassVar[frozenset[Part] | set[Part]] = frozenset({Part.MASKS})
    protocols: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def rows(self, question: Question) -> pa.RecordBatch:
        """The prediction rows of one image; none is fine, the image is done all the same."""

    @abstractmethod
    def score(
        self, truth: GroundTruth, rows: Iterable[pa.RecordBatch], options: ScoreOptions
    ) -> Scored:
        """The score of all rows. It needs no model, and takes anybody's rows."""

    def check(self, truth: GroundTruth) -> None:
        """Refuse data that could not be scored, before anything is predicted."""
        del truth

    def protocol(self, truth: GroundTruth) -> str:
        """Which of `protocols` holds for a data set."""
        del truth
        return self.protocols[0] if self.protocols else self.name

    def settings(self, asked: "Asked") -> dict[str, Any]:
        """What decides the rows besides the model and the data; other settings do not mix."""
        del asked
        return {}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an evaluation runs on.

    Attributes:
        data: truth and pixels.
        model: answers prompts, or names boxes, or both.
        settings: the model's identity: weights' hash, precision and so on.
        detector: boxes in the place of the true ones, for segmentation.
    """

    data: EvalSet
    model: RegionModel | Classifier
    settings: Mapping[str, Any]
    detector: DetectorBoxes | None = None

    def question(self, image_id: int) -> Question:
        """Shows the model an image."""
        self.model.set_image(self.data.pixels(image_id))
        truth = self.data.truth
        detected = self.detector.of(image_id) if self.detector is not None else None
        size_hw = truth.images[image_id].size_hw
        regions = truth.regions_of(image_id)
        categories = np.array(list(truth.categories), np.int32)
        return Question(image_id, size_hw, regions, self.model, detected, categories)

    def settings_of(self, evaluation: Evaluation) -> dict[str, Any]:
        """What decides an evaluation's rows; parts of a folder that say otherwise are refused."""
        own = evaluation.settings(self)
        return {**self.settings, **own, "data": self.data.truth.fingerprint}


def parts_of(truth: GroundTruth) -> frozenset[Part]:
    """What a data set has."""
    rows = truth.regions.num_rows
    has = {
        Part.MASKS: truth.regions["rle"].null_count < rows,
        Part.CLASSES: len(truth.categories) > 0,
        Part.CAPTIONS: truth.regions["captions"].null_count < rows,
    }
    return frozenset(part for part, there in has.items() if there)


def possible(evaluations: Sequence[Evaluation], parts: frozenset[Part]) -> list[Evaluation]:
    """Those whose needs a data set with these parts meets."""
    return [found for found in evaluations if found.data <= parts]

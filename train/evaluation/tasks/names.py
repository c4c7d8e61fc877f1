"""Naming of ground truth boxes: where the true name comes among all names of the data set."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tap_engine.train.evaluation.evaluation import (
    Evaluation,
    Part,
    Question,
    Scored,
    ScoreOptions,
    region_schema,
)
from tap_engine.train.evaluation.ground_truth import GroundTruth
from tap_engine.train.evaluation.scoring_regions import score_names

NAMED = region_schema(category_id=pa.int32(), rank=pa.int32(), probability=pa.float32())
"""A named region: its true category, at which rank (0 = first) the model put it, and with which
probability."""


class Names(Evaluation):
    """The true name of true boxes among all names: top-1 and top-5."""

    name = "names"
    schema = NAMED
    data = frozenset({Part.CLASSES})
    model = frozenset({Part.CLASSES})

    def check(self, truth: GroundTruth) -> None:
        """Every region needs a class."""
        truth.require_categories()

    def rows(self, question: Question) -> pa.RecordBatch:
        """Rank and probability of each region's true name."""
        true = question.regions["category_id"].to_numpy()
        places = {category: place for place, category in enumerate(question.category_ids.tolist())}
        ranks, probabilities = true_ranks(
            question.classes[0],
            np.array([places[category] for category in true.tolist()], np.int64),
        )
        return question.rows(NAMED, category_id=true, rank=ranks, probability=probabilities)

    def score(
        self, truth: GroundTruth, rows: Iterable[pa.RecordBatch], options: ScoreOptions
    ) -> Scored:
        """How often the true name comes first, and among the first five."""
        del options
        return Scored(score_names(truth, rows))


def true_ranks(
    probabilities: npt.NDArray[np.float32], places: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Where the true name came among all names.

    Args:
        probabilities: [P, C].
        places: [P] column of the true name.

    Returns:
        [P] ranks, 0 for the first; [P] probabilities of the true names.
    """
    mine = np.take_along_axis(probabilities, places[:, None], axis=1)
    return (probabilities > mine).sum(axis=1).astype(np.int32), mine[:, 0]

"""Region captioning: one greedy caption for each ground truth box.

Source: the official eval_cap.py, as docs/evaluation.md describes it.
"""

from collections.abc import Iterable

import pyarrow as pa

from tap_engine.schemas.errors import SchemaError
from tap_engine.train.evaluation.evaluation import (
    Evaluation,
    Part,
    Question,
    Scored,
    ScoreOptions,
)
from tap_engine.train.evaluation.ground_truth import GroundTruth
from tap_engine.train.evaluation.predictions import CAPTIONS
from tap_engine.train.evaluation.region_model import Wanted
from tap_engine.train.evaluation.scoring_captions import score_captions


class Captions(Evaluation):
    """Captions of true boxes: BLEU, METEOR, ROUGE-L and CIDEr."""

    name = "captions"
    schema = CAPTIONS
    data = frozenset({Part.CAPTIONS})
    model = frozenset({Part.CAPTIONS})

    def rows(self, question: Question) -> pa.RecordBatch:
        """One caption for each region."""
        answers = question.boxed(Wanted(caption=True))
        return question.rows(CAPTIONS, caption=[text for part in answers for text in part.captions])

    def score(
        self, truth: GroundTruth, rows: Iterable[pa.RecordBatch], options: ScoreOptions
    ) -> Scored:
        """Corpus scores over exactly the truth's regions."""
        ids = truth.regions["region_id"].to_pylist()
        references = dict(zip(ids, truth.references(truth.regions), strict=True))
        captions: dict[int | str, str] = {}
        for batch in rows:
            said = zip(batch["region_id"].to_pylist(), batch["caption"].to_pylist(), strict=True)
            for region_id, caption in said:
                if region_id in captions:
                    raise SchemaError(f"{options.where}: region {region_id} has two captions")
                captions[region_id] = caption
        found = score_captions(references, captions)
        facts = {
            "references": sum(map(len, references.values())),
            "text_processing": found.text_processing,
        }
        return Scored(found.metrics, notes=found.notes, facts=facts)

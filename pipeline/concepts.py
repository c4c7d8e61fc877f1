"""Concept weights of a teacher, and the concept columns of `regions` from embeddings.

The formula itself lives in model/concept_projector.py. Columns are computed from the float16
embedding that is stored, so that `reproject` gives the same bits.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from tap_engine.model.concept_projector import (
    concept_entropy,
    concept_log_probs,
    concept_weights,
    top_concepts,
)
from tap_engine.pipeline.teacher import Teacher
from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.tables import concepts_schema
from tap_engine.schemas.vocabulary import Vocabulary

SOURCE_TEMPLATES = ("a {}",)
TARGET_TEMPLATES = ("a photo of a {}.",)
"""TAP paper, appendix B, Algorithm 1: source for the student, target for the teacher."""


def parse_top_k(concepts: str, vocabulary_size: int) -> int:
    """Number of concepts that a row keeps, from "full", "top:K" or "none".

    Raises:
        ConfigError: another word, or a K below 1.
    """
    if concepts == "none":
        return 0
    if concepts == "full":
        return vocabulary_size
    kind, _, number = concepts.partition(":")
    if kind != "top" or not number.isdigit() or int(number) < 1:
        raise ConfigError(f"--concepts must be full, top:K or none, got {concepts!r}")
    return min(int(number), vocabulary_size)


def embed_concepts(teacher: Teacher, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Unit text embeddings [C, D] float32; several templates are averaged and re-normalised.

    Raises:
        ConfigError: a template without exactly one place for the name, or a text tower whose output
            is not finite.
    """
    for template in templates:
        check_template(template)
    total = sum(teacher.encode_texts([t.format(name) for name in names]) for t in templates)
    assert isinstance(total, Tensor)
    embeddings = F.normalize(total, dim=-1)
    good = torch.isfinite(embeddings).all(-1) & (embeddings.abs().amax(-1) > 0)
    if not good.all():
        first = names[int((~good).nonzero()[0])]
        raise ConfigError(
            f"the teacher's text embeddings of {int((~good).sum()):,} of {len(names):,} names are "
            f"not finite, the first of {first!r}; another precision (--precision fp32) may help"
        )
    return embeddings


def check_template(template: str) -> None:
    """Refuse a prompt that does not hold the name exactly once.

    Raises:
        ConfigError: it does not; `{{}}` is no place for a name.
    """
    try:
        places = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError:
        places = ["?"]
    if places != [""]:
        raise ConfigError(f"a concept template must contain {{}} exactly once, got {template!r}")


def same_text(teacher: Teacher, names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Names that the teacher cannot tell from an earlier one: it cuts long texts to its context."""
    first: dict[bytes, str] = {}
    lost = []
    for name in names:
        tokens = teacher.tokens([t.format(name) for t in templates]).tobytes()
        if first.setdefault(tokens, name) != name:
            lost.append(name)
    return lost


def concepts_table(
    vocabulary: Vocabulary, source: npt.NDArray[np.float32], target: npt.NDArray[np.float32]
) -> pa.Table:
    """The `concepts` table of unit source and target embeddings, each [C, D]."""
    schema = concepts_schema(source.shape[1])
    return pa.table(
        [
            pa.array(np.arange(len(vocabulary), dtype=np.int32)),
            pa.array(vocabulary.names, pa.string()),
            pa.array([list(labels) for labels in vocabulary.sources], pa.list_(pa.string())),
            fixed_size_lists(source, pa.float32()),
            fixed_size_lists(target, pa.float32()),
        ],
        schema=schema,
    )


@dataclass(frozen=True)
class ConceptPacker:
    """Embeddings -> (concept_ids, concept_probs, concept_entropy).

    Attributes:
        weights: [D, C] target weights, float32, on the device that embeddings come on.
        top_k: the number of concepts that are kept.
    """

    weights: Tensor
    top_k: int

    @classmethod
    def of(cls, target: npt.NDArray[np.float32], logit_scale: float, top_k: int) -> "ConceptPacker":
        """From the unit target embeddings [C, D] of the `concepts` table."""
        return cls(concept_weights(torch.from_numpy(target), logit_scale), top_k)

    def to(self, device: torch.device) -> "ConceptPacker":
        """The same on another device."""
        return ConceptPacker(self.weights.to(device), self.top_k)

    @torch.inference_mode()
    def pack(self, embeddings: Tensor) -> list[pa.Array]:
        """The three columns of N float16 embeddings [N, D]."""
        log_probs = concept_log_probs(embeddings, self.weights)
        ids, probabilities = top_concepts(log_probs, self.top_k)
        return [
            fixed_size_lists(ids.cpu().numpy().astype(np.uint16), pa.uint16()),
            fixed_size_lists(probabilities.half().cpu().numpy(), pa.float16()),
            pa.array(concept_entropy(log_probs).cpu().numpy(), pa.float32()),
        ]


def fixed_size_lists(values: npt.NDArray[np.generic], type_: pa.DataType) -> pa.Array:
    """[N, K] array -> fixed_size_list<type_>[K] of N rows, without a copy where layouts allow."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, type_), values.shape[1])

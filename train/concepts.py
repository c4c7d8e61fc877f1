"""Concept distributions of teacher and student, and the losses between them.

The formula is model/concept_projector.py's. Here are the two weight matrices of a store, and the
loss functions that compare a prediction with the store's teacher.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from tap_engine.model.concept_projector import concept_log_probs, concept_weights
from tap_engine.model.concepts import ConceptTable
from tap_engine.schemas.errors import ConfigError, StoreError
from tap_engine.train.data.examples import Batch
from tap_engine.train.data.store_reader import StoreReader
from tap_engine.train.losses import (
    concept_kl_loss,
    concept_reverse_kl_loss,
    concept_top_k_loss,
    feature_loss,
)


class ConceptSpace(nn.Module):
    """Concept names with the projection weights of student and teacher.

    The student is projected on the source texts ("a {}"), the teacher on the target texts ("a
    photo of a {}."): asymmetric distillation (TAP paper, appendix B).

    Attributes:
        table: what a user of the model names regions with: the student's side.
        source_weights, target_weights: [D, C] float32.
    """

    source_weights: Tensor
    target_weights: Tensor

    def __init__(
        self, names: tuple[str, ...], source: Tensor, target: Tensor, logit_scale: float
    ) -> None:
        super().__init__()
        self.table = ConceptTable(names, source, logit_scale)
        self.register_buffer("source_weights", self.table.weights())
        self.register_buffer("target_weights", concept_weights(target, logit_scale))

    @property
    def names(self) -> tuple[str, ...]:
        """Concept names by id."""
        return self.table.names

    @property
    def logit_scale(self) -> float:
        """Logit scale of both projections: the teacher's own."""
        return self.table.logit_scale

    @property
    def embed_dim(self) -> int:
        """D, the teacher's embedding width."""
        return self.source_weights.shape[0]

    @classmethod
    def of_store(cls, reader: StoreReader, logit_scale: float = 0.0) -> "ConceptSpace":
        """The concepts of a store.

        Args:
            reader: the store.
            logit_scale: instead of the one its teacher learned; 0 keeps that.

        Raises:
            StoreError: the store does not say which logit scale its teacher has.
        """
        table = reader.concepts()
        teacher = reader.settings.teacher
        scale = logit_scale or (teacher.logit_scale if teacher else 0.0)
        if not scale:
            raise StoreError(
                f"{reader.uri} was built without a teacher, so nothing says how its concepts are "
                "scaled; give the logit scale with --set loss.logit_scale=100"
            )
        return cls(
            tuple(table["name"].to_pylist()),
            _matrix(table, "source_embedding"),
            _matrix(table, "target_embedding"),
            float(scale),
        )

    @classmethod
    def of_stores(cls, readers: list[StoreReader], logit_scale: float = 0.0) -> "ConceptSpace":
        """The concepts that all stores share.

        Raises:
            ConfigError: two stores have other concepts or another teacher.
        """
        first, *others = [cls.of_store(reader, logit_scale) for reader in readers]
        for reader, other in zip(readers[1:], others, strict=True):
            same = other.names == first.names and other.logit_scale == first.logit_scale
            if not same or not torch.equal(other.target_weights, first.target_weights):
                raise ConfigError(
                    f"{readers[0].uri} and {reader.uri} were built with other concepts or another "
                    "teacher; one run needs one concept space (`tap-data reproject` makes it so)"
                )
        return first

    def student_log_probs(self, embeds: Tensor) -> Tensor:
        """[..., D] -> [..., C] float32, by the source texts."""
        return concept_log_probs(embeds, self.source_weights)

    def teacher_top(self, batch: Batch) -> Tensor:
        """[B, R] the teacher's most probable concept of each region."""
        if batch.embeddings is not None:
            return self.teacher_log_probs(batch.embeddings).argmax(-1)
        assert batch.concept_ids is not None
        return batch.concept_ids[..., 0]

    def teacher_log_probs(self, embeddings: Tensor) -> Tensor:
        """[..., D] -> [..., C] float32, by the target texts: exact, not the stored top K."""
        return concept_log_probs(embeddings, self.target_weights)


def _matrix(table: pa.Table, name: str) -> Tensor:
    values = np.stack(table[name].to_numpy(zero_copy_only=False))
    return torch.from_numpy(values.astype(np.float32))


def _kl(space: ConceptSpace, embeds: Tensor, batch: Batch) -> Tensor:
    target = space.teacher_log_probs(_embeddings(batch))
    return concept_kl_loss(space.student_log_probs(embeds), target)


def _reverse_kl(space: ConceptSpace, embeds: Tensor, batch: Batch) -> Tensor:
    target = space.teacher_log_probs(_embeddings(batch))
    return concept_reverse_kl_loss(space.student_log_probs(embeds), target)


def _top_k(space: ConceptSpace, embeds: Tensor, batch: Batch) -> Tensor:
    assert batch.concept_ids is not None and batch.concept_probs is not None
    log_probs = space.student_log_probs(embeds)
    return concept_top_k_loss(log_probs, batch.concept_ids, batch.concept_probs)


def _feature(space: ConceptSpace, embeds: Tensor, batch: Batch) -> Tensor:
    return feature_loss(embeds, _embeddings(batch))


def _embeddings(batch: Batch) -> Tensor:
    assert batch.embeddings is not None
    return batch.embeddings


class ConceptLoss(NamedTuple):
    """A way to learn concepts.

    Attributes:
        columns: what it needs of `regions`.
        loss: (space, predicted embeddings [B, R, D], batch) -> [B, R].
    """

    columns: tuple[str, ...]
    loss: Callable[[ConceptSpace, Tensor, Batch], Tensor]


CONCEPT_LOSSES: Mapping[str, ConceptLoss] = {
    "kl": ConceptLoss(("embedding",), _kl),
    "reverse_kl": ConceptLoss(("embedding",), _reverse_kl),
    "top_k": ConceptLoss(("concept_ids", "concept_probs"), _top_k),
    "feature": ConceptLoss(("embedding",), _feature),
}
"""By the name that `loss.concept_loss` takes."""

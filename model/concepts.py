"""Concept tables: names with text embeddings, which turn a semantic embedding into words.

Lies beside a checkpoint as `concepts.safetensors`; official concept files are pickles and are
converted once (official_weights.py).
"""

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tap_engine.model.concept_projector import concept_weights
from tap_engine.model.tensor_file import open_tensors, write_tensors
from tap_engine.schemas.errors import CheckpointError, ConfigError
from tap_engine.schemas.vocabulary import Vocabulary

CONCEPTS_FILE = "concepts.safetensors"

_TENSOR, _METADATA = "text_embeddings", "tap.concepts"


@dataclass(frozen=True, slots=True)
class ConceptTable:
    """A vocabulary that predictions can be named from.

    Attributes:
        names: concept names in id order; unique.
        text_embeddings: [C, E] of the source template ("a {}"), any float dtype; length does not
            matter, direction does.
        logit_scale: 1 / temperature, the teacher's own.
    """

    names: tuple[str, ...]
    text_embeddings: Tensor
    logit_scale: float

    def __post_init__(self) -> None:
        Vocabulary("concepts", self.names)  # refuses empty and double names
        if self.text_embeddings.ndim != 2 or len(self.text_embeddings) != len(self.names):
            raise ConfigError(
                f"{len(self.names)} concept names need text embeddings [{len(self.names)}, E], got "
                f"{list(self.text_embeddings.shape)}"
            )
        if not self.logit_scale > 0:
            raise ConfigError(f"logit_scale must be positive, got {self.logit_scale!r}")

    @property
    def fingerprint(self) -> str:
        """Fingerprint of names and order; the same as `Vocabulary.fingerprint`."""
        return Vocabulary("concepts", self.names).fingerprint

    def weights(self) -> Tensor:
        """[E, C] float32 for `concept_projector.concept_logits`."""
        return concept_weights(self.text_embeddings, self.logit_scale)

    def subset(self, names: Iterable[str]) -> "ConceptTable":
        """Only these concepts, in this order.

        Raises:
            ConfigError: a name is not here; close ones are listed.
        """
        ids = {name: index for index, name in enumerate(self.names)}
        wanted = tuple(names)
        if missing := [name for name in wanted if name not in ids]:
            close = difflib.get_close_matches(missing[0], self.names, 3)
            raise ConfigError(
                f"{len(missing)} of {len(wanted)} concepts have no text embedding here, first "
                f"{missing[0]!r}"
                + (f" (close: {', '.join(close)})" if close else "")
                + "; embed them with the teacher's text encoder and pass a ConceptTable"
            )
        rows = torch.tensor([ids[name] for name in wanted], dtype=torch.int64)
        return ConceptTable(wanted, self.text_embeddings[rows], self.logit_scale)

    def save(self, path: str | Path) -> None:
        """Writes the file, in the dtype of `text_embeddings`."""
        content = {"names": self.names, "logit_scale": self.logit_scale}
        write_tensors(Path(path), {_TENSOR: self.text_embeddings}, {_METADATA: json.dumps(content)})

    @classmethod
    def load(cls, path: str | Path) -> "ConceptTable":
        """Reads what `save` wrote.

        Raises:
            CheckpointError: missing or no such file.
        """
        with open_tensors(Path(path)) as file:
            try:
                content = json.loads((file.metadata() or {})[_METADATA])
                names, scale = tuple(content["names"]), float(content["logit_scale"])
                embeddings = file.get_tensor(_TENSOR)
            except (KeyError, ValueError, TypeError) as error:
                raise CheckpointError(
                    f"{path}: expected a concept file with {_TENSOR!r} and names, found {error!r}"
                ) from error
        return cls(names, embeddings, scale)

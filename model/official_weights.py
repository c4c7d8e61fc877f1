"""Reads official TAP weights and concept files: pickles, without running what they name.

`schemas.pickles` knows array constructors only; what a pickle of torch tensors needs besides is
allowed here.
"""

import hashlib
import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tap_engine.model.checkpoint import require_same_shapes
from tap_engine.model.concepts import ConceptTable
from tap_engine.model.config import PRESETS, TapConfig
from tap_engine.model.tap import TapModel
from tap_engine.schemas import pickles
from tap_engine.schemas.errors import CheckpointError

RELEASED_MD5 = {
    "707f80": "tap_vit_b_v1_1",
    "c1d41f": "tap_vit_l_v1_1",
    "4bdfb9": "tap_vit_h_v1_1",
    "b45cbf": "tap_vit_b_v1_0",
    "03f8ec": "tap_vit_l_v1_0",
}
"""First digits of the MD5 sums that the release page of tokenize-anything publishes."""

RELEASED_TOKENIZER = "9e556afd44213b6b"
"""Fingerprint of the tokenizer.model that the released weights speak through (LLaMA's)."""

OFFICIAL_PRESETS = ("tap-b", "tap-l", "tap-h")


def _load_storage(content: bytes) -> Any:
    """Stands in for torch's own function of this name, which would unpickle freely."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _rebuild_parameter(data: Tensor, requires_grad: bool, hooks: object) -> Tensor:
    return data


TORCH_GLOBALS: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): _load_storage,
}
"""What a pickle of torch tensors names besides the array constructors."""


def read_official(path: str | Path) -> dict[str, Tensor] | ConceptTable:
    """Content of an official pickle: weights by name, or a concept table.

    A model is a dict name -> array. Concepts are a list [weights, names]: float32 [E, C], unit text
    embeddings as columns times the logit scale, which is read off their length.

    Raises:
        CheckpointError: the file asks for anything but arrays and tensors, or holds neither.
    """
    content = pickles.load(path, extra=TORCH_GLOBALS)
    if isinstance(content, list | tuple) and len(content) == 2:
        return _concept_table(torch.as_tensor(content[0]), content[1], str(path))
    if isinstance(content, dict) and all(
        isinstance(key, str) and isinstance(value, np.ndarray | Tensor | np.generic | int)
        for key, value in content.items()
    ):
        return {key: torch.as_tensor(value) for key, value in content.items()}
    raise CheckpointError(
        f"{path}: expected a pickled dict name -> array, or a list [weights, names] of concepts; "
        f"found {type(content).__name__}"
    )


def _concept_table(weights: Tensor, names: Sequence[str], where: str) -> ConceptTable:
    if weights.ndim != 2 or weights.shape[1] != len(names):
        raise CheckpointError(
            f"{where}: expected weights [E, {len(names)}] for {len(names)} names, found "
            f"{list(weights.shape)}"
        )
    lengths = weights.float().norm(dim=0)
    scale = lengths.mean().item()
    if (lengths - scale).abs().max() > 0.01 * scale:
        raise CheckpointError(
            f"{where}: columns should all be as long as the logit scale, found "
            f"{lengths.min():.3g} to {lengths.max():.3g}"
        )
    return ConceptTable(tuple(map(str, names)), weights.float().T / lengths[:, None], scale)


def match_preset(weights: Mapping[str, Tensor], where: str) -> tuple[str, TapConfig]:
    """The official preset whose names and shapes these are.

    Raises:
        CheckpointError: none; says what differs from the nearest by encoder width.
    """
    found = {name: tuple(value.shape) for name, value in weights.items()}
    nearest = OFFICIAL_PRESETS[0]
    for name in OFFICIAL_PRESETS:
        if model_shapes(PRESETS[name]) == found:
            return name, PRESETS[name]
        width = PRESETS[name].encoder
        positions = found.get("image_encoder.pos_embed.weight", ())
        if positions[-1:] == (getattr(width, "embed_dim", None),):
            nearest = name
    require_same_shapes(model_shapes(PRESETS[nearest]), found, f"{where} (against {nearest})")
    raise AssertionError("unreachable: the shapes differ")


def model_shapes(config: TapConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every saved tensor of a model, without making it."""
    with torch.device("meta"):
        model = TapModel(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def write_official(path: str | Path, weights: Mapping[str, Tensor]) -> None:
    """The way back: a pickle of a dict name -> NumPy array, as the official loader expects."""
    # NumPy has no bfloat16.
    whole = {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in weights.items()}
    with open(path, "wb") as file:
        pickle.dump({k: v.cpu().numpy() for k, v in whole.items()}, file, protocol=4)


def write_official_concepts(path: str | Path, table: ConceptTable) -> None:
    """The way back: a pickled list [weights, names]."""
    with open(path, "wb") as file:
        pickle.dump([table.weights().numpy(), list(table.names)], file, protocol=4)


def released_as(path: str | Path) -> tuple[str, str | None]:
    """MD5 of a file, and the name it was released under if its first digits are published."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "md5").hexdigest()
    return digest, RELEASED_MD5.get(digest[:6])

"""A model on disk: one .safetensors whose metadata says all that is needed to use it.

    FOLDER/model.safetensors      weights under the official names; metadata: config and card
    FOLDER/concepts.safetensors   optional: names and text embeddings (concepts.py)
    FOLDER/tokenizer.json|.model  optional: without it there are no captions (text_tokenizer.py)

No pickle anywhere. The trainer keeps optimiser and stream state in files of its own beside these.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tap_engine.model.config import TapConfig
from tap_engine.model.tap import TapModel
from tap_engine.model.tensor_file import open_tensors, write_tensors
from tap_engine.schemas.errors import CheckpointError

MODEL_FILE = "model.safetensors"

SAMPLE_MODEL = "sample"
"""The name of the tiny TAP that comes with the package, wherever a checkpoint is asked for."""

_CONFIG, _CARD = "tap.config", "tap.card"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """Metadata of a checkpoint: config, fingerprints, logit scale, notes.

    Attributes:
        config: the model's sizes.
        tokenizer: fingerprint of the tokenizer it was trained with; None if it writes no captions.
        vocabulary: fingerprint of the concept vocabulary it was trained with.
        logit_scale: logit scale of the concept distribution it was trained with.
        about: anything else worth keeping, JSON values: recipe, step, data, software versions.
    """

    config: TapConfig
    tokenizer: str | None = None
    vocabulary: str | None = None
    logit_scale: float | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


def save_model(path: str | Path, state: Mapping[str, Tensor], card: ModelCard) -> Path:
    """Writes a checkpoint, replacing one of the same name in one step.

    Args:
        path: the file, or a folder, made if missing, for `model.safetensors`.
        state: `TapModel.state_dict()`, or an average of such; in any float dtype.
        card: what to say of it.

    Returns:
        The file's path.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        path = path / MODEL_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    notes = {
        "tokenizer": card.tokenizer,
        "vocabulary": card.vocabulary,
        "logit_scale": card.logit_scale,
        "about": card.about,
    }
    metadata = {_CONFIG: card.config.to_json(), _CARD: json.dumps(notes)}
    write_tensors(path, state, metadata)
    return path


def read_card(path: str | Path) -> ModelCard:
    """The card of a checkpoint file or folder, without its weights.

    Raises:
        CheckpointError: missing, or not a checkpoint of this project.
    """
    path = checkpoint_file(path)
    with open_tensors(path) as file:
        metadata = file.metadata() or {}
    if _CONFIG not in metadata:
        raise CheckpointError(
            f"{path}: a safetensors file without a model config; official weights are read by "
            "`tap-train convert-weights`"
        )
    config = TapConfig.from_json(metadata[_CONFIG])
    try:
        return ModelCard(config=config, **json.loads(metadata.get(_CARD, "{}")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: its card is damaged or newer than us: {error}") from error


def load_model(path: str | Path, device: str | torch.device = "cpu") -> TapModel:
    """The model of a checkpoint, in evaluation mode and float32.

    Args:
        path: the file, its folder, or "sample".
        device: the device to load to.

    Raises:
        CheckpointError: missing, damaged, or weights and config disagree.
    """
    with torch.device("meta"):  # no time spent on initial values: every tensor is in the file
        model = TapModel(read_card(path).config)
    model.to_empty(device=device)
    load_weights(model, path)
    return model.eval()


def load_weights(model: TapModel, path: str | Path, *, text: bool = True) -> None:
    """Fills a model with the weights of a checkpoint; every name and shape must agree.

    Args:
        model: filled in place.
        path: the file, or its folder.
        text: False leaves the text decoder as it is, whatever the checkpoint's is like.

    Raises:
        CheckpointError: lists what is missing, unknown or of another shape.
    """
    path = checkpoint_file(path)

    def wanted(name: str) -> bool:
        return text or not name.startswith("text_decoder.")

    own = {name: value for name, value in model.state_dict().items() if wanted(name)}
    with open_tensors(path) as file:
        names = [name for name in file.keys() if wanted(name)]  # noqa: SIM118
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        require_same_shapes({name: tuple(v.shape) for name, v in own.items()}, shapes, str(path))
        for name, value in own.items():
            value.copy_(file.get_tensor(name))


def require_same_shapes(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Refuses weights that are not exactly this model's.

    Raises:
        CheckpointError: counts and the first of each kind of difference.
    """
    missing, unknown = expected.keys() - found.keys(), found.keys() - expected.keys()
    other = [name for name in expected.keys() & found.keys() if expected[name] != found[name]]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing, first {min(missing)!r}")
    if unknown:
        problems.append(f"{len(unknown)} unknown, first {min(unknown)!r}")
    if other:
        name = min(other)
        problems.append(
            f"{len(other)} of another shape, first {name!r}: expected {list(expected[name])}, "
            f"found {list(found[name])}"
        )
    if problems:
        raise CheckpointError(f"{where}: weights of another model: " + "; ".join(problems))


def named(path: str | Path) -> Path:
    """The path, or the shipped model's folder where it is the name `sample`.

    A folder of that name counts only if a model or a run is in it.
    """
    path = Path(path)
    inside = (MODEL_FILE, "checkpoints")
    if path == Path(SAMPLE_MODEL) and not any((path / name).exists() for name in inside):
        return Path(__file__).parent / SAMPLE_MODEL
    return path


def checkpoint_file(path: str | Path) -> Path:
    """The .safetensors of a checkpoint given by file, folder or name.

    Raises:
        CheckpointError: there is none.
    """
    path = named(path)
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"no checkpoint {str(file)!r}: expected a folder with {MODEL_FILE}")
    return file

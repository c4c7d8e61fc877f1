"""An Open-Vocabulary SAM on disk.

    FOLDER/model.safetensors     weights; metadata: settings and what made it
    FOLDER/classes.safetensors   optional: class names with their text prototypes (classes.py)

The frozen CLIP is inside, so a folder is whole: neither open_clip nor a download is needed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tap_engine.model.checkpoint import MODEL_FILE, require_same_shapes
from tap_engine.model.ovsam.config import OvsamConfig
from tap_engine.model.ovsam.model import OvsamModel
from tap_engine.model.tensor_file import open_tensors, write_tensors
from tap_engine.schemas.errors import CheckpointError

_CONFIG, _ABOUT = "ovsam.config", "ovsam.about"


def save_ovsam(
    folder: str | Path,
    state: Mapping[str, Tensor],
    config: OvsamConfig,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the weights, replacing those of an earlier call in one step.

    Args:
        folder: made if missing.
        state: `OvsamModel.state_dict()`.
        config: of the model.
        about: what made it: recipe, step, teachers, software; JSON values.

    Returns:
        The file.
    """
    path = Path(folder) / MODEL_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {_CONFIG: config.to_json(), _ABOUT: json.dumps(about or {})}
    write_tensors(path, state, metadata)
    return path


def read_about(folder: str | Path) -> tuple[OvsamConfig, dict[str, Any]]:
    """Settings and provenance of a checkpoint, without its weights.

    Raises:
        CheckpointError: missing, or a checkpoint of another kind.
    """
    path = ovsam_file(folder)
    with open_tensors(path) as file:
        metadata = file.metadata() or {}
    if _CONFIG not in metadata:
        raise CheckpointError(
            f"{path}: no Open-Vocabulary SAM; a TAP checkpoint is opened by Tap.from_pretrained"
        )
    return OvsamConfig.from_json(metadata[_CONFIG]), json.loads(metadata.get(_ABOUT, "{}"))


def is_ovsam(folder: str | Path) -> bool:
    """Whether a folder or file is a checkpoint of this kind."""
    path = Path(folder)
    path = path / MODEL_FILE if path.is_dir() else path
    if not path.is_file():
        return False
    with open_tensors(path) as file:
        return _CONFIG in (file.metadata() or {})


def load_ovsam(folder: str | Path, device: str | torch.device = "cpu") -> OvsamModel:
    """The model of a checkpoint, in evaluation mode and float32.

    Raises:
        CheckpointError: missing, damaged, or weights and settings disagree.
    """
    path = ovsam_file(folder)
    config, _ = read_about(path)
    model = OvsamModel(config)
    own = model.state_dict()
    with open_tensors(path) as file:
        names = list(file.keys())
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        require_same_shapes({k: tuple(v.shape) for k, v in own.items()}, shapes, str(path))
        for name, value in own.items():
            value.copy_(file.get_tensor(name))
    return model.to(device).eval()


def ovsam_file(folder: str | Path) -> Path:
    """The .safetensors of a checkpoint given by file or folder.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(folder)
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"no checkpoint {str(file)!r}: expected a folder with {MODEL_FILE}")
    return file

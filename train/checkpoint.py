"""Checkpoints of a run: everything it needs to continue, written whole or not at all.

    RUN/checkpoints/step_00001000/
        model.safetensors     the model to use (the moving average, if kept); loads as is
        concepts.safetensors  names and text embeddings it was trained with
        trainer.safetensors   optimiser moments, training-only parameters, raw weights
        state.json            step, stream position and versions, loss scale, settings

There is no random state to save: what is random is a function of seed, step and image. No pickle.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tap_engine.model.checkpoint import load_model, named, read_card, save_model
from tap_engine.model.concepts import CONCEPTS_FILE
from tap_engine.model.tensor_file import write_tensors
from tap_engine.model.text_tokenizer import FILE_NAMES as TOKENIZER_FILES
from tap_engine.schemas.errors import CheckpointError, ConfigError
from tap_engine.schemas.replacing import replacing

CHECKPOINTS_FOLDER, STATE, TRAINER = "checkpoints", "state.json", "trainer.safetensors"

_NAME = re.compile(r"step_(\d{8})")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """When to save, and what to keep.

    Attributes:
        every: steps between checkpoints; the last step is always saved.
        keep: number of the newest that stay.
        keep_every: checkpoints at multiples of this many steps stay for good; 0 none.
    """

    every: int = 1000
    keep: int = 2
    keep_every: int = 0

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1 or self.keep_every < 0:
            raise ConfigError(
                "checkpoint.every and keep must be at least 1 and keep_every not negative, got "
                f"{self.every}, {self.keep}, {self.keep_every}"
            )


def save_checkpoint(
    run: Path,
    step: int,
    *,
    write_model: Any,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    config: CheckpointConfig,
) -> Path:
    """Writes a checkpoint, then drops the old ones that need not stay.

    Args:
        run: the run's folder.
        step: steps done.
        write_model: function of a folder that writes what a user of the model needs.
        tensors: what else the trainer needs.
        state: JSON values.
        config: what to keep.

    Returns:
        The checkpoint's folder.
    """
    final = run / CHECKPOINTS_FOLDER / f"step_{step:08d}"
    final.parent.mkdir(parents=True, exist_ok=True)
    with replacing(final) as partial:
        partial.mkdir()
        write_model(partial)
        write_tensors(partial / TRAINER, tensors, {})
        (partial / STATE).write_text(json.dumps({"step": step, **state}))
    for old in checkpoints(run)[: -config.keep]:
        if not config.keep_every or _step(old) % config.keep_every:
            shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    folder = run / CHECKPOINTS_FOLDER
    found = [p for p in folder.iterdir() if _NAME.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=_step)


def find_checkpoint(run: Path, resume: str) -> Path | None:
    """The checkpoint to go on from.

    Args:
        run: the run's folder.
        resume: "auto" (the newest, or none), "never", or a checkpoint folder.

    Raises:
        CheckpointError: the folder is no checkpoint, or "never" with checkpoints there.
    """
    found = checkpoints(run)
    if resume == "auto":
        return found[-1] if found else None
    if resume == "never":
        if found:
            raise CheckpointError(
                f"{run} already has checkpoints up to {found[-1].name}; give another --out, or "
                "--resume auto to go on"
            )
        return None
    path = Path(resume)
    if not (path / STATE).is_file():
        raise CheckpointError(
            f"{resume!r} is no checkpoint: expected a folder with {STATE}, as in "
            f"{run / CHECKPOINTS_FOLDER}/step_00001000; or auto, or never"
        )
    return path


def model_folder(path: Path) -> Path:
    """The folder of the newest model: `path` itself, the last checkpoint of a run, or "sample"'s.

    Of a run of several phases it is the last checkpoint of the latest phase.

    Raises:
        CheckpointError: a run without checkpoints.
    """
    path = named(path)
    phases = [p for p in sorted(path.glob("[1-9]-*")) if checkpoints(p)] if path.is_dir() else []
    if phases:
        path = phases[-1]
    if (path / CHECKPOINTS_FOLDER).is_dir():
        found = checkpoints(path)
        if not found:
            raise CheckpointError(f"{path} is a run without a complete checkpoint yet")
        return found[-1]
    return path


def export_model(path: Path, out: Path, *, half: bool) -> list[Path]:
    """Copies a model without what only training needs.

    Args:
        path: run or checkpoint folder.
        out: folder to write.
        half: parameters in float16. Buffers stay: positions and running statistics need float32.

    Returns:
        The files written.
    """
    folder = model_folder(path)
    model, card = load_model(folder), read_card(folder)
    state = dict(model.state_dict())
    if half:
        state |= {name: p.detach().half() for name, p in model.named_parameters()}
    files = [save_model(out, state, card)]
    for name in (CONCEPTS_FILE, *TOKENIZER_FILES):
        if (folder / name).is_file():
            files.append(Path(shutil.copy(folder / name, out)))
    return files


def read_state(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint.

    Raises:
        CheckpointError: damaged.
    """
    try:
        state = json.loads((path / STATE).read_text())
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(state, dict):
        raise _damaged(path, ValueError(f"{STATE} is no object"))
    return state


def read_run_state(path: Path) -> dict[str, Any]:
    """The same, with all that a run needs to go on.

    Raises:
        CheckpointError: damaged, or of a version that kept other things.
    """
    state = read_state(path)
    lacking = [key for key in ("step", "stream", "config", "scaler") if key not in state]
    stream = state.get("stream")
    if not lacking and not (isinstance(stream, dict) and {"consumed", "versions"} <= stream.keys()):
        lacking = ["stream.consumed", "stream.versions"]
    if lacking:
        raise CheckpointError(
            f"{path} was written by another version: its {STATE} lacks {', '.join(lacking)}. Its "
            "weights still start a new run: --set init.weights=CHECKPOINT and another --out"
        )
    return state


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The trainer's tensors of a checkpoint.

    Raises:
        CheckpointError: damaged.
    """
    try:
        return load_file(path / TRAINER)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {error}; remove it to go on from the one before")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments by parameter name: "optimizer/<name>/exp_avg", ..."""
    return {
        f"optimizer/{name}/{key}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts the tensors of `optimizer_tensors` back into an optimiser.

    Raises:
        CheckpointError: a trained parameter has no moments there.
    """
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            prefix = f"optimizer/{name}/"
            found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if not found:
                raise CheckpointError(
                    f"the checkpoint has no optimiser state of {name!r}: other parameters train "
                    "now; start a new run with --set init.weights=CHECKPOINT"
                )
            optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in found.items()}


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match.group(1))

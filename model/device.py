"""Turns names of devices and precisions into torch's devices and types."""

import os

import torch

from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.precision import check_precision

_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def resolve_device(name: str | torch.device, setting: str = "--device") -> torch.device:
    """The device of a name.

    Args:
        name: "auto" (CUDA where there is one, under torchrun this process's own; else the CPU),
            "cpu", "cuda", "cuda:1", or a torch device.
        setting: what the error calls it.

    Raises:
        ConfigError: no such device, or CUDA where torch sees none.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{setting} {name!r}: expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"{setting} {str(name)!r}: torch sees no CUDA device here; use auto or cpu"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"{setting} {str(name)!r}: this machine has {torch.cuda.device_count()} CUDA devices"
        )
    return device


def dtype_of(precision: str, device: torch.device, setting: str = "--precision") -> torch.dtype:
    """The type to compute with.

    Args:
        precision: one of `schemas.precision.PRECISIONS`.
        device: decides what `auto` is: float16 on CUDA, float32 elsewhere.
        setting: what the error calls it.

    Raises:
        ConfigError: an unknown word.
    """
    check_precision(precision, setting)
    if precision == "auto":
        precision = "fp16" if device.type == "cuda" else "fp32"
    return _TYPES[precision]

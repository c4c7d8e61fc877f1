"""One golden fixture: its tensors, its description, and how what was found is compared with it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class Verdict:
    """One compared tensor.

    `error` is the largest absolute difference, or the number of differing entries where the
    fixture asks for equality (tolerance 0 or a count).
    """

    fixture: str
    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # NaN does not pass


class Fixture:
    """Tensors in float32, on a device, and the description beside them."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.name = path.stem
        self.info = json.loads(path.with_suffix(".json").read_text())
        self.config = self.info["config"]
        self.tensors = {
            name: value.float() if value.dtype == torch.float16 else value
            for name, value in load_file(path, device).items()
        }

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def weights(self) -> dict[str, Tensor]:
        prefix = "weights/"
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}

    def close(self, name: str, found: Tensor, tolerance: float | None = None) -> Verdict | None:
        """Largest difference; None where the fixture does not bring this tensor."""
        if name not in self.tensors:
            return None
        expected = self[name]
        if tuple(found.shape) != tuple(expected.shape):
            raise ValueError(
                f"{self.name}: {name} is {list(expected.shape)}, found {list(found.shape)}"
            )
        if tolerance is None:
            tolerance = float(self.info["tolerance"]["atol"])
        error = (found.double() - expected.double()).abs().max().item()
        return Verdict(self.name, name, error, tolerance)

    def same(self, name: str, found: Tensor, allowed: float = 0) -> Verdict | None:
        """Number of different entries; None where the fixture does not bring this tensor."""
        if name not in self.tensors:
            return None
        differing = (found.to(self[name].dtype) != self[name]).sum().item()
        return Verdict(self.name, name, differing, allowed)


Checks = Iterator[Verdict | None]

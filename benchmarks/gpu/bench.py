"""What a step measures with: timing, memory, and a result file that is written after every part."""

import gc
import json
import os
import platform
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import model as timing


class Skip(Exception):
    """A part that cannot run here; the text says why."""


def identity(device: str, dry: bool, seed: int) -> dict[str, Any]:
    """What has to be the same for a result to be kept."""
    card = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    return {"card": card, "torch": torch.__version__, "dry_run": dry, "seed": seed}


class Bench:
    """One step's measurements.

    Args:
        path: result file; one of the same card, torch, sizes and seed is continued.
        device: "cuda" or "cpu".
        dry: tiny sizes.
        seed: of everything random.
    """

    def __init__(self, path: Path, device: str, *, dry: bool, seed: int) -> None:
        self.path, self.device, self.dry, self.seed = path, device, dry, seed
        who = identity(device, dry, seed)
        found = json.loads(path.read_text()) if path.is_file() else {}
        if any(found.get(key) != value for key, value in who.items()):
            found = {}
        self.result: dict[str, Any] = {
            **who,
            "python": platform.python_version(),
            "date": datetime.now(UTC).date().isoformat(),
            "parts": found.get("parts", []),
            "figures": found.get("figures", {}),
            "skipped": {},
            "failed": {},
        }
        torch.manual_seed(seed)

    def part(self, name: str, run: Callable[[], None]) -> None:
        """Runs a part, unless it is done; its failure leaves the others alone."""
        if name in self.result["parts"]:
            return
        print(f"  {name}", flush=True)
        try:
            run()
        except Skip as reason:
            self.result["skipped"][name] = str(reason)
        except Exception as error:
            traceback.print_exc()
            text = str(error).partition("\n")[0]
            self.result["failed"][name] = f"{type(error).__name__}: {text}"[:300]
        else:
            self.result["parts"].append(name)
        self.save()
        self.reset_peak()

    def figure(self, name: str, value: float, unit: str, note: str = "") -> None:
        """Keeps one figure; names are those of expected.py where one is expected."""
        self.result["figures"][name] = {"value": value, "unit": unit, "note": note}
        print(f"    {name}: {value:.4g} {unit} {note}", flush=True)
        self.save()

    def save(self) -> None:
        """Writes what there is; a reader sees the old file or the new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".part")
        draft.write_text(json.dumps(self.result, indent=1))
        os.replace(draft, self.path)

    def seconds(self, step: Callable[[], object], repeats: int = 5) -> float:
        """Median time of a run, after two that are not counted."""
        return timing.seconds(step, 1 if self.dry else repeats, self.device)

    def ceiling(self, dtype: torch.dtype) -> float:
        """FLOP/s of the best large matrix product, measured in this process."""
        if self.dry:
            a = torch.randn(256, 256, device=self.device, dtype=dtype)
            return 2 * 256**3 / max(self.seconds(lambda: a @ a), 1e-9)
        return timing.matmul_ceiling(self.device, dtype)

    def reset_peak(self) -> None:
        """Frees what nobody holds; peak memory is counted from here."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float:
        """Peak memory of the device since `reset_peak`; 0 on a CPU."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.device == "cuda" else 0.0

    def need_cuda(self, what: str) -> None:
        """Skips the part without a GPU."""
        if self.device != "cuda":
            raise Skip(f"{what} needs a CUDA device")

    def wait(self) -> float:
        """The time, when the device has done what it was asked for."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

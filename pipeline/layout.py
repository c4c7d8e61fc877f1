"""Chooses the number of workers of a build and the size of its units."""

from dataclasses import dataclass
from typing import Any

from tap_engine.pipeline.config import BuildConfig
from tap_engine.schemas.errors import ConfigError

_MEMORY_AN_ACTOR = 2 << 30
"""Bytes assumed for a worker without GPU when choosing how many to start: interpreter, torch,
a small teacher and the crops in flight (measured below 1.5 GB; benchmarks/results/engine.md)."""


@dataclass(frozen=True)
class WorkerLayout:
    """Resolved worker settings."""

    actors: int
    cpus: int
    gpus: float
    unit_images: int

    def describe(self) -> str:
        """One line for people."""
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return (
            f"{self.actors} worker{'s' * (self.actors > 1)}, each {self.cpus} CPU{gpus}; "
            f"units of {self.unit_images} images"
        )


def choose_layout(config: BuildConfig, resources: dict[str, Any]) -> WorkerLayout:
    """Workers that fit the cluster: one per GPU with a share of the CPUs, else one per CPU.

    Raises:
        ConfigError: more is asked for than the cluster has.
    """
    workers = config.workers
    cpus, gpus = int(resources.get("CPU", 1)), float(resources.get("GPU", 0))
    gpus_each = (1.0 if gpus else 0.0) if workers.teacher_gpus is None else workers.teacher_gpus
    if config.teacher is None:
        gpus_each = 0.0
    if gpus_each:
        actors = workers.actors or max(1, int(gpus / gpus_each))
        cpus_each = workers.crop_cpus or min(max(cpus // actors, 1), 8)
    else:
        cpus_each = workers.crop_cpus or 1
        by_memory = int(resources.get("memory", _MEMORY_AN_ACTOR) // _MEMORY_AN_ACTOR)
        actors = workers.actors or max(1, min(cpus // cpus_each, by_memory))
    if actors * cpus_each > cpus or actors * gpus_each > gpus:
        raise ConfigError(
            f"{actors} workers of {cpus_each} CPU and {gpus_each:g} GPU were asked for; the "
            f"cluster has {cpus} CPU and {gpus:g} GPU"
        )
    # With a teacher on a CPU a unit of 512 images would take most of an hour, and progress comes
    # in units.
    large = gpus_each or config.teacher is None
    return WorkerLayout(actors, cpus_each, gpus_each, workers.unit_images or (512 if large else 32))

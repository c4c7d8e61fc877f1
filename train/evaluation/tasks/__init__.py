"""One file for each evaluation. A file put here is a task of `tap-train eval`: nothing lists it.

Names are read from the file names, so that `--help` need not import what the tasks import.
"""

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING

from tap_engine.schemas.errors import ConfigError

if TYPE_CHECKING:
    from tap_engine.train.evaluation.evaluation import Evaluation


def task_names() -> tuple[str, ...]:
    """Names of all evaluations, by alphabet."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def task(name: str) -> "Evaluation":
    """The evaluation of a name.

    Raises:
        ConfigError: no such evaluation; names those there are.
    """
    if name not in task_names():
        raise ConfigError(f"unknown task {name!r}; there are {', '.join(task_names())}")
    from tap_engine.train.evaluation.evaluation import Evaluation

    module = import_module(f"{__name__}.{name}")
    for found in vars(module).values():
        if not isinstance(found, type) or not issubclass(found, Evaluation):
            continue
        if getattr(found, "name", None) == name:
            return found()
    raise ConfigError(f"{module.__file__}: expected a subclass of Evaluation with name = {name!r}")


def task_of_protocol(protocol: str) -> "Evaluation":
    """The evaluation whose scores go by a name.

    Raises:
        ConfigError: no such protocol; names those there are.
    """
    known = {name: found for found in map(task, task_names()) for name in protocols_of(found)}
    if protocol not in known:
        raise ConfigError(f"unknown protocol {protocol!r}; known: {', '.join(known)}")
    return known[protocol]


def protocols_of(evaluation: "Evaluation") -> tuple[str, ...]:
    """Names that an evaluation's scores go by."""
    return evaluation.protocols or (evaluation.name,)

"""Recipes of builds: functions that return complete settings.

A recipe is the settings and nothing else: `--set name.field=value` changes any of them, and
`tap-data recipes NAME` lists them. What is not named here has the default of its dataclass.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from tap_engine.pipeline.config import BuildConfig
from tap_engine.pipeline.teacher import TeacherConfig
from tap_engine.schemas.errors import ConfigError


def semantic_sa1b() -> BuildConfig:
    """SemanticSA-1B with the paper's teacher, EVA-CLIP-E (TAP paper, section 3.1)."""
    return BuildConfig()


def sample() -> BuildConfig:
    """The drawn sample world with the shipped teacher: minutes on a laptop."""
    return replace(semantic_sa1b(), teacher=TeacherConfig(name="sample"))


def captions() -> BuildConfig:
    """Captioned boxes without a teacher, as the caption data of the TAP paper."""
    return replace(semantic_sa1b(), teacher=None)


RECIPES: Mapping[str, Callable[[], BuildConfig]] = {
    "semantic-sa1b": semantic_sa1b,
    "sample": sample,
    "captions": captions,
}


def recipe(name: str) -> BuildConfig:
    """The settings of a recipe; `out` is still empty.

    Raises:
        ConfigError: no such recipe.
    """
    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]()

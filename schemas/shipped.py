"""Paths of the `sample` teacher and the `sample` scenes that ship with the package.

Only paths are known here, so that every room may ask: the engine for its teacher, training for the
trunk of a model. The model weights `sample` belong to model/checkpoint.py.
"""

from pathlib import Path

from tap_engine.schemas.errors import ConfigError

SAMPLE = "sample"

_PACKAGE = Path(__file__).parents[1]


def sample_teacher() -> Path:
    """The folder of the `sample` teacher: an open_clip model, its tokenizer and training.json.

    Raises:
        ConfigError: it is not in this installation.
    """
    return _existing(
        _PACKAGE / "pipeline/sample/teacher",
        "open_clip_model.safetensors",
        "train one: tap-data train-teacher DIR, then --teacher DIR",
    )


def sample_teacher_weights() -> Path:
    """The weight file of the `sample` teacher, whose image tower a model may start from.

    Raises:
        ConfigError: it is not in this installation.
    """
    return sample_teacher() / "open_clip_model.safetensors"


def sample_scenes() -> Path:
    """The folder of the data set `sample`: drawn scenes in shards, and their truth table.

    Raises:
        ConfigError: it is not in this installation.
    """
    return _existing(
        _PACKAGE / "pipeline/sample/scenes", "sample.json", "draw some: tap-data sample DIR"
    )


def _existing(folder: Path, file: str, otherwise: str) -> Path:
    if not (folder / file).is_file():
        raise ConfigError(f"{folder} holds no {file}: this installation is not whole. {otherwise}")
    return folder

"""Names of precisions (auto, fp32, fp16, bf16), the same in every setting and option."""

from typing import Literal, get_args

from tap_engine.schemas.errors import ConfigError

Precision = Literal["auto", "fp32", "fp16", "bf16"]
"""`auto` is fp16 on a CUDA device and fp32 elsewhere; a teacher stored in bf16 takes bf16 there."""

PRECISIONS: tuple[str, ...] = get_args(Precision)


def check_precision(word: str, setting: str) -> None:
    """Refuse a word that is none of `PRECISIONS`.

    Args:
        word: what was given.
        setting: the option or setting that gave it, such as "--precision".

    Raises:
        ConfigError: names the setting and the words there are.
    """
    if word not in PRECISIONS:
        raise ConfigError(f"{setting}: expected one of {', '.join(PRECISIONS)}, got {word!r}")

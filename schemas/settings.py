"""`--set name.field=value`: changes to nested frozen dataclasses, from text.

Values are parsed by the fields' types, and a name that does not exist is an error that names close
ones. Training and the data engine share it.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from tap_engine.schemas.errors import ConfigError

Config = TypeVar("Config")

_FEW = 20
"""Up to this number of settings an unknown name is answered with all of them."""


def with_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """Returns a copy of a config with `a.b=value` applied in turn.

    Args:
        config: a frozen dataclass, nested.
        overrides: "path=value". Lists are comma-separated, mappings are "key:value,key:value".

    Raises:
        ConfigError: no such field (close names are given), or a value that does not fit.
    """
    for override in overrides:
        path, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--set takes name.field=value, got {override!r}")
        name = path.strip()
        known = dict(field_names(config))
        if name not in known:
            raise ConfigError(_unknown(name, list(known)))
        config = _replaced(config, name.split("."), value.strip(), name)
    return config


def _unknown(name: str, known: list[str]) -> str:
    if parts := [other for other in known if other.startswith(f"{name}.")]:
        return f"{name!r} is a group of settings: {', '.join(parts)}"
    # A right name in the wrong group is as close as a misspelt one.
    last = name.rpartition(".")[2]
    close = [other for other in known if other.rpartition(".")[2] == last]
    close += difflib.get_close_matches(name, known, 3, 0.6)
    if len(known) <= _FEW:
        return f"no setting {name!r}; there are {', '.join(known)}"
    return f"no setting {name!r}; " + (
        f"close: {', '.join(dict.fromkeys(close))}"
        if close
        else "`recipes RECIPE` of `tap-train` and of `tap-data` lists all"
    )


def field_names(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from field_names(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value


def _replaced(config: Any, path: list[str], value: str, name: str) -> Any:
    head, *rest = path
    current = getattr(config, head)
    if rest:
        return dataclasses.replace(config, **{head: _replaced(current, rest, value, name)})
    kind = typing.get_type_hints(type(config))[head]
    return dataclasses.replace(config, **{head: _parsed(value, kind, name)})


def _parsed(text: str, kind: Any, name: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if kind in (int, float) and not math.isfinite(float(text)):
            raise ValueError("not finite")
        if kind in (int, float, str):
            # 1e3 is a number of steps too.
            return (
                int(float(text)) if kind is int and float(text) == int(float(text)) else kind(text)
            )
        if origin is tuple:
            parts = [part for part in text.split(",") if part]
            if args[-1] is ...:
                return tuple(_parsed(part, args[0], name) for part in parts)
            if len(parts) != len(args):
                raise ValueError(f"{len(parts)} values")
            return tuple(_parsed(part, a, name) for part, a in zip(parts, args, strict=True))
        if origin is typing.Literal:
            return {str(word): word for word in args}[text]
        if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
            pairs = [part.rsplit(":", 1) for part in text.split(",") if part]
            return {key: _parsed(item, args[1], name) for key, item in pairs}
        if origin is types.UnionType and str in args and type(None) not in args:
            return text  # what else the field may hold is for Python
        if origin is types.UnionType and type(None) in args:
            if text.lower() == "none":
                return None
            return _parsed(text, next(a for a in args if a is not type(None)), name)
    except (ValueError, KeyError, OverflowError) as error:
        wanted = kind.__name__ if isinstance(kind, type) else str(kind)
        if origin is typing.Literal:
            wanted = f"one of {', '.join(map(str, args))}"
        raise ConfigError(f"{name} takes {wanted}, got {text!r}") from error
    raise ConfigError(f"{name} ({kind}) cannot be set from a command line")


def shown(value: object) -> str:
    """A value in the form that `--set` takes."""
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    if isinstance(value, Mapping):
        return ",".join(f"{key}:{item}" for key, item in value.items())
    return str(value)

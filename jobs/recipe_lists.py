"""How recipes and their settings are listed, by `tap-data` and `tap-train` alike."""

from collections.abc import Callable, Mapping
from typing import Any

import typer


def print_recipes(recipes: Mapping[str, Callable[..., Any]]) -> None:
    """One line per recipe: its name and the first line of its docstring."""
    width = max(len(name) for name in recipes)
    for name, function in recipes.items():
        typer.echo(f"{name:{width}} {(function.__doc__ or '').splitlines()[0]}")


def print_settings(config: Any, overrides: list[str] | None) -> None:
    """Every setting of a config, in the form that --set takes.

    Raises:
        ConfigError: an override that does not fit.
    """
    from tap_engine.schemas.settings import field_names, shown, with_overrides

    for setting, value in field_names(with_overrides(config, overrides or [])):
        typer.echo(f"{setting}={shown(value)}")

"""Provenance: what made a table, stored as JSON in the table's own metadata.

`settings` decide the values in the rows: appending with other settings is refused. `made` is for
people: versions, time, host-independent facts that may differ between two runs of one build.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from tap_engine.schemas.errors import SchemaError

METADATA_KEY = "tap.provenance"

_PACKAGES = (
    "tap-engine",
    "torch",
    "open_clip_torch",
    "ray",
    "pylance",
    "pyarrow",
    "numpy",
    "pillow",
)


@dataclass(frozen=True)
class Provenance:
    """Origin of a table's rows: settings and software.

    Attributes:
        settings: nested JSON values; two tables with equal settings hold comparable rows.
        made: nested JSON values that may differ between runs of one build.
    """

    settings: Mapping[str, Any]
    made: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON, keys sorted."""
        return json.dumps({"settings": self.settings, "made": self.made}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Provenance":
        """Reads what `to_json` wrote.

        Raises:
            SchemaError: not such a text.
        """
        try:
            content = json.loads(text)
            return cls(content["settings"], content["made"])
        except (ValueError, KeyError, TypeError) as error:
            raise SchemaError(f"table metadata {METADATA_KEY!r} is damaged: {error}") from error

    def differences(self, other: "Provenance") -> list[str]:
        """`name: ours against theirs` for every setting that differs, nested names dotted."""
        ours, theirs = _flat(self.settings), _flat(other.settings)
        return [
            f"{name}: {ours.get(name)!r} against {theirs.get(name)!r}"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]

    def require_same(self, stored: "Provenance", where: str) -> None:
        """Refuse to add rows to a table that was made otherwise.

        Raises:
            SchemaError: names each differing setting with both values, the new one first.
        """
        if different := self.differences(stored):
            raise SchemaError(
                f"{where} was built with other settings (this run against the store): "
                + "; ".join(different)
                + ". Use the stored settings, or another --out"
            )


def software() -> dict[str, str]:
    """Versions of what touches the numbers, and the time, for `Provenance.made`."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions | {"created_at": datetime.now(UTC).isoformat(timespec="seconds")}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat

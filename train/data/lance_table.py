"""The one place of this room that opens a Lance table."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tap_engine.schemas.errors import StoreError

if TYPE_CHECKING:
    import lance


def open_table(
    uri: str,
    storage_options: Mapping[str, str] | None = None,
    *,
    version: int | None = None,
    hint: str = "`tap-data build-semantic` makes a store",
) -> "lance.LanceDataset":
    """Opens a table that exists.

    Args:
        uri: path or URI of the `.lance` folder.
        storage_options: options of the object store, as Lance takes them.
        version: a version of the table; the newest where it is None.
        hint: what the error advises.

    Raises:
        StoreError: there is no table, it cannot be read, or the version is gone.
    """
    import lance

    options = dict(storage_options or {}) or None
    try:
        return lance.dataset(uri, version=version, storage_options=options)
    except (ValueError, OSError) as error:
        wanted = "" if version is None else f" at version {version}"
        raise StoreError(
            f"no readable table {uri}{wanted}: {str(error).splitlines()[0]}; {hint}"
        ) from error

"""The errors this system raises on purpose.

Every message says what was expected, what was found, where, and what to do next.
Bad rows of the data are not errors: they become rows of the `rejects` table (rejects.py).
"""


class TapError(Exception):
    """Base of every error a user can cause and mend; commands print it without a traceback."""


class ConfigError(TapError):
    """A setting is out of range, unknown, or contradicts another."""


class SchemaError(TapError):
    """A table, file or array is not of the agreed form, or was made with other settings."""


class SourceError(TapError):
    """A whole source cannot be read: missing, not reachable, or of no known layout."""


class StoreError(TapError):
    """The store refuses: held by another driver, changed behind our back, or damaged."""


class CheckpointError(TapError):
    """A checkpoint or weight file is missing, incomplete, unsafe or of another model."""

"""Cache of tar indices in the store, so that a resume need not read the tars again.

A cache, not a ledger: any of its files may be deleted at any time. An 11 GB shard on an object
store takes some minutes to index, header by header, and a run over SA-1B has a thousand of them.
"""

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from tap_engine.pipeline.sources.filesystem import base_name
from tap_engine.pipeline.sources.tar_index import Damage, Member
from tap_engine.schemas.errors import SourceError
from tap_engine.schemas.filesystem import open_filesystem
from tap_engine.schemas.replacing import replacing_in

INDEX_FOLDER = "_index"
"""Inside the store, beside its tables."""

_WORTH_KEEPING = 1000
"""Members from which on an index is kept; smaller tars are indexed in a blink."""

_SCHEMA = pa.schema(
    [("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("damage", pa.string())]
)


def load_index(folder: str, shard_uri: str, info: fs.FileInfo) -> list[Member | Damage] | None:
    """The kept index of a shard, if there is one of exactly this file."""
    try:
        filesystem, path = open_filesystem(_place(folder, shard_uri, info))
        with filesystem.open_input_file(path) as file:
            table = pq.read_table(file)
    except (OSError, pa.ArrowException, SourceError):
        return None  # absent or damaged: it is only a cache
    if table.schema != _SCHEMA:
        return None
    return [
        Member(name, offset, size) if damage is None else Damage(offset, damage)
        for name, offset, size, damage in zip(
            *(column.to_pylist() for column in table.columns), strict=True
        )
    ]


def save_index(
    folder: str, shard_uri: str, info: fs.FileInfo, index: list[Member | Damage]
) -> None:
    """Keep an index if that is worth it; a store that cannot be written will say so itself."""
    if len(index) < _WORTH_KEEPING:
        return
    rows = [
        (entry.name, entry.offset, entry.size, None)
        if isinstance(entry, Member)
        else ("", entry.offset, 0, entry.detail)
        for entry in index
    ]
    try:
        table = pa.table([list(column) for column in zip(*rows, strict=True)], schema=_SCHEMA)
        filesystem, path = open_filesystem(_place(folder, shard_uri, info))
        filesystem.create_dir(path.rsplit("/", 1)[0])
        with (
            replacing_in(filesystem, path) as partial,
            filesystem.open_output_stream(partial) as file,
        ):
            pq.write_table(table, file)
    except (OSError, pa.ArrowException, SourceError, UnicodeError):
        return  # a name that is not UTF-8, or a place that is reached with other credentials


def _place(folder: str, shard_uri: str, info: fs.FileInfo) -> str:
    # Unit ids follow name and size alone; a file rewritten in place must not meet old offsets.
    return f"{folder}/{base_name(shard_uri)}-{info.size}-{info.mtime_ns or 0}.parquet"

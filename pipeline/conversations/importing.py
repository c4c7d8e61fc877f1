"""The import: files in, one table of samples and one of what was left out.

Nothing is written until every file is known to be readable to its end, and the samples' table
appears in one commit when its last row is there. The same files give the same rows.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import lance
import pyarrow as pa

from tap_engine.pipeline.conversations.files import BadLine, check_file, read_file
from tap_engine.pipeline.conversations.images import Found, Images
from tap_engine.pipeline.conversations.rows import ReadRow, RowRefused, label_of, read_row
from tap_engine.pipeline.store import Store
from tap_engine.schemas.conversations import (
    CONVERSATION_REJECTS,
    CONVERSATIONS,
    conversation_rejects_schema,
    conversations_schema,
)
from tap_engine.schemas.errors import SourceError, StoreError
from tap_engine.schemas.progress import Progress, Say
from tap_engine.schemas.provenance import METADATA_KEY, Provenance, software

_BATCH_ROWS = 2048

TEXT_ONLY = "text"
"""The source of samples without an image."""

IMAGES = "images"
"""The source of samples whose image's name has no folder."""

FILE_UNREADABLE, BAD_LINE, SAME_ROW = "file unreadable", "bad line", "same row as before"


@dataclass(slots=True)
class ImportSummary:
    """What an import did.

    Attributes:
        kept: samples by source: the first folder of the image's name, "images" where
            it has none, or "text" without an image.
        rejects: rows left out, by reason.
        notes: changes made, by kind.
        unreadable: files that could not be read at all, each with its problem.
    """

    kept: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)


def import_conversations(
    files: Sequence[str], images: Images | None, store: Store, *, replace: bool, say: Say
) -> ImportSummary:
    """Read conversation files into a store.

    Args:
        files: paths or URIs; a row keeps the last part of its file's name.
        images: the place where images are looked up; None if all samples are text alone.
        store: gets the tables `conversations` and `conversation_rejects`.
        replace: write over conversations that are there.
        say: told of each file.

    Raises:
        SourceError: no file can be read.
        StoreError: the store has conversations already.
    """
    if store.exists(CONVERSATIONS) and not replace:
        raise StoreError(
            f"{store.uri} has conversations already; --replace writes over them, or name another "
            "--out"
        )
    summary, rejects = ImportSummary(), _Rejects()
    readable: dict[str, int] = {}
    for uri in files:
        try:
            readable[uri] = check_file(uri)
        except SourceError as error:
            summary.unreadable.append(str(error))
            rejects.add(_name(uri), None, None, FILE_UNREADABLE, str(error))
    if not readable:
        raise SourceError("; ".join(summary.unreadable) or "no file was given")
    rows = _samples(readable, images, summary, rejects, say)
    settings = {"files": [_name(uri) for uri in files]}
    metadata = {METADATA_KEY: Provenance(settings, software()).to_json()}
    _write(store, CONVERSATIONS, rows, conversations_schema(), metadata)
    _write(store, CONVERSATION_REJECTS, rejects.batches(), conversation_rejects_schema(), metadata)
    summary.rejects = rejects.counts
    return summary


class _Rejects:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._rows: list[dict[str, object]] = []

    def add(self, file: str, row: int | None, label: str | None, reason: str, detail: str) -> None:
        self.counts[reason] += 1
        self._rows.append(
            {"file": file, "row": row, "id": label, "reason": reason, "detail": detail}
        )

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pylist(self._rows, schema=conversation_rejects_schema())


def _samples(
    files: Mapping[str, int],
    images: Images | None,
    summary: ImportSummary,
    rejects: _Rejects,
    say: Say,
) -> Iterator[pa.RecordBatch]:
    seen: dict[bytes, str] = {}
    kept: list[dict[str, object]] = []
    for uri, rows in files.items():
        name, done = _name(uri), 0
        say(f"reading {uri}")
        progress = Progress(rows, unit="rows")
        for number, row in enumerate(read_file(uri)):
            done += 1
            progress.update(done)
            label = label_of(row)
            where = f"{name} row {number}" + (f" (id {label!r})" if label is not None else "")
            try:
                sample = _sample(row, images)
                digest = _digest(row)
                if digest in seen:
                    raise RowRefused(SAME_ROW, seen[digest])
                seen[digest] = f"{name} row {number}"
            except RowRefused as refused:
                detail = f"{where}: {refused}"
                rejects.add(name, number, label, refused.reason, detail)
                continue
            kept.append({"file": name, "row": number, "id": label, **sample})
            summary.kept[str(sample["source"])] += 1
            summary.notes.update(cast("list[str]", sample["notes"]))
            if len(kept) == _BATCH_ROWS:
                yield _batch(kept)
                kept.clear()
        progress.close()
    yield _batch(kept)


def _batch(rows: list[dict[str, object]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=conversations_schema())


def _sample(row: object, images: Images | None) -> dict[str, object]:
    """The columns of one row but for where it stood.

    Raises:
        RowRefused: it cannot be used.
    """
    if isinstance(row, BadLine):
        raise RowRefused(BAD_LINE, f"line {row.line}: {row.problem}")
    read: ReadRow = read_row(row)
    found = Found(TEXT_ONLY, None)
    if name := read.conversation.image:
        if images is None:
            raise RowRefused("missing image", f"{name!r}; --images says where images lie")
        found = images.find(name)
    turns = [{"role": turn.role, "text": turn.text} for turn in read.conversation.turns]
    return {
        "source": found.name.split("/")[0] if "/" in found.name else IMAGES if name else TEXT_ONLY,
        "image": found.name if name else None,
        "image_id": found.image_id,
        "system": read.conversation.system,
        "turns": turns,
        "characters": sum(len(turn["text"]) for turn in turns),
        "notes": [*read.notes, *found.notes],
    }


def _digest(row: object) -> bytes:
    """Of the row as it stands in the file: only what is equal to the letter is one sample."""
    content = json.dumps(row, sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(), digest_size=16).digest()


def _write(
    store: Store,
    table: str,
    batches: Iterator[pa.RecordBatch],
    schema: pa.Schema,
    metadata: dict[str, str],
) -> None:
    reader = pa.RecordBatchReader.from_batches(schema.with_metadata(metadata), batches)
    lance.write_dataset(
        reader,
        store.table_uri(table),
        mode="overwrite",
        data_storage_version="2.0",
        storage_options=dict(store.storage_options) or None,
    )


def _name(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]

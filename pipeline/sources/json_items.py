"""A large json without reading it at once: where the rows of its lists lie, and on which line.

One pass over the bytes finds each item of a list that is the document itself or a value of its
outermost object (`images`, `annotations`, ...). What lies between the items, the frame, is small
and is parsed as it stands, so damage anywhere is found and named with its line. Rows are parsed
one by one when they are needed. json's own module reads them: it keeps integers of any length.

Cost: about a second for 300 MB on one core, 20 bytes per row.
"""

import codecs
import gzip
import hashlib
import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tap_engine.pipeline.sources.filesystem import base_name
from tap_engine.schemas.errors import SourceError
from tap_engine.schemas.filesystem import open_filesystem

_CHUNK = 1 << 23
_SCANNED = 1 << 21
_MAX_FRAME = 1 << 27
"""128 MiB between the rows: more is no data set's json."""

_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class JsonItems:
    """The rows of a json and what holds them.

    Attributes:
        uri: the file's path or URI.
        frame: the parsed document with each row replaced by its number, so `frame["images"]` is a
            list of row numbers.
        starts, ends: [N] int64, bytes of each row.
        lines: [N] int64, the line on which each row begins, from 1.
        digest: of the content, 16 hex digits.
    """

    uri: str
    frame: Any
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    lines: npt.NDArray[np.int64]
    digest: str = ""

    def place(self, row: int) -> str:
        """`file:line` of a row."""
        return f"{base_name(self.uri)}:{self.lines[row]}"

    def rows(self, numbers: Any) -> Iterator[tuple[int, Any]]:
        """(row number, parsed row); a row that is no json is None.

        Args:
            numbers: a list of the frame; anything else holds no rows.
        """
        if not isinstance(numbers, list) or not numbers:
            return
        wanted = np.asarray(numbers, np.int64)
        with open_plain(self.uri) as file:
            parsed = read_spans(file, self.starts[wanted], self.ends[wanted])
            yield from zip(numbers, parsed, strict=True)


def read_spans(
    file: IO[bytes] | pa.NativeFile,
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
) -> Iterator[Any]:
    """The parsed row of each span, in order; neighbouring spans share a read of up to 8 MiB."""
    first = 0
    while first < len(starts):
        begin = int(starts[first])
        last = first + 1
        # A gap of 64 kB costs less than another request to an object store.
        while (
            last < len(starts)
            and 0 <= starts[last] - ends[last - 1] < 1 << 16
            and ends[last] - begin < _CHUNK
        ):
            last += 1
        file.seek(begin)
        data = file.read(int(ends[last - 1]) - begin)
        for index in range(first, last):
            yield _parse(data[starts[index] - begin : ends[index] - begin])
        first = last


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def index_json(uri: str, data: bytes | None = None) -> JsonItems:
    """Find the rows of a json file; plain or gz, UTF-8, or UTF-16 with its mark.

    Args:
        uri: the file's path or URI.
        data: its content, where it has been read already.

    Raises:
        SourceError: the file cannot be read, is empty, is no json, or is a Git LFS pointer; names
            the file and the line.
    """
    spans = []
    frame = bytearray()
    digest = hashlib.blake2b(digest_size=8)
    state = np.array([0, 0, 0, 0, 1, 0, 0], np.int64)
    count = offset = 0
    with open_plain(uri) if data is None else io.BytesIO(data) as file:
        while chunk := file.read(_SCANNED):
            found, kept = _scan(np.frombuffer(chunk, np.uint8), offset, state)
            spans.append(found)
            digest.update(chunk)
            for begin, end, closes in kept.tolist():
                frame += chunk[begin - offset : end - offset]
                if closes:  # what is no row stays; a row becomes its number
                    frame += b"%d" % count
                    count += 1
            if len(frame) > _MAX_FRAME:
                raise SourceError(f"{uri}: no lists of rows in it; is it a data set's json?")
            offset += len(chunk)
        if not offset:
            raise SourceError(f"{uri}: the file is empty (0 bytes), expected json")
        try:
            text = bytes(frame).decode("utf-8-sig")
            parsed = json.loads(text, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            file.seek(0)
            cut = f"cut short: it ends in line {state[4]}, within a list or an object"
            why = _explain(file.read(_CHUNK), offset, cut if state[0] > 0 else str(error))
            raise SourceError(f"{uri}: {why}") from error
    starts, ends, lines = np.concatenate(spans, axis=1)
    return JsonItems(uri, parsed, starts, ends, lines, digest.hexdigest())


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; the last of equal keys counts, as json has it, unless rows would be lost."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if isinstance(found.get(key), list) and found[key]:
            raise ValueError(f"the key {key!r} stands twice in one object")
        found[key] = value
    return found


def _explain(head: bytes, size: int, otherwise: str) -> str:
    """What is wrong with a file that is no json."""
    if head.startswith(_LFS):
        return "a Git LFS pointer, not the file itself; `git lfs pull` fetches it"
    if not head.strip(b"\0"):
        return "only zero bytes, expected json (a copy to a full disk looks like this)"
    if head.lstrip()[:1] == b"<":
        return "html or xml, expected json"
    try:
        json.loads(head.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        if len(head) == size:
            return f"not readable as json: the encoding is not UTF-8 (at byte {error.start:,})"
    except json.JSONDecodeError as error:
        # The end of `head` is an error too where the file goes on.
        if len(head) == size or error.pos < len(error.doc) - 100:
            what = f"line {error.lineno} column {error.colno}: {error.msg}"
            whole = error.pos < len(error.doc.rstrip())
            return f"not readable as json: {what if whole else otherwise}"
    except RecursionError:
        return "json nested too deeply"
    return f"not readable as json: {otherwise}"


def open_plain(uri: str) -> IO[bytes] | pa.NativeFile:
    """A json opened for reading at any place, as UTF-8: unpacked and re-coded where needed.

    Raises:
        SourceError: it cannot be read, or not unpacked.
    """
    filesystem, path = open_filesystem(uri)
    try:
        file = filesystem.open_input_file(path)
        head = file.read(4)
        file.seek(0)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{uri}: cannot be read: {error}") from error
    packed = head[:2] == b"\x1f\x8b"
    wide = head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    if not packed and not wide:
        return file
    spool: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    try:
        with file:
            source = gzip.GzipFile(fileobj=file) if packed else file
            decoder = codecs.getincrementaldecoder("utf-16")() if wide else None
            while data := source.read(_CHUNK):
                spool.write(decoder.decode(data).encode() if decoder else data)
    except (OSError, EOFError, UnicodeError) as error:
        form = "gz" if packed else "UTF-16"
        raise SourceError(f"{uri}: cannot be read as {form}: {error}") from error
    spool.seek(0)
    return spool


def _scan(
    data: npt.NDArray[np.uint8], offset: int, state: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """[3, N] start, end and line of the rows that end here; [M, 3] the pieces of the frame."""
    items = np.empty((3, data.size // 2 + 2), np.int64)
    kept = np.empty((data.size + 4, 3), np.int64)
    ended, pieces = _split(data, offset, state, items, kept)
    return items[:, :ended].copy(), kept[:pieces].copy()


@numba.njit(cache=True, nogil=True)
def _split(data, offset, state, items, kept):  # type: ignore[no-untyped-def]
    # The state goes on from chunk to chunk. `rows_at` is the depth of the list whose items are
    # rows, 0 outside of one; `open_row` the byte after the start of the row that is open, or 0.
    depth, in_string, escaped, rows_at, line, open_row, row_line = state
    ended = 0
    pieces = 0
    piece = offset  # where the frame's current piece begins
    for index in range(data.size):
        char = data[index]
        at = offset + index
        if char == 10:
            line += 1
        if in_string:
            if escaped:
                escaped = 0
            elif char == 92:
                escaped = 1
            elif char == 34:
                in_string = 0
            continue
        if char == 32 or char == 10 or char == 13 or char == 9:
            continue
        if rows_at and depth == rows_at:
            if char == 44 or char == 93:
                if open_row:  # the row ends before this character
                    items[0, ended], items[1, ended] = open_row - 1, at
                    items[2, ended] = row_line
                    ended += 1
                    kept[pieces, 0], kept[pieces, 1], kept[pieces, 2] = at, at, 1
                    pieces += 1
                    open_row = 0
                    piece = at
            elif open_row == 0:
                kept[pieces, 0], kept[pieces, 1], kept[pieces, 2] = piece, at, 0
                pieces += 1
                open_row = at + 1
                row_line = line
        if char == 34:
            in_string = 1
        elif char == 123 or char == 91:
            depth += 1
            if char == 91 and rows_at == 0 and depth <= 2:
                rows_at = depth
        elif char == 125 or char == 93:
            if rows_at and depth == rows_at and char == 93:
                rows_at = 0
            depth -= 1
    if open_row == 0:
        kept[pieces, 0], kept[pieces, 1], kept[pieces, 2] = piece, offset + data.size, 0
        pieces += 1
    state[:] = np.array([depth, in_string, escaped, rows_at, line, open_row, row_line])
    return ended, pieces

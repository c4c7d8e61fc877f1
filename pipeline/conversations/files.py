"""Rows of conversation files: json lists, json lines, parquet, each plain or gzipped.

A file is read twice. The first reading proves that it can be read to its end, so that a cut file
leaves no half of itself in a store; the second hands out rows. Neither holds a file in memory.
"""

import gzip
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tap_engine.schemas.errors import SourceError
from tap_engine.schemas.filesystem import open_filesystem

MAX_ROW_CHARACTERS = 64 << 20
"""A row that is longer is no conversation: the limit of what is held of a file at once."""

_BLOCK = 1 << 20
_BLANK = re.compile(r"[ \t\r\n]*")

_MAGIC_GZIP, _MAGIC_PARQUET = b"\x1f\x8b", b"PAR1"
_BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line of a json-lines file that is no json.

    Attributes:
        line: counts from 1.
        problem: what is wrong with it.
    """

    line: int
    problem: str


def check_file(uri: str) -> int:
    """Read a file to its end; how many rows it has, bad lines included.

    Raises:
        SourceError: it is none of the known forms, or damaged; names the file and says what it is.
    """
    try:
        kind = _kind(uri)
        good = bad = 0
        for row in _rows(uri, kind):
            good, bad = good + (not isinstance(row, BadLine)), bad + isinstance(row, BadLine)
        if bad and not good:
            raise SourceError(f"{uri}: none of its {bad:,} lines is a json object")
        return good + bad
    except (ValueError, EOFError, OSError, pa.ArrowException) as error:
        problem = " ".join(str(error).split())[:200] or type(error).__name__
        raise SourceError(
            f"{uri}: expected a list of conversations (json, jsonl or parquet, gzip allowed); it "
            f"cannot be read to its end: {problem}"
        ) from error


def read_file(uri: str) -> Iterator[Any]:
    """The rows of a file that `check_file` has passed, or a `BadLine` in a row's place."""
    return _rows(uri, _kind(uri))


def _rows(uri: str, kind: str) -> Iterator[Any]:
    if kind == "parquet":
        with _open(uri) as file:
            for batch in pq.ParquetFile(pa.PythonFile(file)).iter_batches(1024):
                yield from batch.to_pylist()
    elif kind == "list":
        yield from _items(uri)
    else:
        yield from _lines(uri)


def _kind(uri: str) -> str:
    """`parquet`, `list` or `lines`, by the content."""
    with _open(uri) as file:
        head = file.read(4096)
    if head.startswith(_MAGIC_PARQUET):
        return "parquet"
    text = head.decode(_encoding(head), "replace").lstrip()
    if text.startswith("["):
        return "list"
    if text.startswith("version https://git-lfs"):
        raise SourceError(f"{uri}: this is a Git LFS pointer; `git lfs pull` brings the file")
    if text.startswith("<"):
        raise SourceError(f"{uri}: this is a web page (HTML), not a file of conversations")
    if not text:
        if uri.removesuffix(".gz").endswith(".jsonl"):
            return "lines"
        raise SourceError(f"{uri}: the file is empty")
    if not text.startswith("{"):
        raise SourceError(
            f"{uri}: expected a list of conversations (json, jsonl or parquet); it begins with "
            f"{text[:20]!r}"
        )
    if not uri.removesuffix(".gz").endswith(".jsonl"):
        _require_lines(uri)
    return "lines"


def _require_lines(uri: str) -> None:
    """A .json file that begins with "{" is json lines under another name, or no list at all."""
    rows = _lines(uri)
    first, second = next(rows, None), next(rows, None)
    if isinstance(first, BadLine) or second is None:
        raise SourceError(
            f"{uri}: expected a list of conversations, found one object; if the list stands under "
            "a key of it, write that list to a file of its own"
        )


def _open(uri: str) -> IO[bytes]:
    filesystem, path = open_filesystem(uri)
    try:
        file: Any = filesystem.open_input_file(path)
    except OSError as error:
        raise SourceError(f"{uri}: cannot be opened: {error}") from error
    if file.read(2) == _MAGIC_GZIP:
        file.seek(0)
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    file.seek(0)
    return file


def _encoding(head: bytes) -> str:
    return next((name for mark, name in _BOMS.items() if head.startswith(mark)), "utf-8")


def _text(uri: str) -> IO[str]:
    """The file as text without a byte-order mark; no line end is changed."""
    file = _open(uri)
    encoding = _encoding(file.read(4))
    file.seek(0)
    return io.TextIOWrapper(file, encoding, newline="")


def _items(uri: str) -> Iterator[Any]:
    """Items of a json list, one after the other.

    Python's own decoder reads each: it keeps integers of any size and half surrogate pairs, which
    ijson's fast backend changes or refuses.
    """
    text, decoder = _text(uri), json.JSONDecoder(parse_constant=_refuse_constant)
    buffer, place, ended = text.read(_BLOCK), 0, False
    buffer = buffer.lstrip()[1:]
    first = True
    while True:
        # An item may go on behind the block that was read, and so may the blanks before it.
        place = _BLANK.match(buffer, place).end()  # type: ignore[union-attr]
        if place == len(buffer) and not ended:
            buffer, place = text.read(_BLOCK), 0
            ended = not buffer
            continue
        if buffer[place : place + 1] == "]":
            if (buffer[place + 1 :] + text.read(_BLOCK)).strip():
                raise ValueError("text follows the end of the list")
            return
        if not first:
            if buffer[place : place + 1] != ",":
                raise ValueError(f"expected a comma between rows, found {buffer[place:][:20]!r}")
            place += 1
        buffer, place, ended, item = _item(buffer, place, ended, text, decoder)
        first = False
        yield item


def _item(
    buffer: str, place: int, ended: bool, text: IO[str], decoder: json.JSONDecoder
) -> tuple[str, int, bool, Any]:
    """One item that begins behind `place`: the buffer with what was read on, where it ends, it."""
    while True:
        try:
            start = _BLANK.match(buffer, place).end()  # type: ignore[union-attr]
            item, end = decoder.raw_decode(buffer, start)
            if end < len(buffer) or ended:
                return buffer[end:], 0, ended, item
        except json.JSONDecodeError:
            if ended or len(buffer) - place > MAX_ROW_CHARACTERS:
                raise
        except RecursionError as error:
            raise ValueError("its brackets stand too deep for a conversation") from error
        more = text.read(max(_BLOCK, len(buffer) - place))
        buffer, place, ended = buffer[place:] + more, 0, not more


def _lines(uri: str) -> Iterator[Any]:
    """Only the line feed ends a line: json strings may hold the other ends that Python knows."""
    file = _text(uri)
    # Lines are cut by hand: a file of one endless line must not fill the memory.
    number, rest = 0, ""
    while block := file.read(_BLOCK):
        *whole, rest = (rest + block).split("\n")
        if len(rest) > MAX_ROW_CHARACTERS:
            raise ValueError(f"line {number + len(whole) + 1} has no end within 64 M characters")
        for line in whole:
            number += 1
            if line.strip():
                yield _parsed(line, number)
    if rest.strip():
        yield _parsed(rest, number + 1)


def _parsed(line: str, number: int) -> Any:
    try:
        return json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return BadLine(number, str(error)[:120])


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no json")

"""Finds the members of a tar by hopping from header to header; reads nothing else.

A damaged header does not end the shard: the next valid one is searched for, block by block, so
that only the members whose own headers are gone are lost. Cost: 0.1-0.6 s for 5,000 members.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from pyarrow import NativeFile

_BLOCK = tarfile.BLOCKSIZE
_SCAN = 1 << 20

_RECORDS = (20 * _BLOCK, *(1 << bits for bits in range(14, 21)))
"""Sizes that a tar's end is padded to: 10 kB as all programs do by default, or up to 1 MiB."""


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file: its bytes are [offset, offset + size) of the tar."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Damage:
    """A stretch of the tar that is no member: which bytes, and what is wrong with them."""

    offset: int
    detail: str


def read_index(file: NativeFile) -> Iterator[Member | Damage]:
    """Members in file order, and the damage between them.

    Args:
        file: random access, of an uncompressed tar; position does not matter.
    """
    size = file.size()
    if size == 0:
        yield Damage(0, "the file is empty")
    position = 0
    while position < size:
        cut = False
        for found in _hop(file, position, size):
            if isinstance(found, int):
                position = found
                break
            cut = isinstance(found, Damage)
            yield found
        following = _next_header(file, position, size)
        if following is None:
            if not cut:
                yield from _tail(file, position, size)
            return
        yield Damage(position, f"{following - position:,} bytes that are no tar member")
        position = following


def _hop(file: NativeFile, start: int, size: int) -> Iterator[Member | Damage | int]:
    """Members from `start` on; last, the position where the chain of headers ends."""
    # One GET a header on object stores: tarfile reads the byte before and the header after it.
    file.seek(start)
    reader = io.BufferedReader(file, buffer_size=2 * _BLOCK)
    position = start
    try:
        with tarfile.TarFile(fileobj=reader, mode="r") as tar:
            while position < size and (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header; a shard has 22,000
                stop = info.offset_data + info.size
                if stop > size:
                    yield Damage(
                        info.offset_data,
                        f"member {info.name!r} is cut: {info.size:,} bytes stated, "
                        f"{size - info.offset_data:,} left",
                    )
                    position = info.offset_data
                    break
                if info.isreg():
                    yield Member(info.name, info.offset_data, info.size)
                position = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
    except (tarfile.TarError, EOFError, ValueError, OverflowError):
        pass  # the caller looks for the next header from `position` on and reports what it skips
    finally:
        reader.detach()
    yield position


def _next_header(file: NativeFile, position: int, size: int) -> int | None:
    """Offset of the first block at or after `position` that is a tar header."""
    while position < size:
        chunk = file.read_at(min(_SCAN, size - position), position)
        at = chunk.find(b"ustar")
        while at >= 0:
            start = at - 257  # where the magic stands in a header
            if start >= 0 and start % _BLOCK == 0 and _is_header(chunk[start : start + _BLOCK]):
                return position + start
            at = chunk.find(b"ustar", at + 1)
        position += _SCAN
    return None


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _tail(file: NativeFile, position: int, size: int) -> Iterator[Damage]:
    """Names what is wrong with the bytes after the last member; zeros pad it to a record.

    Download tools reserve a file's size first, so what has not arrived is zeros.
    """
    start = position
    while position < size:
        if file.read_at(min(_SCAN, size - position), position).strip(b"\0"):
            yield Damage(start, f"no valid header in the last {size - start:,} bytes")
            return
        position += _SCAN
    record = max(record for record in _RECORDS if record == _RECORDS[0] or size % record == 0)
    if size - start > record + 2 * _BLOCK:
        yield Damage(
            start,
            f"the last {size - start:,} bytes are zeros, more than the padding of a tar: was it "
            "downloaded to its end?",
        )

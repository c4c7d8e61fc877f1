"""A person's folder: what lies in it, and which photo a name means.

Names in annotations were written on another machine, from another place, by Windows or by a web
page. Only files that were listed are ever opened, so no name can lead out of the folder.
"""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from posixpath import normpath
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from tap_engine.pipeline.sources.filesystem import absolute_uri, base_name
from tap_engine.pipeline.sources.json_items import JsonItems, index_json
from tap_engine.schemas.errors import SourceError
from tap_engine.schemas.filesystem import open_filesystem
from tap_engine.schemas.keys import MAX_SOURCE_ID

PHOTO_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jfif",
        ".jpe",
        ".png",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
        ".gif",
        ".heic",
        ".heif",
        ".avif",
        ".svg",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".dng",
        ".raf",
        ".orf",
        ".rw2",
        ".jp2",
        ".pdf",
        ".ppm",
        ".pgm",
    ]
)
"""Endings of pictures, those that cannot be read among them: they are named, not passed over."""

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar", ".bz2", ".xz", ".zst")

_LARGE_JSON = 1 << 20

_STRAY_FOLDERS = frozenset({"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "__pycache__"})
_STRAY_ENDINGS = ("~", ".part", ".crdownload", ".tmp", ".cache")


class Folder:
    """The files under a folder or prefix, hidden ones and what systems leave behind left out.

    Args:
        uri: path or URI of the folder.
        only: names within it to see, as when a single json was given; photos are seen as well.

    Raises:
        SourceError: there is no such folder.
    """

    def __init__(self, uri: str, only: Iterable[str] = ()) -> None:
        self.uri = absolute_uri(uri).rstrip("/") or "/"
        self.only = frozenset(only)
        self.stray = self.unreadable = 0
        self._indexed: dict[str, JsonItems] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**vars(Folder(self.uri, self.only)), "uri": self.uri}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file by its path under the folder, sorted by path."""
        filesystem, path = open_filesystem(self.uri)
        try:
            infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{self.uri}: expected a folder: {error}") from error
        found = {}
        for info in infos:
            if info.type != fs.FileType.File:
                continue
            try:
                name = info.path[len(path.rstrip("/")) + 1 :]
            except UnicodeDecodeError:
                self.unreadable += 1
                continue
            if _is_stray(name):
                self.stray += 1
            elif not self.only or name in self.only or suffix(name) in PHOTO_SUFFIXES:
                found[name] = info.size
        return dict(sorted(found.items()))

    @property
    def name(self) -> str:
        """The folder's own name."""
        return base_name(self.uri)

    def with_suffix(self, *suffixes: str) -> list[str]:
        """Files with one of these endings, any case, sorted."""
        return [name for name in self.sizes if name.lower().endswith(suffixes)]

    @cached_property
    def pictures(self) -> list[str]:
        """Files that end as pictures do."""
        return [name for name in self.sizes if suffix(name) in PHOTO_SUFFIXES]

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            SourceError: it is not there any more.
        """
        filesystem, path = open_filesystem(f"{self.uri}/{name}")
        try:
            with filesystem.open_input_stream(path) as file:
                return file.read()
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{self.uri}/{name}: cannot be read: {error}") from error

    def index_json(self, name: str) -> JsonItems:
        """Where the rows of a json lie; a large one is passed over once.

        Raises:
            SourceError: it is no json.
        """
        if name not in self._indexed:
            found = index_json(f"{self.uri}/{name}")
            if self.sizes.get(name, 0) < _LARGE_JSON:
                return found
            self._indexed[name] = found
        return self._indexed[name]

    def head(self, name: str, size: int) -> bytes:
        """The first bytes of a file; see `read`."""
        filesystem, path = open_filesystem(f"{self.uri}/{name}")
        try:
            with filesystem.open_input_stream(path) as file:
                return file.read(size)
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{self.uri}/{name}: cannot be read: {error}") from error


class Names:
    """Finds the one file that a name from an annotation means.

    Args:
        files: paths under the folder, photos as a rule.
        less: of those, such as are meant only where no other fits: pictures among masks.
    """

    def __init__(self, files: Iterable[str], less: Iterable[str] = ()) -> None:
        self.files = list(files)
        self.less = frozenset(less)
        self._exact = {_plain(name): name for name in self.files}
        self._by_base: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for name in self.files:
            base = _plain(name).rsplit("/", 1)[-1].casefold()
            self._by_base[base].append(name)
            self._by_stem[stem(base)].append(name)

    def find(self, wanted: str, beside: str = "") -> str:
        r"""The file, by the first rule that gives one.

        As written beside the annotations, then under the folder; the same with `\\` as `/`, escapes
        undone and the web's part of an address cut off; then the longest tail of the path that fits
        exactly one file, its case as written or not. A name without an ending may leave it out.

        Args:
            wanted: the name as written.
            beside: folder of the annotations, under the root; "" for the root.

        Raises:
            LookupError: no file fits, or several do; the message names them.
        """
        spellings = list(dict.fromkeys(_spellings(wanted)))
        for spelling in spellings:
            for start in dict.fromkeys((beside, "")):
                path = normpath(f"{start}/{spelling}" if start else spelling.lstrip("/"))
                if found := self._exact.get(path):
                    return found
        for spelling in spellings:
            parts = [part for part in spelling.split("/") if part not in ("", ".", "..")]
            if not parts:
                continue
            candidates = self._by_base.get(parts[-1].casefold(), [])
            if not candidates and suffix(parts[-1]) not in PHOTO_SUFFIXES:
                candidates = self._by_stem.get(parts[-1].casefold(), [])
            if first := [name for name in candidates if name not in self.less] or candidates:
                return _longest_tail(parts, first, wanted)
        raise LookupError(f"no file {wanted!r} is found")

    def with_stem(self, wanted: str) -> list[str]:
        """Files of this name without ending, any case."""
        return self._by_stem.get(_plain(wanted).casefold(), [])


def _longest_tail(parts: list[str], candidates: list[str], wanted: str) -> str:
    def shared(name: str, fold: bool) -> int:
        theirs = _plain(name).split("/")
        theirs[-1] = theirs[-1] if suffix(parts[-1]) in PHOTO_SUFFIXES else stem(theirs[-1])
        count = 0
        for a, b in zip(reversed(parts), reversed(theirs), strict=False):
            if (a.casefold() != b.casefold()) if fold else a != b:
                break
            count += 1
        return count

    ranks = {name: (shared(name, True), shared(name, False)) for name in candidates}
    best = max(ranks.values())
    fitting = [name for name, rank in ranks.items() if rank == best]
    if len(fitting) > 1:
        raise LookupError(
            f"{wanted!r} fits {len(fitting)} files: {', '.join(map(repr, fitting[:3]))}"
        )
    return fitting[0]


def _spellings(wanted: str) -> Iterable[str]:
    """How a name may be meant: as written, slashes turned, escapes undone, an address cut."""
    plain = _plain(wanted.strip())
    yield plain
    turned = plain.replace("\\", "/")
    yield turned
    if "://" in turned or "?d=" in turned:
        parts = urlsplit(turned)
        turned = parts.query.partition("d=")[2] if "?d=" in turned else parts.path
        yield turned
    yield _plain(unquote(turned))


def image_number(name: str) -> int:
    """A stable number in 0..2^43-1 from a path under the folder: its hash, not its place.

    Two of a million names share one with a chance of 6 %; who numbers a folder must check.
    """
    digest = hashlib.blake2b(_plain(name).encode("utf-8", "surrogateescape"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") & MAX_SOURCE_ID


def suffix(name: str) -> str:
    """The ending of a file name with its dot, in small letters; "" without one."""
    base = name.rsplit("/", 1)[-1]
    head, dot, end = base.rpartition(".")
    return f".{end.lower()}" if dot and head else ""


def stem(name: str) -> str:
    """A file's own name without folder and ending."""
    base = name.rsplit("/", 1)[-1]
    return base[: len(base) - len(suffix(base))]


def parent(name: str) -> str:
    """The folder of a file; "" for the root."""
    return name.rpartition("/")[0]


def _plain(name: str) -> str:
    """Mac and Linux write one letter in two ways; this is one of them."""
    return unicodedata.normalize("NFC", name)


def _is_stray(name: str) -> bool:
    *folders, base = name.split("/")
    if any(part in _STRAY_FOLDERS or part.startswith(".") for part in folders):
        return True
    return base.startswith((".", "~$")) or base.lower().endswith(_STRAY_ENDINGS)

"""Where the images of conversations lie: a folder, or the `images` table of a store.

A name is looked up below its folder only, never guessed between two files, never fetched.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from PIL import Image

from tap_engine.pipeline.conversations.rows import RowRefused
from tap_engine.pipeline.store import Store, blob_bytes
from tap_engine.schemas.tables import IMAGES

_MAX_PIXELS = 200_000_000


class Found(NamedTuple):
    """An image: its name below the folder, its number in a store or None, and notes."""

    name: str
    image_id: int | None
    notes: tuple[str, ...] = ()


class Images(Protocol):
    """Names become images that can be decoded."""

    def find(self, name: str) -> Found:
        """The image of a name.

        Raises:
            RowRefused: there is none, or more than one, or it cannot be decoded.
        """
        ...


class ImageFolder:
    """Files below a folder.

    Args:
        root: the folder; names like `coco/train2017/000000000009.jpg` are relative to it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._by_name: dict[str, list[str]] | None = None
        self._problems: dict[str, str] = {}

    def find(self, name: str) -> Found:
        """See `Images.find`; a bare name may stand in any sub-folder if only one file has it."""
        wanted, notes = _plain(name)
        path = self._root / wanted
        if not path.exists() and "/" not in wanted:
            candidates = self._named(wanted)
            if len(candidates) > 1:
                raise RowRefused(
                    "missing image", f"{name!r} fits {candidates[0]!r} and {candidates[1]!r}"
                )
            if candidates:
                wanted, path = candidates[0], self._root / candidates[0]
                notes = (*notes, "image found by its bare name")
        if not path.exists():
            raise RowRefused("missing image", f"{name!r} is not below the image folder")
        if not path.resolve().is_relative_to(self._root):
            raise RowRefused("name outside of the image folder", repr(name))
        if not path.is_file():
            raise RowRefused("not a file", f"{name!r} is a folder")
        if wanted not in self._problems:
            self._problems[wanted] = _problem(path.read_bytes())
        if problem := self._problems[wanted]:
            raise RowRefused("unreadable image", f"{name!r}: {problem}")
        return Found(wanted, None, notes)

    def _named(self, name: str) -> list[str]:
        if self._by_name is None:
            self._by_name = {}
            for path in sorted(_files(self._root)):
                relative = path.relative_to(self._root).as_posix()
                self._by_name.setdefault(path.name, []).append(relative)
        return self._by_name.get(name, [])


class ImageStore:
    """Images of a store, by their file names.

    Args:
        store: one that `tap-data` built.
    """

    def __init__(self, store: Store) -> None:
        self._images = store.open(IMAGES)
        table = self._images.to_table(columns=["file_name", "image_id"])
        names, ids = table["file_name"].to_pylist(), table["image_id"].to_pylist()
        self._places: dict[str, list[int]] = {}
        self._ids = ids
        for place, name in enumerate(names):
            self._places.setdefault(name, []).append(place)
        self._problems: dict[int, str] = {}

    def find(self, name: str) -> Found:
        """See `Images.find`; the last part of a name is enough if only one image has it."""
        wanted, notes = _plain(name)
        places = self._places.get(wanted) or self._places.get(wanted.rsplit("/", 1)[-1], [])
        if len(places) != 1:
            what = "is not in the store" if not places else f"fits {len(places)} images"
            raise RowRefused("missing image", f"{name!r} {what}")
        place = places[0]
        if place not in self._problems:
            self._problems[place] = _problem(blob_bytes(self._images, "jpeg", [place])[0])
        if problem := self._problems[place]:
            raise RowRefused("unreadable image", f"{name!r}: {problem}")
        return Found(wanted, self._ids[place], notes)


def _plain(name: str) -> tuple[str, tuple[str, ...]]:
    if "://" in name:
        raise RowRefused("a URL is not fetched", repr(name))
    plain = name.strip().replace("\\", "/")
    notes = () if plain == name else ("image name mended",)
    if plain.startswith("/") or plain[1:2] == ":":
        raise RowRefused("name outside of the image folder", repr(name))
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if ".." in parts or "\x00" in plain:
        raise RowRefused("name outside of the image folder", repr(name))
    if not parts:
        raise RowRefused("missing image", f"{name!r} names no file")
    return "/".join(parts), notes


def _files(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def _problem(content: bytes) -> str:
    """Why bytes cannot be decoded to a picture; empty if they can. The first frame counts."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > _MAX_PIXELS:
                return f"{image.width} x {image.height} px is more than {_MAX_PIXELS:,}"
            image.load()
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        return str(error)[:120] or type(error).__name__
    return ""

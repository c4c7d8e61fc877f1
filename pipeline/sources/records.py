"""The interface of a source: units of work, and images with their regions.

Nothing after a source knows where a region came from. A source is small:
    prepare(folder)      read once whatever the rest depends on; for most sources nothing
    shards()             what there is, cheaply
    index(shard)         consecutive images of a shard as work units, and what cannot be used
    load(unit, index)    one image with its regions, and what had to be left out
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tap_engine.pipeline.sources.filesystem import base_name, shown
from tap_engine.schemas.errors import SourceError
from tap_engine.schemas.filesystem import open_filesystem
from tap_engine.schemas.keys import unit_id
from tap_engine.schemas.progress import Say
from tap_engine.schemas.rejects import Reject
from tap_engine.schemas.rle import Runs


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar or folder.

    Attributes:
        uri: absolute path or URI.
        size: bytes; for a folder, of all its files.
        files: names in a folder shard, sorted by image number; empty for a tar.
        file_sizes: bytes of each of `files`.
    """

    uri: str
    size: int
    files: tuple[str, ...] = ()
    file_sizes: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Last part of the URI, as a table can hold it."""
        return shown(base_name(self.uri))


@dataclass(frozen=True, slots=True)
class Unit:
    """About 512 consecutive images of a shard: what one worker does in one go.

    Attributes:
        shard: URI of the tar or folder.
        shard_size: bytes of a tar; 0 for a folder.
        names: image file names, one per line (one string: a billion-region run plans 22,000 units).
        image_ids: [N] int64.
        spans: [N, K] int64: where the source finds each image and its annotations. SA-1B: offset
            and size of both, in the tar; sizes only (offsets -1) in a folder.
        image_bytes: [N] int64, sizes of the image files, which tell a copy from another picture of
            the same number; None where the source cannot have the same number twice.
        shard_mtime_ns: when a tar was last written to; 0 for a folder or where it is not known.
    """

    shard: str
    shard_size: int
    names: str
    image_ids: npt.NDArray[np.int64]
    spans: npt.NDArray[np.int64]
    image_bytes: npt.NDArray[np.int64] | None = None
    shard_mtime_ns: int = 0

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def unit_id(self) -> int:
        """See schemas/keys.py."""
        return unit_id(base_name(self.shard), self.shard_size, self.image_ids)

    @property
    def file_names(self) -> list[str]:
        """Image file names, in order."""
        return self.names.split("\n") if self.names else []

    def without(self, drop: npt.NDArray[np.bool_]) -> "Unit":
        """The unit without some of its images."""
        names = [name for name, gone in zip(self.file_names, drop, strict=True) if not gone]
        return Unit(
            self.shard,
            self.shard_size,
            "\n".join(names),
            self.image_ids[~drop],
            self.spans[~drop],
            None if self.image_bytes is None else self.image_bytes[~drop],
            self.shard_mtime_ns,
        )

    def require_unchanged(self) -> None:
        """Refuse what was read while its tar was written to.

        Raises:
            SourceError: size or time of the tar are not those that were indexed.
        """
        if not self.shard_mtime_ns:
            return
        filesystem, path = open_filesystem(self.shard)
        info = filesystem.get_file_info(path)
        if (info.size, info.mtime_ns) != (self.shard_size, self.shard_mtime_ns):
            raise SourceError(
                f"{self.shard} changed since it was indexed; its unit was not written. Once it is "
                "whole, the same command builds it"
            )


@dataclass(slots=True)
class RegionRecord:
    """One mask or box as the source gives it, checked.

    Attributes:
        ordinal: position in the image's annotation list; part of the key.
        region_id: the source's own id.
        rle: COCO compressed counts; None for a box.
        runs: parsed `rle`; None for a box.
        bbox_xywh: tight box of the mask, or the box itself; px, integers for masks.
        area: pixels of the mask, or of the box.
        predicted_iou, stability_score: figures that the source states.
        caption: caption, cleaned by the source.
        caption_raw: caption of the source's file.
        label: the source's own name of it, as written there.
    """

    ordinal: int
    region_id: int
    rle: bytes | None
    runs: Runs | None
    bbox_xywh: tuple[float, float, float, float]
    area: int
    predicted_iou: float | None = None
    stability_score: float | None = None
    caption: str | None = None
    caption_raw: str | None = None
    label: str | None = None


@dataclass(slots=True)
class ImageRecord:
    """One image with its usable regions; `split` is a word of schemas/tables.py or None."""

    image_id: int
    file_name: str
    width: int
    height: int
    jpeg: bytes
    regions: list[RegionRecord] = field(default_factory=list)
    split: str | None = None


class Source(Protocol):
    """A data set the engine can build from; instances travel to workers, so keep them small.

    Attributes:
        name: a name of schemas/keys.py; part of every key.
        captioned: whether its regions have captions and its images a split; decides columns.
        labelled: whether its regions have labels; decides a column.
    """

    name: str
    captioned: bool
    labelled: bool

    def prepare(self, index_folder: str | None, say: Say) -> None:
        """Read what all else depends on; may take minutes, so it is no part of the constructor.

        Nothing may be written here: the store is made after it, by `settings`.

        Args:
            index_folder: inside the store, where `index` may keep what is slow to make again and
                `load` may find it on every worker; a cache. None for a build that writes nothing.
            say: told how far it is.

        Raises:
            SourceError, SchemaError: a file is not there, or of another layout.
        """
        ...

    def settings(self) -> dict[str, Any]:
        """Facts of the source that decide the rows, for the store's provenance. JSON values."""
        ...

    def shards(self) -> list[Shard]:
        """Lists the shards in a stable order, without reading them."""
        ...

    def index(self, shard: Shard, unit_images: int) -> tuple[list[Unit], list[Reject]]:
        """Units of one shard, none empty, and what of it cannot be used; reads headers only.

        Rejects have the stage `index`; the driver commits them itself (ledger.py).
        """
        ...

    def load(self, unit: Unit, index: int) -> tuple[ImageRecord | None, list[Reject]]:
        """The index-th image of a unit, undecoded, with checked regions; None if it is unusable."""
        ...

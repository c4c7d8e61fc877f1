"""Ids of images, regions and units as int64; a key says which source a row comes from.

    image_id   = source code (4 bits) << 43 | the source's own image number (43 bits; of `photos`,
                 a person's own, a hash of the path under their folder)
    region key = image_id << 16 | ordinal of the region within its image
    unit id    = 63-bit hash of the shard's name and size and of the images in the unit

SA-1B has source code 0, so its image ids are the numbers in its file names. All keys are
non-negative int64 (63 bits), and all regions of an image are one contiguous key range.
"""

import hashlib
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tap_engine.schemas.errors import SchemaError

SOURCES: dict[str, int] = {
    "sa1b": 0,
    "vg": 1,
    "coco": 2,
    "sample": 3,
    "lvis": 4,
    "refcocog": 5,
    "photos": 6,
}
"""Source name -> 4-bit code. Codes are in stored keys: append, never renumber."""

SOURCE_ID_BITS = 43
ORDINAL_BITS = 16
MAX_SOURCE_ID = (1 << SOURCE_ID_BITS) - 1
MAX_REGIONS = 1 << ORDINAL_BITS
"""Ordinals 0..65,535: at most this many regions per image."""

_SOURCE_NAMES = {code: name for name, code in SOURCES.items()}

Int = TypeVar("Int", int, npt.NDArray[np.int64])


def pack_image_id(source: str, source_id: int) -> int:
    """Image id of the `source_id`-th image of `source`.

    Raises:
        SchemaError: unknown source, or a number outside 0..2^43-1.
    """
    if source not in SOURCES:
        raise SchemaError(f"unknown source {source!r}; known: {', '.join(SOURCES)}")
    if not 0 <= source_id <= MAX_SOURCE_ID:
        raise SchemaError(f"image number of {source} must be 0..{MAX_SOURCE_ID}, got {source_id}")
    return SOURCES[source] << SOURCE_ID_BITS | source_id


def unpack_image_id(image_id: int) -> tuple[str, int]:
    """(source name, the source's own image number) of an image id."""
    code = int(image_id) >> SOURCE_ID_BITS
    if code not in _SOURCE_NAMES:
        raise SchemaError(f"image_id {image_id} has unknown source code {code}")
    return _SOURCE_NAMES[code], int(image_id) & MAX_SOURCE_ID


def region_key(image_id: Int, ordinal: Int) -> Int:
    """Key of the region at `ordinal` (0..65,535) of an image; ints or int64 arrays."""
    if np.any(np.asarray(ordinal) < 0) or np.any(np.asarray(ordinal) >= MAX_REGIONS):
        raise SchemaError(f"region ordinal must be 0..{MAX_REGIONS - 1}, got {ordinal!r}")
    return image_id << ORDINAL_BITS | ordinal


def split_key(key: Int) -> tuple[Int, Int]:
    """(image_id, ordinal) of a region key; ints or int64 arrays."""
    return key >> ORDINAL_BITS, key & (MAX_REGIONS - 1)


def unit_id(shard_name: str, shard_size: int, image_ids: npt.NDArray[np.int64]) -> int:
    """Id of a work unit: a 63-bit hash of its shard's identity and its images.

    The same shard in another folder or list has the same units, and units cut another way have
    other ids; a collision among a full SA-1B's 22,000 units has a chance of 3e-11.

    Args:
        shard_name: the shard's own name, without its folder.
        shard_size: its size in bytes; 0 for a folder, which may grow.
        image_ids: ids of the images in the unit, in order.
    """
    digest = hashlib.blake2b(f"{shard_name}\n{shard_size}\n".encode(), digest_size=8)
    digest.update(np.ascontiguousarray(image_ids, "<i8").tobytes())
    return int.from_bytes(digest.digest(), "big") >> 1

"""Stages and reasons of the table `rejects`: why something was left out.

A reject is a row, not an exception: one bad mask never stops a build of a billion.
"""

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """Stages of the flow that reject things."""

    INDEX = "index"
    READ = "read"
    DECODE = "decode"
    CROP = "crop"
    TEACHER = "teacher"
    UNIT = "unit"


class Reason(StrEnum):
    """Why it was set aside. Readers group by these words: add, never rename."""

    TAR_DAMAGED = "tar_damaged"
    IMAGE_MISSING = "image_missing"
    ANNOTATIONS_MISSING = "annotations_missing"
    BAD_NAME = "bad_name"
    JSON_MALFORMED = "json_malformed"
    JSON_OF_OTHER_IMAGE = "json_of_other_image"
    IMAGE_UNREADABLE = "image_unreadable"
    IMAGE_SIZE_MISMATCH = "image_size_mismatch"
    DUPLICATE_IMAGE = "duplicate_image"
    DUPLICATE_REGION = "duplicate_region"
    TOO_MANY_REGIONS = "too_many_regions"
    RLE_SIZE_MISMATCH = "rle_size_mismatch"
    RLE_GARBAGE = "rle_garbage"
    MASK_EMPTY = "mask_empty"
    BOX_EMPTY = "box_empty"
    BOX_OUTSIDE = "box_outside"
    CAPTION_EMPTY = "caption_empty"
    SHAPE_UNREADABLE = "shape_unreadable"
    EMBEDDING_NOT_FINITE = "embedding_not_finite"
    UNIT_EMPTY = "unit_empty"
    NOTE = "note"


BOOKKEEPING = frozenset({Reason.UNIT_EMPTY, Reason.NOTE})
"""Rows that mark a finished unit without images, or say what was decided about a thing that was
kept; they are not counted as losses."""

HALF_PAIRS = frozenset({Reason.ANNOTATIONS_MISSING, Reason.IMAGE_MISSING})
"""When the other half appears later, the image is built after all and the row removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """One thing left out.

    Attributes:
        stage: the stage that left it out.
        reason: why, of the closed vocabulary.
        detail: the numbers or the message behind it, for a person.
        image_id: the image concerned; None when not even that is known.
        region_id: the region's id in the source; None when a whole image was left out.
    """

    stage: Stage
    reason: Reason
    detail: str
    image_id: int | None = None
    region_id: int | None = None

"""The json beside an image, in SA-1B's layout: what is checked, and how each problem is said."""

import json
from typing import Any, NamedTuple

from tap_engine.pipeline.sources.records import RegionRecord
from tap_engine.schemas import rle, values
from tap_engine.schemas.errors import SchemaError
from tap_engine.schemas.keys import MAX_REGIONS
from tap_engine.schemas.rejects import Reason
from tap_engine.schemas.rle import SizeHw

NO_ID = -1
"""Region id of a reject whose region states none: it must not read as a whole image left out."""


class Annotations(NamedTuple):
    """What the json says of its image: its number and size, px, and the regions as they stand."""

    image_number: int
    size_hw: SizeHw
    regions: list[Any]


def read_annotations(text: bytes) -> Annotations:
    """The image's entry and its annotations.

    Raises:
        ValueError: of another layout; says what was found.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:  # 100,000 brackets are bad input, not a bug of ours
        raise ValueError("nested too deeply") from error
    if not isinstance(content, dict) or not isinstance(content.get("image"), dict):
        found = f"a list of {len(content)}" if isinstance(content, list) else type(content).__name__
        if isinstance(content, dict):
            found = f"the keys {', '.join(map(repr, list(content)[:5]))}"
        raise ValueError(
            'expected {"image": {"image_id", "width", "height"}, "annotations": [...]}, found '
            f"{found}"
        )
    image = content["image"]
    if missing := [key for key in ("image_id", "width", "height") if key not in image]:
        raise ValueError(f"`image` lacks {', '.join(missing)}")
    number, height, width = (values.integer(image[key]) for key in ("image_id", "height", "width"))
    if not isinstance(content.get("annotations"), list):
        raise ValueError("`annotations` is not a list")
    if min(height, width) < 1:
        raise ValueError(f"size {width} x {height}")
    return Annotations(number, (height, width), content["annotations"])


def region(
    ordinal: int, annotation: Any, size_hw: SizeHw, seen: set[int]
) -> RegionRecord | tuple[Reason, str, int]:
    """A checked region, or (reason, detail, region id) of a reject.

    Args:
        ordinal: its place among the image's annotations.
        annotation: as it stands in the json.
        size_hw: of the image, px.
        seen: region ids before it; this one is added.
    """
    region_id = NO_ID
    try:
        if not isinstance(annotation, dict):
            raise ValueError(f"expected an object, found {type(annotation).__name__}")
        region_id = values.integer(_field(annotation, "id"))
        if ordinal >= MAX_REGIONS:
            detail = f"annotation {ordinal} of at most {MAX_REGIONS}"
            return Reason.TOO_MANY_REGIONS, detail, region_id
        if region_id in seen:
            detail = f"annotation {ordinal} repeats id {region_id}"
            return Reason.DUPLICATE_REGION, detail, region_id
        seen.add(region_id)
        segmentation = _field(annotation, "segmentation")
        scores = [_score(annotation.get(key)) for key in ("predicted_iou", "stability_score")]
        if isinstance(segmentation, dict) and "size" in segmentation:
            size = segmentation["size"]
            if not isinstance(size, list) or len(size) != 2:
                raise ValueError(f"`size` is {size!r:.50}, expected [height, width]")
            height, width = (values.integer(side) for side in size)
            if (height, width) != size_hw:
                detail = f"mask of {width} x {height} on an image of {size_hw[1]} x {size_hw[0]}"
                return Reason.RLE_SIZE_MISMATCH, detail, region_id
    except ValueError as error:
        return Reason.JSON_MALFORMED, f"annotation {ordinal}: {error}"[:300], region_id
    try:
        counts = rle.from_coco(segmentation, size_hw)
    except SchemaError as error:
        return Reason.RLE_GARBAGE, f"annotation {ordinal}: {error}"[:300], region_id
    runs = rle.runs(counts, size_hw)
    area = rle.area(runs)
    if area == 0:
        return Reason.MASK_EMPTY, "no pixel is inside", region_id
    box = rle.bbox_xywh(runs, size_hw)
    return RegionRecord(ordinal, region_id, counts, runs, box, area, scores[0], scores[1])


def _field(annotation: dict[str, Any], name: str) -> Any:
    if name not in annotation:
        raise ValueError(f"lacks {name!r}")
    return annotation[name]


def _score(value: Any) -> float | None:
    return None if value is None else values.number(value)

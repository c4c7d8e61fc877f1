"""Regions as the json of other tools: COCO's, labelme's, and the lists of SAM's mask generator.

Masks are exact in all three: run lengths for COCO and SAM, a picture of 0 and 1 for labelme, since
polygons lose holes, islands and lines one pixel wide.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from tap_engine.schemas import rle

LABELME_VERSION = "5.5.0"
"""The version of labelme whose layout is written; the first with masks is 5.2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledRegion:
    """A region as label tools know it.

    Attributes:
        counts: COCO compressed counts; None for a box.
        bbox_xywh: its box, px.
        area: its area, px.
        label: its name; None or "" where it has none.
        more: further fields, by their names, of values that json can hold.
    """

    counts: bytes | None
    bbox_xywh: Sequence[float]
    area: int
    label: str | None
    more: dict[str, Any] = field(default_factory=dict)


def coco_image(image_id: int, file_name: str, size_hw: tuple[int, int]) -> dict[str, Any]:
    """An entry of COCO's `images`."""
    return {"id": image_id, "file_name": file_name, "height": size_hw[0], "width": size_hw[1]}


def coco_annotation(
    number: int, image_id: int, category_id: int, size_hw: tuple[int, int], region: LabelledRegion
) -> dict[str, Any]:
    """An entry of COCO's `annotations`; without `segmentation` for a box."""
    row: dict[str, Any] = {"id": number, "image_id": image_id, "category_id": category_id}
    if region.counts is not None:
        row["segmentation"] = _segmentation(region.counts, size_hw)
    row |= {"bbox": list(region.bbox_xywh), "area": region.area, "iscrowd": 0}
    return row | region.more


def coco_categories(names: Sequence[str]) -> list[dict[str, Any]]:
    """COCO's `categories`, numbered from 1 in this order."""
    return [{"id": k, "name": name, "supercategory": ""} for k, name in enumerate(names, 1)]


def sam_list(size_hw: tuple[int, int], regions: Sequence[LabelledRegion]) -> list[dict[str, Any]]:
    """What SAM's mask generator returns with `output_mode="coco_rle"`; boxes are left out."""
    return [
        {
            "segmentation": _segmentation(region.counts, size_hw),
            "area": region.area,
            "bbox": list(region.bbox_xywh),
            "label": region.label,
        }
        | region.more
        for region in regions
        if region.counts is not None
    ]


def labelme_file(
    image_path: str, size_hw: tuple[int, int], regions: Sequence[LabelledRegion]
) -> dict[str, Any]:
    """The json that labelme keeps beside a picture.

    A mask is a shape `mask`: first and last pixel of its box, and the box's pixels as a PNG in
    base64. A region without a mask is a `rectangle`.
    """
    return {
        "version": LABELME_VERSION,
        "flags": {},
        "shapes": [_shape(region, size_hw) for region in regions],
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": size_hw[0],
        "imageWidth": size_hw[1],
    }


def _shape(region: LabelledRegion, size_hw: tuple[int, int]) -> dict[str, Any]:
    left, top, width, height = region.bbox_xywh
    shape: dict[str, Any] = {
        "label": region.label or "",
        "points": [[left, top], [left + width, top + height]],
        "group_id": None,
        "description": str(region.more.get("caption") or ""),
        "shape_type": "rectangle",
        "flags": {},
        "mask": None,
    }
    if region.counts is None:
        return shape
    runs = rle.runs(region.counts, size_hw)
    left, top, width, height = rle.bbox_xywh(runs, size_hw)
    window = (left, top, left + max(width, 1), top + max(height, 1))
    patch = rle.decode_window(runs, size_hw, window)
    png = io.BytesIO()
    Image.fromarray(patch > 0).save(png, "PNG")
    return shape | {
        "points": [[float(left), float(top)], [float(window[2] - 1), float(window[3] - 1)]],
        "shape_type": "mask",
        "mask": base64.b64encode(png.getvalue()).decode("ascii"),
    }


def _segmentation(counts: bytes, size_hw: tuple[int, int]) -> dict[str, Any]:
    return {"size": list(size_hw), "counts": counts.decode("ascii")}

"""What `tap everything` does: photos in, a picture and the json of three tools out."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tap_engine.model.everything import EverythingConfig, FoundRegion
from tap_engine.model.image_input import open_image
from tap_engine.model.picture import draw_marks, region_mark
from tap_engine.model.predictor import Tap
from tap_engine.schemas.errors import SourceError
from tap_engine.schemas.label_files import (
    LabelledRegion,
    coco_annotation,
    coco_categories,
    coco_image,
    labelme_file,
    sam_list,
)
from tap_engine.schemas.replacing import replacing

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})

NO_NAME = "region"
"""The category of regions that have no name, since COCO has no annotation without a category."""


@dataclass(frozen=True, slots=True)
class PhotoResult:
    """One photo: its name below the folder, its size and what was found."""

    name: str
    size_hw: tuple[int, int]
    found: Sequence[FoundRegion]


def find_photos(path: Path) -> list[Path]:
    """The photos of a folder and the folders below it, in order; or the one photo.

    Raises:
        SourceError: there is nothing of this name, or no photo.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise SourceError(f"no photo or folder {str(path)!r}")
    photos = sorted(p for p in path.rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES)
    if not photos:
        raise SourceError(f"{path}: no photos; expected files {', '.join(sorted(PHOTO_SUFFIXES))}")
    return photos


def run_everything(
    path: Path, tap: Tap, out: Path, config: EverythingConfig, *, pictures: bool = True
) -> Iterator[str]:
    """Looks at every photo, writes the files, yields the lines to print.

    Per photo `pictures/NAME.png`, `labelme/NAME.json`, `sam/NAME.json`, where NAME is the photo's
    path below the folder with its ending; for all together `coco.json`, at the end. A photo that
    cannot be read costs itself only.

    Args:
        path: a photo, or a folder of photos.
        tap: the model.
        out: the folder to write; made where it is missing.
        config: how to look.
        pictures: draw the masks on their photos.

    Raises:
        SourceError: no photos, or none that can be read.
    """
    photos = find_photos(path)
    base = path if path.is_dir() else path.parent
    results: list[PhotoResult] = []
    started = time.perf_counter()
    for photo in photos:
        name = photo.relative_to(base).as_posix()
        try:
            rgb = open_image(photo)
        except SourceError as error:
            yield f"left out: {error}"
            continue
        found = tap.everything(rgb, config)
        result = PhotoResult(name, (rgb.shape[0], rgb.shape[1]), found)
        results.append(result)
        regions = [_labelled(one) for one in found]
        beside = out / "labelme" / f"{name}.json"
        image_path = Path(os.path.relpath(photo, beside.parent)).as_posix()
        _write_json(beside, labelme_file(image_path, result.size_hw, regions))
        _write_json(out / "sam" / f"{name}.json", sam_list(result.size_hw, regions))
        if pictures:
            marks = [region_mark(one.region, number=k) for k, one in enumerate(found)]
            target = out / "pictures" / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            draw_marks(rgb, marks).save(target)
        yield f"{name}: {len(found)} regions"
    if not results:
        raise SourceError(f"{path}: none of the {len(photos)} photos can be read")
    _write_json(out / "coco.json", coco_file(results))
    seconds = time.perf_counter() - started
    total = sum(len(result.found) for result in results)
    yield (
        f"{total:,} regions of {len(results):,} photos in {seconds:.1f} s "
        f"({total / seconds:.1f} regions/s, {seconds / len(results):.2f} s per photo): {out}"
    )


def coco_file(results: Sequence[PhotoResult]) -> dict[str, Any]:
    """One COCO json of all photos; photos, categories and annotations are numbered from 1."""
    names = sorted({one.name or NO_NAME for result in results for one in result.found})
    category = {name: k for k, name in enumerate(names, 1)}
    annotations: list[dict[str, Any]] = []
    for image_id, result in enumerate(results, 1):
        for one in result.found:
            number = len(annotations) + 1
            kind = category[one.name or NO_NAME]
            row = coco_annotation(number, image_id, kind, result.size_hw, _labelled(one))
            annotations.append(row)
    return {
        "info": {"description": "written by tap everything"},
        "images": [coco_image(k, r.name, r.size_hw) for k, r in enumerate(results, 1)],
        "categories": coco_categories(names),
        "annotations": annotations,
    }


def _labelled(one: FoundRegion) -> LabelledRegion:
    region = one.region
    return LabelledRegion(
        counts=one.counts,
        bbox_xywh=one.bbox_xywh,
        area=one.area,
        label=one.name or None,
        more={
            "predicted_iou": round(region.iou, 5),
            "stability_score": round(one.stability, 5),
            "point_coords": [list(one.point_xy)],
            "crop_box": list(one.crop_xywh),
            "concepts": [
                {"name": c.name, "probability": round(c.probability, 6)} for c in region.concepts
            ],
            "entropy": None if np.isnan(region.entropy) else round(region.entropy, 4),
            "caption": region.caption,
        },
    )


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, ensure_ascii=False) + "\n", "utf-8")

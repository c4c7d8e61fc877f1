"""SAM's and SAM 2's automatic masks as json beside each photo.

A list of {segmentation, predicted_iou, stability_score, bbox, area, ...}, also under
`annotations` (SA-1B's own form) or by number in an object. Segmentations are run lengths, packed or
plain, or whole pictures of 0 and 1. A blank picture gives an empty list, which is a result.
"""

import json
from typing import Any

import numpy as np

from tap_engine.pipeline.sources.annotated import (
    Entry,
    Found,
    Problem,
    Shape,
    Sheet,
    as_id,
    clean_label,
    note,
    score,
)
from tap_engine.pipeline.sources.folder import Folder, Names, parent, stem
from tap_engine.pipeline.sources.json_items import index_json
from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.schemas.polygons import kind
from tap_engine.schemas.rejects import Reason

_LABELS = ("label", "class_name", "category", "class", "name", "caption")
_ENDINGS = ("_masks", "_mask", "_sam", "_segmentation", "_annotations", ".masks", "-masks")


class SamJsonReader:
    """Reads the mask lists of a photo; an entry's detail is their paths."""

    format = "sam-json"
    labels: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """Nothing but the files decides the rows."""
        return {}

    def read(self, folder: Folder, entry: Entry) -> Sheet:
        """The masks of all lists of one photo."""
        sheet = Sheet()
        for name in entry.detail:
            for ordinal, (place, row) in enumerate(_rows(folder, name)):
                title = f"mask {ordinal}"
                if not isinstance(row, dict) or "segmentation" not in row:
                    text = f"{title}: expected an object with `segmentation`, found {kind(row)}"
                    sheet.problems.append(
                        Problem(place, text, Reason.JSON_MALFORMED, entry.name, -1)
                    )
                    continue
                sheet.shapes.append(_shape(row, place, title))
        return sheet


def _rows(folder: Folder, name: str) -> list[tuple[str, Any]]:
    """(place, row) of each mask of a file.

    Raises:
        SchemaError: it holds no list of masks.
    """
    data = folder.read(name)
    items = index_json(name, data)
    content = items.frame
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        content = content["annotations"]
    if isinstance(content, dict):
        if not all(isinstance(row, dict) for row in content.values()):
            raise SchemaError(f"{name}: expected a list of masks, found {kind(content)}")
        whole = json.loads(data)  # rows lie deeper than the index looks
        return [(name, row) for row in whole.values()]
    if not isinstance(content, list):
        raise SchemaError(f"{name}: expected a list of masks, found {kind(content)}")
    return [
        (f"{name}:{items.lines[row]}", _parse(data[items.starts[row] : items.ends[row]]))
        for row in content
    ]


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _shape(row: dict[str, Any], place: str, title: str) -> Shape:
    segmentation = row["segmentation"]
    shape = Shape(
        place=place,
        title=title if row.get("id") is None else f"mask {row['id']}",
        region_id=as_id(row.get("id")),
        label=next((label for key in _LABELS if (label := clean_label(row.get(key)))), None),
        predicted_iou=score(row.get("predicted_iou")),
        stability_score=score(row.get("stability_score")),
    )
    if _is_bitmap(segmentation):
        shape.patch, shape.exact = np.array(segmentation) != 0, True
    else:
        shape.coco = segmentation
    return shape


def _is_bitmap(segmentation: Any) -> bool:
    """Rows of 0 and 1 (or of false and true), all of one length."""
    if not isinstance(segmentation, list) or not segmentation:
        return False
    if not all(isinstance(row, list) and row for row in segmentation):
        return False
    width = len(segmentation[0])
    return all(len(row) == width and all(value in (0, 1) for value in row) for row in segmentation)


def find_sam_json(folder: Folder, files: list[str], others: list[str]) -> Found:
    """The photo of each list: the one of its own name, or the only one that its name fits.

    Args:
        folder: holds both.
        files: json files with masks.
        others: json files that cannot be read, or hold something else.
    """
    photos = Names(folder.pictures)
    found = Found(SamJsonReader())
    of_photo: dict[str, list[str]] = {name: [] for name in photos.files}
    for name in [*files, *others]:
        own = _photos_of(name, photos)
        if name in others and not own:
            text = "json without masks: not read"
            found.problems.append(note(name, text, name))
        elif len(own) == 1:
            of_photo[own[0]].append(name)
        elif name not in others:
            text = f"no photo of the name {stem(name)!r} is found"
            if own:
                text = f"{len(own)} photos have the name {stem(name)!r}: {', '.join(own[:3])}"
            found.problems.append(Problem(name, text, Reason.IMAGE_MISSING, name))
    found.entries = [Entry(name, tuple(jsons)) for name, jsons in of_photo.items()]
    if not any(entry.detail for entry in found.entries):
        first = "; ".join(str(problem) for problem in found.problems[:3])
        raise SourceError(f"{folder.uri}: no photo is found for any list of masks. {first}")
    without = sum(not entry.detail for entry in found.entries)
    found.said.append(
        f"SAM's automatic masks: {len(files):,} json files beside {len(found.entries):,} photos"
        + (f", {without:,} of them without masks" if without else "")
    )
    return found


def _photos_of(name: str, photos: Names) -> list[str]:
    """Photos of a json's name, those in its own folder before all others."""
    base = stem(name)
    names = [base, *(base.removesuffix(end) for end in _ENDINGS if base.endswith(end))]
    for wanted in names:
        same = photos.with_stem(wanted)
        beside = [photo for photo in same if parent(photo) == parent(name)]
        if beside or same:
            return beside or same
    return []

"""A picture for each region: folders of mask PNGs beside, or in a folder of their own.

images/NAME.jpg  masks/NAME_0.png, masks/NAME_1.png     any ending after the photo's name
NAME.jpg         NAME/0.png, NAME/metadata.csv          SAM's own script; scores are read
images/NAME.jpg  masks/LABEL/NAME.png                   a folder for each label
"""

import csv
import re
from typing import Any

from tap_engine.pipeline.sources.annotated import (
    Entry,
    Found,
    Problem,
    Shape,
    Sheet,
    clean_label,
    score,
)
from tap_engine.pipeline.sources.class_table import read_lines
from tap_engine.pipeline.sources.folder import Folder, parent, stem
from tap_engine.pipeline.sources.mask_files import MASK_WORDS, PhotoOfMask, read_mask
from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.schemas.rejects import Reason

METADATA = "metadata.csv"


class MasksReader:
    """Reads a photo's masks; an entry's detail is (path, label) of each.

    Args:
        labels: names of the label folders.
    """

    format = "masks"

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels

    def settings(self) -> dict[str, Any]:
        """Nothing but the files decides the rows."""
        return {}

    def read(self, folder: Folder, entry: Entry) -> Sheet:
        """One photo's masks, a region each."""
        sheet = Sheet()
        scores: dict[str, dict[str, dict[str, str]]] = {}
        for name, label in entry.detail:
            try:
                mask = read_mask(folder.read(name))
            except (SchemaError, SourceError) as error:
                text = f"{name}: {error}"
                problem = Problem(name, text, Reason.SHAPE_UNREADABLE, entry.name, -1)
                sheet.problems.append(problem)
                continue
            home = parent(name)
            if home not in scores:
                scores[home] = _metadata(folder, home)
            row = scores[home].get(stem(name), {})
            sheet.shapes.append(
                Shape(
                    place=name,
                    title=f"mask {name}",
                    label=label,
                    patch=mask,
                    exact=True,
                    predicted_iou=score(row.get("predicted_iou")),
                    stability_score=score(row.get("stability_score")),
                )
            )
        return sheet


def _metadata(folder: Folder, home: str) -> dict[str, dict[str, str]]:
    """Rows of SAM's metadata.csv by mask number; none where there is no such file."""
    name = f"{home}/{METADATA}" if home else METADATA
    if name not in folder.sizes:
        return {}
    rows = csv.DictReader(read_lines(folder.read(name)))
    return {row["id"]: row for row in rows if row.get("id")}


def find_masks(folder: Folder, photos: list[str], masks: list[str]) -> Found:
    """The photo and the label of each mask.

    Args:
        folder: holds both.
        photos: pictures that are photos, of mask_files.py.
        masks: the others.
    """
    owner = PhotoOfMask(photos)
    problems = []
    of_photo: dict[str, list[tuple[str, str | None]]] = {photo: [] for photo in photos}
    labels: dict[str, None] = {}
    for name in sorted(masks, key=_natural):
        try:
            photo = owner.find(name)
        except LookupError as error:
            problems.append(Problem(name, str(error), Reason.IMAGE_MISSING, name))
            continue
        label = _label(name, photo)
        if label:
            labels.setdefault(label)
        of_photo[photo].append((name, label))
    entries = [Entry(photo, tuple(found)) for photo, found in of_photo.items()]
    if not any(entry.detail for entry in entries):
        first = "; ".join(str(problem) for problem in problems[:3])
        raise SourceError(f"{folder.uri}: no photo is found for any mask. {first}")
    found = Found(MasksReader(tuple(labels)), entries, problems)
    found.said.append(
        f"a picture for each region: {len(masks):,} masks for {len(entries):,} photos"
        + (f", labels from {len(labels)} folders" if labels else ", without labels")
    )
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    """2.png before 10.png."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _label(mask: str, photo: str) -> str | None:
    """The folder that a mask lies in, where it is a label.

    It is one below a folder of masks, where the mask is called as its photo, and the photo lies in
    no folder of that name.
    """
    home = parent(mask)
    inner, outer = home.rsplit("/", 1)[-1], parent(home)
    below = any(set(re.split(r"[^a-z]+", p.lower())) & MASK_WORDS for p in outer.split("/"))
    same = stem(mask).casefold() == stem(photo).casefold()
    if not below or not same or inner in parent(photo).split("/"):
        return None
    return clean_label(inner)

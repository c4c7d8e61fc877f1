"""Which photos COCO-style files list, and where in the files each photo's rows lie."""

import hashlib
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import numpy as np

from tap_engine.pipeline.sources.annotated import Entry, Found, Problem, as_id, clean_label, note
from tap_engine.pipeline.sources.coco import (
    CocoReader,
    Key,
    Rows,
    as_number,
    id_key,
    look_up,
)
from tap_engine.pipeline.sources.folder import Folder, Names, parent
from tap_engine.pipeline.sources.json_items import JsonItems
from tap_engine.schemas.errors import SourceError
from tap_engine.schemas.rejects import Reason

_Listed = tuple[int, tuple[int, int] | None]
"""The line of a photo's row, and its stated size."""


def find_coco(
    folder: Folder,
    files: list[str],
    masks: frozenset[str] = frozenset(),
    results: tuple[str, ...] = (),
) -> Found:
    """The photos that COCO-style files list, and where their rows are.

    Args:
        folder: holds the photos.
        files: the json files, paths under the folder.
        masks: pictures that are masks, no photos.
        results: lists of a detector's rows; read where the only file lists images alone.

    Raises:
        SourceError: a file is no json, or has no masks and no boxes; or no photo is found.
    """
    opened = [folder.index_json(name) for name in files]
    kinds = [kind_of(items) for items in opened]
    said = []
    chosen = []
    for name, items, word in zip(files, opened, kinds, strict=True):
        if word == "captions" or (word == "keypoints" and "instances" in kinds):
            said.append(f"{name} holds {word}, no masks: not read")
        else:
            chosen.append((name, items))
    if not chosen:
        raise SourceError(
            f"{folder.uri}: {', '.join(files)} holds captions only, no mask and no box; give the "
            "instances_*.json of the same photos"
        )
    photos = Names(folder.pictures, masks)
    index = _Index(folder, photos)
    for name, items in chosen:
        index.add(name, items)
    if len(chosen) == 1 and len(results) == 1 and not index.annotations:
        chosen.append((results[0], folder.index_json(results[0])))
        index.add_results(*chosen[1])
        said.append(f"{files[0]} lists the photos, {results[0]} what a detector found on them")
    digest = hashlib.blake2b("".join(i.digest for _, i in chosen).encode(), digest_size=8)
    reader = CocoReader(
        [name for name, _ in chosen], index.names, tuple(index.labels), digest.hexdigest()
    )
    found = Found(reader, index.entries(), index.problems, said)
    for name in photos.files:
        if name not in index.rows and name not in masks:
            text = f"the photo is not listed in {', '.join(reader.files)[:100]}: left out"
            found.problems.append(note(name, text, name))
    if not found.entries:
        raise SourceError(_nothing_found(folder, chosen, index))
    said.append(
        f"COCO-style json: {', '.join(reader.files)[:200]}, {index.annotations:,} annotations on "
        f"{len(found.entries):,} photos that are here"
    )
    return found


def kind_of(items: JsonItems) -> str:
    """What a COCO-style json's annotations are: instances, captions, keypoints or panoptic."""
    frame = items.frame
    rows = frame.get("annotations") if isinstance(frame, dict) else None
    first = rows[:20] if isinstance(rows, list) else []
    seen = [row for _, row in items.rows(first) if isinstance(row, dict)]
    if any("segments_info" in row for row in seen):
        return "panoptic"
    if any("keypoints" in row for row in seen):
        return "keypoints"
    captions = [
        row for row in seen if "caption" in row and not row.keys() & {"segmentation", "bbox"}
    ]
    return "captions" if seen and len(captions) == len(seen) else "instances"


class _Index:
    """Collects photos and their rows over several files."""

    def __init__(self, folder: Folder, photos: Names) -> None:
        self.folder, self.photos = folder, photos
        self.rows: dict[str, list[Rows]] = {}
        self.names: list[dict[Key, str | None]] = []
        self.labels: dict[str, None] = {}
        self.problems: list[Problem] = []
        self.annotations = 0
        self.missing = 0
        self._joined: tuple[dict[Key, str], dict[str, _Listed], dict[Key, str]] = ({}, {}, {})

    def entries(self) -> list[Entry]:
        return [Entry(name, rows) for name, rows in self.rows.items()]

    def add(self, name: str, items: JsonItems) -> None:
        """Take in one file."""
        frame = items.frame
        if not isinstance(frame, dict) or not isinstance(frame.get("images"), list):
            what = "results (detections)" if isinstance(frame, list) else "annotations"
            raise SourceError(
                f"{name}: {what} without a list of `images`, so no row can be joined to a photo; "
                "give the json that lists the images beside it"
            )
        file = len(self.names)
        self.names.append(self._categories(name, items))
        self._joined = self._images(name, items)
        self._annotations(name, file, items, *self._joined)

    def add_results(self, name: str, items: JsonItems) -> None:
        """Take in a detector's rows, which name the images and categories of the file before."""
        self.names.append(self.names[-1])
        as_annotations = replace(items, frame={"annotations": items.frame})
        self._annotations(name, len(self.names) - 1, as_annotations, *self._joined)

    def _images(
        self, name: str, items: JsonItems
    ) -> tuple[dict[Key, str], dict[str, _Listed], dict[Key, str]]:
        """Photo by image id; line and size by photo; ids whose rows are lost, and why.

        Each photo is entered in `rows`, so that one without annotations is kept.
        """
        photos: dict[Key, str] = {}
        listed: dict[str, _Listed] = {}
        lost: dict[Key, str] = {}
        for number, row in items.rows(items.frame["images"]):
            place = self._place(name, items, number)
            if not isinstance(row, dict):
                self._problem(place, "expected an image as an object, found something else")
                continue
            key = id_key(row.get("id"))
            wanted = _file_name(row)
            if wanted is None:
                self._problem(place, f"image {row.get('id')} has no file_name")
                if key is not None:
                    lost[key] = ""
                continue
            try:
                photo = self.photos.find(wanted, parent(name))
            except LookupError as error:
                self.missing += 1
                text = f"the photo is missing: {error}"
                self.problems.append(Problem(place, text, Reason.IMAGE_MISSING, wanted))
                if key is not None:
                    lost[key] = wanted
                continue
            self.rows.setdefault(photo, [])
            first = listed.get(photo, (int(items.lines[number]), None))
            listed[photo] = first[0], first[1] or _size(row)
            if key is None:
                self._problem(place, f"{wanted} has no id, so no annotation can name it", photo)
            elif photos.setdefault(key, photo) != photo:
                lost[key] = f"{photos[key]} and {photo}"
                text = f"image id {key} is that of two photos, {photos[key]} and {photo}"
                self._problem(place, f"{text}: its annotations are left out", photo)
        for key in lost:
            photos.pop(key, None)
        return photos, listed, lost

    def _annotations(
        self,
        name: str,
        file: int,
        items: JsonItems,
        photos: dict[Key, str],
        listed: dict[str, _Listed],
        lost: dict[Key, str],
    ) -> None:
        """Group the rows by photo; only `image_id` of each is looked at."""
        ordered = list(listed)
        place_of = {photo: index for index, photo in enumerate(ordered)}
        by_name = {photo.rsplit("/", 1)[-1]: photo for photo in ordered}
        owners: list[int] = []
        numbers: list[int] = []
        for number, row in items.rows(items.frame.get("annotations")):
            self.annotations += 1
            if not isinstance(row, dict):
                text = "expected an annotation as an object, found something else"
                self._problem(self._place(name, items, number), text, region=-1)
                continue
            key = id_key(row.get("image_id"))
            photo = None if key is None else look_up(photos, key)
            if photo is None and isinstance(key, str):
                photo = by_name.get(key)
            if photo is not None:
                owners.append(place_of[photo])
                numbers.append(number)
            elif key is None or lost.get(key) is None or " and " in lost[key]:
                self._unowned(self._place(name, items, number), row, key, lost)
        order = np.argsort(np.array(owners, np.int64), kind="stable")
        owner = np.array(owners, np.int64)[order]
        rows = np.array(numbers, np.int64)[order]
        bounds = np.searchsorted(owner, np.arange(len(ordered) + 1))
        starts, ends, lines = items.starts[rows], items.ends[rows], items.lines[rows]
        for index, photo in enumerate(ordered):
            part = slice(bounds[index], bounds[index + 1])
            self.rows[photo].append(
                Rows(file, *listed[photo], *(a[part].copy() for a in (starts, ends, lines)))
            )

    def _unowned(
        self, place: str, row: dict[str, Any], key: Key | None, lost: dict[Key, str]
    ) -> None:
        region = as_id(row.get("id"))
        title = f"annotation {row.get('id')}"
        if key is None:
            text = f"{title} has no image_id"
        elif lost.get(key):
            text = f"{title}: its image id {key} is that of two photos, {lost[key]}"
        else:
            text = f"{title} is of image {key}, which is not in `images`"
        self._problem(place, text, region=-1 if region is None else region)

    def _categories(self, name: str, items: JsonItems) -> dict[Key, str | None]:
        """Label by category id; None for an id of two names. Labels of regions go to `labels`."""
        found: dict[Key, str | None] = {}
        parents: Counter[str] = Counter()
        listed = items.frame.get("categories")
        if isinstance(listed, dict):
            rows: list[tuple[str, Any]] = [
                (
                    name,
                    {
                        "id": as_number(key),
                        "name": value.get("name") if isinstance(value, dict) else value,
                    },
                )
                for key, value in listed.items()
            ]
        else:
            rows = [(self._place(name, items, n), row) for n, row in items.rows(listed)]
        for place, row in rows:
            key = id_key(row.get("id")) if isinstance(row, dict) else None
            if key is None:
                self._note(place, f"a category without id ({row!r:.60}): it names nothing")
                continue
            label = clean_label(row.get("name"))
            if label is None:
                self._note(place, f"category {key} has no name: its regions get no label")
            if key in found and found[key] != label:
                self._note(
                    place,
                    f"category {key} has two names, {found[key]!r} and {label!r}: its regions get "
                    "no label",
                )
                label = None
            found[key] = label
            if (root := clean_label(row.get("supercategory"))) and root != label:
                parents[root] += 1
        named = [label for label in found.values() if label]
        roots = {n for n in named if len(named) > 1 and parents[n] == len(named) - 1}
        for label in named:
            # Roboflow's first category is the project, parent of all others and on no region.
            if label not in roots:
                self.labels.setdefault(label)
        folded: dict[str, set[str]] = defaultdict(set)
        for label in named:
            folded[label.casefold()].add(label)
        for several in folded.values():
            if len(several) > 1:
                self._note(name, f"labels that differ by case only: {', '.join(sorted(several))}")
        return found

    def _place(self, name: str, items: JsonItems, number: int) -> str:
        return f"{name}:{items.lines[number]}"

    def _problem(self, place: str, text: str, photo: str = "", region: int | None = None) -> None:
        self.problems.append(Problem(place, text, Reason.JSON_MALFORMED, photo, region))

    def _note(self, place: str, text: str) -> None:
        self.problems.append(note(place, text))


def _file_name(row: dict[str, Any]) -> str | None:
    for word in ("file_name", "filename", "path", "coco_url", "flickr_url", "url"):
        value = row.get(word)
        if isinstance(value, int | str) and not isinstance(value, bool) and str(value).strip():
            return str(value)
    return None


def _size(row: dict[str, Any]) -> tuple[int, int] | None:
    """(width, height) as stated, also as text or float; None where they are no sizes."""
    try:
        sides = [float(row[side]) for side in ("width", "height")]
    except (KeyError, TypeError, ValueError):
        return None
    if not all(np.isfinite(side) and side >= 1 and side == int(side) for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def _nothing_found(folder: Folder, chosen: list[tuple[str, JsonItems]], index: _Index) -> str:
    names = ", ".join(name for name, _ in chosen)
    first = "; ".join(str(problem) for problem in index.problems[:3])
    packed = [name for name in folder.sizes if name.lower().endswith((".zip", ".tar", ".tgz"))]
    hint = f"; {', '.join(packed[:3])} lies beside: unpack it first" if packed else ""
    return (
        f"{folder.uri}: none of the {index.missing:,} photos of {names} is found in this folder "
        f"({len(folder.pictures):,} pictures in it){hint}. {first}"
    )

"""COCO's panoptic form: a json of segments, and PNGs whose colour is a segment's number.

number = R + 256 G + 65536 B; 0 is void. One region for each entry of `segments_info`.
"""

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
)
from tap_engine.pipeline.sources.coco import id_key
from tap_engine.pipeline.sources.folder import Folder, Names, parent, stem
from tap_engine.pipeline.sources.mask_files import read_colours, split_pictures
from tap_engine.schemas.errors import SourceError
from tap_engine.schemas.rejects import Reason


class PanopticReader:
    """Reads a photo's segments; an entry's detail is (place, path of the PNG, segments, size)."""

    format = "panoptic"

    def __init__(self, names: dict[int | str, str | None], digest: str) -> None:
        self.names, self.digest = names, digest
        self.labels = tuple(dict.fromkeys(name for name in names.values() if name))

    def settings(self) -> dict[str, Any]:
        """Which segments: others for the same photos belong in another store."""
        return {"annotations": self.digest}

    def read(self, folder: Folder, entry: Entry) -> Sheet:
        """One photo's segments."""
        place, name, segments, size = entry.detail
        sheet = Sheet(size)
        numbers = read_colours(folder.read(name)) @ np.array([1, 256, 65_536])
        for segment in segments:
            number = id_key(segment.get("id")) if isinstance(segment, dict) else None
            if not isinstance(number, int):
                text = f"a segment of {entry.name} has no number: {segment!r:.60}"
                sheet.problems.append(Problem(place, text, Reason.JSON_MALFORMED, entry.name, -1))
                continue
            key = id_key(segment.get("category_id"))
            sheet.shapes.append(
                Shape(
                    place=place,
                    title=f"segment {number}",
                    region_id=as_id(number),
                    label=None if key is None else self.names.get(key),
                    patch=numbers == number,
                    exact=True,
                    area_seen=segment.get("area"),
                    box_seen=segment.get("bbox"),
                )
            )
        return sheet


def find_panoptic(folder: Folder, files: list[str]) -> Found:
    """The photo and the PNG of each entry of panoptic files.

    Raises:
        SourceError: no photo is found.
    """
    names: dict[int | str, str | None] = {}
    entries: dict[str, Entry] = {}
    problems = []
    digests = []
    for file in files:
        items = folder.index_json(file)
        digests.append(items.digest)
        for _, row in items.rows(items.frame.get("categories")):
            if isinstance(row, dict) and (key := id_key(row.get("id"))) is not None:
                names[key] = clean_label(row.get("name"))
        inside = [n for n in folder.pictures if stem(file) in n.split("/")[:-1]]
        pngs = inside or split_pictures(folder)[1]
        maps, photos = Names(pngs), Names(set(folder.pictures) - set(pngs))
        images = {}
        for _, row in items.rows(items.frame.get("images")):
            if isinstance(row, dict):
                images[id_key(row.get("id"))] = row
        for number, row in items.rows(items.frame.get("annotations")):
            place = f"{file}:{items.lines[number]}"
            try:
                if not isinstance(row, dict) or not isinstance(row.get("segments_info"), list):
                    raise LookupError("expected an object with `segments_info`")
                image = images.get(id_key(row.get("image_id")), {})
                png = maps.find(str(row.get("file_name") or ""), parent(file))
                wanted = str(image.get("file_name") or row.get("file_name"))
                try:
                    photo = photos.find(wanted, parent(file))
                except LookupError:
                    # Early releases name the photo by its PNG.
                    photo = photos.find(stem(wanted), parent(file))
            except LookupError as error:
                name = str(row.get("file_name") if isinstance(row, dict) else file)
                problems.append(Problem(place, str(error), Reason.IMAGE_MISSING, name))
                continue
            sides = image.get("width"), image.get("height")
            whole = all(isinstance(side, int) and side > 0 for side in sides)
            size = (sides[0], sides[1]) if whole else None
            entries[photo] = Entry(photo, (place, png, row["segments_info"], size))
    if not entries:
        first = "; ".join(str(problem) for problem in problems[:3])
        raise SourceError(f"{folder.uri}: no photo of {', '.join(files)} is found. {first}")
    reader = PanopticReader(names, "-".join(digests))
    said = [f"COCO panoptic: {', '.join(files)}, {len(entries):,} photos that are here"]
    return Found(reader, list(entries.values()), problems, said)

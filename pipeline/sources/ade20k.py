"""ADE20K as released in 2021: a PNG for each object beside NAME.jpg and NAME.json.

255 in an object's PNG is seen, 128 hidden behind something else: only what is seen is the region.
Parts of objects (`part_level` 1 and up) are inside their objects and are not counted again.
"""

import json
from typing import Any

import numpy as np

from tap_engine.pipeline.sources.annotated import Entry, Found, Problem, Shape, Sheet, clean_label
from tap_engine.pipeline.sources.folder import Folder, parent, stem
from tap_engine.pipeline.sources.mask_files import open_picture
from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.schemas.rejects import Reason

_SEEN = 255


class Ade20kReader:
    """Reads a photo's objects; an entry's detail is the path of its json."""

    format = "ade20k"
    labels: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """Nothing but the files decides the rows."""
        return {}

    def read(self, folder: Folder, entry: Entry) -> Sheet:
        """One photo's whole objects."""
        sheet = Sheet()
        for row in _objects(folder, entry.detail):
            place = entry.detail
            try:
                if row["parts"]["part_level"] != 0:
                    continue
                name = f"{parent(entry.detail)}/{row['instance_mask']}".lstrip("/")
                title = f"object {row['id']}"
                mask = np.asarray(open_picture(folder.read(name)).convert("L")) == _SEEN
            except (KeyError, TypeError) as error:
                text = f"an object of {entry.name} lacks {error}"
                problem = Problem(place, text, Reason.JSON_MALFORMED, entry.name, -1)
                sheet.problems.append(problem)
            except (SchemaError, SourceError) as error:
                problem = Problem(place, str(error), Reason.SHAPE_UNREADABLE, entry.name, -1)
                sheet.problems.append(problem)
            else:
                label = clean_label(row.get("name"))
                sheet.shapes.append(
                    Shape(place=place, title=title, label=label, patch=mask, exact=True)
                )
        return sheet


def _objects(folder: Folder, name: str) -> list[Any]:
    try:
        # Names hold accents in Latin-1.
        objects = json.loads(folder.read(name).decode("latin-1"))["annotation"]["object"]
    except (ValueError, KeyError, TypeError) as error:
        raise SchemaError(f"{name}: expected ADE20K's json with annotation.object") from error
    return objects if isinstance(objects, list) else [objects]


def find_ade20k(folder: Folder, files: list[str]) -> Found:
    """The photo of each ADE20K json, which lies beside it."""
    photos = {(parent(n), stem(n)): n for n in folder.pictures if n.lower().endswith(".jpg")}
    found = Found(Ade20kReader())
    for name in files:
        photo = photos.get((parent(name), stem(name)))
        if photo:
            found.entries.append(Entry(photo, name))
        else:
            text = f"no photo {stem(name)}.jpg beside it"
            found.problems.append(Problem(name, text, Reason.IMAGE_MISSING, name))
    if not found.entries:
        raise SourceError(f"{folder.uri}: no photo beside any ADE20K json")
    found.said.append(f"ADE20K: {len(found.entries):,} photos with a PNG for each object")
    return found

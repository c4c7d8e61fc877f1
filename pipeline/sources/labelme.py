"""labelme's json beside each photo, versions 3 to 5.

Shapes of one label and one group_id are one object. A polygon is its corners, a rectangle its two
(or four) corners in any order, a circle its centre and a point on the rim, a mask a PNG in base64
placed by its first point. Points and lines have no inside: they are named, not built.
"""

import base64
import binascii
import io
import json
import math
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from tap_engine.pipeline.sources.annotated import (
    Entry,
    Found,
    Problem,
    Shape,
    Sheet,
    clean_label,
    note,
)
from tap_engine.pipeline.sources.folder import Folder, Names, parent, stem
from tap_engine.pipeline.sources.json_items import index_json
from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.schemas.polygons import kind, number
from tap_engine.schemas.rejects import Reason

_NO_INSIDE = ("point", "points", "line", "linestrip")
_CIRCLE_CORNERS = 64
_IGNORED = "__ignore__"
"""labelme's own examples call pixels so that are to be left out; its exporters drop them."""


class LabelmeReader:
    """Reads the json files of a photo; an entry's detail is their paths."""

    format = "labelme"
    labels: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """Nothing but the files decides the rows."""
        return {}

    def read(self, folder: Folder, entry: Entry) -> Sheet:
        """The shapes of all json files of one photo; two people's are both kept."""
        sheet = Sheet()
        for name in entry.detail:
            content, places = _open(folder, name)
            width, height = content.get("imageWidth"), content.get("imageHeight")
            if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0:
                sheet.size_wh = sheet.size_wh or (width, height)
            embedded = content.get("imageData")
            if not entry.in_file:
                sheet.photo = _embedded(name, embedded)
            elif embedded:
                _compare(folder, entry.name, name, embedded, sheet)
            wanted = content.get("imagePath")
            if entry.in_file and isinstance(wanted, str) and _base(wanted) != _base(entry.name):
                text = f"imagePath {wanted!r} is not there; {entry.name} is taken"
                sheet.problems.append(note(f"{name}:1", text, entry.name))
            if not isinstance(content["shapes"], list):
                raise SchemaError(f"{name}: `shapes` is {kind(content['shapes'])}, not a list")
            _add_shapes(name, content["shapes"], places, sheet)
        return sheet


def _base(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1].casefold()


def find_labelme(folder: Folder, files: list[str], others: list[str]) -> Found:
    """The photo of each labelme json.

    Args:
        folder: holds both.
        files: json files with shapes.
        others: json files that cannot be read, or hold something else.
    """
    photos = Names(folder.pictures)
    found = Found(LabelmeReader())
    of_photo: dict[str, list[str]] = {}
    embedded: list[Entry] = []
    for name in files:
        try:
            content, _ = _open(folder, name)
        except (SchemaError, SourceError) as error:
            found.problems.append(Problem("", str(error), Reason.JSON_MALFORMED, name))
            continue
        wanted = content.get("imagePath")
        own = [photo for photo in photos.with_stem(stem(name)) if parent(photo) == parent(name)]
        try:
            if not isinstance(wanted, str) or not wanted.strip():
                raise LookupError(f"imagePath is {kind(wanted)}")
            photo = photos.find(wanted, parent(name))
        except LookupError as error:
            if len(own) == 1:
                photo = own[0]
            elif content.get("imageData"):
                end = stem(name) + _ending(content["imageData"])
                path = f"{parent(name)}/{end}" if parent(name) else end
                embedded.append(Entry(path, (name,), in_file=False))
                continue
            else:
                text = f"the photo is missing: {error}, and imageData holds none"
                found.problems.append(Problem(f"{name}:1", text, Reason.IMAGE_MISSING, name))
                continue
        of_photo.setdefault(photo, []).append(name)
    found.entries = [Entry(name, tuple(jsons)) for name, jsons in of_photo.items()] + embedded
    for name in others:
        problem = _other(folder, name)
        found.problems.append(problem)
        if problem.note is False:
            for photo in photos.with_stem(stem(name)):
                if parent(photo) == parent(name):
                    of_photo.setdefault(photo, [])
    for photo in photos.files:
        if photo not in of_photo:
            text = "the photo has no labelme json: left out"
            found.problems.append(note(photo, text, photo))
    if not found.entries:
        first = "; ".join(str(problem) for problem in found.problems[:3])
        raise SourceError(f"{folder.uri}: no photo is found for any labelme json. {first}")
    found.said.append(
        f"labelme json: {len(files):,} files, {len(found.entries):,} photos that are here"
    )
    return found


def _other(folder: Folder, name: str) -> Problem:
    """A json that is no labelme file: damaged, which loses its photo's shapes, or of other use."""
    try:
        folder.index_json(name)
    except SourceError as error:
        text = str(error).removeprefix(f"{folder.uri}/")
        return Problem("", text, Reason.JSON_MALFORMED, name)
    return note(name, "json without `shapes`: not read", name)


def _open(folder: Folder, name: str) -> tuple[dict[str, Any], list[str]]:
    """The content of a json and the place of each shape."""
    data = folder.read(name)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        data = data.decode("utf-16").encode()
    items = index_json(name, data)
    content = items.frame
    if not isinstance(content, dict) or "shapes" not in content:
        raise SchemaError(f"{name}: expected an object with `shapes`, found {kind(content)}")
    rows = content["shapes"]
    places = [name]
    if isinstance(rows, list):
        spans = [slice(items.starts[row], items.ends[row]) for row in rows]
        content["shapes"] = [_parse(data[span]) for span in spans]
        places = [f"{name}:{items.lines[row]}" for row in rows]
    return content, places


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _add_shapes(name: str, rows: list[Any], places: list[str], sheet: Sheet) -> None:
    grouped: dict[tuple[str | None, str], Shape] = {}
    for ordinal, (row, place) in enumerate(zip(rows, places, strict=True)):
        label = clean_label(row.get("label")) if isinstance(row, dict) else None
        if label == _IGNORED:
            continue
        form = row.get("shape_type") or "polygon" if isinstance(row, dict) else ""
        title = f"shape {ordinal} ({form}{f' {label!r}' if label else ''})"
        shape = Shape(place=place, title=title, label=label)
        try:
            if not isinstance(row, dict):
                raise SchemaError(f"expected a shape as an object, found {kind(row)}")
            _draw(row, str(form), shape)
        except SchemaError as error:
            text = f"{title}: {error}"
            sheet.problems.append(Problem(place, text, Reason.SHAPE_UNREADABLE, name, -1))
            continue
        group = row.get("group_id")
        if group is not None and shape.patch is None:
            first = grouped.setdefault((label, f"{type(group).__name__} {group}"), shape)
            if first is not shape:
                first.outlines = [*first.outlines, *shape.outlines]
                continue
        sheet.shapes.append(shape)


def _draw(row: dict[str, Any], form: str, shape: Shape) -> None:
    """Fill in a shape's outline or patch.

    Raises:
        SchemaError: it has no inside, or cannot be read.
    """
    if form in _NO_INSIDE:
        raise SchemaError(f"a {form} has no inside, so no region is made of it")
    points = row.get("points")
    if not isinstance(points, list):
        raise SchemaError(f"expected `points` as a list, found {kind(points)}")
    corners = np.array([_point(point) for point in points], np.float64).reshape(-1, 2)
    if form == "polygon":
        if len(corners) < 3:
            raise SchemaError(f"a polygon of {len(corners)} points has no inside; it needs three")
        shape.outlines = [corners]
    elif form == "rectangle":
        if len(corners) not in (2, 4):
            raise SchemaError(f"a rectangle of {len(corners)} points; expected two or four")
        (left, top), (right, bottom) = corners.min(0), corners.max(0)
        if right <= left or bottom <= top:
            raise SchemaError("the rectangle is empty: its corners are one point or one line")
        box = [[left, top], [right, top], [right, bottom], [left, bottom]]
        # Four corners may be turned: then they are the outline.
        shape.outlines = [corners if len(corners) == 4 else np.array(box)]
    elif form == "circle":
        if len(corners) != 2:
            raise SchemaError(f"a circle of {len(corners)} points; expected centre and rim")
        radius = math.dist(*corners)
        if radius <= 0:
            raise SchemaError("the circle is empty: its radius is 0")
        angles = np.arange(_CIRCLE_CORNERS) * (2 * np.pi / _CIRCLE_CORNERS)
        rim = np.stack([np.cos(angles), np.sin(angles)], 1)
        shape.outlines = [corners[0] + radius * rim]
    elif form == "mask":
        if not len(corners):
            raise SchemaError("a mask without a first point: its place is not known")
        shape.patch = _mask(row.get("mask"))
        shape.at = math.floor(corners[0][0]), math.floor(corners[0][1])
    else:
        raise SchemaError(f"shape_type {form!r} is not known, so no region is made of it")


def _point(point: Any) -> list[float]:
    if not isinstance(point, list) or len(point) != 2:
        raise SchemaError(f"expected a point as [x, y], found {point!r:.40}")
    found = [number(value) for value in point]
    if max(map(abs, found)) > 1e7:
        raise SchemaError(f"coordinate {max(found, key=abs):g} is out of range")
    return found


def _mask(text: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if not isinstance(text, str) or not text:
        raise SchemaError(
            f"the shape's mask is missing: expected a PNG in base64, found {kind(text)}"
        )
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as image:
            return np.asarray(image.convert("L")) > 0 if image.mode != "1" else np.asarray(image)
    except (binascii.Error, OSError, ValueError, UnidentifiedImageError) as error:
        raise SchemaError("the shape's mask cannot be read: expected a PNG in base64") from error


def _embedded(name: str, text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise SchemaError(f"{name}: imageData is damaged, and the photo file is missing") from error


def _ending(text: Any) -> str:
    data = _embedded("", text[:40]) if isinstance(text, str) else b""
    endings = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp"}
    return endings.get(data[:2], ".jpg")


def _compare(folder: Folder, photo: str, name: str, text: Any, sheet: Sheet) -> None:
    """Say where the picture in the json is another than the file, which is taken."""
    try:
        with Image.open(io.BytesIO(_embedded(name, text))) as inside:
            size = inside.size
        with Image.open(io.BytesIO(folder.read(photo))) as file:
            sizes = {file.size, file.size[::-1]}
    except (SchemaError, OSError, ValueError, Image.DecompressionBombError):
        return  # the file is what counts
    if size not in sizes:
        text = (
            f"imageData is another picture ({size[0]} x {size[1]}) than the file {photo}, which is "
            "taken"
        )
        sheet.problems.append(note(f"{name}:1", text, photo))

"""A picture whose values are classes or objects: label maps with a table of ids or colours.

One region for each class of a photo, as a map of classes holds no objects; one for each object
where the map numbers them: Cityscapes' class * 1000 + n, VOC's SegmentationObject. Background,
void and 255 are no regions. What the table does not know is kept without a label and said.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from tap_engine.pipeline.sources.annotated import Entry, Found, Problem, Shape, Sheet, note
from tap_engine.pipeline.sources.class_table import (
    ClassTable,
    cityscapes,
    find_table,
    is_background,
    voc,
)
from tap_engine.pipeline.sources.folder import Folder, parent, stem, suffix
from tap_engine.pipeline.sources.mask_files import (
    PhotoOfMask,
    open_picture,
    read_colours,
    read_ids,
)
from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.schemas.rejects import Reason

_MOST_VALUES = 4096
"""A map of more values than this is a photo, or was blurred."""

_MOST_COLOURS = 256
"""Without a table of colours, a map of more is a photo."""

_CITYSCAPES_OTHERS = ("labelids", "labeltrainids", "color", "polygons")
_PER_CLASS = 1000


class LabelMapReader:
    """Reads a photo's map; an entry's detail is (path of the map, path of the classes or None).

    Args:
        table: names of ids or colours.
    """

    format = "label-maps"

    def __init__(self, table: ClassTable) -> None:
        self.table = table
        self.labels = table.labels

    def settings(self) -> dict[str, Any]:
        """The table: another one gives other labels to the same maps."""
        return {"classes": list(self.labels)}

    def read(self, folder: Folder, entry: Entry) -> Sheet:
        """One photo's map."""
        sheet = Sheet()
        if entry.detail is None:
            return sheet
        name, classes = entry.detail
        data = folder.read(name)
        if classes is not None:
            self._objects(name, read_ids(data), read_ids(folder.read(classes)), sheet)
        elif self.table.colours:
            self._colours(entry.name, name, read_colours(data), sheet)
        else:
            pixels = read_ids(data)
            if pixels.ndim == 3:
                colours = len(np.unique(pixels.reshape(-1, 3), axis=0))
                if colours > _MOST_COLOURS:
                    raise SchemaError(
                        f"{name}: {colours:,} colours and no table of them: a photo, or blurred"
                    )
                pixels = pixels @ np.array([1, 256, 65_536])
            self._ids(entry.name, name, pixels, sheet)
        return sheet

    def _ids(self, photo: str, name: str, pixels: npt.NDArray[np.int64], sheet: Sheet) -> None:
        values = np.unique(pixels)
        if len(values) > _MOST_VALUES:
            raise SchemaError(f"{name}: {len(values):,} values, too many for a label map")
        names = self.table.names
        for value in values.tolist():
            kind = value
            if value >= _PER_CLASS and value not in names and value // _PER_CLASS in names:
                kind = value // _PER_CLASS
            if self.table.is_background(kind):
                continue
            label = names.get(kind)
            shape = _shape(name, f"id {value}", pixels == value, label)
            sheet.shapes.append(shape)
            if label is None and names:
                text = f"{name}: id {value} is not in {self.table.file}: kept without a label"
                sheet.problems.append(note(name, text, photo))

    def _colours(self, photo: str, name: str, pixels: npt.NDArray[np.int64], sheet: Sheet) -> None:
        packed = pixels @ np.array([1, 256, 65_536])
        known = np.zeros(packed.shape, bool)
        for (red, green, blue), label in self.table.colours.items():
            mask = packed == red + 256 * green + 65_536 * blue
            known |= mask
            if mask.any() and not is_background(label):
                colour = f"colour {red},{green},{blue}"
                sheet.shapes.append(_shape(name, colour, mask, label))
        black = packed == 0
        strange = ~known & ~black
        if strange.any():
            values = len(np.unique(packed[strange]))
            text = (
                f"{name}: {int(strange.sum()):,} px of {values:,} colours are not in "
                f"{self.table.file}: they belong to no region"
            )
            sheet.problems.append(note(name, text, photo))

    def _objects(
        self,
        name: str,
        objects: npt.NDArray[np.int64],
        classes: npt.NDArray[np.int64],
        sheet: Sheet,
    ) -> None:
        if objects.shape != classes.shape or objects.ndim != 2:
            raise SchemaError(f"{name}: objects of {objects.shape}, classes of {classes.shape}")
        for value in np.unique(objects).tolist():
            if value in (0, 255):
                continue
            mask = objects == value
            kinds, counts = np.unique(classes[mask], return_counts=True)
            label = self.table.names.get(int(kinds[counts.argmax()]))
            sheet.shapes.append(_shape(name, f"object {value}", mask, label))


def _shape(name: str, title: str, mask: npt.NDArray[np.bool_], label: str | None) -> Shape:
    return Shape(place=name, title=title, label=label, patch=mask, exact=True)


def are_label_maps(folder: Folder, masks: list[str], photos: list[str]) -> bool:
    """Whether masks are maps of several classes rather than a picture for each region.

    They are where a class table lies beside them or a known data set's names are used; else where
    no photo has two, and a sampled one holds three or more plain values.
    """
    if any(parent(name).endswith(("SegmentationClass", "SegmentationObject")) for name in masks):
        return True
    if any("gtfine" in name.lower() or "instanceids" in name.lower() for name in masks):
        return True
    table = find_table(folder)
    if table.names or table.colours:
        return True
    stems = {stem(photo).casefold() for photo in photos}
    if not all(stem(name).casefold() in stems for name in masks):
        return False
    # Sub-folders under the masks are labels: one photo has several.
    if len({stem(name).casefold() for name in masks}) < len(masks):
        return False
    return any(_is_map(folder, name) for name in masks[:: max(len(masks) // 16, 1)])


def _is_map(folder: Folder, name: str) -> bool:
    try:
        image = open_picture(folder.read(name))
        if image.format in ("JPEG", "MPO") or image.mode not in ("L", "P", "I;16", "I", "RGB"):
            return False
        values = np.unique(read_ids(folder.read(name)).reshape(-1))
    except (SchemaError, SourceError):
        return False
    # Soft edges fill the range with greys; ids are few, or leave gaps at their own places.
    return 3 <= len(values) <= 256 and (image.mode != "L" or len(values) < 0.5 * values.max() + 3)


def find_label_maps(folder: Folder, photos: list[str], masks: list[str]) -> Found:
    """The map of each photo.

    Args:
        folder: holds both.
        photos: pictures that are photos, of mask_files.py.
        masks: the others.
    """
    table = find_table(folder)
    objects = [name for name in masks if parent(name).endswith("SegmentationObject")]
    classes = [name for name in masks if parent(name).endswith("SegmentationClass")]
    chosen = objects or classes or [name for name in masks if not _is_other(name, masks)]
    if not (table.names or table.colours):
        if objects or classes:
            table = voc()
        elif any("gtfine" in name.lower() for name in masks):
            table = cityscapes()
    of_class = {stem(name): name for name in classes} if objects else {}
    owner = PhotoOfMask(photos)
    found = Found(LabelMapReader(table))
    maps: dict[str, tuple[str, str | None]] = {}
    for name in chosen:
        try:
            photo = owner.find(name)
        except LookupError as error:
            found.problems.append(Problem(name, str(error), Reason.IMAGE_MISSING, name))
            continue
        if photo in maps:
            text = f"a second map of {photo}, whose first is {maps[photo][0]}: left out"
            found.problems.append(Problem(name, text, Reason.DUPLICATE_IMAGE, name))
            continue
        maps[photo] = name, of_class.get(stem(name))
    found.entries = [Entry(photo, maps.get(photo)) for photo in photos]
    if not maps:
        first = "; ".join(str(problem) for problem in found.problems[:3])
        raise SourceError(f"{folder.uri}: no photo is found for any label map. {first}")
    kind = f"names of {table.file}" if table.file else "no table of classes, so no labels"
    found.said.append(
        f"label maps: {len(maps):,} for {len(photos):,} photos, {kind}"
        + (f" ({len(table.labels)} classes)" if table.file else "")
    )
    return found


def _is_other(name: str, masks: list[str]) -> bool:
    """Cityscapes writes a photo's map in several forms; the one with objects counts."""
    base = stem(name).lower()
    if suffix(name) == ".json" or not base.endswith(_CITYSCAPES_OTHERS):
        return False
    best = base.rsplit("_", 1)[0] + "_instanceids"
    return any(stem(other).lower() == best for other in masks)

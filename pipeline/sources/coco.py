"""COCO-style json: COCO, LVIS, Objects365, and what Roboflow, CVAT and Label Studio export.

    {"images": [{id, file_name, width, height}], "categories": [{id, name}],
     "annotations": [{id, image_id, category_id, segmentation, bbox, area, iscrowd}]}

The json is passed over once; a photo then knows where its rows lie in the file, so a json of many
gigabytes is never in memory and workers parse only their own photos' rows. Ids are names: 5.0 is 5,
"000123" is not 123, and integers of any length are kept. Several files may speak of one photo.
"""

import re
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tap_engine.pipeline.sources.annotated import Entry, Shape, Sheet, as_id, note
from tap_engine.pipeline.sources.folder import Folder
from tap_engine.pipeline.sources.json_items import open_plain, read_spans
from tap_engine.schemas.errors import SourceError

Key = int | str
"""An id as it is compared: whole numbers as int, text as text."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Where one photo's annotations lie in one json.

    Attributes:
        file: index into the reader's files.
        line: of the photo's own row.
        size_wh: of the photo as stated; None where it is not.
        starts, ends, lines: of its rows.
    """

    file: int
    line: int
    size_wh: tuple[int, int] | None
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    lines: npt.NDArray[np.int64]


class CocoReader:
    """Reads photos' rows of COCO-style json files.

    Args:
        files: paths under the folder.
        names: for each file, label by category id; None where an id has no single name.
        labels: category names in file order.
        digest: of all files' content.
    """

    format = "coco"

    def __init__(
        self,
        files: list[str],
        names: list[dict[Key, str | None]],
        labels: tuple[str, ...],
        digest: str,
    ) -> None:
        self.files, self.names, self.labels, self.digest = files, names, labels, digest
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    def settings(self) -> dict[str, Any]:
        """Which annotations: others for the same photos belong in another store."""
        return {"annotations": self.digest}

    def read(self, folder: Folder, entry: Entry) -> Sheet:
        """One photo's rows, of all files that list it."""
        sheet = Sheet()
        for rows in entry.detail:
            sheet.size_wh = sheet.size_wh or rows.size_wh
            sheet.place = sheet.place or f"{self.files[rows.file]}:{rows.line}"
            uri = f"{folder.uri}/{self.files[rows.file]}"
            parsed = read_spans(self._open(uri), rows.starts, rows.ends)
            for row, line in zip(parsed, rows.lines, strict=True):
                place = f"{self.files[rows.file]}:{line}"
                if not isinstance(row, dict):
                    raise SourceError(f"{place}: the file has changed since it was indexed")
                self._shape(row, rows.file, place, entry.name, sheet)
        return sheet

    def _shape(self, row: dict[str, Any], file: int, place: str, photo: str, sheet: Sheet) -> None:
        stated = row.get("id")
        title = "annotation" if stated is None else f"annotation {stated}"
        label = None
        category = id_key(row.get("category_id"))
        if category is not None and self.names[file]:
            label = look_up(self.names[file], category)
            if label is None:
                text = f"{title}: category {row['category_id']} has no name in `categories`"
                sheet.problems.append(note(place, f"{text}; kept without a label", photo))
        segmentation = row.get("segmentation")
        sheet.shapes.append(
            Shape(
                place=place,
                title=title,
                region_id=as_id(stated),
                label=label,
                coco=segmentation if segmentation not in ({}, "") else None,
                box=row.get("bbox") or None,
                box_seen=row.get("bbox"),
                area_seen=row.get("area"),
            )
        )

    def _open(self, uri: str) -> Any:
        """Each thread keeps its files open; a packed one is unpacked once."""
        opened = self._local.__dict__.setdefault("opened", {})
        if uri not in opened:
            opened[uri] = open_plain(uri)
        return opened[uri]


def id_key(value: object) -> Key | None:
    """An id to compare by: 5.0 is 5, text stays text; None for what is no id."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) else None


def as_number(text: str) -> Key:
    """The id that a json key stands for; json has text keys only."""
    return int(text) if re.fullmatch(r"-?[1-9][0-9]{0,99}|0", text) else text


def look_up(table: dict[Key, Any], key: Key) -> Any:
    """By id; where nothing else is called so, 81 is "81" and the other way round."""
    if key in table:
        return table[key]
    return table.get(str(key) if isinstance(key, int) else as_number(key))

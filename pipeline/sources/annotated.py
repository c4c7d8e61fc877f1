"""What a reader of a format hands on: photos, their shapes, and what is wrong with them.

A reader says which photos there are and reads one photo's shapes when asked. What is common to all
formats (which photo, which way up, masks cut to it, ids, labels) is photo_folder.py's.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tap_engine.pipeline.sources.folder import Folder
from tap_engine.schemas.polygons import Outline
from tap_engine.schemas.rejects import Reason

_NO_REGION = -1
"""Must not read as a whole image left out."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, or worth knowing.

    Attributes:
        place: `file:line`, or the file alone.
        text: what was expected and found.
        reason: for the `rejects` table.
        photo: name of the photo concerned; "" where there is none.
        region: whether only one region is lost; its id in the source, -1 where it has none.
        note: True where nothing is left out.
    """

    place: str
    text: str
    reason: Reason
    photo: str = ""
    region: int | None = None
    note: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {self.text}" if self.place else self.text


def note(place: str, text: str, photo: str = "") -> Problem:
    """A problem that leaves nothing out.

    Args:
        place: `file:line`, or the file alone.
        text: what was decided.
        photo: whose; a note without one is for people who check, and no row of a store.
    """
    return Problem(place, text, Reason.NOTE, photo, _NO_REGION, note=True)


@dataclass(slots=True, kw_only=True)
class Shape:
    """One region as a file gives it, in one of four forms.

    Attributes:
        place: `file:line`.
        title: what to call it in messages, with its id: "annotation 70005".
        region_id: its number in the source; None where it has none that is an int64.
        label: its name; None without one.
        coco: polygons or run lengths in COCO's forms, not checked yet.
        outlines: checked corners.
        fractions: the outlines and the box are shares of the picture's width and height.
        patch: [h, w] bool, inside or not, with its top left corner at `at`.
        at: x and y of the patch, px.
        exact: the patch must be of the photo's size, else it is refused.
        box: [x, y, width, height], not checked; used where there is no mask.
        box_seen: box stated beside a mask, not checked; compared only.
        area_seen: area stated beside a mask, not checked; compared only.
        predicted_iou, stability_score: as stated, where they are finite numbers.
    """

    place: str
    title: str
    region_id: int | None = None
    label: str | None = None
    coco: Any = None
    outlines: Sequence[Outline] = ()
    fractions: bool = False
    patch: npt.NDArray[np.bool_] | None = None
    at: tuple[int, int] = (0, 0)
    exact: bool = False
    box: Any = None
    box_seen: Any = None
    area_seen: Any = None
    predicted_iou: float | None = None
    stability_score: float | None = None


@dataclass(slots=True)
class Sheet:
    """The annotations of one photo.

    Attributes:
        size_wh: size of the picture as the annotations state it; None where they do not.
        shapes: its regions.
        problems: rows that could not be read, and notes.
        photo: the photo's bytes where the annotations hold them.
        place: `file:line` where the photo itself is named; its own name where it is not.
    """

    size_wh: tuple[int, int] | None = None
    shapes: list[Shape] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    photo: bytes | None = None
    place: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One photo of a data set.

    Attributes:
        name: path under the folder; the photo's name for good.
        detail: what the reader needs to find its annotations; picklable and small.
        in_file: whether the photo is a file of that name; False where the annotations hold it.
    """

    name: str
    detail: Any
    in_file: bool = True


class Reader(Protocol):
    """Reads one format; instances travel to workers.

    Attributes:
        format: its word for --source.
        labels: names its files list, in the order of their ids; empty where only the photos'
            annotations name them.
    """

    format: str
    labels: tuple[str, ...]

    def settings(self) -> dict[str, Any]:
        """What decides the rows besides the photos; JSON values, for the store's provenance."""
        ...

    def read(self, folder: Folder, entry: Entry) -> Sheet:
        """One photo's annotations.

        Raises:
            SchemaError: they cannot be read at all.
            SourceError: the same, or they are not there any more.
        """
        ...


@dataclass(slots=True)
class Found:
    """What a folder turned out to be.

    Attributes:
        reader: reads it.
        entries: its photos.
        problems: what is wrong with the set as a whole: photos missing, rows without photo.
        said: what was found, a sentence each.
    """

    reader: Reader
    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


def clean_label(value: object) -> str | None:
    """A label as text: ends trimmed, one Unicode form; None where it is empty or no name.

    Line breaks and case are kept. Numbers are names too: 7 is "7".
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = unicodedata.normalize("NFC", str(value)).strip()
    return text or None


def score(value: object) -> float | None:
    """A finite number, also as text; None for everything else."""
    if isinstance(value, bool):
        return None
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return found if np.isfinite(found) else None


def as_id(value: object) -> int | None:
    """An id as int64: an integer, or a float that is one; None for text and larger numbers."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -(1 << 63) <= value < 1 << 63:
        return None
    return value

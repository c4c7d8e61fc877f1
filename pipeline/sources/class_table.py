"""Which class a number or a colour of a label map is: tables as people and tools write them.

    0 background / kite, one per line       classes.txt, with or without numbers
    id,name / name,r,g,b                    csv or tsv with a head
    {"0": "background"}, {"kite": [r,g,b]}  json, either way round, also under "colors"
    kite:128,0,0::                          labelmap.txt of CVAT
Two published lists are known by their file layout: Cityscapes' ids and the 20 classes of VOC.
"""

import csv
import json
import re
from dataclasses import dataclass, field
from typing import Any

from tap_engine.pipeline.sources.annotated import clean_label
from tap_engine.pipeline.sources.folder import Folder, suffix

_Colour = tuple[int, int, int]

_BACKGROUND = re.compile(
    r"_*(back ?ground|bg|void|unlabel?led|unlabel|ignore|ignored|none|no label|nothing|border)_*",
    re.I,
)
_CVAT = re.compile(r"(?P<name>[^:#]+):(?P<rgb>\d+,\d+,\d+):")
_NUMBERED = re.compile(r"\s*(\d+)\s*[\s,:;=\t]\s*(\S.*)")

_CITYSCAPES = [
    "unlabeled",
    "ego vehicle",
    "rectification border",
    "out of roi",
    "static",
    "dynamic",
    "ground",
    "road",
    "sidewalk",
    "parking",
    "rail track",
    "building",
    "wall",
    "fence",
    "guard rail",
    "bridge",
    "tunnel",
    "pole",
    "polegroup",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "caravan",
    "trailer",
    "train",
    "motorcycle",
    "bicycle",
]
_CITYSCAPES_SCORED = 7
"""Ids below are parts of the car or the picture that are not scored."""

_VOC = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]


@dataclass(frozen=True)
class ClassTable:
    """Names of label map values.

    Attributes:
        file: where it was read; "" for none, or a published list's name.
        names: label by id.
        colours: label by colour; empty for a table of ids.
        left_out: ids that are no regions.
    """

    file: str = ""
    names: dict[int, str] = field(default_factory=dict)
    colours: dict[_Colour, str] = field(default_factory=dict)
    left_out: frozenset[int] = frozenset()

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of regions, in the order of ids."""
        named = [self.names[i] for i in sorted(self.names) if i not in self.left_out]
        named += [n for n in self.colours.values() if not is_background(n)]
        return tuple(dict.fromkeys(named))

    def is_background(self, value: int) -> bool:
        """Whether an id is no region: called so in the table, 0 or 255 where it names neither."""
        if value in self.left_out:
            return True
        return value not in self.names and value in (0, 255, 65535)


def is_background(name: str) -> bool:
    """Whether a class is called background, void, unlabelled or the like."""
    return _BACKGROUND.fullmatch(name.strip()) is not None


def cityscapes() -> ClassTable:
    """Ids 0 to 33 of Cityscapes' label table; 0 to 6 are not scored."""
    return _of_ids("Cityscapes' ids", dict(enumerate(_CITYSCAPES)), range(_CITYSCAPES_SCORED))


def voc() -> ClassTable:
    """Background and the 20 classes of PASCAL VOC."""
    return _of_ids("the classes of VOC", dict(enumerate(_VOC)))


def find_table(folder: Folder) -> ClassTable:
    """The first file of a folder that is a class table; an empty table where there is none."""
    for name in sorted(folder.sizes, key=lambda name: (name.count("/"), name)):
        if suffix(name) in (".txt", ".csv", ".tsv", ".json") and folder.sizes[name] < 1 << 20:
            table = _parse(name, folder.read(name))
            if table.names or table.colours:
                return table
    return ClassTable()


def _parse(name: str, data: bytes) -> ClassTable:
    end = suffix(name)
    if end == ".json":
        try:
            return _of_json(name, json.loads(data))
        except (ValueError, RecursionError):
            return ClassTable()
    lines = [line for line in read_lines(data) if line.strip()]
    if end in (".csv", ".tsv") or (lines and {"name", "id"} <= _cells(lines[0])):
        return _of_csv(name, lines)
    if rows := [m for line in lines if (m := _CVAT.match(line))]:
        colours = {_colour(m["rgb"].split(",")): m["name"].strip() for m in rows}
        return ClassTable(name, {}, colours)
    base = name.rsplit("/", 1)[-1].lower()
    if not re.search(r"class|label|categor|names|legend|palette|colou?r", base):
        return ClassTable()
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    if lines and all(numbered):
        return _of_ids(name, {int(m[1]): m[2].strip() for m in numbered if m})
    if len({len(line.split()) >= 5 for line in lines}) == 1 and not any(
        re.fullmatch(r"[-\d.eE\s]+", line) for line in lines
    ):
        return _of_ids(name, {index: line.strip() for index, line in enumerate(lines)})
    return ClassTable()


def _of_ids(file: str, names: dict[int, str], left_out: Any = ()) -> ClassTable:
    names = {number: label for number, name in names.items() if (label := clean_label(name))}
    ground = {number for number, name in names.items() if is_background(name)}
    return ClassTable(file, names, {}, frozenset(ground | set(left_out)))


def _of_json(file: str, content: Any) -> ClassTable:
    if isinstance(content, dict):
        for key in ("colors", "colours", "id2label", "classes", "labels", "categories"):
            if isinstance(content.get(key), dict | list):
                content = content[key]
                break
    if isinstance(content, list) and all(
        isinstance(row, dict) and "id" in row and "name" in row for row in content
    ):
        content = {str(row["id"]): row["name"] for row in content}
    if not isinstance(content, dict) or not content:
        return ClassTable()
    ids: dict[int, str] = {}
    colours: dict[_Colour, str] = {}
    for key, value in content.items():
        if isinstance(value, list) and len(value) in (3, 4):
            colours[_colour(value)] = key
        elif isinstance(value, str) and key.isdecimal():
            ids[int(key)] = value
        elif type(value) is int:
            ids[value] = key
        else:
            return ClassTable()
    return ClassTable(file, {}, colours) if colours else _of_ids(file, ids)


def _of_csv(file: str, lines: list[str]) -> ClassTable:
    mark = "\t" if lines and "\t" in lines[0] else ","
    ids: dict[int, str] = {}
    colours: dict[_Colour, str] = {}
    for row in csv.DictReader(lines, delimiter=mark):
        cells = {(key or "").strip().lower(): value for key, value in row.items()}
        name = cells.get("name") or cells.get("label") or cells.get("class")
        number = cells.get("id") or cells.get("index") or cells.get("value")
        if not isinstance(name, str) or len(cells) > 12:
            return ClassTable()
        try:
            if {"r", "g", "b"} <= cells.keys():
                colours[_colour([cells["r"], cells["g"], cells["b"]])] = name.strip()
            elif number is not None:
                ids[int(number)] = name
        except (TypeError, ValueError):
            return ClassTable()
    return ClassTable(file, {}, colours) if colours else _of_ids(file, ids)


def _cells(line: str) -> set[str]:
    return {cell.strip().lower() for cell in re.split(r"[,\t;]", line)}


def _colour(values: Any) -> _Colour:
    red, green, blue = (int(value) for value in list(values)[:3])
    return red, green, blue


def read_lines(data: bytes) -> list[str]:
    """Lines of a text file, of any system's line ends; UTF-8, or Latin-1 where it is none."""
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")

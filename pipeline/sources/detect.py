"""What a folder is: finds the format of its annotations and says what was found before it starts.

Files are known by their content, not by their names. Where two formats lie in one folder the first
of FORMATS is taken and the other is named; `--source FORMAT` chooses. Known forms that are not read
are named with the way to another one.
"""

import random
import re
from collections import defaultdict
from dataclasses import dataclass, field

from pyarrow import fs

from tap_engine.pipeline.sources.ade20k import find_ade20k
from tap_engine.pipeline.sources.annotated import Found
from tap_engine.pipeline.sources.coco_index import find_coco
from tap_engine.pipeline.sources.filesystem import absolute_uri
from tap_engine.pipeline.sources.folder import ARCHIVES, Folder, stem
from tap_engine.pipeline.sources.json_items import JsonItems
from tap_engine.pipeline.sources.label_maps import are_label_maps, find_label_maps
from tap_engine.pipeline.sources.labelme import find_labelme
from tap_engine.pipeline.sources.mask_files import split_pictures
from tap_engine.pipeline.sources.masks import find_masks
from tap_engine.pipeline.sources.panoptic import find_panoptic
from tap_engine.pipeline.sources.sam_json import find_sam_json
from tap_engine.pipeline.sources.yolo import find_yolo, looks_like_yolo
from tap_engine.schemas.errors import ConfigError, SourceError
from tap_engine.schemas.filesystem import open_filesystem

FORMATS = (
    "coco",
    "panoptic",
    "ade20k",
    "labelme",
    "sam-json",
    "yolo",
    "label-maps",
    "masks",
)
"""In the order in which they are taken."""

_SA1B = re.compile(r"sa_\d+\.(jpg|json)")
_SNIFFED = 300
_JSON = (".json", ".json.gz")

_NOT_READ = {
    "coco-results": "a list of results (detections) without a list of `images`: give the json that "
    "lists the images, with the results as its `annotations`",
    "via": "a VIA (VGG Image Annotator) project is known, not read: export it as COCO",
    "label-studio": "Label Studio's own tasks are known, not read: export them as COCO",
    "createml": "CreateML's json is known, not read: export it as COCO",
    "xml-voc": "VOC xml (boxes) is known, not read: export the boxes as COCO or YOLO",
    "xml-cvat": "CVAT's own xml is known, not read: export the task as COCO 1.0",
    "xml": "xml files are not read: export them as COCO",
    "jsonl": "json lines (.jsonl) are not read: write one COCO-style json",
    "parquet": "parquet files are not read: export COCO-style json and the photos as files",
}


def open_folder(paths: list[str]) -> Folder:
    """The folder that paths on the command line name: itself, or a json in it.

    Raises:
        SourceError: no such place, or several folders.
    """
    uris = [absolute_uri(path) for path in paths]
    found = []
    for uri in uris:
        filesystem, path = open_filesystem(uri)
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            raise SourceError(f"{uri}: there is no such file or folder")
        found.append((uri.rstrip("/"), info.is_file))
    folders = [uri for uri, is_file in found if not is_file]
    files = [uri for uri, is_file in found if is_file]
    if len(folders) > 1:
        raise SourceError(f"own photos are built from one folder at a time, got {len(folders)}")
    root = folders[0] if folders else files[0].rpartition("/")[0]
    outside = [uri for uri in files if not uri.startswith(f"{root}/")]
    if outside:
        raise SourceError(f"{outside[0]} lies outside of {root}: put it beside the photos")
    return Folder(root, only=[uri[len(root) + 1 :] for uri in files])


def is_sa1b(paths: list[str]) -> bool:
    """Whether everything named is in SA-1B's layout: tars, or sa_N.jpg with sa_N.json."""
    for path in paths:
        if path.endswith(".tar"):
            continue
        folder = open_folder([path])
        if folder.only:
            return False
        names = list(folder.sizes)
        pairs = {stem(name) for name in names if _SA1B.fullmatch(name)}
        if not pairs and not (names and all(name.endswith(".tar") for name in names)):
            return False
        if len(folder.pictures) > len(pairs):
            return False
    return bool(paths)


@dataclass
class Listing:
    """A folder's annotation files by what they are.

    Attributes:
        jsons: paths by kind: those of FORMATS that are json, keys of _NOT_READ, `broken`, `other`.
        errors: what is wrong with each broken one.
        texts: files of YOLO lines.
        photos, masks: pictures, by the names of their folders.
    """

    jsons: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    errors: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    photos: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)


def find_annotations(folder: Folder, source: str = "auto") -> Found:
    """What a folder holds, ready to be read.

    Args:
        folder: of photos and annotations.
        source: `auto`, or one of FORMATS.

    Raises:
        ConfigError: an unknown format.
        SourceError: nothing that can be built; says what was looked for and what is there.
    """
    if source != "auto" and source not in FORMATS:
        raise ConfigError(f"--source must be auto or one of {', '.join(FORMATS)}, got {source!r}")
    if not folder.sizes:
        raise SourceError(f"{folder.uri}: the folder is empty; expected photos and annotations")
    listing = list_annotations(folder)
    present = _present(folder, listing)
    wanted = present[0] if present and source == "auto" else source
    if not folder.pictures and not listing.jsons["labelme"]:
        kinds = f" (there is {', '.join(present)})" if present else ""
        raise SourceError(
            f"{folder.uri}: no photo in it, no picture with an ending of JPEG, PNG, WebP, BMP, "
            f"TIFF or GIF{kinds}; give the folder that holds the photos{_named_archives(folder)}"
        )
    if wanted == "auto":
        raise SourceError(_nothing(folder, listing))
    found = _find(folder, wanted, listing)
    others = [f for f in present if f != wanted and not {f, wanted} <= {"label-maps", "masks"}]
    if others:
        found.said.append(
            f"also here: {', '.join(others)}, which is not read; --source {others[0]} takes it "
            "instead"
        )
    _name_the_rest(folder, listing, wanted, found)
    return found


def list_annotations(folder: Folder) -> Listing:
    """Sort a folder's files by content; of very many json files a sample is looked at."""
    listing = Listing()
    jsons = folder.with_suffix(*_JSON)
    sampled = jsons
    if len(jsons) > _SNIFFED:
        sampled = sorted(random.Random(0).sample(jsons, _SNIFFED))
    for name in sampled:
        listing.jsons[_sniff(folder, name, listing)].append(name)
    if len(sampled) < len(jsons):
        most = max(listing.jsons, key=lambda kind: len(listing.jsons[kind]))
        listing.jsons[most] = sorted({*listing.jsons[most], *(set(jsons) - set(sampled))})
    for name in folder.with_suffix(".xml"):
        listing.jsons[_xml_kind(folder.head(name, 2048))].append(name)
    listing.jsons["jsonl"] += folder.with_suffix(".jsonl", ".ndjson")
    listing.jsons["parquet"] += folder.with_suffix(".parquet")
    listing.texts = looks_like_yolo(folder)
    listing.photos, listing.masks = split_pictures(folder)
    return listing


def _present(folder: Folder, listing: Listing) -> list[str]:
    """Formats that lie in the folder, in the order of FORMATS."""
    present = [name for name in FORMATS if listing.jsons.get(name)]
    if "ade20k" in present:
        return ["ade20k"]
    if listing.texts:
        present.append("yolo")
    # A json decides over pictures, which may be its own or previews.
    if listing.masks and not present:
        maps = are_label_maps(folder, listing.masks, listing.photos)
        present.append("label-maps" if maps else "masks")
    return sorted(present, key=FORMATS.index)


def _find(folder: Folder, wanted: str, listing: Listing) -> Found:
    jsons = listing.jsons
    strangers = sorted([*jsons["broken"], *jsons["other"]])
    if wanted == "coco":
        files = jsons["coco"] or [*jsons["coco-results"], *jsons["broken"]]
        results = tuple(jsons["coco-results"]) if jsons["coco"] else ()
        return find_coco(folder, files, frozenset(listing.masks), results)
    if wanted == "panoptic":
        return find_panoptic(folder, jsons["panoptic"])
    if wanted == "ade20k":
        return find_ade20k(folder, jsons["ade20k"])
    if wanted == "labelme":
        return find_labelme(folder, jsons["labelme"], strangers)
    if wanted == "sam-json":
        return find_sam_json(folder, jsons["sam-json"], strangers)
    if wanted == "yolo":
        return find_yolo(folder, listing.texts or folder.with_suffix(".txt"))
    if not listing.masks:
        raise SourceError(
            f"{folder.uri}: no masks in it: no pictures in folders called masks, labels, "
            "annotations or the like, and none named NAME_mask beside NAME"
        )
    find = find_label_maps if wanted == "label-maps" else find_masks
    return find(folder, listing.photos, listing.masks)


def _sniff(folder: Folder, name: str, listing: Listing) -> str:
    """What a json is."""
    try:
        items = folder.index_json(name)
    except SourceError as error:
        if b'"instance_mask"' in folder.head(name, 1 << 16):
            return "ade20k"  # its names hold accents in Latin-1
        listing.errors.append(str(error).removeprefix(f"{folder.uri}/"))
        return "broken"
    return kind_of_json(items)


def kind_of_json(items: JsonItems) -> str:
    """One of the kinds of `Listing.jsons`, by keys and first rows."""
    frame = items.frame
    if isinstance(frame, dict):
        if "shapes" in frame and frame.keys() & {"imagePath", "imageData", "version", "flags"}:
            return "labelme"
        annotations = _first(items, frame.get("annotations"))
        if isinstance(frame.get("images"), list):
            if any("segments_info" in row for row in annotations):
                return "panoptic"
            if "annotations" in frame or "categories" in frame:
                return "coco"
        if any("segmentation" in row and "image_id" not in row for row in annotations):
            return "sam-json"
        if frame.keys() >= {"image", "annotations"} and isinstance(frame["image"], dict):
            return "sam-json"
        if any("image_id" in row for row in annotations):
            return "coco"
        inner = frame.get("annotation")
        if isinstance(inner, dict) and "object" in inner:
            return "ade20k"
        values = list(frame.values())[:20]
        if values and all(isinstance(value, dict) for value in values):
            if all("segmentation" in value for value in values):
                return "sam-json"
            if any("regions" in value and "filename" in value for value in values):
                return "via"
        if any(str(key).startswith("_via") for key in frame):
            return "via"
        return "other"
    rows = _first(items, frame)
    if frame == []:
        return "sam-json"
    if rows and all("image_id" in row for row in rows):
        return "coco-results"
    if any("segmentation" in row for row in rows):
        return "sam-json"
    if rows and all("image" in row and "annotations" in row for row in rows):
        return "createml"
    if rows and all("data" in row or "annotations" in row for row in rows):
        return "label-studio"
    return "other"


def _first(items: JsonItems, rows: object) -> list[dict[str, object]]:
    numbers = rows[:20] if isinstance(rows, list) else []
    return [row for _, row in items.rows(numbers) if isinstance(row, dict)]


def _xml_kind(head: bytes) -> str:
    if re.search(rb"<annotations>.*<(image|version|meta)\b", head, re.S):
        return "xml-cvat"
    return "xml-voc" if b"<annotation" in head else "xml"


def _nothing(folder: Folder, listing: Listing) -> str:
    """Why a folder cannot be built."""
    if listing.errors:
        more = f" (and {len(listing.errors) - 1} more)" if len(listing.errors) > 1 else ""
        return f"{folder.uri}: {listing.errors[0]}{more}"
    known = [text for kind, text in _NOT_READ.items() if listing.jsons.get(kind)]
    if known:
        names = next(listing.jsons[kind] for kind in _NOT_READ if listing.jsons.get(kind))
        return f"{folder.uri}: {names[0]}: {known[0]}"
    return (
        f"{folder.uri}: {len(folder.pictures):,} photos, but no annotations that are known: no "
        "COCO-style, labelme or SAM json, no YOLO text, no folder of masks. Without any mask, "
        "`tap everything` makes masks of photos"
    )


def _name_the_rest(folder: Folder, listing: Listing, wanted: str, found: Found) -> None:
    """Say once what lies beside and is not read."""
    rest = [n for n in folder.sizes if n.lower().endswith(ARCHIVES) and not n.endswith(".json.gz")]
    if wanted in ("coco", "panoptic", "yolo", "masks", "label-maps"):
        if wanted in ("coco", "panoptic"):
            rest += listing.jsons["broken"]
        for error in listing.errors:
            found.said.append(f"not read: {error}")
    if rest:
        found.said.append(f"not read: {', '.join(rest[:10])}" + " ..." * (len(rest) > 10))
    if folder.unreadable:
        found.said.append(f"{folder.unreadable:,} files whose names are no UTF-8 are not read")
    if folder.stray:
        found.said.append(f"{folder.stray:,} hidden files and leftovers of systems passed over")


def _named_archives(folder: Folder) -> str:
    packed = [name for name in folder.sizes if name.lower().endswith(ARCHIVES)]
    if not packed:
        return ""
    wanted = _wanted_names(folder)
    names = f" ({wanted})" if wanted else ""
    return f"; photos{names} may lie in {', '.join(packed[:3])}: unpack it first"


def _wanted_names(folder: Folder) -> str:
    """The first photos that a COCO-style json asks for."""
    for name in folder.with_suffix(".json"):
        try:
            items = folder.index_json(name)
        except SourceError:
            continue
        if kind_of_json(items) == "coco":
            rows = _first(items, items.frame["images"])
            return ", ".join(str(row.get("file_name")) for row in rows[:3])
    return ""

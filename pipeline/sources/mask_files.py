"""Pictures that are masks: how they are told from photos, whose they are, and their pixels."""

import io
import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from tap_engine.pipeline.sources.folder import Folder, parent, stem, suffix
from tap_engine.pipeline.sources.photo import MAX_PHOTO_PX
from tap_engine.schemas.errors import SchemaError

MASK_WORDS = frozenset(
    [
        "mask",
        "masks",
        "label",
        "labels",
        "labelmap",
        "labelmaps",
        "annotation",
        "annotations",
        "annot",
        "annots",
        "anno",
        "seg",
        "segs",
        "segm",
        "segmentation",
        "segmentations",
        "segmentationclass",
        "segmentationobject",
        "gt",
        "gts",
        "gtfine",
        "gtcoarse",
        "groundtruth",
        "semantic",
        "instance",
        "instances",
        "panoptic",
        "matte",
        "mattes",
        "trimap",
        "trimaps",
    ]
)
PHOTO_WORDS = frozenset(
    [
        "image",
        "images",
        "img",
        "imgs",
        "photo",
        "photos",
        "picture",
        "pictures",
        "jpegimages",
        "leftimg8bit",
        "rgb",
        "input",
        "inputs",
        "source",
        "sources",
        "raw",
    ]
)
_MASK_ENDING = re.compile(
    r"(.+?)[ ._-](masks?|segs?|segmentation|labels?|matte|gt|labelids|instanceids)([ ._-]?\d+)?$",
    re.I,
)
_MOST_BETWEEN = 0.3
"""Share of half-bright pixels from which on a picture is no mask with soft edges."""


def split_pictures(folder: Folder) -> tuple[list[str], list[str]]:
    """(photos, masks) of a folder's pictures, by the names of their folders, or of themselves.

    The innermost folder with a telling name decides: `images`, `photos` and the like against
    `masks`, `labels`, `SegmentationClass` and the like. Beside its photo a mask is called
    NAME_mask, is a PNG of the same name beside a JPEG, or lies in a folder of the photo's name.
    """
    names = {(parent(name), stem(name)) for name in folder.pictures}
    bases = {base for _, base in names}
    jpegs = {
        (parent(name), stem(name)) for name in folder.pictures if suffix(name) in (".jpg", ".jpeg")
    }
    listed = {parent(name) for name in folder.sizes if name.endswith("metadata.csv")}
    photos: list[str] = []
    masks: list[str] = []
    for name in folder.pictures:
        word = _telling(parent(name))
        if word == "":
            ending = _MASK_ENDING.match(stem(name))
            beside = ending is not None and (parent(name), ending[1]) in names
            pair = suffix(name) == ".png" and (parent(name), stem(name)) in jpegs
            inner = parent(name).rsplit("/", 1)[-1]
            numbered = bool(inner) and inner in bases and re.fullmatch(r"\d+", stem(name))
            word = "mask" if pair or beside or numbered or parent(name) in listed else "photo"
        (masks if word == "mask" else photos).append(name)
    return (photos, masks) if photos else (masks, [])


def _telling(path: str) -> str:
    for part in reversed(path.split("/")):
        words = set(re.split(r"[^a-z0-9]+", part.lower()))
        if words & MASK_WORDS:
            return "mask"
        if words & PHOTO_WORDS:
            return "photo"
    return ""


class PhotoOfMask:
    """Whose a mask is: its folder's name, or the longest photo name that its own begins with."""

    def __init__(self, photos: Iterable[str]) -> None:
        self._by_stem: dict[str, list[str]] = {}
        for photo in photos:
            self._by_stem.setdefault(_key(stem(photo)), []).append(photo)

    def find(self, mask: str) -> str:
        """The photo.

        Raises:
            LookupError: no photo fits, or several do.
        """
        base = stem(mask)
        for wanted in _beginnings(base):
            if fitting := self._by_stem.get(_key(wanted)):
                return _nearest(mask, fitting)
        for part in reversed(parent(mask).split("/")):
            if part and (fitting := self._by_stem.get(_key(part))):
                return _nearest(mask, fitting)
        raise LookupError(f"no photo is found for the mask {mask}")


def _beginnings(base: str) -> list[str]:
    """The name itself, then shorter and shorter, cut at its marks."""
    cuts = [match.start() for match in re.finditer(r"[ ._-]+", base)]
    return [base, *(base[:cut] for cut in reversed(cuts) if cut)]


def _key(base: str) -> str:
    """Cityscapes calls photo and mask by two endings."""
    return base.removesuffix("_leftImg8bit").casefold()


def _nearest(mask: str, photos: list[str]) -> str:
    """Of photos with one name, that whose folders share most with the mask's, if one does."""
    theirs = set(parent(mask).split("/"))
    ranks = {photo: len(theirs & set(parent(photo).split("/"))) for photo in photos}
    best = [photo for photo, rank in ranks.items() if rank == max(ranks.values())]
    if len(best) > 1:
        raise LookupError(f"the mask {mask} fits {len(best)} photos: {', '.join(best[:3])}")
    return best[0]


def open_picture(data: bytes) -> Image.Image:
    """A mask's picture, decoded.

    Raises:
        SchemaError: it is none, too large, or damaged.
    """
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PHOTO_PX:
            raise SchemaError(f"a mask of {image.width} x {image.height} px is too large")
        image.load()
    except (Image.DecompressionBombError, UnidentifiedImageError) as error:
        raise SchemaError("the mask is no picture that can be read") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise SchemaError(f"the mask is damaged or cut short: {error}") from error
    return image


def read_mask(data: bytes) -> npt.NDArray[np.bool_]:
    """[H, W] inside or not, of one region's picture.

    A palette counts by index, 16 bits and 0/1 by themselves; the alpha channel is the mask unless
    it is full everywhere. Of soft edges, half of the brightest and more is inside.

    Raises:
        SchemaError: it cannot be read.
    """
    image = open_picture(data)
    if image.mode == "P":
        return np.asarray(image) > 0
    if image.mode in ("RGBA", "LA"):
        alpha = np.asarray(image.getchannel("A"))
        if (alpha != 255).any():
            return alpha >= 128
        image = image.convert("RGB" if image.mode == "RGBA" else "L")
    pixels = np.asarray(image).astype(np.float64)
    if pixels.ndim == 3:
        pixels = pixels.max(2)
    brightest = pixels.max(initial=0)
    if brightest <= 0:
        return np.zeros(pixels.shape, bool)
    between = float(((pixels > 0.15 * brightest) & (pixels < 0.85 * brightest)).mean())
    if between > _MOST_BETWEEN:
        raise SchemaError(
            f"no mask but a photo or a map: {between:.0%} of its pixels are neither dark nor bright"
        )
    return pixels >= brightest / 2


def read_ids(data: bytes) -> npt.NDArray[np.int64]:
    """[H, W] ids, or [H, W, 3] colours, of a label map.

    Grey of any depth is ids, a palette its indices; equal channels are grey. Alpha says nothing.

    Raises:
        SchemaError: it cannot be read, or is a JPEG, which blurs ids into one another.
    """
    image = open_picture(data)
    if image.format in ("JPEG", "MPO"):
        raise SchemaError(
            "the label map is a JPEG, which is lossy: it blurs ids into one another; save as PNG"
        )
    if image.mode in ("LA", "RGBA", "RGBX"):
        image = image.convert("L" if image.mode == "LA" else "RGB")
    pixels = np.asarray(image)
    if image.mode == "F":
        raise SchemaError("the label map holds floating-point numbers, expected ids")
    pixels = pixels.astype(np.int64)
    if pixels.ndim == 3 and (pixels[..., :1] == pixels).all():
        pixels = pixels[..., 0]
    return pixels


def read_colours(data: bytes) -> npt.NDArray[np.int64]:
    """[H, W, 3] colours of a label map, a palette's looked up."""
    image = open_picture(data)
    if image.format in ("JPEG", "MPO"):
        raise SchemaError(
            "the label map is a JPEG, which is lossy: it blurs colours into one another; save as "
            "PNG"
        )
    return np.asarray(image.convert("RGB")).astype(np.int64)

"""A photo of any usual form as the bytes that the store keeps, and which way up it is meant.

Kept byte for byte: JPEG, and PNG and WebP of 8 bits in grey or RGB. All else is written again:
    turned by EXIF        JPEG of quality 95 without chroma subsampling, turned
    alpha, palette        laid on white
    16 bits               divided by 257 (12 bits in 16 become nearly black, which is said)
    several pictures      the first (the large one of a phone's two counts as alone)
    CMYK JPEG             kept; BMP, TIFF, GIF: their pixels as PNG
Colour profiles change nothing. Masks decide whether the stored or the turned picture is meant: the
size that the annotations state, else the size of their masks; where neither tells, the turned one,
which is what viewers show.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from tap_engine.schemas.errors import ConfigError, SchemaError

SizeWh = tuple[int, int]
Keep = Literal["as-is", "jpeg"]
KEEP: tuple[Keep, ...] = ("as-is", "jpeg")

MAX_PHOTO_PX = 200_000_000
"""Larger ones are refused as decompression bombs (ours: 600 MB decoded)."""

_ORIENTATION = 0x0112
_JPEG = {"quality": 95, "subsampling": 0}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What EXIF's orientations ask of a viewer."""

_RAW = {".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2"}


@dataclass(slots=True)
class Photo:
    """A photo that can be stored.

    Attributes:
        data: a JPEG, PNG or WebP in the orientation that the masks mean.
        width, height: px.
        notes: what was decided or changed, for a person.
    """

    data: bytes
    width: int
    height: int
    notes: list[str] = field(default_factory=list)


def read_photo(
    data: bytes,
    name: str,
    stated: SizeWh | None = None,
    masks: Iterable[SizeWh] = (),
    reach: tuple[float, float] = (0.0, 0.0),
    keep: Keep = "as-is",
) -> Photo:
    """Which picture is meant, as bytes to store.

    Args:
        data: of the file.
        name: its name; the content decides what it is, not the ending.
        stated: (width, height) that the annotations give the picture; None where they do not.
        masks: (width, height) of masks that state one.
        reach: the largest x and y of outlines and boxes, px.
        keep: `as-is`, or `jpeg` to write every other form as a JPEG.

    Raises:
        SchemaError: no picture, a form that is not read, too large, cut short, or a size that fits
            neither the stored nor the turned picture.
    """
    if keep not in KEEP:
        raise ConfigError(f"photos must be one of {', '.join(KEEP)}, got {keep!r}")
    _refuse_others(data, name)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PHOTO_PX:
                raise SchemaError(_too_large(image.size))
            return _read(image, data, name, stated, set(masks), reach, keep)
    except Image.DecompressionBombError as error:
        raise SchemaError(f"too large a picture, more than {MAX_PHOTO_PX:,} pixels") from error
    except UnidentifiedImageError as error:
        raise SchemaError(
            "no picture in a form that is read (JPEG, PNG, WebP, BMP, GIF, TIFF); it begins with "
            f"{data[:8]!r}"
        ) from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError) as error:
        raise SchemaError(f"the picture is damaged or cut short: {error}") from error


def _read(
    image: Image.Image,
    data: bytes,
    name: str,
    stated: SizeWh | None,
    masks: set[SizeWh],
    reach: tuple[float, float],
    keep: Keep,
) -> Photo:
    notes: list[str] = []
    turn = _orientation(image)
    stored = image.size
    turned = stored[::-1] if turn >= 5 else stored
    meant = _meant(stored, turned, turn, stated, masks, reach, notes)
    form = "JPEG" if image.format == "MPO" else image.format
    frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
    plain = form == "JPEG" or (
        keep == "as-is"
        and form in ("PNG", "WEBP")
        and image.mode in ("RGB", "L")
        and "transparency" not in image.info
        and frames == 1
    )
    if plain and not (meant == "turned" and turn > 1):
        return Photo(data, *stored, notes)
    if frames > 1:
        notes.append(f"{form} of {frames} pictures or pages: the first is taken")
    pixels = _rgb(image, notes)
    if meant == "turned" and turn > 1:
        pixels = pixels.transpose(_TURNS[turn])
    out = io.BytesIO()
    if keep == "jpeg" or form in ("JPEG", "WEBP"):
        pixels.save(out, "JPEG", **_JPEG)
    else:
        pixels.save(out, "PNG")
    return Photo(out.getvalue(), *pixels.size, notes)


def _meant(
    stored: SizeWh,
    turned: SizeWh,
    turn: int,
    stated: SizeWh | None,
    masks: set[SizeWh],
    reach: tuple[float, float],
    notes: list[str],
) -> Literal["stored", "turned"]:
    """Which of the two pictures the annotations lie on; notes what was not obvious.

    Raises:
        SchemaError: neither.
    """
    sizes = f"the file is {stored[0]} x {stored[1]}" + (
        f", turned by EXIF {turned[0]} x {turned[1]}" if turned != stored else ""
    )
    if len(masks) == 1 and stated is not None and stated not in (stored, turned):
        stated = None  # the masks' own size is nearer to them than an entry elsewhere
    claimed = stated or (next(iter(masks)) if len(masks) == 1 else None)
    if claimed is None or claimed in (stored, turned):
        if stored == turned:
            if turn > 1:
                notes.append(f"EXIF turns the photo ({turn}) and no size tells: the turned picture")
            return "turned"
        if claimed == stored:
            notes.append(f"EXIF turns the photo, its masks lie on the stored one: {sizes}")
            return "stored"
        if claimed is None:
            notes.append(f"EXIF turns the photo and no size tells: the turned picture; {sizes}")
        return "turned"
    said = f"size {claimed[0]} x {claimed[1]} stated, {sizes}"
    swapped = claimed[::-1]
    fits = reach[0] <= stored[0] + 0.5 and reach[1] <= stored[1] + 0.5
    if swapped == stored and stored == turned and not masks and fits:
        notes.append(f"width and height are swapped in the annotations: {said}")
        return "stored"
    raise SchemaError(said)


def _rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """8-bit RGB of the first picture, by the rules atop this file."""
    mode = image.mode
    if mode == "F":
        raise SchemaError("pixels are floating-point numbers: their range is not known")
    if mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65_535:
            raise SchemaError(f"pixels of {values.min()}..{values.max()}: more than 16 bits")
        dark = "; nearly black, as fewer bits are used" if 0 < values.max() < 8192 else ""
        notes.append(f"16 bits per pixel, divided by 257{dark}")
        grey = (values / 257).round().astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        notes.append("transparent pixels are laid on white")
        above = image.convert("RGBA")
        ground = Image.new("RGBA", above.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, above).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF of any kind must not cost the photo
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _too_large(size: SizeWh) -> str:
    return (
        f"too large a picture: {size[0]:,} x {size[1]:,} pixels, more than {MAX_PHOTO_PX:,} in all"
    )


def _refuse_others(data: bytes, name: str) -> None:
    """Name what is no photo in a form that is read, better than a decoder would."""
    head = data[:512].lstrip()
    if not data:
        raise SchemaError("the file is empty (0 bytes)")
    if data.startswith(b"version https://git-lfs"):
        raise SchemaError("a Git LFS pointer, not the photo itself; `git lfs pull` fetches it")
    if b"<svg" in head:
        raise SchemaError("SVG holds vectors, not pixels; export it as PNG")
    if head[:1] == b"<":
        raise SchemaError("html or xml, not a photo")
    if data[:4] == b"%PDF":
        raise SchemaError("PDF, not a photo; export its pages as PNG")
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        raise SchemaError("HEIC (HEIF) is not read; export the photo as JPEG or PNG")
    ending = "." + name.rpartition(".")[2].lower()
    if data[8:10] == b"CR" or ending in _RAW:
        raise SchemaError(f"a camera's raw file ({ending[1:]}) is not read; develop it to JPEG")

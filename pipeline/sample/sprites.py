"""The artwork of the sample world: a sheet of drawings with a map of their parts.

The sheet is shipped, so rendering needs no font and gives the same scenes on every machine.
`make_sprites` is how it was made: Noto Color Emoji drawn at its own bitmap size, one cell per line
of sample/concepts.tsv, and each drawing divided into parts by colour.
"""

import hashlib
import json
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from PIL import __version__ as pillow_version

from tap_engine.pipeline.sample.drawings import SAMPLE_DATA, drawings
from tap_engine.schemas.errors import SchemaError, SourceError

CELL = 128
"""Side of a cell of the sheet, px; the font's bitmaps are at most this large."""

SHEET_COLUMNS = 24

STRIKE = 109
"""Pixels per em of the font's only bitmap size."""

MAX_PARTS = 4

_PART_MIN_SHARE = 0.07
"""Smaller connected pieces of one colour are joined to their neighbour."""

DEBIAN_PACKAGE = "fonts-noto-color-emoji"

_FONT_PLACES = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",
)

_Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Sprites:
    """The sheet, cut.

    Attributes:
        rgba: [N, CELL, CELL, 4] uint8, straight alpha, in the order of `drawings()`.
        parts: [N, CELL, CELL] uint8; 0 outside, 1..MAX_PARTS the parts of the drawing. A drawing
            in one piece has only part 1.
        made: what the sheet was made from: font, version, hash.
    """

    rgba: _Pixels
    parts: _Pixels
    made: dict[str, Any]


@cache
def load_sprites() -> Sprites:
    """The shipped sheet.

    Raises:
        SchemaError: it is damaged, or was made for another list of drawings.
    """
    made = json.loads((SAMPLE_DATA / "sprites.json").read_text("utf-8"))
    if made["glyphs"] != "".join(drawing.glyph for drawing in drawings()):
        raise SchemaError(
            "sample/sprites.webp was made for another concepts.tsv; draw it again: "
            "tap-data sample-sprites pipeline/sample"
        )
    with Image.open(SAMPLE_DATA / "sprites.webp") as sheet:
        rgba = _cut(np.asarray(sheet.convert("RGBA")))
    with Image.open(SAMPLE_DATA / "sprite_parts.png") as sheet:
        parts = _cut(np.asarray(sheet))
    if (found := _fingerprint(rgba, parts)) != made["pixels"]:
        raise SchemaError(f"sample/sprites.webp: pixels {found}, expected {made['pixels']}")
    return Sprites(rgba, parts, made)


def make_sprites(out: Path, font: Path | None = None) -> dict[str, Any]:
    """Draw sprites.webp, sprite_parts.png and sprites.json into `out`; returns the json.

    Args:
        out: a folder, made where it is missing.
        font: NotoColorEmoji.ttf; looked for where Linux distributions put it by default.

    Raises:
        SourceError: no such font, not its bitmap build, or a glyph is not in it.
    """
    font = font or _find_font()
    try:
        face = ImageFont.truetype(str(font), STRIKE)
    except OSError as error:
        raise SourceError(
            f"{font}: expected the bitmap (CBDT) build of Noto Color Emoji, as in the Debian "
            f"package {DEBIAN_PACKAGE}: {error}"
        ) from error
    rgba = np.stack([_draw(face, drawing.glyph) for drawing in drawings()])
    parts = np.stack([_divide(sprite) for sprite in rgba])
    raw = font.read_bytes()
    made: dict[str, Any] = {
        "font": face.getname()[0],
        "font_version": _font_version(raw),
        "font_sha256": hashlib.sha256(raw).hexdigest(),
        "licence": "SIL Open Font License 1.1",
        "pillow": pillow_version,
        "pixels": _fingerprint(rgba, parts),
        "glyphs": "".join(drawing.glyph for drawing in drawings()),
    }
    out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_join(rgba)).save(
        out / "sprites.webp", lossless=True, exact=True, quality=100, method=6
    )
    cv2.imwrite(str(out / "sprite_parts.png"), _join(parts), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    text = json.dumps(made, indent=1, ensure_ascii=False)
    (out / "sprites.json").write_text(text + "\n", "utf-8")
    return made


def _find_font() -> Path:
    for place in _FONT_PLACES:
        if Path(place).is_file():
            return Path(place)
    raise SourceError(
        "the font Noto Color Emoji is not on this machine; install it (Debian and Ubuntu: "
        f"apt-get install {DEBIAN_PACKAGE}) or name the file with --font. It is needed only to "
        "draw the sprite sheet again: `tap-data sample` uses the sheet that is shipped"
    )


def _font_version(raw: bytes) -> str:
    """`fontRevision` of the head table (OpenType: 16.16 fixed), as the font's makers write it."""
    tables = struct.unpack_from(">H", raw, 4)[0]
    for index in range(tables):
        tag, _, offset, _ = struct.unpack_from(">4sIII", raw, 12 + 16 * index)
        if tag == b"head":
            return f"{struct.unpack_from('>i', raw, offset + 4)[0] / 65536:.3f}"
    raise SourceError("the font file has no head table")


def _draw(face: ImageFont.FreeTypeFont, glyph: str) -> _Pixels:
    """[CELL, CELL, 4] uint8, the drawing in the middle of its cell."""
    canvas = Image.new("RGBA", (2 * CELL, 2 * CELL))
    ImageDraw.Draw(canvas).text((CELL // 2, CELL // 2), glyph, font=face, embedded_color=True)
    pixels = np.array(canvas)
    pixels[pixels[..., 3] == 0] = 0
    rows, columns = np.nonzero(pixels[..., 3] > 8)
    if rows.size == 0:
        raise SourceError(f"the font draws nothing for {glyph} (U+{ord(glyph):X})")
    pixels = pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = pixels.shape[:2]
    if max(height, width) > CELL:
        raise SourceError(f"{glyph} is {width} x {height} px, larger than the cell of {CELL}")
    cell = np.zeros((CELL, CELL, 4), np.uint8)
    top, left = (CELL - height) // 2, (CELL - width) // 2
    cell[top : top + height, left : left + width] = pixels
    return cell


def _divide(sprite: _Pixels) -> _Pixels:
    """Parts of a drawing: connected pieces of like colour, small ones joined to the nearest."""
    inside = sprite[..., 3] >= 128
    lab = cv2.cvtColor(np.ascontiguousarray(sprite[..., :3]), cv2.COLOR_RGB2LAB)
    colours = lab[inside].astype(np.float32)
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 30, 0.5)
    _, nearest, _ = cv2.kmeans(colours, 5, None, stop, 4, cv2.KMEANS_PP_CENTERS)  # type: ignore[call-overload]
    clusters = np.zeros(inside.shape, np.uint8)
    clusters[inside] = nearest[:, 0].astype(np.uint8) + 1
    clusters = np.asarray(cv2.medianBlur(clusters, 5), np.uint8) * inside
    pieces: list[tuple[int, npt.NDArray[np.bool_]]] = []
    for cluster in range(1, 6):
        count, labels, stats, _ = cv2.connectedComponentsWithStats(
            (clusters == cluster).astype(np.uint8), connectivity=4
        )
        for label in range(1, count):
            area = int(stats[label, cv2.CC_STAT_AREA])
            if area >= _PART_MIN_SHARE * inside.sum():
                pieces.append((area, labels == label))
    pieces.sort(key=lambda piece: -piece[0])
    seeds = np.zeros(inside.shape, np.uint8)
    for number, (_, piece) in enumerate(pieces[:MAX_PARTS], 1):
        seeds[piece] = number
    if not pieces:
        return inside.astype(np.uint8)
    _, owner = cv2.distanceTransformWithLabels(
        (seeds == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    part_of_label = np.zeros(int(owner.max()) + 1, np.uint8)
    part_of_label[owner[seeds > 0]] = seeds[seeds > 0]
    return part_of_label[owner] * inside


def _fingerprint(rgba: _Pixels, parts: _Pixels) -> str:
    return hashlib.sha256(rgba.tobytes() + parts.tobytes()).hexdigest()[:16]


def _join(cells: _Pixels) -> _Pixels:
    rows = -(-len(cells) // SHEET_COLUMNS)
    sheet = np.zeros((rows * SHEET_COLUMNS, *cells.shape[1:]), np.uint8)
    sheet[: len(cells)] = cells
    grid = sheet.reshape(rows, SHEET_COLUMNS, *cells.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(grid.reshape(rows * CELL, SHEET_COLUMNS * CELL, *cells.shape[3:]))


def _cut(sheet: _Pixels) -> _Pixels:
    rows = sheet.shape[0] // CELL
    grid = sheet.reshape(rows, CELL, SHEET_COLUMNS, CELL, *sheet.shape[2:]).swapaxes(1, 2)
    cells = grid.reshape(rows * SHEET_COLUMNS, CELL, CELL, *sheet.shape[2:])
    return np.ascontiguousarray(cells[: len(drawings())])

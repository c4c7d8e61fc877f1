"""COCO run-length masks: check, decode whole, decode a window, decode scaled, measure, encode.

A mask is column-major runs of 0 and 1 in turn, as COCO's compressed `counts` bytes. Decoding
full-size masks is the cost trap of region data (1.6 s per image for 100 masks of 3.4 Mpx), so
crops decode a window and training decodes at the resolution it needs. The kernels release the
GIL and never read or write out of bounds: `runs` refuses what is not a mask of the stated size.
"""

import json
from collections.abc import Sequence
from typing import Any, cast

import numba
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from tap_engine.schemas import polygons
from tap_engine.schemas.errors import SchemaError

Runs = npt.NDArray[np.int64]
SizeHw = tuple[int, int]

_MAX_CHARS = 7
"""A run is at most 35 bits long in the compressed form; longer is garbage."""


def runs(counts: bytes | str, size_hw: SizeHw) -> Runs:
    """Run lengths of a compressed mask, zeros first; they sum to height * width.

    Raises:
        SchemaError: a character outside the alphabet, a number cut short, a negative run, or a
            sum other than height * width.
    """
    text = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    out = np.empty(len(text), np.int64)
    found, total = _parse(np.frombuffer(text, np.uint8), out)
    if found < 0:
        raise SchemaError(f"RLE counts are garbage at character {-found - 1} of {len(text)}")
    expected = size_hw[0] * size_hw[1]
    if total != expected:
        raise SchemaError(
            f"RLE runs sum to {total}, expected {size_hw[0]} x {size_hw[1]} = {expected}"
        )
    return out[:found]


def decode(counts: bytes | str, size_hw: SizeHw) -> npt.NDArray[np.uint8]:
    """[H, W] uint8 mask of 0 and 1; costs the full size, see `decode_window`."""
    return decode_window(runs(counts, size_hw), size_hw, (0, 0, size_hw[1], size_hw[0]))


def decode_window(
    mask_runs: Runs, size_hw: SizeHw, window_xyxy: tuple[int, int, int, int]
) -> npt.NDArray[np.uint8]:
    """Part of a mask, at the cost of that part.

    Args:
        mask_runs: what `runs` returned.
        size_hw: the mask's size, px.
        window_xyxy: the part wanted, px, right and bottom exclusive; what lies off the mask is 0.

    Returns:
        [bottom - top, right - left] uint8, 0 or 1.
    """
    left, top, right, bottom = window_xyxy
    out = np.zeros((bottom - top, right - left), np.uint8)
    _fill_window(mask_runs, size_hw[0], size_hw[1], left, top, out)
    return out


def decode_scaled(
    mask_runs: Runs,
    size_hw: SizeHw,
    out_hw: SizeHw,
    window_xyxy: tuple[float, float, float, float] | None = None,
) -> npt.NDArray[np.float32]:
    """Share of each output cell that the mask covers: exact area averaging, any scale.

    Args:
        mask_runs: what `runs` returned.
        size_hw: the mask's size, px.
        out_hw: cells of the output grid.
        window_xyxy: part of the plane the grid covers, px, may reach beyond the mask (0 there)
            and be fractional; the whole mask by default.

    Returns:
        [out_h, out_w] float32 in [0, 1].
    """
    left, top, right, bottom = window_xyxy or (0.0, 0.0, float(size_hw[1]), float(size_hw[0]))
    out = np.zeros(out_hw, np.float64)
    cell_h, cell_w = (bottom - top) / out_hw[0], (right - left) / out_hw[1]
    _add_coverage(mask_runs, size_hw[0], left, top, cell_w, cell_h, out)
    return (out / (cell_h * cell_w)).clip(0, 1).astype(np.float32)


def area(mask_runs: Runs) -> int:
    """Pixels of the mask."""
    return int(mask_runs[1::2].sum())


def bbox_xywh(mask_runs: Runs, size_hw: SizeHw) -> tuple[int, int, int, int]:
    """Tight box of the mask, pixel-edge convention; width and height 0 for an empty mask."""
    left, top, right, bottom = _bounds(mask_runs, size_hw[0])
    return int(left), int(top), int(right - left), int(bottom - top)


def measure(
    data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.integer], sizes_hw: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Areas and tight boxes of many masks at once.

    Args:
        data: [B] compressed counts, one mask after the other.
        offsets: [N + 1] where each begins in `data`.
        sizes_hw: [N, 2] px.

    Returns:
        [N] areas, px^2, -1 where the counts are no mask of the size; [N, 4] boxes xywh, px.
    """
    areas = np.full(len(sizes_hw), -1, np.int64)
    boxes = np.zeros((len(sizes_hw), 4), np.int64)
    _measure(data, offsets.astype(np.int64), sizes_hw, areas, boxes)
    return areas, boxes


def encode(mask: npt.NDArray[np.generic]) -> bytes:
    """Compressed counts of a [H, W] mask; non-zero is inside."""
    encoded = coco_mask.encode(np.asfortranarray(np.asarray(mask) != 0, dtype=np.uint8))
    return cast(bytes, encoded["counts"])


def from_coco(segmentation: Any, size_hw: SizeHw) -> bytes:
    """Compressed counts of any of COCO's three mask forms; the one reader of them.

    Polygons are filled as pycocotools fills them (polygons.py has the forms that are read). Run
    lengths may be compressed text or bytes, or a list; a list of such masks is their union.
    Everything is checked before the library sees it: it loops for ever over counts that are cut
    off, and allocates along the edges of a polygon, however far they reach.

    Args:
        segmentation: polygons [[x, y, ...], ...], or {"size": [h, w], "counts": list or text}.
        size_hw: the image's size, px; a mask that states another is refused, none is the image's.

    Raises:
        SchemaError: none of the forms, of another size, or runs that are no mask of this size.
    """
    if isinstance(segmentation, str) and segmentation.lstrip()[:1] in ("{", "["):
        try:
            segmentation = json.loads(segmentation)
        except ValueError as error:
            raise SchemaError(
                f"expected a mask, found text that is no json: {segmentation[:40]!r}"
            ) from error
    if isinstance(segmentation, dict):
        return _from_counts(segmentation, size_hw)
    if isinstance(segmentation, list) and segmentation:
        if all(isinstance(part, dict) for part in segmentation):
            return union([_from_counts(part, size_hw) for part in segmentation], size_hw)
        return polygons.fill(polygons.outlines(segmentation), size_hw)
    raise SchemaError(
        "expected a mask as polygons or as RLE `counts`, found "
        + ("an empty list" if segmentation == [] else polygons.kind(segmentation))
    )


def union(masks: Sequence[bytes], size_hw: SizeHw) -> bytes:
    """Compressed counts of the union of masks that `runs` has accepted for this size."""
    if len(masks) == 1:
        return masks[0]
    joined = coco_mask.merge([{"size": list(size_hw), "counts": mask} for mask in masks])
    return cast(bytes, joined["counts"])


def stated_size(segmentation: object) -> SizeHw | None:
    """(height, width) that a run-length mask states; None for polygons and where it states none.

    Raises:
        SchemaError: a size that is no two whole numbers.
    """
    if isinstance(segmentation, list) and segmentation:
        segmentation = segmentation[0]
    if not isinstance(segmentation, dict) or segmentation.get("size") is None:
        return None
    size = segmentation["size"]
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise SchemaError(f"expected the mask's `size` as [height, width], found {size!r:.60}")
    height, width = (polygons.number(side) for side in size)
    if height != int(height) or width != int(width):
        raise SchemaError(f"expected the mask's `size` in whole pixels, found {size!r:.60}")
    return int(height), int(width)


def _from_counts(segmentation: dict[str, Any], size_hw: SizeHw) -> bytes:
    if "counts" not in segmentation:
        found = ", ".join(map(str, segmentation))[:60] or "nothing"
        raise SchemaError(f"expected a mask as polygons or as RLE `counts`, found {found}")
    stated = stated_size(segmentation)
    if stated is not None and stated != tuple(size_hw):
        raise SchemaError(
            f"mask of size {list(stated)} for an image of {list(size_hw)} (height, width)"
        )
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return _pack(counts, size_hw)
    if isinstance(counts, str) and counts[:2] in ("b'", 'b"'):
        raise SchemaError("the RLE counts begin with b': Python's bytes were written as text")
    if not isinstance(counts, str | bytes):
        raise SchemaError(
            f"expected RLE counts as text or as a list, found {polygons.kind(counts)}"
        )
    text = counts.encode("ascii", "replace") if isinstance(counts, str) else bytes(counts)
    if not text:
        raise SchemaError("the RLE counts are empty: they sum to 0")
    runs(text, size_hw)
    return text


def _pack(counts: Sequence[object], size_hw: SizeHw) -> bytes:
    """Compressed counts of a plain list of run lengths."""
    lengths = [polygons.number(run) for run in counts]
    if any(run != int(run) for run in lengths):
        raise SchemaError("RLE runs must be whole pixels, found a fraction")
    if any(run < 0 for run in lengths):
        raise SchemaError(f"RLE runs must not be negative, found {int(min(lengths))}")
    expected, total = size_hw[0] * size_hw[1], int(sum(lengths))
    if total != expected:
        raise SchemaError(
            f"RLE runs sum to {total}, expected {size_hw[0]} x {size_hw[1]} = {expected}"
        )
    height, width = size_hw
    whole = {"counts": [int(run) for run in lengths], "size": [height, width]}
    return cast(bytes, coco_mask.frPyObjects(whole, height, width)["counts"])


@numba.njit(cache=True, nogil=True)
def _parse(text, out):  # type: ignore[no-untyped-def]
    # 5 bits a character, bit 5 continues, bit 4 of the last is the sign; from the third run on,
    # differences to the run two before. Returns how many runs, or -1 - position of garbage, and
    # their sum.
    count = 0
    total = np.int64(0)
    position = 0
    while position < text.size:
        value = np.int64(0)
        shift = 0
        more = True
        while more:
            if position >= text.size or shift >= 5 * _MAX_CHARS:
                return -1 - position, total
            char = np.int64(text[position]) - 48
            if char < 0 or char > 63:
                return -1 - position, total
            value |= (char & 31) << shift
            shift += 5
            more = (char & 32) != 0
            if not more and (char & 16):
                value |= np.int64(-1) << shift
            position += 1
        if count > 2:
            value += out[count - 2]
        if value < 0:
            return -1 - (position - 1), total
        out[count] = value
        count += 1
        total += value
    return count, total


@numba.njit(cache=True, nogil=True)
def _fill_window(runs_, height, width, left, top, out):  # type: ignore[no-untyped-def]
    window_h, window_w = out.shape
    first = max(left, 0) * height
    last = min(left + window_w, width) * height
    start = np.int64(0)
    for index in range(runs_.size):
        end = start + runs_[index]
        if index % 2 == 1 and end > first and start < last:
            position = max(start, first)
            stop = min(end, last)
            while position < stop:
                column = position // height
                column_end = min((column + 1) * height, stop)
                low = max(position - column * height - top, 0)
                high = min(column_end - column * height - top, window_h)
                for row in range(low, high):
                    out[row, column - left] = 1
                position = column_end
        if start >= last:
            break
        start = end


@numba.njit(cache=True, nogil=True)
def _add_coverage(runs_, height, left, top, cell_w, cell_h, out):  # type: ignore[no-untyped-def]
    grid_h, grid_w = out.shape
    start = np.int64(0)
    for index in range(runs_.size):
        end = start + runs_[index]
        position = start
        while index % 2 == 1 and position < end:
            column = position // height
            column_end = min((column + 1) * height, end)
            low = (position - column * height - top) / cell_h
            high = (column_end - column * height - top) / cell_h
            x_low = (column - left) / cell_w
            x_high = (column + 1 - left) / cell_w
            position = column_end
            if x_high <= 0 or x_low >= grid_w or high <= 0 or low >= grid_h:
                continue
            low, high = max(low, 0.0), min(high, np.float64(grid_h))
            x_low, x_high = max(x_low, 0.0), min(x_high, np.float64(grid_w))
            for x in range(int(x_low), min(int(np.ceil(x_high)), grid_w)):
                share = (min(x_high, x + 1.0) - max(x_low, np.float64(x))) * cell_w
                for y in range(int(low), min(int(np.ceil(high)), grid_h)):
                    out[y, x] += share * (min(high, y + 1.0) - max(low, np.float64(y))) * cell_h
        start = end


@numba.njit(cache=True, nogil=True)
def _bounds(runs_, height):  # type: ignore[no-untyped-def]
    left, top, right, bottom = np.int64(1) << 60, np.int64(1) << 60, np.int64(0), np.int64(0)
    start = np.int64(0)
    for index in range(runs_.size):
        end = start + runs_[index]
        if index % 2 == 1 and end > start:
            first, last = start // height, (end - 1) // height
            left, right = min(left, first), max(right, last + 1)
            if last > first:
                top, bottom = np.int64(0), np.int64(height)
            else:
                top = min(top, start - first * height)
                bottom = max(bottom, end - last * height)
        start = end
    if right == 0:
        return np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    return left, top, right, bottom


@numba.njit(cache=True, nogil=True)
def _measure(data, offsets, sizes_hw, areas, boxes):  # type: ignore[no-untyped-def]
    for row in range(sizes_hw.shape[0]):
        height, width = sizes_hw[row, 0], sizes_hw[row, 1]
        text = data[offsets[row] : offsets[row + 1]]
        found = np.empty(text.size, np.int64)
        count, total = _parse(text, found)
        if count < 0 or total != height * width:
            continue
        inside = found[:count]
        areas[row] = inside[1::2].sum()
        left, top, right, bottom = _bounds(inside, height)
        boxes[row, 0], boxes[row, 1] = left, top
        boxes[row, 2], boxes[row, 3] = right - left, bottom - top

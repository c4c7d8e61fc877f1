"""Masked crop and antialiased resize in one pass over the mask, equal to Pillow's to the last bit.

A crop is a canvas (the region's box, its margin, the padding to a square) of one fill colour in
which a window of the image shows through the mask. The canvas itself never exists. Pass 1 fetches
image columns in the order in which the mask's runs name them and weights them into output
columns; pass 2 weights rows of that into output rows. Both weight whole lines of bytes, which
LLVM turns into wide SIMD; between them pixels change places in blocks of 4 x 4. What the mask
leaves out is not computed. Scratch is some per cent of the window.

The arithmetic is Pillow's for 8-bit images: float64 weights rounded to 22-bit fixed point,
horizontal before vertical, the picture between them rounded to 8 bits.
"""

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from tap_engine.pipeline.simd import FIXED_BITS, PAD, copy, source_digest, transpose, weigh

_SIMD = "0223d1047b4041e4"
"""Digest of simd.py. numba keeps compiled code on disk and looks for changes in this file only;
this line is what changes here when something changes there."""

if (_found := source_digest()) != _SIMD:
    raise ImportError(
        f"pipeline/simd.py has changed, and numba would go on running what it compiled before: set "
        f"_SIMD in pipeline/resample.py to {_found!r}"
    )

BICUBIC, BILINEAR = 0, 1

_BLOCK = 16
"""Columns fetched together: about a cache line of each image row."""


class _Scratch(NamedTuple):
    # What one crop after the other is made with.
    blank: npt.NDArray[np.uint8]  # a line of fill
    columns: npt.NDArray[np.uint8]  # a ring of image columns, as fetched
    spans: npt.NDArray[np.int64]  # [ring, 2]: a column is fill above and below these rows
    lines: npt.NDArray[np.uint8]  # four output columns of pass 1
    rows: npt.NDArray[np.uint8]  # the picture between the passes
    bounds: npt.NDArray[np.int64]  # [S, 2]: first input and number of inputs of an output
    weights: npt.NDArray[np.int32]  # [taps, S]
    exact: npt.NDArray[np.float64]  # [taps + 1, S]: the same before rounding, then their sums
    taps: npt.NDArray[np.int64]  # addresses of the lines to weigh
    rest: npt.NDArray[np.uint8]


@numba.njit(cache=True, nogil=True)
def crop_batch(pixels, size_hw, runs, offsets, windows, canvases, fill, kernel, out):  # type: ignore[no-untyped-def]
    """Draw N crops into `out`; releases the GIL, allocates its scratch once.

    Args:
        pixels: address of the image, [H, W, 3] uint8, C-contiguous; read-only ones, as Ray hands
            out, would be another type to numba and be compiled again.
        size_hw: the image's height and width.
        runs: [*] int64, the masks' runs one after the other, zeros first (schemas.rle).
        offsets: [N + 1] int64, where each mask begins in `runs`.
        windows: [N, 4] int64 xyxy, the part of the image that a crop shows; inside the image.
        canvases: [N, 4] int64: the canvas's width and height, and the window's left and top in it.
        fill: [3] uint8.
        kernel: BICUBIC or BILINEAR.
        out: [N, S, S, 3] uint8, C-contiguous.
    """
    size = out.shape[1]
    target = out.ctypes.data
    scratch = _scratch(windows, canvases, fill, kernel, size)
    for n in range(windows.shape[0]):
        mask = runs[offsets[n] : offsets[n + 1]]
        left, top, right, bottom = windows[n]
        width, height = right - left, bottom - top
        canvas_w, canvas_h, window_x, window_y = canvases[n]
        _weights(canvas_w, kernel, scratch)
        low, high = _pass_1(pixels, size_hw, mask, left, top, width, height, window_x, scratch)
        if canvas_h != canvas_w:
            _weights(canvas_h, kernel, scratch)
        _pass_2(height, window_y, low, high, scratch, target + n * size * size * 3)


@numba.njit(cache=True, nogil=True)
def _scratch(windows, canvases, fill, kernel, size):  # type: ignore[no-untyped-def]
    # Room for the largest crop of the batch.
    tallest, longest = 1, 1
    for n in range(windows.shape[0]):
        tallest = max(tallest, windows[n, 3] - windows[n, 1])
        longest = max(longest, canvases[n, 0], canvases[n, 1])
    taps = _most_taps(longest, size, kernel)
    # The inputs of four neighbouring outputs, of which the first and last block are cut.
    ring = ((taps + 3 * longest // size) // _BLOCK + 3) * _BLOCK
    blank = np.empty(max(tallest, size) * 3 + PAD, np.uint8)
    for j in range(blank.size):
        blank[j] = fill[j % 3]
    return _Scratch(
        blank=blank,
        columns=np.empty(ring * tallest * 3 + PAD, np.uint8),
        spans=np.empty((ring, 2), np.int64),
        lines=np.empty(4 * tallest * 3 + PAD, np.uint8),
        rows=np.empty(tallest * size * 3 + PAD, np.uint8),
        bounds=np.empty((size, 2), np.int64),
        weights=np.empty((taps, size), np.int32),
        exact=np.empty((taps + 1, size), np.float64),
        taps=np.empty(taps, np.int64),
        rest=np.empty(PAD, np.uint8),
    )


@numba.njit(cache=True, nogil=True)
def _pass_1(pixels, size_hw, mask, left, top, width, height, window_x, scratch):  # type: ignore[no-untyped-def]
    # Image columns to output columns, four at a time, and those into scratch.rows. Returns the
    # range of output columns that are more than fill.
    spans, bounds, taps = scratch.spans, scratch.bounds, scratch.taps
    blank, columns, rest = (
        scratch.blank.ctypes.data,
        scratch.columns.ctypes.data,
        scratch.rest.ctypes.data,
    )
    lines, rows, weights = (
        scratch.lines.ctypes.data,
        scratch.rows.ctypes.data,
        scratch.weights.ctypes.data,
    )
    taps_at = taps.ctypes.data
    size, ring = bounds.shape[0], spans.shape[0]
    column_step, row_step = height * 3, size * 3
    for y in range(height):
        copy(blank, rows + y * row_step, row_step)
    x_low, x_high = size, 0
    loaded, cursor, start = np.int64(0), np.int64(0), np.int64(0)
    for x in range(0, size, 4):
        group = min(4, size - x)
        # Image columns that these four output columns need: fetch those that are not in the ring.
        first = max(bounds[x, 0] - window_x, 0)
        last = min(bounds[x + group - 1, 0] + bounds[x + group - 1, 1] - window_x, width)
        while loaded < last:
            slot = loaded % ring
            cursor, start = _fetch(
                pixels,
                size_hw,
                mask,
                cursor,
                start,
                left + loaded,
                top,
                height,
                spans[slot : slot + min(_BLOCK, width - loaded)],
                columns + slot * column_step,
                blank,
            )
            loaded += _BLOCK
        # Rows in which the mask shows anything of them; all else stays fill.
        low, high = height, 0
        for column in range(first, last):
            low = min(low, spans[column % ring, 0])
            high = max(high, spans[column % ring, 1])
        if low >= high:
            continue
        for i in range(group):
            first, count = bounds[x + i, 0] - window_x, bounds[x + i, 1]
            # Columns off the window, and empty ones, are the line of fill.
            for k in range(count):
                column = first + k
                seen = 0 <= column < width and spans[column % ring, 1] > 0
                taps[k] = columns + column % ring * column_step if seen else blank
            weigh(
                taps_at,
                low * 3,
                (high - low) * 3,
                count,
                weights + (x + i) * 4,
                size * 4,
                lines + i * column_step + low * 3,
                rest,
            )
        # Columns lie in memory one after the other; pass 2 wants rows.
        target = rows + low * row_step + x * 3
        transpose(lines + low * 3, column_step, target, row_step, group, high - low)
        x_low, x_high = min(x_low, x), x + group
    return x_low, x_high


@numba.njit(cache=True, nogil=True)
def _pass_2(height, window_y, low, high, scratch, target):  # type: ignore[no-untyped-def]
    # Rows of pass 1, of which columns low..high are more than fill, to output rows.
    bounds, taps = scratch.bounds, scratch.taps
    blank, rows, rest = (
        scratch.blank.ctypes.data,
        scratch.rows.ctypes.data,
        scratch.rest.ctypes.data,
    )
    taps_at, weights = taps.ctypes.data, scratch.weights.ctypes.data
    size = bounds.shape[0]
    step = size * 3
    for y in range(size):
        first, count = bounds[y, 0] - window_y, bounds[y, 1]
        if first + count <= 0 or first >= height or low >= high:
            copy(blank, target + y * step, step)
            continue
        for k in range(count):
            taps[k] = rows + (first + k) * step if 0 <= first + k < height else blank
        copy(blank, target + y * step, low * 3)
        copy(blank, target + y * step + high * 3, (size - high) * 3)
        weigh(
            taps_at,
            low * 3,
            (high - low) * 3,
            count,
            weights + y * 4,
            size * 4,
            target + y * step + low * 3,
            rest,
        )


@numba.njit(cache=True, nogil=True)
def _fetch(pixels, size_hw, mask, cursor, start, x, top, height, spans, columns, blank):  # type: ignore[no-untyped-def]
    # Image columns x.., one for each of `spans`, to address `columns`, fill where the mask is 0;
    # spans tell from which to which row the mask is not 0. `cursor` is a run that begins at or
    # before column x, `start` its first pixel; returns both for the next block.
    # First look only where the mask shows something, so that empty blocks cost nothing.
    low, high = height, 0
    at, begin = cursor, start
    for i in range(spans.shape[0]):
        spans[i, 0], spans[i, 1] = height, 0
        first = (x + i) * size_hw[0] + top
        while at < mask.size and begin < first + height:
            end = begin + mask[at]
            if at % 2 == 1 and end > first:
                spans[i, 0] = min(spans[i, 0], max(begin - first, 0))
                spans[i, 1] = min(end - first, height)
            if end > first + height:
                break
            begin = end
            at += 1
        low, high = min(low, spans[i, 0]), max(high, spans[i, 1])
    if low >= high:
        return at, begin
    # Then fetch the rows in between as they are, and write fill over what the mask leaves out.
    row_step, column_step = size_hw[1] * 3, height * 3
    source, target = pixels + (top + low) * row_step + x * 3, columns + low * 3
    transpose(source, row_step, target, column_step, high - low, spans.shape[0])
    at, begin = cursor, start
    for i in range(spans.shape[0]):
        column = columns + i * column_step
        first = (x + i) * size_hw[0] + top
        copy(blank, column, low * 3)
        copy(blank, column + high * 3, (height - high) * 3)
        while at < mask.size and begin < first + height:
            end = begin + mask[at]
            if at % 2 == 0:
                gap_low, gap_high = max(begin - first, low), min(end - first, high)
                copy(blank, column + gap_low * 3, (gap_high - gap_low) * 3)
            if end > first + height:
                break
            begin = end
            at += 1
    return at, begin


@numba.njit(cache=True, nogil=True)
def _most_taps(in_px, out_px, kernel):  # type: ignore[no-untyped-def]
    radius = 2.0 if kernel == BICUBIC else 1.0
    return int(np.ceil(radius * max(in_px / out_px, 1.0))) * 2 + 1


@numba.njit(cache=True, nogil=True)
def _weights(in_px, kernel, scratch):  # type: ignore[no-untyped-def]
    # Per output pixel: first input pixel and how many; [taps, S] weights in fixed point, 0 beyond.
    # Outputs are the inner loop throughout, so that it becomes SIMD.
    bounds, weights, exact = scratch.bounds, scratch.weights, scratch.exact
    out_px = bounds.shape[0]
    scale = in_px / out_px
    stretch = max(scale, 1.0)
    radius = (2.0 if kernel == BICUBIC else 1.0) * stretch
    most = 0
    total = exact[exact.shape[0] - 1]
    for i in range(out_px):
        center = (i + 0.5) * scale
        bounds[i, 0] = max(int(center - radius + 0.5), 0)
        bounds[i, 1] = min(int(center + radius + 0.5), in_px) - bounds[i, 0]
        most = max(most, bounds[i, 1])
        total[i] = 0.0
    for k in range(most):
        for i in range(out_px):
            x = abs((k + bounds[i, 0] - (i + 0.5) * scale + 0.5) * (1.0 / stretch))
            if kernel == BICUBIC:  # Keys' cubic convolution with a = -0.5
                near = (1.5 * x - 2.5) * x * x + 1.0
                far = -0.5 * (((x - 5.0) * x + 8.0) * x - 4.0)
                value = near if x < 1.0 else (far if x < 2.0 else 0.0)
            else:
                value = max(1.0 - x, 0.0)
            exact[k, i] = value if k < bounds[i, 1] else 0.0
            total[i] += exact[k, i]
    for k in range(most):
        for i in range(out_px):
            share = exact[k, i] / total[i] * (1 << FIXED_BITS)
            weights[k, i] = np.int32(share + (0.5 if share >= 0 else -0.5))

"""Three primitives on raw memory that numba cannot write well itself, as LLVM vector code.

Why it is here: crops must not keep a teacher waiting (docs/decisions/0080-own-resize.md). Resizing
is a weighted sum of whole lines of bytes, and pixels of three bytes that change places. numba's own
loops over three-byte pixels are seven times slower than the vectors below.

What is in it:
    weigh       one line as the weighted sum of others; a resize is this, twice
    transpose   rows become columns, so that both passes of a resize are sums of lines
    copy        bytes from place to place

How it works: an `intrinsic` is a function whose body is written as LLVM instructions instead of
Python. numba calls `generate` while it compiles the caller and puts the instructions in its place.
A vector type (`ir.VectorType`) is a fixed number of equal values in one register; LLVM turns it
into whatever the machine has: SSE, AVX2, AVX-512 or NEON. So there is one source for all
processors, and no instruction of a certain one in it.

What to know before changing it:
- Places are addresses, plain integers, since handing five arrays to a function costs numba more
  reference counting than the function's own work here. Nothing checks bounds and nothing is kept
  alive. The only caller, resample.py, holds the arrays and gives each of them PAD spare bytes; an
  import contract keeps it the only one.
- `_weigh_pad` reads PAD bytes beyond the end of a line in its last step and writes them to `rest`.
- numba keeps compiled code on disk and notices changes of the file that calls, not of this one. So
  resample.py names the digest of this file and refuses another: a change here always changes a line
  there, and nothing stale is run.
- tests/pipeline/test_crop.py compares the result with Pillow to the last bit.
"""

import hashlib
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic as numba_intrinsic

FIXED_BITS = 22
"""Fraction bits of a weight: 32 less 8 of the value and 2 for overshoot, as in Pillow."""

PAD = 64
"""Bytes that `weigh` takes at a time, and may read beyond the end of a line."""


def source_digest() -> str:
    """16 hex digits of this file's text."""
    return hashlib.sha256(Path(__file__).read_text("utf-8").encode()).hexdigest()[:16]


intrinsic: Any = numba_intrinsic  # its type forgets that the first argument is numba's own
_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


@numba.njit(cache=True, nogil=True)
def weigh(lines, low, length, count, weights, stride, target, rest):  # type: ignore[no-untyped-def]
    """One line of bytes as the weighted sum of others, rounded and clipped to 8 bits.

    Args:
        lines: address of `count` int64 addresses of lines.
        low: the first byte of each line that counts.
        length: number of bytes that count.
        count: number of lines, at least 1.
        weights: address of the first line's weight, int32 in FIXED_BITS fixed point.
        stride: bytes from one weight to the next.
        target: address of the result's first byte.
        rest: address of PAD spare bytes.
    """
    for j in range(0, length - PAD + 1, PAD):
        _weigh_pad(lines, low + j, count, weights, stride, target + j)
    left = length % PAD
    if left:
        _weigh_pad(lines, low + length - left, count, weights, stride, rest)
        copy(rest, target + length - left, left)


@numba.njit(cache=True, nogil=True)
def transpose(source, source_step, target, target_step, rows, columns):  # type: ignore[no-untyped-def]
    """RGB pixels change places: (r, c) of the source, [rows, columns], becomes (c, r).

    Pixel (r, c) lies at address source + r * source_step + 3 * c; the target's likewise.
    """
    whole_r, whole_c = rows // 4 * 4, columns // 4 * 4
    for r in range(0, whole_r, 4):
        for c in range(0, whole_c, 4):
            place = source + r * source_step + 3 * c
            _transpose_4x4(place, source_step, target + c * target_step + 3 * r, target_step)
    for r in range(rows):
        for c in range(whole_c if r < whole_r else 0, columns):
            copy(source + r * source_step + 3 * c, target + c * target_step + 3 * r, 3)


@intrinsic
def copy(typing, source, target, count):  # type: ignore[no-untyped-def]
    """`count` bytes from one address to another; nothing for count <= 0."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        with builder.if_then(builder.icmp_signed(">", args[2], _I64(0))):
            source, target = (builder.inttoptr(at, _I8.as_pointer()) for at in args[:2])
            cgutils.raw_memcpy(builder, target, source, args[2], 1)  # type: ignore[no-untyped-call]
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


@intrinsic
def _weigh_pad(typing, lines, low, count, weights, stride, target):  # type: ignore[no-untyped-def]
    # PAD bytes of `weigh`: the sums stay in registers over all lines.
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lines, low, count, weights, stride, target = args
        many = ir.VectorType(_I32, PAD)
        entry, loop, done = builder.block, *(builder.append_basic_block() for _ in range(2))
        builder.branch(loop)
        builder.position_at_end(loop)
        k, sums = builder.phi(_I64), builder.phi(many)
        line = _load(builder, builder.add(lines, builder.mul(k, _I64(8))), _I64)
        pixels = _load(builder, builder.add(line, low), ir.VectorType(_I8, PAD))
        weight = _load(builder, builder.add(weights, builder.mul(k, stride)), _I32)
        one = builder.insert_element(ir.Constant(many, ir.Undefined), weight, _I32(0))
        weighted = builder.mul(builder.zext(pixels, many), _shuffle(builder, one, one, [0] * PAD))
        later_k, later_sums = builder.add(k, _I64(1)), builder.add(sums, weighted)
        for phi, start, later in (
            (k, _I64(0), later_k),
            (sums, _vector([1 << (FIXED_BITS - 1)] * PAD), later_sums),
        ):
            phi.add_incoming(start, entry)
            phi.add_incoming(later, loop)
        builder.cbranch(builder.icmp_signed("<", later_k, count), loop, done)
        builder.position_at_end(done)
        value = builder.ashr(later_sums, _vector([FIXED_BITS] * PAD))
        for limit, beyond in ((0, "<"), (255, ">")):
            edge = _vector([limit] * PAD)
            value = builder.select(builder.icmp_signed(beyond, value, edge), edge, value)
        _store(builder, target, builder.trunc(value, ir.VectorType(_I8, PAD)))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate


@intrinsic
def _transpose_4x4(typing, source, source_step, target, target_step):  # type: ignore[no-untyped-def]
    # Three bytes are no SIMD lane, so pixels pass through four.
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, source_step, target, target_step = args
        wide = []
        for _ in range(4):
            pixels = _load(builder, source, ir.VectorType(_I8, 12))
            order = [pixel * 3 + min(part, 2) for pixel in range(4) for part in range(4)]
            quads = _shuffle(builder, pixels, pixels, order)
            wide.append(builder.bitcast(quads, ir.VectorType(_I32, 4)))
            source = builder.add(source, source_step)
        for order in ([0, 4, 1, 5], [2, 6, 3, 7]):
            upper = _shuffle(builder, wide[0], wide[1], order)
            lower = _shuffle(builder, wide[2], wide[3], order)
            for half in ([0, 1, 4, 5], [2, 3, 6, 7]):
                turned = _shuffle(builder, upper, lower, half)
                quads = builder.bitcast(turned, ir.VectorType(_I8, 16))
                kept = [pixel * 4 + part for pixel in range(4) for part in range(3)]
                _store(builder, target, _shuffle(builder, quads, quads, kept))
                target = builder.add(target, target_step)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), generate


def _load(builder: Any, address: Any, kind: ir.Type) -> Any:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def _store(builder: Any, address: Any, value: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 1


def _shuffle(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(a, b, _vector(order))


def _vector(values: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(_I32, len(values)), values)

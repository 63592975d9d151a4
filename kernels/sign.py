"""Scores of `sign` codebooks: random bits against an integer residual, exactly (noise-law, section 4).

The residual of a group is rounded to integers V = round(w * 2^q), 2^q the power of two that puts the group's
largest magnitude between 2^21 and 2^22. With bits x in {0, 1} an atom's score is

    <y, w> = sum_i (1 - 2 x_i) w_i = 2^-q (sum_i V_i - 2 sum_i x_i V_i) + rounding,

and every sum is one of integers, so that no tiling, split or configuration changes a bit of the result. Each V_i is
off by at most half a unit (the small-batch kernel: one unit for every second bit), that is 2^-22 of the group's largest
magnitude m or less. Such errors add up as a random walk to about 2^-23 m sqrt(D), or 2^-23 m / |w| of
|y||w| with |y| = sqrt(D): 1.2e-7 for any residual, since m <= |w|. V is held as three balanced base-256
digits, each an int8.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from ddcm_fast.kernels import residual
from ddcm_fast.kernels.launch import PTX, ceil_div, launch, power_of_2, seed_words, tile, tuned
from ddcm_fast.kernels.layout import group_range, power_scale, word_of
from ddcm_fast.kernels.philox import SIGN, philox
from ddcm_fast.kernels.ranking import LOWEST, bias_stride, emit_best, keep_best, keep_best_atom, store_scores
from torch import Tensor

from ddcm_fast.codebook.law import CodebookSpec

_SIZES = [
    "bias_stride", "dim", "groups", "batch", "calls", "first", "last", "span", "programs", "width",
    "seed_low", "seed_high",
]  # fmt: skip

#: Up to this many images share a program of the small-batch kernel; more take the matrix product.
SMALL_BATCH = 4

#: Images that share a program of the large-batch kernel -> tiles to choose from. Each keeps all sums in registers on
#: sm_80 and sm_90 (tests/backends/test_triton_compile.py).
LARGE_TILES: dict[int, list[triton.Config]] = {
    16: [tile(64, 8, 1), tile(32, 16, 2)],
    32: [tile(64, 8, 1), tile(32, 8, 2)],
    64: [tile(32, 4, 2), tile(32, 16, 2)],
    128: [tile(32, 8, 2), tile(32, 16, 2)],
    256: [tile(32, 8, 2), tile(16, 8, 2)],
}

#: Tiles for all scores, whose addresses take registers too, and for more than _SEGMENT calls: those that differ.
SCORES_TILES = {256: [tile(16, 8, 2)]}
LONG_TILES = {
    16: [tile(64, 8, 1)],
    32: [tile(64, 8, 1)],
    64: [tile(16, 4, 2)],
    128: [tile(32, 8, 2)],
    256: [tile(16, 8, 2)],
}

#: Calls whose sums of a digit, 128 * 128 each at most, cannot overflow 31 bits.
_SEGMENT: tl.constexpr = tl.constexpr(65536)


@triton.jit
def _digits(v):
    """Balanced base-256 digits of int32 v, |v| < 2^23, highest first; each -128 .. 127."""
    low = ((v + 128) & 255) - 128
    v = (v - low) >> 8
    middle = ((v + 128) & 255) - 128
    return (v - middle) >> 8, middle, low


@triton.jit
def _dp4a(a, b, c):
    """c + the dot product of the unsigned bytes of a (uint32) and the signed bytes of b (int32)."""
    return tl.inline_asm_elementwise(
        "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _add_products(x, a, b, c, high, middle, low, PTX: tl.constexpr):
    """Add to (high, middle, low) (B, A, C) the dot products of x's bytes (1, A, C) with each of a, b, c (B, 1, C)."""
    if PTX:
        high = _dp4a(x, a, high)
        middle = _dp4a(x, b, middle)
        low = _dp4a(x, c, low)
    else:
        for i in tl.static_range(4):
            byte = (x >> (8 * i)).to(tl.int32) & 0xFF
            high += byte * (a << (24 - 8 * i) >> 24)
            middle += byte * (b << (24 - 8 * i) >> 24)
            low += byte * (c << (24 - 8 * i) >> 24)
    return high, middle, low


# ---- small batches: dp4a -------------------------------------------------------------------------


@triton.jit(do_not_specialize=["dim", "groups", "tiles", "batch"])
def pack_kernel(w, peak, packed, total, dim, groups, tiles, batch, C: tl.constexpr):
    """Lay residuals out for `small_kernel`: w (B, D) float32 -> packed (rows, tiles, 48, C, 2) int32.

    Row b * G + g, tile t: the C calls from t * C on; rows past the batch are 0. Word 3 * (8 * v + j) + d of a call (its
    index split in 48 pairs) holds digit d of the coordinates of bits j, 8 + j, 16 + j and 24 + j of word v,
    one a byte. Odd j are rounded to even integers and halved, since their bits will weigh two.
    total (rows) int64 gathers the sums of all V; these additions are of integers, so their order is free.
    """
    pid = tl.program_id(0)
    tile, row = pid % tiles, (pid // tiles).to(tl.int64)
    b, g = row // groups, row % groups
    real = b < batch
    start, length = group_range(g, dim, groups)
    length = tl.where(real, length, 0)
    scale, _ = power_scale(tl.load(peak + row, mask=real, other=1.0), 22)
    c = tl.arange(0, C)
    byte = tl.arange(0, 4)
    shift = 8 * byte[None, :]
    count = tl.zeros((), tl.int64)
    base = packed + pid.to(tl.int64) * (96 * C) + 2 * c
    for vj in range(32):
        odd = vj & 1
        i = (tile.to(tl.int64) * C + c)[:, None] * 128 + (vj // 8 * 32 + vj % 8) + shift
        x = tl.load(w + b * dim + start + i, mask=i < length, other=0.0)
        v = tl.floor(x * tl.where(odd == 1, scale * 0.5, scale) + 0.5).to(tl.int32)
        count += tl.sum(tl.sum(v.to(tl.int64), axis=1), axis=0) << odd
        high, middle, low = _digits(v)
        q = 3 * vj
        tl.store(base + q // 2 * (2 * C) + q % 2, tl.sum((high & 255) << shift, axis=1))
        q += 1
        tl.store(base + q // 2 * (2 * C) + q % 2, tl.sum((middle & 255) << shift, axis=1))
        q += 1
        tl.store(base + q // 2 * (2 * C) + q % 2, tl.sum((low & 255) << shift, axis=1))
    tl.atomic_add(total + row, count, mask=real)


@tuned(
    [
        # Left alone, ptxas gives some of the tiles 72 or 96 registers and a little stack.
        triton.Config({"K": 32}, num_warps=4, maxnreg=168 if PTX else None),
        triton.Config({"K": 64}, num_warps=4, maxnreg=255 if PTX else None),
    ],
    key=["C", "B", "SEARCH", "span"],
)
@triton.jit(do_not_specialize=_SIZES)
def small_kernel(packed, total, peak, step, bias, out, keys, bias_stride, dim, groups, batch, calls, first, last, span,
                 programs, width, seed_low, seed_high, B: tl.constexpr, SHARE: tl.constexpr,
                 K: tl.constexpr, C: tl.constexpr, SEARCH: tl.constexpr, SIGNED: tl.constexpr,
                 BIAS: tl.constexpr, PTX: tl.constexpr):  # fmt: skip
    """Scores of up to B images at once, on the dot product of four bytes.

    A thread owns Philox calls of its own, one atom's each (lanes along the calls, so that residual words load
    coalesced, two at a time, and are shared by the thread's atoms). `word & 0x01010101` is four entries, and with its
    odd partner `word & 0x02020202` one shift serves eight; three dp4a, one a digit, multiply four entries. An entry
    costs 45 / 128 instructions of Philox and 11 / 32 of masks and shifts for all images, and 3 / 4 of dp4a for each.

    packed (as int64), total: of pack_kernel; peak (B, G) float32, step () int64. The program's atoms are
    the `span` from first + p * span on, below last. With SEARCH, the best score and key of these go to out and keys
    (B, G, programs); otherwise all scores to out (B, G, width). A tile has K / SHARE atoms, so that the sums of B
    images stay in registers.
    """
    A: tl.constexpr = K // SHARE
    pid = tl.program_id(0)
    p = pid % programs
    g = (pid // programs) % groups
    image = (pid // programs // groups) * B + tl.arange(0, B)
    real = image < batch
    row = image.to(tl.int64) * groups + g
    now = tl.load(step)
    tiles = (calls + C - 1) // C
    lane = tl.arange(0, C)
    _, inverse = power_scale(tl.load(peak + row, mask=real, other=1.0), 22)
    whole = tl.load(total + row, mask=real, other=0)
    if BIAS:
        bias += g.to(tl.int64) * bias_stride
    begin = first + p.to(tl.int64) * span
    best_key = tl.full((B, A), LOWEST, tl.int64)
    best_score = tl.zeros((B, A), tl.float32)
    for k0 in range(begin, tl.minimum(begin + span, last), A):
        k = k0 + tl.arange(0, A).to(tl.int64)
        ones = tl.zeros((B, A), tl.int64)
        # A call adds at most 2^15 to a digit's sum: 2^15 calls cannot overflow 31 bits.
        for outer in range(0, calls, C * 32768):
            high = tl.zeros((B, A, C), tl.int32)
            middle = tl.zeros((B, A, C), tl.int32)
            low = tl.zeros((B, A, C), tl.int32)
            for c0 in range(outer, tl.minimum(calls, outer + C * 32768), C):
                block = g.to(tl.int64) * calls + c0 + lane
                w0, w1, w2, w3 = philox(block[None, :], k[:, None], now, SIGN, seed_low, seed_high)
                at = packed + ((row * tiles + c0 // C) * (48 * C))[:, None, None] + lane[None, None, :]
                for v in tl.static_range(4):
                    word = word_of(v, w0, w1, w2, w3)[None, :, :]
                    for j in tl.static_range(0, 8, 2):
                        pair = at + (8 * v + j) // 2 * (3 * C)
                        r0 = tl.load(pair)  # each two words in one load
                        r1 = tl.load(pair + C)
                        r2 = tl.load(pair + 2 * C)
                        bits = word >> j
                        high, middle, low = _add_products(
                            bits & 0x01010101, r0.to(tl.int32), (r0 >> 32).to(tl.int32), r1.to(tl.int32),
                            high, middle, low, PTX,
                        )  # fmt: skip
                        high, middle, low = _add_products(
                            bits & 0x02020202, (r1 >> 32).to(tl.int32), r2.to(tl.int32),
                            (r2 >> 32).to(tl.int32), high, middle, low, PTX,
                        )  # fmt: skip
            ones += tl.sum((high.to(tl.int64) << 16) + (middle.to(tl.int64) << 8) + low, axis=2)
        score = (whole[:, None] - 2 * ones).to(tl.float32) * inverse[:, None]
        if SEARCH:
            best_key, best_score = keep_best(score, k[None, :], last, bias, best_key, best_score, SIGNED, BIAS)
        else:
            store_scores(score, k[None, :], image[:, None], g, batch, groups, first, last, width, out)
    if SEARCH:
        key, score = emit_best(best_key, best_score, 1)
        tl.store(keys + row * programs + p, key, mask=real)
        tl.store(out + row * programs + p, score, mask=real)


# ---- large batches: the matrix product -----------------------------------------------------------


@triton.jit(do_not_specialize=["dim", "groups", "tiles", "batch"])
def planes_kernel(w, peak, planes, total, dim, groups, tiles, batch, B: tl.constexpr, C: tl.constexpr):
    """Lay residuals out for `large_kernel`: w (B, D) float32 -> planes (rows / B, G, tiles, 128, 3, B, C) int8.

    planes[n, g, t, i, d, b, c] is digit d of the coordinate of bit i of call t C + c of image n B + b; images past the
    batch are 0. total (B, G) int64 gathers the sums of V.
    """
    pid = tl.program_id(0)
    tile, row = pid % tiles, (pid // tiles).to(tl.int64)
    b, g = row // groups, row % groups
    real = b < batch
    start, length = group_range(g, dim, groups)
    length = tl.where(real, length, 0)
    scale, _ = power_scale(tl.load(peak + row, mask=real, other=1.0), 22)
    c = tl.arange(0, C)[None, :]
    count = tl.zeros((), tl.int64)
    corner = planes + ((b // B * groups + g) * tiles + tile) * (384 * B * C) + b % B * C + c
    for word in range(4):
        bit = 32 * word + tl.arange(0, 32)[:, None]
        i = (tile.to(tl.int64) * C + c) * 128 + bit
        x = tl.load(w + b * dim + start + i, mask=i < length, other=0.0)
        v = tl.floor(x * scale + 0.5).to(tl.int32)
        count += tl.sum(tl.sum(v.to(tl.int64), axis=1), axis=0)
        high, middle, low = _digits(v)
        at = corner + bit * (3 * B * C)
        tl.store(at, high.to(tl.int8))
        tl.store(at + B * C, middle.to(tl.int8))
        tl.store(at + 2 * B * C, low.to(tl.int8))
    tl.atomic_add(total + row, count, mask=real)


@triton.jit
def _count_ones(planes, corner, cell, k, g, calls, start, stop, now, seed_low, seed_high, B: tl.constexpr,
                K: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """sum_i x_i V_i over the bits x of calls start .. stop - 1 of atoms k (K): (K, B) int64. See large_kernel."""
    high = tl.zeros((K, B), tl.int32)
    middle = tl.zeros((K, B), tl.int32)
    low = tl.zeros((K, B), tl.int32)
    for c0 in range(start, stop, C):
        block = g.to(tl.int64) * calls + c0 + tl.arange(0, C)
        w0, w1, w2, w3 = philox(block[None, :], k[:, None], now, SIGN, seed_low, seed_high)
        here = planes + (corner + c0) * (384 * B)
        for v in tl.static_range(4):
            word = word_of(v, w0, w1, w2, w3)
            for bit in range(32):
                x = ((word >> bit) & 1).to(tl.int8)
                at = here + (v * 32 + bit) * (3 * B * C) + cell
                high = tl.dot(x, tl.trans(tl.load(at)), high, out_dtype=tl.int32)
                middle = tl.dot(x, tl.trans(tl.load(at + B * C)), middle, out_dtype=tl.int32)
                low = tl.dot(x, tl.trans(tl.load(at + 2 * B * C)), low, out_dtype=tl.int32)
    return (high.to(tl.int64) << 16) + (middle.to(tl.int64) << 8) + low


def _large_tiles(meta: dict[str, Any]) -> list[triton.Config]:
    images = meta["B"]
    if meta["LONG"]:
        return LONG_TILES[images]
    return LARGE_TILES[images] if meta["SEARCH"] else SCORES_TILES.get(images, LARGE_TILES[images])


@tuned(
    [config for table in (LARGE_TILES, LONG_TILES) for tiles in table.values() for config in tiles],
    key=["B", "SEARCH", "LONG", "span"],
    choose=_large_tiles,
)
@triton.jit(do_not_specialize=_SIZES)
def large_kernel(planes, total, peak, step, bias, out, keys, bias_stride, dim, groups, batch, calls, first, last, span,
                 programs, width, seed_low, seed_high, B: tl.constexpr, K: tl.constexpr, C: tl.constexpr,
                 LONG: tl.constexpr, SEARCH: tl.constexpr, SIGNED: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """Scores of B images at once on the integer matrix product, one of depth C calls for each bit.

    The noise of K atoms and C calls is made once and multiplied with three digits of all B images.
    Arguments as small_kernel's; planes of planes_kernel. LONG: calls > _SEGMENT.
    """
    pid = tl.program_id(0)
    p = pid % programs
    g = (pid // programs) % groups
    b0 = (pid // programs // groups) * B
    image = b0 + tl.arange(0, B)
    now = tl.load(step)
    row = image.to(tl.int64) * groups + g
    real = image < batch
    _, inverse = power_scale(tl.load(peak + row, mask=real, other=1.0), 22)
    whole = tl.load(total + row, mask=real, other=0)
    if BIAS:
        bias += g.to(tl.int64) * bias_stride
    begin = first + p.to(tl.int64) * span
    # pid // programs counts blocks of B images first, then groups: the order of planes.
    corner = (pid // programs).to(tl.int64) * (tl.cdiv(calls, C) * C)
    cell = tl.arange(0, B)[:, None] * C + tl.arange(0, C)[None, :]
    best_key = tl.full((B,), LOWEST, tl.int64)
    best_score = tl.zeros((B,), tl.float32)
    for k0 in range(begin, tl.minimum(begin + span, last), K):
        k = k0 + tl.arange(0, K).to(tl.int64)
        if LONG:
            ones = tl.zeros((K, B), tl.int64)
            for start in range(0, calls, _SEGMENT):
                stop = tl.minimum(calls, start + _SEGMENT)
                ones += _count_ones(planes, corner, cell, k, g, calls, start, stop, now, seed_low, seed_high, B, K, C)
        else:  # no sums of 64 bits beside those of the loop
            ones = _count_ones(planes, corner, cell, k, g, calls, 0, calls, now, seed_low, seed_high, B, K, C)
        score = (whole[None, :] - 2 * ones).to(tl.float32) * inverse[None, :]
        if SEARCH:
            best_key, best_score = keep_best_atom(score, k, last, bias, best_key, best_score, SIGNED, BIAS)
        else:
            store_scores(score, k[:, None], image[None, :], g, batch, groups, first, last, width, out)
    if SEARCH:
        tl.store(keys + row * programs + p, best_key, mask=real)
        tl.store(out + row * programs + p, best_score, mask=real)


# ---- host ----------------------------------------------------------------------------------------


class Residual(residual.Residual):
    """Residuals as the kernels above read them."""

    def __init__(self, spec: CodebookSpec, w: Tensor, peak: Tensor) -> None:
        self.spec, self.peak, self.batch = spec, peak, len(w)
        calls = spec.calls_per_group
        self.small = len(w) <= SMALL_BATCH
        self.tile = 64 if self.small else 128
        if self.small:
            self.images = power_of_2(len(w))
            self.depth = min(32, power_of_2(calls))
            tiles = ceil_div(calls, self.depth)
            rows = self.images * spec.groups
            self.total = torch.zeros(rows, dtype=torch.int64, device=w.device)
            self.packed = torch.empty(rows * tiles * 48 * self.depth, dtype=torch.int64, device=w.device)
            launch(pack_kernel, rows * tiles, w, peak, self.packed.view(torch.int32), self.total, spec.dim,
                   spec.groups, tiles, len(w), C=self.depth)  # fmt: skip
            return
        self.images = next((images for images in LARGE_TILES if images >= len(w)), max(LARGE_TILES))
        self.depth = 32
        tiles = ceil_div(calls, self.depth)
        items = self.blocks * self.images * spec.groups * tiles
        self.total = torch.zeros(len(w) * spec.groups, dtype=torch.int64, device=w.device)
        self.packed = torch.empty(items * 384 * self.depth, dtype=torch.int8, device=w.device)
        launch(planes_kernel, items, w, peak, self.packed, self.total, spec.dim, spec.groups, tiles, len(w),
               B=self.images, C=self.depth)  # fmt: skip

    def launch(self, work: residual.Work) -> None:
        """See residual.Residual.launch."""
        spec, calls = self.spec, self.spec.calls_per_group
        grid = work.programs * spec.groups * self.blocks
        arguments = (self.packed, self.total, self.peak, *work.targets, bias_stride(work.bias), spec.dim, spec.groups,
                     self.batch, calls, *work.atoms, *seed_words(spec.seed))  # fmt: skip
        if self.small:
            launch(small_kernel, grid, *arguments, B=self.images, C=self.depth,
                   SHARE={1: 1, 2: 2, 4: 8}[self.images], PTX=PTX, **work.meta)  # fmt: skip
        else:
            launch(large_kernel, grid, *arguments, B=self.images, C=self.depth,
                   LONG=calls > _SEGMENT.value, **work.meta)  # fmt: skip

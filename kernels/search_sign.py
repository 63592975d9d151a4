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
from ddcm_fast.kernels.digits import add_products, digits
from ddcm_fast.kernels.launch import PTX, ceil_div, launch, power_of_2, seed_words, tile, tuned
from ddcm_fast.kernels.layout import first_call, group_range, place_of, power_scale, word_of
from ddcm_fast.kernels.philox import SIGN, philox
from ddcm_fast.kernels.select import (
    LOWEST,
    bias_stride,
    emit_best,
    keep_best,
    keep_best_atom,
    store_best,
    store_scores,
)
from torch import Tensor

from ddcm_fast.codebook.law import CodebookSpec

_SIZES = [
    "stride_bias", "dim", "num_groups", "num_images", "num_calls", "first_group", "num_held",
    "first", "last", "span", "num_programs", "stride_out", "seed_low", "seed_high",
]  # fmt: skip

#: Up to this many images are scored by the small-batch kernel, SMALL_TILE of them in a program; more take the matrix
#: product. On an H200 (K = D = 16384) two images took 0.065 ms of the one, 8 took 0.73 of the other, 64 hardly less.
SMALL_BATCH, SMALL_TILE = 16, 4

#: Images that share a program of the large-batch kernel -> tiles to choose from. Each keeps all sums in registers on
#: sm_80 and sm_90 (tests/backends/test_triton_compile.py).
LARGE_TILES: dict[int, list[triton.Config]] = {
    32: [tile(64, 8, 1), tile(32, 8, 2)],
    64: [tile(32, 4, 2), tile(32, 16, 2)],
    128: [tile(32, 8, 2), tile(32, 16, 2)],
    256: [tile(32, 8, 2), tile(16, 8, 2)],
}

#: Tiles for all scores, whose addresses take registers too, and for more than _SEGMENT calls: those that differ.
SCORES_TILES = {256: [tile(16, 8, 2)]}
LONG_TILES = {
    32: [tile(64, 8, 1)], 64: [tile(16, 4, 2)], 128: [tile(32, 8, 2)], 256: [tile(16, 8, 2)],
}  # fmt: skip

#: Calls whose sums of a digit, 128 * 128 each at most, cannot overflow 31 bits.
_SEGMENT: tl.constexpr = tl.constexpr(65536)


# ---- small batches: dp4a -------------------------------------------------------------------------


@triton.jit(do_not_specialize=["dim", "num_groups", "num_tiles", "num_images"])
def pack_kernel(
    w_ptr, peak_ptr, packed_ptr, sum_ptr,
    dim, num_groups, num_tiles, num_images,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Lay residuals out for `small_kernel`: digits of V, four a word.

    w (B, D), peak (B, G) float32 -> packed (rows, tiles, 48, C, 2) int32 and sum (rows) int64, the sums of all V, in
    integers, whose order is free. Row b * G + g, tile t: the C = BLOCK_C calls from t * C on; rows past the batch are
    0. Word 3 * (8 * v + j) + d of a call (its index split in 48 pairs) holds digit d of the coordinates of bits j, 8 +
    j, 16 + j and 24 + j of word v, one a byte. Odd j are rounded to even integers and halved, since their bits weigh
    two.

    One program a row and tile. Traffic: 4 bytes read and 3 written a coordinate; bound by it. Source: the module's
    docstring; the word order is that of docs/noise-law.md, section 2.
    """
    pid = tl.program_id(0)
    tile, row = pid % num_tiles, (pid // num_tiles).to(tl.int64)
    b, g = row // num_groups, row % num_groups
    valid = b < num_images
    start, length = group_range(g, dim, num_groups)
    length = tl.where(valid, length, 0)
    scale, _ = power_scale(tl.load(peak_ptr + row, mask=valid, other=1.0), 22)
    c = tl.arange(0, BLOCK_C)
    byte = tl.arange(0, 4)
    shift = 8 * byte[None, :]
    sum_v = tl.zeros((), tl.int64)
    base = packed_ptr + pid.to(tl.int64) * (96 * BLOCK_C) + 2 * c
    for vj in range(32):
        odd = vj & 1
        i = (tile.to(tl.int64) * BLOCK_C + c)[:, None] * 128 + (vj // 8 * 32 + vj % 8) + shift
        x = tl.load(w_ptr + b * dim + start + i, mask=i < length, other=0.0)
        v = tl.floor(x * tl.where(odd == 1, scale * 0.5, scale) + 0.5).to(tl.int32)
        sum_v += tl.sum(tl.sum(v.to(tl.int64), axis=1), axis=0) << odd
        high, middle, low = digits(v)
        q = 3 * vj
        tl.store(base + q // 2 * (2 * BLOCK_C) + q % 2, tl.sum((high & 255) << shift, axis=1))
        q += 1
        tl.store(base + q // 2 * (2 * BLOCK_C) + q % 2, tl.sum((middle & 255) << shift, axis=1))
        q += 1
        tl.store(base + q // 2 * (2 * BLOCK_C) + q % 2, tl.sum((low & 255) << shift, axis=1))
    tl.atomic_add(sum_ptr + row, sum_v, mask=valid)


@triton.jit
def add_word(words, word, high, middle, low, BLOCK_C: tl.constexpr, PTX: tl.constexpr):
    """(high, middle, low) (B, A, C) plus the products of a word (1, A, C) with its digits from `words` (B, 1, C) on."""
    for j in tl.static_range(0, 8, 2):
        pair = words + j // 2 * (3 * BLOCK_C)
        r0 = tl.load(pair)  # each two words in one load
        r1 = tl.load(pair + BLOCK_C)
        r2 = tl.load(pair + 2 * BLOCK_C)
        bits = word >> j
        high, middle, low = add_products(
            bits & 0x01010101, r0.to(tl.int32), (r0 >> 32).to(tl.int32), r1.to(tl.int32), high, middle, low, PTX
        )
        high, middle, low = add_products(
            bits & 0x02020202, (r1 >> 32).to(tl.int32), r2.to(tl.int32), (r2 >> 32).to(tl.int32),
            high, middle, low, PTX,
        )  # fmt: skip
    return high, middle, low


@triton.jit
def _count_ones_by_bytes(
    packed_ptr, row, k, g, num_calls, step,
    seed_low, seed_high,
    BLOCK_B: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_C: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """sum_i x_i V_i over the bits x of all calls of atoms k (A) with rows (B): (B, A) int64. For small_kernel."""
    lane = tl.arange(0, BLOCK_C)
    num_tiles = (num_calls + BLOCK_C - 1) // BLOCK_C
    ones = tl.zeros((BLOCK_B, BLOCK_A), tl.int64)
    # A call adds at most 2^15 to a digit's sum: 2^15 calls cannot overflow 31 bits.
    for outer in range(0, num_calls, BLOCK_C * 32768):
        high = tl.zeros((BLOCK_B, BLOCK_A, BLOCK_C), tl.int32)
        middle = tl.zeros((BLOCK_B, BLOCK_A, BLOCK_C), tl.int32)
        low = tl.zeros((BLOCK_B, BLOCK_A, BLOCK_C), tl.int32)
        for c0 in range(outer, tl.minimum(num_calls, outer + BLOCK_C * 32768), BLOCK_C):
            block = g.to(tl.int64) * num_calls + c0 + lane
            w0, w1, w2, w3 = philox(block[None, :], k[:, None], step, SIGN, seed_low, seed_high)
            tile = (row * num_tiles + c0 // BLOCK_C) * (48 * BLOCK_C)
            words = packed_ptr + tile[:, None, None] + lane[None, None, :]
            for v in tl.static_range(4):
                word = word_of(v, w0, w1, w2, w3)[None, :, :]
                high, middle, low = add_word(words + v * (12 * BLOCK_C), word, high, middle, low, BLOCK_C, PTX)
        ones += tl.sum((high.to(tl.int64) << 16) + (middle.to(tl.int64) << 8) + low, axis=2)
    return ones


@tuned(
    [
        # Left alone, ptxas gives some of the tiles 72 or 96 registers and a little stack.
        triton.Config({"BLOCK_K": 32}, num_warps=4, maxnreg=168 if PTX else None),
        triton.Config({"BLOCK_K": 64}, num_warps=4, maxnreg=255 if PTX else None),
    ],
    key=["BLOCK_C", "BLOCK_B", "span"],
)
@triton.jit(do_not_specialize=_SIZES)
def small_kernel(
    packed_ptr, sum_ptr, peak_ptr, step_ptr, bias_ptr, out_ptr, key_ptr, stride_bias,
    dim, num_groups, num_images, num_calls, first_group, num_held,
    first, last, span, num_programs, stride_out,
    seed_low, seed_high,
    BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
    SHARE: tl.constexpr, SIGNED: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """score[b, g, k] = 2^-q (sum_i V_i - 2 sum_i x_i V_i) for up to BLOCK_B images, on the dot product of four bytes.

    packed (int64), sum: of pack_kernel; peak (B, G) float32; step () int64; bias (K,) or (G, K) float32 or None, with
    stride_bias from one group to the next. A program has one group's atoms first + p * span .. + span - 1, below last.
    With key, their best goes to out float32 and key int64 (B, G, programs); with key None, all scores of the groups
    from first_group on go to out (B, num_held, atoms), whose rows are stride_out apart. A tile has BLOCK_K / SHARE
    atoms, so that the sums of BLOCK_B images stay in registers.

    A thread owns Philox calls of its own, one atom's each (lanes along the calls, so that residual words load
    coalesced, two at a time, and are shared by the thread's atoms). `word & 0x01010101` is four entries, and with its
    odd partner `word & 0x02020202` one shift serves eight; three dp4a, one a digit, multiply four entries.

    Traffic: the packed residual (3 bytes a coordinate) once a tile of atoms, out of caches; no noise. Bound:
    instructions. An entry costs 45 / 128 of Philox and 11 / 32 of masks and shifts for all images, and 3 / 4 of dp4a
    for each. Source: docs/noise-law.md, section 4; dp4a: PTX ISA, "Integer Arithmetic Instructions".
    """
    BLOCK_A: tl.constexpr = BLOCK_K // SHARE
    p, g, image, row = place_of(num_programs, num_groups, first_group, num_held, BLOCK_B)
    valid = image < num_images
    step = tl.load(step_ptr)
    _, inverse = power_scale(tl.load(peak_ptr + row, mask=valid, other=1.0), 22)
    value_sum = tl.load(sum_ptr + row, mask=valid, other=0)
    if bias_ptr is not None:
        bias_ptr += g.to(tl.int64) * stride_bias
    begin = first + p.to(tl.int64) * span
    best_key = tl.full((BLOCK_B, BLOCK_A), LOWEST, tl.int64)
    best_score = tl.zeros((BLOCK_B, BLOCK_A), tl.float32)
    for k0 in range(begin, tl.minimum(begin + span, last), BLOCK_A):
        k = k0 + tl.arange(0, BLOCK_A).to(tl.int64)
        ones = _count_ones_by_bytes(
            packed_ptr, row, k, g, num_calls, step, seed_low, seed_high, BLOCK_B, BLOCK_A, BLOCK_C, PTX
        )
        score = (value_sum[:, None] - 2 * ones).to(tl.float32) * inverse[:, None]
        if key_ptr is not None:
            best_key, best_score = keep_best(score, k[None, :], last, bias_ptr, best_key, best_score, SIGNED)
        else:
            store_scores(
                score, k[None, :], image[:, None], g - first_group, num_images, num_held,
                first, last, stride_out, out_ptr,
            )  # fmt: skip
    if key_ptr is not None:
        key, score = emit_best(best_key, best_score, 1)
        store_best(key, score, row * num_programs + p, valid, key_ptr, out_ptr)


# ---- large batches: the matrix product -----------------------------------------------------------


@triton.jit(do_not_specialize=["dim", "num_groups", "num_tiles", "num_images"])
def planes_kernel(
    w_ptr, peak_ptr, planes_ptr, sum_ptr,
    dim, num_groups, num_tiles, num_images,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Lay residuals out for `large_kernel`: digits of V, one a byte.

    w (B, D), peak (B, G) float32 -> planes (blocks of images, G, tiles, 128, 3, BLOCK_B, BLOCK_C) int8 and sum (B, G)
    int64, the sums of V. planes[n, g, t, i, d, b, c] is digit d of the coordinate of bit i of call t BLOCK_C + c of
    image n BLOCK_B + b; images past the batch are 0.

    One program an image, group and tile. Traffic: 4 bytes read and 3 written a coordinate; bound by it. Source: the
    module's docstring.
    """
    pid = tl.program_id(0)
    tile, row = pid % num_tiles, (pid // num_tiles).to(tl.int64)
    b, g = row // num_groups, row % num_groups
    valid = b < num_images
    start, length = group_range(g, dim, num_groups)
    length = tl.where(valid, length, 0)
    scale, _ = power_scale(tl.load(peak_ptr + row, mask=valid, other=1.0), 22)
    c = tl.arange(0, BLOCK_C)[None, :]
    sum_v = tl.zeros((), tl.int64)
    base = planes_ptr + ((b // BLOCK_B * num_groups + g) * num_tiles + tile) * (384 * BLOCK_B * BLOCK_C)
    base = base + b % BLOCK_B * BLOCK_C + c
    for word in range(4):
        bit = 32 * word + tl.arange(0, 32)[:, None]
        i = (tile.to(tl.int64) * BLOCK_C + c) * 128 + bit
        x = tl.load(w_ptr + b * dim + start + i, mask=i < length, other=0.0)
        v = tl.floor(x * scale + 0.5).to(tl.int32)
        sum_v += tl.sum(tl.sum(v.to(tl.int64), axis=1), axis=0)
        high, middle, low = digits(v)
        at = base + bit * (3 * BLOCK_B * BLOCK_C)
        tl.store(at, high.to(tl.int8))
        tl.store(at + BLOCK_B * BLOCK_C, middle.to(tl.int8))
        tl.store(at + 2 * BLOCK_B * BLOCK_C, low.to(tl.int8))
    tl.atomic_add(sum_ptr + row, sum_v, mask=valid)


@triton.jit
def _count_ones(
    planes_ptr, base, offset,
    k, g, num_calls, start, stop, step,
    seed_low, seed_high,
    BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """sum_i x_i V_i over the bits x of calls start .. stop - 1 of atoms k (K): (K, B) int64. For large_kernel."""
    high = tl.zeros((BLOCK_K, BLOCK_B), tl.int32)
    middle = tl.zeros((BLOCK_K, BLOCK_B), tl.int32)
    low = tl.zeros((BLOCK_K, BLOCK_B), tl.int32)
    for c0 in range(start, stop, BLOCK_C):
        block = g.to(tl.int64) * num_calls + c0 + tl.arange(0, BLOCK_C)
        w0, w1, w2, w3 = philox(block[None, :], k[:, None], step, SIGN, seed_low, seed_high)
        tile = planes_ptr + (base + c0) * (384 * BLOCK_B)
        for v in tl.static_range(4):
            word = word_of(v, w0, w1, w2, w3)
            for bit in range(32):
                x = ((word >> bit) & 1).to(tl.int8)
                plane = tile + (v * 32 + bit) * (3 * BLOCK_B * BLOCK_C) + offset
                high = tl.dot(x, tl.trans(tl.load(plane)), high, out_dtype=tl.int32)
                middle = tl.dot(x, tl.trans(tl.load(plane + BLOCK_B * BLOCK_C)), middle, out_dtype=tl.int32)
                low = tl.dot(x, tl.trans(tl.load(plane + 2 * BLOCK_B * BLOCK_C)), low, out_dtype=tl.int32)
    return (high.to(tl.int64) << 16) + (middle.to(tl.int64) << 8) + low


def _large_tiles(arguments: dict[str, Any]) -> list[triton.Config]:
    images = arguments["BLOCK_B"]
    if arguments["LONG"]:
        return LONG_TILES[images]
    return LARGE_TILES[images] if arguments["key_ptr"] is not None else SCORES_TILES.get(images, LARGE_TILES[images])


@tuned(
    [config for table in (LARGE_TILES, LONG_TILES) for tiles in table.values() for config in tiles],
    key=["BLOCK_B", "LONG", "span"],
    choose=_large_tiles,
)
@triton.jit(do_not_specialize=_SIZES)
def large_kernel(
    planes_ptr, sum_ptr, peak_ptr, step_ptr, bias_ptr, out_ptr, key_ptr, stride_bias,
    dim, num_groups, num_images, num_calls, first_group, num_held,
    first, last, span, num_programs, stride_out,
    seed_low, seed_high,
    BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
    LONG: tl.constexpr, SIGNED: tl.constexpr,
):  # fmt: skip
    """small_kernel's scores of BLOCK_B images, on the integer matrix product: one of depth BLOCK_C calls for each bit.

    planes, sum: of planes_kernel; other arguments and results as small_kernel's. The noise of BLOCK_K atoms and BLOCK_C
    calls is made once and multiplied with three digits of all BLOCK_B images. LONG: more than _SEGMENT calls.

    Traffic: the planes (3 bytes a coordinate and image) once a tile of atoms, out of caches; no noise. Bound:
    instructions of Philox and of making bytes for few images, matrix instructions for many. Source: docs/noise-law.md,
    section 4; products: triton.language.dot's documentation (int8 to int32).
    """
    p, g, image, row = place_of(num_programs, num_groups, first_group, num_held, BLOCK_B)
    valid = image < num_images
    step = tl.load(step_ptr)
    _, inverse = power_scale(tl.load(peak_ptr + row, mask=valid, other=1.0), 22)
    value_sum = tl.load(sum_ptr + row, mask=valid, other=0)
    if bias_ptr is not None:
        bias_ptr += g.to(tl.int64) * stride_bias
    begin = first + p.to(tl.int64) * span
    base = first_call(num_programs, num_groups, g, num_held, num_calls, BLOCK_C)
    offset = tl.arange(0, BLOCK_B)[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    best_key = tl.full((BLOCK_B,), LOWEST, tl.int64)
    best_score = tl.zeros((BLOCK_B,), tl.float32)
    for k0 in range(begin, tl.minimum(begin + span, last), BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K).to(tl.int64)
        if LONG:
            ones = tl.zeros((BLOCK_K, BLOCK_B), tl.int64)
            for start in range(0, num_calls, _SEGMENT):
                stop = tl.minimum(num_calls, start + _SEGMENT)
                ones += _count_ones(
                    planes_ptr, base, offset, k, g, num_calls, start, stop, step, seed_low, seed_high,
                    BLOCK_B, BLOCK_K, BLOCK_C,
                )  # fmt: skip
        else:  # no sums of 64 bits beside those of the loop
            ones = _count_ones(
                planes_ptr, base, offset, k, g, num_calls, 0, num_calls, step, seed_low, seed_high,
                BLOCK_B, BLOCK_K, BLOCK_C,
            )  # fmt: skip
        score = (value_sum[None, :] - 2 * ones).to(tl.float32) * inverse[None, :]
        if key_ptr is not None:
            best_key, best_score = keep_best_atom(score, k, last, bias_ptr, best_key, best_score, SIGNED)
        else:
            store_scores(
                score, k[:, None], image[None, :], g - first_group, num_images, num_held,
                first, last, stride_out, out_ptr,
            )  # fmt: skip
    if key_ptr is not None:
        store_best(best_key, best_score, row * num_programs + p, valid, key_ptr, out_ptr)


# ---- host ----------------------------------------------------------------------------------------


class Residual(residual.Residual):
    """Residuals as the kernels above read them."""

    def __init__(self, spec: CodebookSpec, w: Tensor, peak: Tensor) -> None:
        self.spec, self.peak, self.batch = spec, peak, len(w)
        calls = spec.calls_per_group
        self.small = len(w) <= SMALL_BATCH
        self.tile = 64 if self.small else 128
        if self.small:
            self.images = min(SMALL_TILE, power_of_2(len(w)))
            self.depth = min(32, power_of_2(calls))
            tiles = ceil_div(calls, self.depth)
            rows = self.blocks * self.images * spec.groups
            self.total = torch.zeros(rows, dtype=torch.int64, device=w.device)
            self.packed = torch.empty(rows * tiles * 48 * self.depth, dtype=torch.int64, device=w.device)
            launch(pack_kernel, rows * tiles, w, peak, self.packed.view(torch.int32), self.total, spec.dim,
                   spec.groups, tiles, len(w), BLOCK_C=self.depth)  # fmt: skip
            return
        self.images = next((images for images in LARGE_TILES if images >= len(w)), max(LARGE_TILES))
        self.depth = 32
        tiles = ceil_div(calls, self.depth)
        items = self.blocks * self.images * spec.groups * tiles
        self.total = torch.zeros(len(w) * spec.groups, dtype=torch.int64, device=w.device)
        self.packed = torch.empty(items * 384 * self.depth, dtype=torch.int8, device=w.device)
        launch(planes_kernel, items, w, peak, self.packed, self.total, spec.dim, spec.groups, tiles, len(w),
               BLOCK_B=self.images, BLOCK_C=self.depth)  # fmt: skip

    def launch(self, work: residual.Work) -> None:
        spec, calls = self.spec, self.spec.calls_per_group
        grid = work.programs * work.groups[1] * self.blocks
        arguments = (self.packed, self.total, self.peak, *work.targets, bias_stride(work.bias), spec.dim, spec.groups,
                     self.batch, calls, *work.groups, *work.atoms, *seed_words(spec.seed))  # fmt: skip
        if self.small:
            launch(small_kernel, grid, *arguments, BLOCK_B=self.images, BLOCK_C=self.depth,
                   SHARE={1: 1, 2: 2, 4: 8}[self.images], SIGNED=work.signed, PTX=PTX)  # fmt: skip
        else:
            launch(large_kernel, grid, *arguments, BLOCK_B=self.images, BLOCK_C=self.depth,
                   LONG=calls > _SEGMENT.value, SIGNED=work.signed)  # fmt: skip

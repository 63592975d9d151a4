"""Scores and norms of `gaussian` codebooks (noise-law, section 4).

An entry is q / 256 with an integer |q| <= 1107, which float16 and float32 hold exactly. Small batches sum
float32 fused multiply-adds in an order fixed by the problem's shape; large batches use the matrix
product of float16, the residual split in two of them, which keep 22 bits.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from ddcm_fast.kernels import residual
from ddcm_fast.kernels.launch import ceil_div, launch, power_of_2, seed_words, shared_memory, tile, tuned
from ddcm_fast.kernels.layout import first_call, group_range, place_of, power_scale, word_of
from ddcm_fast.kernels.philox import GAUSSIAN, philox
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

from ddcm_fast.codebook.law import GAUSSIAN_SCALE, CodebookSpec, gaussian_table

_SIZES = [
    "stride_bias", "dim", "size", "num_groups", "num_images", "num_calls", "first_group", "num_held",
    "first", "last", "span", "num_programs", "stride_out", "seed_low", "seed_high",
]  # fmt: skip

#: Up to this many images share one program of the small-batch kernel; more take the matrix product.
SMALL_BATCH = 4

#: Calls of a step of the large-batch kernel.
DEPTH = 16

#: (Images that share a program of the large-batch kernel, whether it squares the entries too) -> tiles to choose from.
#: Each keeps all sums in registers on sm_80 and sm_90 (tests/backends/test_triton_compile.py). Those of one line use
#: the same instruction: on sm_90, 64 atoms take the warp group's product and fewer the warp's, which need not round
#: alike.
LARGE_TILES: dict[tuple[int, bool], list[triton.Config]] = {
    (16, False): [tile(64, 4, 2), tile(64, 8, 2), tile(64, 4, 1)],
    (32, False): [tile(64, 4, 2), tile(64, 8, 2), tile(64, 4, 1)],
    (64, False): [tile(32, 8, 2), tile(32, 8, 1)],
    (128, False): [tile(32, 8, 2), tile(32, 16, 2)],
    (256, False): [tile(32, 8, 2), tile(16, 8, 2)],
    (16, True): [tile(64, 4, 2), tile(64, 8, 2)],
    (32, True): [tile(64, 8, 2), tile(64, 8, 1)],
    (64, True): [tile(32, 8, 2), tile(32, 8, 1)],
    (128, True): [tile(32, 8, 2), tile(32, 16, 2)],
    (256, True): [tile(16, 8, 2), tile(16, 16, 2)],
}


def _most_images(device: torch.device) -> int:
    """Images a program can have: residuals of the next DEPTH calls wait in shared memory, half a KB for each."""
    memory = shared_memory(device)
    return next(images for images in (256, 128, 64) if images == 64 or memory >= 530 * images)


@lru_cache(maxsize=16)
def table(device: torch.device) -> Tensor:
    """Bits of T[j] / 256 as float16: (32768,) int16 on the device, 64 KB, made once."""
    return (gaussian_table() * GAUSSIAN_SCALE).to(torch.float16).view(torch.int16).to(device)


@triton.jit
def entry(half, table_ptr):
    """Noise entries float16 from halfwords (...) uint32 below 2^16."""
    bits = tl.load(table_ptr + (half & 0x7FFF).to(tl.int32)).to(tl.uint16, bitcast=True)
    return (bits ^ (half & 0x8000).to(tl.uint16)).to(tl.float16, bitcast=True)


@triton.jit
def add_square(squares, half, i, length, table_ptr):
    """squares (K, C) float32 plus those of the entries of halfwords (K, C), entry i (C) of a group of `length`.

    The eight of a call are multiples of 2^-16 and below 2^24 of them: exact.
    """
    y = entry(half, table_ptr).to(tl.float32)
    return squares + tl.where(i < length, 1.0, 0.0)[None, :] * y * y


@triton.jit
def squares_of_calls(w0, w1, w2, w3, call, length, table_ptr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sums (K, C) int32 of the squares of calls (C)'s entries, words (K, C), in 1/65536ths."""
    part = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    for v in tl.static_range(4):
        word = word_of(v, w0, w1, w2, w3)
        i = call.to(tl.int64) * 8 + 2 * v
        part = add_square(part, word & 0xFFFF, i, length, table_ptr)
        part = add_square(part, word >> 16, i + 1, length, table_ptr)
    return (part * 65536.0).to(tl.int32)


@triton.jit
def store_norms(total, k, g, last, size, norm_ptr):
    """norms (G, K) float32 of atoms k (K) int64 from sums (K, C) int64 in 1/65536ths, rounded once."""
    norm = tl.sum(total, axis=1).to(tl.float32) * 0.0000152587890625
    tl.store(norm_ptr + g.to(tl.int64) * size + k, norm, mask=k < last)


# ---- small batches: fused multiply-adds ----------------------------------------------------------


@triton.jit(do_not_specialize=["dim", "num_groups", "num_tiles", "num_images"])
def arrange_kernel(
    w_ptr, arranged_ptr,
    dim, num_groups, num_tiles, num_images,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Lay residuals out for `small_kernel`: w (B, D) float32 -> arranged (rows, tiles, 4, C, 2) float32.

    Row b * G + g, tile t: C = BLOCK_C calls. [v, c, h] is entry 8 (t C + c) + 2 v + h of the group, halfword h of word
    v. Rows past the batch and entries past the group's end are 0.

    One program a row and tile. Traffic: 4 bytes read and written a coordinate; bound by it. Source: docs/noise-law.md,
    section 4 (the order of halfwords).
    """
    pid = tl.program_id(0)
    tile, row = pid % num_tiles, (pid // num_tiles).to(tl.int64)
    b, g = row // num_groups, row % num_groups
    start, length = group_range(g, dim, num_groups)
    length = tl.where(b < num_images, length, 0)
    c = tl.arange(0, BLOCK_C)[:, None]
    half = tl.arange(0, 8)[None, :]
    i = (tile.to(tl.int64) * BLOCK_C + c) * 8 + half
    x = tl.load(w_ptr + b * dim + start + i, mask=i < length, other=0.0)
    tl.store(arranged_ptr + pid.to(tl.int64) * (8 * BLOCK_C) + half // 2 * (2 * BLOCK_C) + 2 * c + half % 2, x)


SMALL_TILES = [
    triton.Config({"BLOCK_K": 32}, num_warps=4),
    triton.Config({"BLOCK_K": 16}, num_warps=4),
    triton.Config({"BLOCK_K": 64}, num_warps=8),
]


def _small_tiles(arguments: dict[str, Any]) -> list[triton.Config]:
    """All but the smallest for four images: Triton 3.7's ptxas spills 8 bytes of that one."""
    return [config for config in SMALL_TILES if config.kwargs["BLOCK_K"] > 16 or arguments["BLOCK_B"] < 4]


@triton.jit
def add_word(total, word, pair, table_ptr):
    """total (B, K, C) float32 plus the products of a word's two entries (K, C) with pairs of floats (B, C) int64."""
    r = pair.to(tl.int32).to(tl.float32, bitcast=True)
    total += entry(word & 0xFFFF, table_ptr).to(tl.float32)[None, :, :] * r[:, None, :]
    r = (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    total += entry(word >> 16, table_ptr).to(tl.float32)[None, :, :] * r[:, None, :]
    return total


@triton.jit
def small_sums(
    arranged_ptr, table_ptr, row, k, g, step, length, num_calls,
    seed_low, seed_high,
    BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
    SQUARES: tl.constexpr,
):  # fmt: skip
    """Scores (B, K) float32 of atoms k (K) and rows (B), and sums (K, C) int64 of squares. For small_kernel."""
    lane = tl.arange(0, BLOCK_C)
    num_tiles = tl.cdiv(num_calls, BLOCK_C)
    total = tl.zeros((BLOCK_B, BLOCK_K, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_K, BLOCK_C), tl.int64)
    for c0 in range(0, num_calls, BLOCK_C):
        block = g.to(tl.int64) * num_calls + c0 + lane
        w0, w1, w2, w3 = philox(block[None, :], k[:, None], step, GAUSSIAN, seed_low, seed_high)
        pairs = arranged_ptr + (row[:, None] * num_tiles + c0 // BLOCK_C) * (4 * BLOCK_C) + lane[None, :]
        for v in tl.static_range(4):
            # Two floats in one 64 bit load.
            total = add_word(total, word_of(v, w0, w1, w2, w3), tl.load(pairs + v * BLOCK_C), table_ptr)
        if SQUARES:
            squares += squares_of_calls(w0, w1, w2, w3, c0 + lane, length, table_ptr, BLOCK_K, BLOCK_C)
    return tl.sum(total, axis=2), squares


@tuned(SMALL_TILES, key=["BLOCK_C", "BLOCK_B", "span"], choose=_small_tiles)
@triton.jit(do_not_specialize=_SIZES)
def small_kernel(
    arranged_ptr, table_ptr, step_ptr, bias_ptr, out_ptr, key_ptr, norm_ptr, stride_bias,
    dim, size, num_groups, num_images, num_calls, first_group, num_held,
    first, last, span, num_programs, stride_out,
    seed_low, seed_high,
    BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
    SIGNED: tl.constexpr,
):  # fmt: skip
    """score[b, g, k] = sum_i y_i w_i in float32 for up to BLOCK_B images, by fused multiply-adds.

    arranged (int64): of arrange_kernel; table (32768,) int16: of `table`; step () int64; bias (K,) or (G, K) float32 or
    None, with stride_bias from one group to the next. A program has one group's atoms first + p * span .. + span - 1,
    below last. With key, their best goes to out float32 and key int64 (B, G, programs); with key None, all scores of
    the groups from first_group on go to out (B, num_held, atoms), whose rows are stride_out apart. With norm (G, K)
    float32, the entries are squared too.

    A thread owns Philox calls of its own, one atom's each (lanes along the C calls), and eight entries from each. It
    adds its products in the order of its calls and lanes are added as a tree, so the order depends on BLOCK_C, that is
    on the shape of the problem, alone. The error of a sum is that of a chain of D / C additions.

    Traffic: the residual (4 bytes a coordinate) once a tile of atoms and the table (64 KB), out of caches; no noise.
    Bound: the look-ups of the table, one an entry, and instructions: 20 wide multiplications of Philox for 8 entries.
    Source: docs/noise-law.md, section 4.
    """
    p, g, image, row = place_of(num_programs, num_groups, first_group, num_held, BLOCK_B)
    valid = image < num_images
    step = tl.load(step_ptr)
    _, length = group_range(g, dim, num_groups)
    if bias_ptr is not None:
        bias_ptr += g.to(tl.int64) * stride_bias
    begin = first + p.to(tl.int64) * span
    best_key = tl.full((BLOCK_B, BLOCK_K), LOWEST, tl.int64)
    best_score = tl.zeros((BLOCK_B, BLOCK_K), tl.float32)
    for k0 in range(begin, tl.minimum(begin + span, last), BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K).to(tl.int64)
        score, squares = small_sums(
            arranged_ptr, table_ptr, row, k, g, step, length, num_calls, seed_low, seed_high,
            BLOCK_B, BLOCK_K, BLOCK_C, norm_ptr is not None,
        )  # fmt: skip
        if norm_ptr is not None:
            store_norms(squares, k, g, last, size, norm_ptr)
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
    w_ptr, peak_ptr, planes_ptr,
    dim, num_groups, num_tiles, num_images,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Lay residuals out for `large_kernel`: x = w * 2^q, |x| < 2^13, split as high + low / 2^11.

    high = float16(x), low = float16((x - high) * 2^11), together within 2^-23 |x| of x. w (B, D), peak (B, G) float32
    -> planes (blocks of images, G, tiles, 8, 2, BLOCK_B, BLOCK_C) float16: planes[n, g, t, i, s, b, c] belongs to image
    n BLOCK_B + b and entry 8 (t BLOCK_C + c) + i of group g; images past the batch are 0. What a program multiplies at
    once lies together, at distances known at compile time.

    One program an image, group and tile. Traffic: 4 bytes read and written a coordinate; bound by it. Source: the split
    is that of Ootomo and Yokota 2022 (arXiv 2203.03341).
    """
    pid = tl.program_id(0)
    tile, row = pid % num_tiles, (pid // num_tiles).to(tl.int64)
    b, g = row // num_groups, row % num_groups
    valid = b < num_images
    start, length = group_range(g, dim, num_groups)
    length = tl.where(valid, length, 0)
    scale, _ = power_scale(tl.load(peak_ptr + row, mask=valid, other=1.0), 13)
    c = tl.arange(0, BLOCK_C)[:, None]
    half = tl.arange(0, 8)[None, :]
    i = (tile.to(tl.int64) * BLOCK_C + c) * 8 + half
    x = tl.load(w_ptr + b * dim + start + i, mask=i < length, other=0.0) * scale
    high = x.to(tl.float16)
    low = ((x - high.to(tl.float32)) * 2048.0).to(tl.float16)
    at = planes_ptr + ((b // BLOCK_B * num_groups + g) * num_tiles + tile) * (16 * BLOCK_B * BLOCK_C)
    at = at + b % BLOCK_B * BLOCK_C + 2 * BLOCK_B * BLOCK_C * half + c
    tl.store(at, high)
    tl.store(at + BLOCK_B * BLOCK_C, low)


@triton.jit
def multiply_call(
    tile, table_ptr, w0, w1, w2, w3,
    BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Products (K, B) float32 of calls (K, C) with the planes of their entries from `tile` on. For large_kernel."""
    offset = tl.arange(0, BLOCK_B)[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    high = tl.zeros((BLOCK_K, BLOCK_B), tl.float32)
    low = tl.zeros((BLOCK_K, BLOCK_B), tl.float32)
    for v in tl.static_range(4):
        word = word_of(v, w0, w1, w2, w3)
        y = entry(word & 0xFFFF, table_ptr)
        high = tl.dot(y, tl.trans(tl.load(tile + 4 * v * BLOCK_B * BLOCK_C + offset)), high)
        low = tl.dot(y, tl.trans(tl.load(tile + (4 * v + 1) * BLOCK_B * BLOCK_C + offset)), low)
        y = entry(word >> 16, table_ptr)
        high = tl.dot(y, tl.trans(tl.load(tile + (4 * v + 2) * BLOCK_B * BLOCK_C + offset)), high)
        low = tl.dot(y, tl.trans(tl.load(tile + (4 * v + 3) * BLOCK_B * BLOCK_C + offset)), low)
    return high + low * 0.00048828125


@triton.jit
def large_sums(
    planes_ptr, table_ptr, base, k, g, step, length, num_calls,
    seed_low, seed_high,
    BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
    SQUARES: tl.constexpr,
):  # fmt: skip
    """Scores (K, B) float32 in the planes' unit, and sums (K, C) int64 of squares, of atoms k (K). For large_kernel.

    base: calls of the planes before those of the program's images and group.
    """
    column = tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_K, BLOCK_B), tl.float32)
    squares = tl.zeros((BLOCK_K, BLOCK_C), tl.int64)
    for c0 in range(0, num_calls, BLOCK_C):
        block = g.to(tl.int64) * num_calls + c0 + column
        w0, w1, w2, w3 = philox(block[None, :], k[:, None], step, GAUSSIAN, seed_low, seed_high)
        tile = planes_ptr + (base + c0) * (16 * BLOCK_B)
        total += multiply_call(tile, table_ptr, w0, w1, w2, w3, BLOCK_B, BLOCK_K, BLOCK_C)
        if SQUARES:
            squares += squares_of_calls(w0, w1, w2, w3, c0 + column, length, table_ptr, BLOCK_K, BLOCK_C)
    return total, squares


@tuned(
    [config for tiles in LARGE_TILES.values() for config in tiles],
    key=["BLOCK_B", "span"],
    choose=lambda arguments: LARGE_TILES[arguments["BLOCK_B"], arguments["norm_ptr"] is not None],
)
@triton.jit(do_not_specialize=_SIZES)
def large_kernel(
    planes_ptr, table_ptr, peak_ptr, step_ptr, bias_ptr, out_ptr, key_ptr, norm_ptr, stride_bias,
    dim, size, num_groups, num_images, num_calls, first_group, num_held,
    first, last, span, num_programs, stride_out,
    seed_low, seed_high,
    BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
    SIGNED: tl.constexpr,
):  # fmt: skip
    """small_kernel's scores and norms of BLOCK_B images, on the float16 matrix product.

    planes: of planes_kernel; peak (B, G) float32; other arguments and results as small_kernel's. The noise of BLOCK_K
    atoms and BLOCK_C calls is made once for all images. Products of a float16 entry and a float16 half residual are
    exact; the eight products of BLOCK_C calls are summed by the tensor cores and then added to the running sum, which
    keeps their truncating adder to short sums. The order depends on BLOCK_C alone.

    Traffic: the planes (4 bytes a coordinate and image) once a tile of atoms and the table, out of caches; no noise.
    Bound: look-ups and instructions of the noise for few images, matrix instructions for many. Source:
    docs/noise-law.md, section 4; error-corrected float16 products: Ootomo and Yokota 2022 (arXiv 2203.03341).
    """
    p, g, image, row = place_of(num_programs, num_groups, first_group, num_held, BLOCK_B)
    valid = image < num_images
    step = tl.load(step_ptr)
    _, inverse = power_scale(tl.load(peak_ptr + row, mask=valid, other=1.0), 13)
    if bias_ptr is not None:
        bias_ptr += g.to(tl.int64) * stride_bias
    begin = first + p.to(tl.int64) * span
    _, length = group_range(g, dim, num_groups)
    base = first_call(num_programs, num_groups, g, num_held, num_calls, BLOCK_C)
    best_key = tl.full((BLOCK_B,), LOWEST, tl.int64)
    best_score = tl.zeros((BLOCK_B,), tl.float32)
    for k0 in range(begin, tl.minimum(begin + span, last), BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K).to(tl.int64)
        total, squares = large_sums(
            planes_ptr, table_ptr, base, k, g, step, length, num_calls, seed_low, seed_high,
            BLOCK_B, BLOCK_K, BLOCK_C, norm_ptr is not None,
        )  # fmt: skip
        if norm_ptr is not None:
            store_norms(squares, k, g, last, size, norm_ptr)
        score = total * inverse[None, :]
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
            self.images = power_of_2(len(w))
            self.depth = min(32, power_of_2(calls))
            tiles = ceil_div(calls, self.depth)
            rows = ceil_div(len(w), self.images) * self.images * spec.groups
            self.arranged = torch.empty(rows * tiles * 4 * self.depth, dtype=torch.int64, device=w.device)
            launch(arrange_kernel, rows * tiles, w, self.arranged.view(torch.float32), spec.dim, spec.groups,
                   tiles, len(w), BLOCK_C=self.depth)  # fmt: skip
            return
        self.images = min(_most_images(w.device), max(16, power_of_2(len(w))))
        self.depth = DEPTH
        tiles = ceil_div(calls, self.depth)
        items = self.blocks * self.images * spec.groups * tiles
        self.arranged = torch.empty(items * 16 * self.depth, dtype=torch.float16, device=w.device)
        launch(planes_kernel, items, w, peak, self.arranged, spec.dim, spec.groups, tiles, len(w),
               BLOCK_B=self.images, BLOCK_C=self.depth)  # fmt: skip

    def launch(self, work: residual.Work) -> None:
        spec = self.spec
        grid = work.programs * work.groups[1] * self.blocks
        arguments = (*work.targets, work.norms, bias_stride(work.bias), spec.dim, spec.size, spec.groups, self.batch,
                     spec.calls_per_group, *work.groups, *work.atoms, *seed_words(spec.seed))  # fmt: skip
        meta = {"BLOCK_B": self.images, "BLOCK_C": self.depth, "SIGNED": work.signed}
        entries = table(work.step.device)
        if self.small:
            launch(small_kernel, grid, self.arranged, entries, *arguments, **meta)
        else:
            launch(large_kernel, grid, self.arranged, entries, self.peak, *arguments, **meta)

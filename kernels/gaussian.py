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
from ddcm_fast.kernels.layout import group_range, power_scale, word_of
from ddcm_fast.kernels.philox import GAUSSIAN, philox
from ddcm_fast.kernels.ranking import LOWEST, bias_stride, emit_best, keep_best, keep_best_atom, store_scores
from torch import Tensor

from ddcm_fast.codebook.law import GAUSSIAN_SCALE, CodebookSpec, gaussian_table

_SIZES = [
    "bias_stride", "dim", "size", "groups", "batch", "calls", "first", "last", "span", "programs", "width",
    "seed_low", "seed_high",
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
def entry(half, table):
    """Noise entries float16 from halfwords (...) uint32 below 2^16."""
    bits = tl.load(table + (half & 0x7FFF).to(tl.int32)).to(tl.uint16, bitcast=True)
    return (bits ^ (half & 0x8000).to(tl.uint16)).to(tl.float16, bitcast=True)


@triton.jit
def add_square(squares, half, i, length, table):
    """squares (K, C) float32 plus those of the entries of halfwords (K, C), entry i (C) of a group of `length`.

    The eight of a call are multiples of 2^-16 and below 2^24 of them: exact.
    """
    y = entry(half, table).to(tl.float32)
    return squares + tl.where(i < length, 1.0, 0.0)[None, :] * y * y


@triton.jit
def squares_of_calls(w0, w1, w2, w3, call, length, table, K: tl.constexpr, C: tl.constexpr):
    """Sums (K, C) int32 of the squares of calls (C)'s entries, words (K, C), in 1/65536ths."""
    part = tl.zeros((K, C), tl.float32)
    for v in tl.static_range(4):
        word = word_of(v, w0, w1, w2, w3)
        i = call.to(tl.int64) * 8 + 2 * v
        part = add_square(part, word & 0xFFFF, i, length, table)
        part = add_square(part, word >> 16, i + 1, length, table)
    return (part * 65536.0).to(tl.int32)


@triton.jit
def store_norms(total, k, g, last, size, norms):
    """norms (G, K) float32 of atoms k (K) int64 from sums (K, C) int64 in 1/65536ths, rounded once."""
    norm = tl.sum(total, axis=1).to(tl.float32) * 0.0000152587890625
    tl.store(norms + g.to(tl.int64) * size + k, norm, mask=k < last)


# ---- small batches: fused multiply-adds ----------------------------------------------------------


@triton.jit(do_not_specialize=["dim", "groups", "tiles", "batch"])
def arrange_kernel(w, arranged, dim, groups, tiles, batch, C: tl.constexpr):
    """w (B, D) float32 -> arranged (rows, tiles, 4, C, 2) float32, for rows b * G + g and tiles of C calls.

    The last axes are word of the call, call and halfword of the word: [v, c, h] is entry
    8 (t * C + c) + 2 v + h of the group.
    Rows past the batch and entries past the group's end are 0.
    """
    pid = tl.program_id(0)
    tile, row = pid % tiles, (pid // tiles).to(tl.int64)
    b, g = row // groups, row % groups
    start, length = group_range(g, dim, groups)
    length = tl.where(b < batch, length, 0)
    c = tl.arange(0, C)[:, None]
    half = tl.arange(0, 8)[None, :]
    i = (tile.to(tl.int64) * C + c) * 8 + half
    x = tl.load(w + b * dim + start + i, mask=i < length, other=0.0)
    tl.store(arranged + pid.to(tl.int64) * (8 * C) + half // 2 * (2 * C) + 2 * c + half % 2, x)


SMALL_TILES = [
    triton.Config({"K": 32}, num_warps=4),
    triton.Config({"K": 16}, num_warps=4),
    triton.Config({"K": 64}, num_warps=8),
]


def _small_tiles(meta: dict[str, Any]) -> list[triton.Config]:
    """All but the smallest for four images: Triton 3.7's ptxas spills 8 bytes of that one."""
    return [config for config in SMALL_TILES if config.kwargs["K"] > 16 or meta["B"] < 4]


@tuned(SMALL_TILES, key=["C", "B", "SEARCH", "span"], choose=_small_tiles)
@triton.jit(do_not_specialize=_SIZES)
def small_kernel(arranged, table, step, bias, out, keys, norms, bias_stride, dim, size, groups, batch, calls,
                 first, last, span, programs, width, seed_low, seed_high, B: tl.constexpr, K: tl.constexpr,
                 C: tl.constexpr, SEARCH: tl.constexpr, SIGNED: tl.constexpr, BIAS: tl.constexpr,
                 NORMS: tl.constexpr):  # fmt: skip
    """Scores of up to B images at once: sum_i y_i w_i in float32.

    A thread owns Philox calls of its own, one atom's each (lanes along the C calls), and eight entries from each.
    It adds its products in the order of its calls and lanes are added as a tree, so the order depends on C, that
    is on the shape of the problem, alone. The error of a sum is that of a chain of D / C additions. With NORMS, the
    entries are squared too: norms (G, K) float32.
    """
    pid = tl.program_id(0)
    p = pid % programs
    g = (pid // programs) % groups
    image = (pid // programs // groups) * B + tl.arange(0, B)
    real = image < batch
    row = image.to(tl.int64) * groups + g
    now = tl.load(step)
    tiles = tl.cdiv(calls, C)
    lane = tl.arange(0, C)
    _, length = group_range(g, dim, groups)
    if BIAS:
        bias += g.to(tl.int64) * bias_stride
    begin = first + p.to(tl.int64) * span
    best_key = tl.full((B, K), LOWEST, tl.int64)
    best_score = tl.zeros((B, K), tl.float32)
    for k0 in range(begin, tl.minimum(begin + span, last), K):
        k = k0 + tl.arange(0, K).to(tl.int64)
        total = tl.zeros((B, K, C), tl.float32)
        squares = tl.zeros((K, C), tl.int64)
        for c0 in range(0, calls, C):
            block = g.to(tl.int64) * calls + c0 + lane
            w0, w1, w2, w3 = philox(block[None, :], k[:, None], now, GAUSSIAN, seed_low, seed_high)
            at = arranged + (row[:, None] * tiles + c0 // C) * (4 * C) + lane[None, :]
            for v in tl.static_range(4):
                word = word_of(v, w0, w1, w2, w3)
                pair = tl.load(at + v * C)  # two floats in one 64 bit load
                r = pair.to(tl.int32).to(tl.float32, bitcast=True)
                total += entry(word & 0xFFFF, table).to(tl.float32)[None, :, :] * r[:, None, :]
                r = (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)
                total += entry(word >> 16, table).to(tl.float32)[None, :, :] * r[:, None, :]
            if NORMS:
                squares += squares_of_calls(w0, w1, w2, w3, c0 + lane, length, table, K, C)
        if NORMS:
            store_norms(squares, k, g, last, size, norms)
        score = tl.sum(total, axis=2)
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
def planes_kernel(w, peak, planes, dim, groups, tiles, batch, B: tl.constexpr, C: tl.constexpr):
    """w (B, D) float32 -> planes (rows / B, G, tiles, 8, 2, B, C) float16, rows past the batch 0.

    x = w * 2^q, |x| < 2^13, is split as high + low / 2^11: high = float16(x), low = float16((x - high) * 2^11),
    together within 2^-23 |x| of x. planes[n, g, t, i, s, b, c] belongs to image n B + b and entry 8 (t C + c) + i of
    group g: what a program multiplies at once lies together, at distances known at compile time.
    """
    pid = tl.program_id(0)
    tile, row = pid % tiles, (pid // tiles).to(tl.int64)
    b, g = row // groups, row % groups
    real = b < batch
    start, length = group_range(g, dim, groups)
    length = tl.where(real, length, 0)
    scale, _ = power_scale(tl.load(peak + row, mask=real, other=1.0), 13)
    c = tl.arange(0, C)[:, None]
    half = tl.arange(0, 8)[None, :]
    i = (tile.to(tl.int64) * C + c) * 8 + half
    x = tl.load(w + b * dim + start + i, mask=i < length, other=0.0) * scale
    high = x.to(tl.float16)
    low = ((x - high.to(tl.float32)) * 2048.0).to(tl.float16)
    at = planes + ((b // B * groups + g) * tiles + tile) * (16 * B * C) + b % B * C + 2 * B * C * half + c
    tl.store(at, high)
    tl.store(at + B * C, low)


@tuned(
    [config for tiles in LARGE_TILES.values() for config in tiles],
    key=["B", "SEARCH", "NORMS", "span"],
    choose=lambda meta: LARGE_TILES[meta["B"], meta["NORMS"]],
)
@triton.jit(do_not_specialize=_SIZES)
def large_kernel(planes, table, peak, step, bias, out, keys, norms, bias_stride, dim, size, groups, batch, calls,
                 first, last, span, programs, width, seed_low, seed_high, B: tl.constexpr, K: tl.constexpr,
                 C: tl.constexpr, SEARCH: tl.constexpr, SIGNED: tl.constexpr, BIAS: tl.constexpr,
                 NORMS: tl.constexpr):  # fmt: skip
    """Scores of B images at once: the noise of K atoms and C calls is made once for all of them.

    Products of a float16 entry and a float16 half residual are exact; the eight products of C calls are
    summed by the tensor cores and then added to the running sum, which keeps their truncating adder
    to short sums. The order depends on C alone. With NORMS, as small_kernel.
    """
    pid = tl.program_id(0)
    p = pid % programs
    g = (pid // programs) % groups
    image = (pid // programs // groups) * B + tl.arange(0, B)
    real = image < batch
    row = image.to(tl.int64) * groups + g
    now = tl.load(step)
    _, inverse = power_scale(tl.load(peak + row, mask=real, other=1.0), 13)
    if BIAS:
        bias += g.to(tl.int64) * bias_stride
    begin = first + p.to(tl.int64) * span
    column = tl.arange(0, C)
    _, length = group_range(g, dim, groups)
    # pid // programs counts blocks of B images first, then groups: the order of planes.
    corner = (pid // programs).to(tl.int64) * (tl.cdiv(calls, C) * C)
    cell = tl.arange(0, B)[:, None] * C + column[None, :]
    best_key = tl.full((B,), LOWEST, tl.int64)
    best_score = tl.zeros((B,), tl.float32)
    for k0 in range(begin, tl.minimum(begin + span, last), K):
        k = k0 + tl.arange(0, K).to(tl.int64)
        total = tl.zeros((K, B), tl.float32)
        squares = tl.zeros((K, C), tl.int64)
        for c0 in range(0, calls, C):
            block = g.to(tl.int64) * calls + c0 + column
            w0, w1, w2, w3 = philox(block[None, :], k[:, None], now, GAUSSIAN, seed_low, seed_high)
            high = tl.zeros((K, B), tl.float32)
            low = tl.zeros((K, B), tl.float32)
            at = planes + (corner + c0) * (16 * B)
            for v in tl.static_range(4):
                word = word_of(v, w0, w1, w2, w3)
                y = entry(word & 0xFFFF, table)
                high = tl.dot(y, tl.trans(tl.load(at + 4 * v * B * C + cell)), high)
                low = tl.dot(y, tl.trans(tl.load(at + (4 * v + 1) * B * C + cell)), low)
                y = entry(word >> 16, table)
                high = tl.dot(y, tl.trans(tl.load(at + (4 * v + 2) * B * C + cell)), high)
                low = tl.dot(y, tl.trans(tl.load(at + (4 * v + 3) * B * C + cell)), low)
            total += high + low * 0.00048828125
            if NORMS:
                squares += squares_of_calls(w0, w1, w2, w3, c0 + column, length, table, K, C)
        if NORMS:
            store_norms(squares, k, g, last, size, norms)
        score = total * inverse[None, :]
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
            rows = ceil_div(len(w), self.images) * self.images * spec.groups
            self.arranged = torch.empty(rows * tiles * 4 * self.depth, dtype=torch.int64, device=w.device)
            launch(arrange_kernel, rows * tiles, w, self.arranged.view(torch.float32), spec.dim, spec.groups,
                   tiles, len(w), C=self.depth)  # fmt: skip
            return
        self.images = min(_most_images(w.device), max(16, power_of_2(len(w))))
        self.depth = DEPTH
        tiles = ceil_div(calls, self.depth)
        items = self.blocks * self.images * spec.groups * tiles
        self.arranged = torch.empty(items * 16 * self.depth, dtype=torch.float16, device=w.device)
        launch(planes_kernel, items, w, peak, self.arranged, spec.dim, spec.groups, tiles, len(w),
               B=self.images, C=self.depth)  # fmt: skip

    def launch(self, work: residual.Work) -> None:
        """See residual.Residual.launch."""
        spec = self.spec
        grid = work.programs * spec.groups * self.blocks
        arguments = (*work.targets, work.norms, bias_stride(work.bias), spec.dim, spec.size, spec.groups, self.batch,
                     spec.calls_per_group, *work.atoms, *seed_words(spec.seed))  # fmt: skip
        meta = {"B": self.images, "C": self.depth, "NORMS": work.norms is not None, **work.meta}
        entries = table(work.step.device)
        if self.small:
            launch(small_kernel, grid, self.arranged, entries, *arguments, **meta)
        else:
            launch(large_kernel, grid, self.arranged, entries, self.peak, *arguments, **meta)

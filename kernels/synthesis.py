"""Sums of atoms, bit for bit as the law has them (noise-law, section 6)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from ddcm_fast.kernels.gaussian import entry, table
from ddcm_fast.kernels.hadamard import hadamard
from ddcm_fast.kernels.launch import ceil_div, launch, power_of_2, seed_words
from ddcm_fast.kernels.layout import group_range
from ddcm_fast.kernels.philox import GAUSSIAN, INNER, OUTER, SIGN, flip, in_order, philox, sign_masks
from torch import Tensor

from ddcm_fast.codebook.law import CodebookSpec

_SIZES = ["dim", "size", "groups", "calls", "terms", "tiles", "seed_low", "seed_high"]


@triton.jit
def term(index, coefficient, at, size):
    """Index clamped into 0 .. K - 1 (int64) and coefficient of the sum's term at an offset."""
    k = tl.load(index + at)
    return tl.minimum(tl.maximum(k, 0), size - 1), tl.load(coefficient + at)


@triton.jit(do_not_specialize=_SIZES)
def sign_kernel(index, coefficient, step, y, dim, size, groups, calls, terms, tiles, seed_low, seed_high,
                C: tl.constexpr):  # fmt: skip
    """y (B, D) float32 = sum over m of coefficient[b, g, m] * y_{index[b, g, m]}, both (B, G, M).

    One program an image, group and tile of C calls, that is 128 C entries.
    """
    pid = tl.program_id(0)
    tile, row = pid % tiles, (pid // tiles).to(tl.int64)
    b, g = row // groups, row % groups
    start, length = group_range(g, dim, groups)
    now = tl.load(step)
    block = (g * calls + tile * C + tl.arange(0, C))[None, :]
    total = tl.zeros((1, 128 * C), tl.float32)
    for m in range(0, terms):
        k, c = term(index, coefficient, row * terms + m, size)
        mask = sign_masks(block, k + tl.zeros((1, 1), tl.int64), now, SIGN, seed_low, seed_high, 1, 128 * C)
        total = total + flip(c + tl.zeros((1, 128 * C), tl.float32), mask)
    i = tile.to(tl.int64) * (128 * C) + tl.arange(0, 128 * C)[None, :]
    tl.store(y + b * dim + start + i, total, mask=i < length)


@triton.jit(do_not_specialize=_SIZES)
def gaussian_kernel(index, coefficient, step, table, y, dim, size, groups, calls, terms, tiles, seed_low,
                    seed_high, C: tl.constexpr):  # fmt: skip
    """As sign_kernel, for tiles of C calls of 8 entries; launched without fused multiply-adds."""
    pid = tl.program_id(0)
    tile, row = pid % tiles, (pid // tiles).to(tl.int64)
    b, g = row // groups, row % groups
    start, length = group_range(g, dim, groups)
    now = tl.load(step)
    block = g * calls + tile * C + tl.arange(0, C)
    shift = (16 * tl.arange(0, 2)).to(tl.uint32)[None, None, :]
    total = tl.zeros((C, 4, 2), tl.float32)
    for m in range(0, terms):
        k, c = term(index, coefficient, row * terms + m, size)
        w0, w1, w2, w3 = philox(block, k, now, GAUSSIAN, seed_low, seed_high)
        words = tl.reshape(in_order(w0, w1, w2, w3), (C, 4, 1))
        total = total + c * entry((words >> shift) & 0xFFFF, table).to(tl.float32)
    i = (tile.to(tl.int64) * C + tl.arange(0, C)) * 8
    i = i[:, None, None] + 2 * tl.arange(0, 4)[None, :, None] + tl.arange(0, 2)[None, None, :]
    tl.store(y + b * dim + start + i, total, mask=i < length)


@triton.jit(do_not_specialize=_SIZES)
def hadamard_kernel(index, coefficient, step, y, dim, size, groups, calls, terms, tiles, seed_low, seed_high,
                    V: tl.constexpr, N: tl.constexpr, LOG: tl.constexpr, CALLS: tl.constexpr,
                    SCALE: tl.constexpr):  # fmt: skip
    """As sign_kernel, for tiles of V sub-blocks of N entries; launched without fused multiply-adds.

    Shifting a spectrum by j is modulating what it is the spectrum of: s[l ^ j] = Had_n(e_i * (-1)^popcount(i & j))[l],
    so no entry is gathered. The transform's sums are integers of at most 2^14: exact. calls counts
    the sub-blocks of a group here.
    """
    pid = tl.program_id(0)
    tile, row = pid % tiles, (pid // tiles).to(tl.int64)
    b, g = row // groups, row % groups
    start, length = group_range(g, dim, groups)
    now = tl.load(step)
    lane = tl.arange(0, N)[None, :]
    sub_block = g * calls + tile * V + tl.arange(0, V)
    block = sub_block[:, None] * CALLS + tl.arange(0, CALLS)[None, :]
    total = tl.zeros((V, N), tl.float32)
    for m in range(0, terms):
        k, c = term(index, coefficient, row * terms + m, size)
        pair = k // N + tl.zeros((1, 1), tl.int64)
        parity = lane & (k % N).to(tl.int32)
        parity = parity ^ (parity >> 8)
        parity = parity ^ (parity >> 4)
        parity = parity ^ (parity >> 2)
        parity = parity ^ (parity >> 1)
        inner = sign_masks(block, pair, now, INNER, seed_low, seed_high, V, N)
        spectrum = flip(tl.full((V, N), 1.0, tl.float32), inner ^ (parity.to(tl.uint32) << 31))
        spectrum = hadamard(spectrum, V, N, LOG) * SCALE
        outer = sign_masks(block, pair, now, OUTER, seed_low, seed_high, V, N)
        total = total + c * flip(spectrum, outer)
    begin = tile.to(tl.int64) * (V * N)
    i = tl.arange(0, V)[:, None] * N + lane
    left = tl.minimum(length - begin, V * N).to(tl.int32)
    tl.store(y + b * dim + start + begin + i, total, mask=i < left)


def combine(spec: CodebookSpec, index: Tensor, coefficient: Tensor, step: Tensor) -> Tensor:
    """Weighted sums of atoms: index int64 and coefficient float32 (B, G, M) -> y (B, D), codebook order.

    Indices outside 0 .. K - 1 are clamped into it.
    """
    batch, groups, terms = index.shape
    y = torch.empty(batch, spec.dim, device=index.device, dtype=torch.float32)
    data = (index, coefficient, step)
    sizes = (spec.dim, spec.size, groups)
    # Without fused multiply-adds, which would round a product and its sum once where the law rounds twice.
    meta = {"enable_fp_fusion": False}
    if spec.kind == "hadamard":
        n = spec.hadamard_n
        blocks = min(max(1, 1024 // n), power_of_2(spec.sub_blocks))
        tiles = ceil_div(spec.sub_blocks, blocks)
        launch(hadamard_kernel, batch * groups * tiles, *data, y, *sizes, spec.sub_blocks, terms, tiles,
               *seed_words(spec.seed), V=blocks, N=n, LOG=n.bit_length() - 1, CALLS=max(1, n // 128),
               SCALE=n**-0.5, num_warps=max(1, min(8, n // 512)), **meta)  # fmt: skip
        return y
    calls = spec.calls_per_group
    depth = min(8 if spec.kind == "sign" else 128, power_of_2(calls))
    tiles = ceil_div(calls, depth)
    tail = (*sizes, calls, terms, tiles, *seed_words(spec.seed))
    if spec.kind == "sign":
        launch(sign_kernel, batch * groups * tiles, *data, y, *tail, C=depth, **meta)
    else:
        launch(gaussian_kernel, batch * groups * tiles, *data, table(y.device), y, *tail, C=depth, **meta)
    return y

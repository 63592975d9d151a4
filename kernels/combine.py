"""Sums of atoms, bit for bit as the law has them (noise-law, section 6)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from ddcm_fast.kernels.launch import ceil_div, launch, power_of_2, seed_words
from ddcm_fast.kernels.layout import group_range
from ddcm_fast.kernels.philox import GAUSSIAN, INNER, OUTER, SIGN, flip, in_order, philox, sign_masks
from ddcm_fast.kernels.search_gaussian import entry, table
from ddcm_fast.kernels.transform import hadamard
from torch import Tensor

from ddcm_fast.codebook.law import CodebookSpec

_SIZES = ["dim", "size", "num_groups", "num_calls", "num_sub_blocks", "num_terms", "num_tiles", "seed_low", "seed_high"]


@triton.jit
def term(index_ptr, coefficient_ptr, offset, size):
    """Index clamped into 0 .. K - 1 (int64) and coefficient of the sum's term at an offset."""
    k = tl.load(index_ptr + offset)
    return tl.minimum(tl.maximum(k, 0), size - 1), tl.load(coefficient_ptr + offset)


@triton.jit(do_not_specialize=_SIZES)
def sign_kernel(
    index_ptr, coefficient_ptr, step_ptr, y_ptr,
    dim, size, num_groups, num_calls, num_terms, num_tiles,
    seed_low, seed_high,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y[b, g] = sum over m of coefficient[b, g, m] * y_{index[b, g, m]}, term after term, each rounded.

    index int64, coefficient float32 (B, G, M) -> y (B, D) float32. One program an image, group and tile of BLOCK_C
    calls, that is 128 BLOCK_C entries.

    Traffic: 4 bytes written an entry; indices out of caches. Bound: Philox's and the masks' instructions for many
    terms, the stores for one. Source: docs/noise-law.md, section 6.
    """
    pid = tl.program_id(0)
    tile, row = pid % num_tiles, (pid // num_tiles).to(tl.int64)
    b, g = row // num_groups, row % num_groups
    start, length = group_range(g, dim, num_groups)
    step = tl.load(step_ptr)
    block = (g * num_calls + tile * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    total = tl.zeros((1, 128 * BLOCK_C), tl.float32)
    for m in range(0, num_terms):
        k, c = term(index_ptr, coefficient_ptr, row * num_terms + m, size)
        mask = sign_masks(block, k + tl.zeros((1, 1), tl.int64), step, SIGN, seed_low, seed_high, 1, 128 * BLOCK_C)
        total = total + flip(c + tl.zeros((1, 128 * BLOCK_C), tl.float32), mask)
    i = tile.to(tl.int64) * (128 * BLOCK_C) + tl.arange(0, 128 * BLOCK_C)[None, :]
    tl.store(y_ptr + b * dim + start + i, total, mask=i < length)


@triton.jit(do_not_specialize=_SIZES)
def gaussian_kernel(
    index_ptr, coefficient_ptr, step_ptr, table_ptr, y_ptr,
    dim, size, num_groups, num_calls, num_terms, num_tiles,
    seed_low, seed_high,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """As sign_kernel, for tiles of BLOCK_C calls of 8 entries; launched without fused multiply-adds.

    Product and sum are each rounded. Traffic: 4 bytes written an entry; the table (64 KB) out of caches. Bound: its
    look-ups, one an entry and term. Source: docs/noise-law.md, sections 4 and 6.
    """
    pid = tl.program_id(0)
    tile, row = pid % num_tiles, (pid // num_tiles).to(tl.int64)
    b, g = row // num_groups, row % num_groups
    start, length = group_range(g, dim, num_groups)
    step = tl.load(step_ptr)
    block = g * num_calls + tile * BLOCK_C + tl.arange(0, BLOCK_C)
    shift = (16 * tl.arange(0, 2)).to(tl.uint32)[None, None, :]
    total = tl.zeros((BLOCK_C, 4, 2), tl.float32)
    for m in range(0, num_terms):
        k, c = term(index_ptr, coefficient_ptr, row * num_terms + m, size)
        w0, w1, w2, w3 = philox(block, k, step, GAUSSIAN, seed_low, seed_high)
        words = tl.reshape(in_order(w0, w1, w2, w3), (BLOCK_C, 4, 1))
        total = total + c * entry((words >> shift) & 0xFFFF, table_ptr).to(tl.float32)
    i = (tile.to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)) * 8
    i = i[:, None, None] + 2 * tl.arange(0, 4)[None, :, None] + tl.arange(0, 2)[None, None, :]
    tl.store(y_ptr + b * dim + start + i, total, mask=i < length)


@triton.jit(do_not_specialize=_SIZES)
def hadamard_kernel(
    index_ptr, coefficient_ptr, step_ptr, y_ptr,
    dim, size, num_groups, num_sub_blocks, num_terms, num_tiles,
    seed_low, seed_high,
    BLOCK_S: tl.constexpr, N: tl.constexpr, LOG_N: tl.constexpr, CALLS: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """As sign_kernel, for tiles of BLOCK_S sub-blocks of N entries; launched without fused multiply-adds.

    Shifting a spectrum by j is modulating what it is the spectrum of: s[l ^ j] = Had_n(e_i * (-1)^popcount(i & j))[l],
    so no entry is gathered. The transform's sums are integers of at most 2^14: exact.

    Traffic: 4 bytes written an entry. Bound: the transform's exchanges, one transform a term. Source:
    docs/noise-law.md, sections 4 and 6.
    """
    pid = tl.program_id(0)
    tile, row = pid % num_tiles, (pid // num_tiles).to(tl.int64)
    b, g = row // num_groups, row % num_groups
    start, length = group_range(g, dim, num_groups)
    step = tl.load(step_ptr)
    lane = tl.arange(0, N)[None, :]
    sub_block = g * num_sub_blocks + tile * BLOCK_S + tl.arange(0, BLOCK_S)
    block = sub_block[:, None] * CALLS + tl.arange(0, CALLS)[None, :]
    total = tl.zeros((BLOCK_S, N), tl.float32)
    for m in range(0, num_terms):
        k, c = term(index_ptr, coefficient_ptr, row * num_terms + m, size)
        pair = k // N + tl.zeros((1, 1), tl.int64)
        parity = lane & (k % N).to(tl.int32)
        parity = parity ^ (parity >> 8)
        parity = parity ^ (parity >> 4)
        parity = parity ^ (parity >> 2)
        parity = parity ^ (parity >> 1)
        inner = sign_masks(block, pair, step, INNER, seed_low, seed_high, BLOCK_S, N)
        spectrum = flip(tl.full((BLOCK_S, N), 1.0, tl.float32), inner ^ (parity.to(tl.uint32) << 31))
        spectrum = hadamard(spectrum, BLOCK_S, N, LOG_N) * SCALE
        outer = sign_masks(block, pair, step, OUTER, seed_low, seed_high, BLOCK_S, N)
        total = total + c * flip(spectrum, outer)
    begin = tile.to(tl.int64) * (BLOCK_S * N)
    i = tl.arange(0, BLOCK_S)[:, None] * N + lane
    left = tl.minimum(length - begin, BLOCK_S * N).to(tl.int32)
    tl.store(y_ptr + b * dim + start + begin + i, total, mask=i < left)


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
               *seed_words(spec.seed), BLOCK_S=blocks, N=n, LOG_N=n.bit_length() - 1, CALLS=max(1, n // 128),
               SCALE=n**-0.5, num_warps=max(1, min(8, n // 512)), **meta)  # fmt: skip
        return y
    calls = spec.calls_per_group
    depth = min(8 if spec.kind == "sign" else 128, power_of_2(calls))
    tiles = ceil_div(calls, depth)
    tail = (*sizes, calls, terms, tiles, *seed_words(spec.seed))
    if spec.kind == "sign":
        launch(sign_kernel, batch * groups * tiles, *data, y, *tail, BLOCK_C=depth, **meta)
    else:
        launch(gaussian_kernel, batch * groups * tiles, *data, table(y.device), y, *tail, BLOCK_C=depth, **meta)
    return y

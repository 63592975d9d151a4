"""Scores and norms of `hadamard` codebooks by fast transforms (noise-law, section 4).

All n atoms of pair p are scored at once: with H the unnormalised transform of the sub-blocks w_c of a group,

    score = H (sum_c e_c * H (d_c * w_c)) / sqrt(n),

O(D log n) a pair instead of O(D n). Cross-polytope hashing's trick (Andoni et al. 2015).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

import torch
import triton
import triton.language as tl
from ddcm_fast.kernels import residual
from ddcm_fast.kernels.launch import PTX, ceil_div, launch, power_of_2, seed_words
from ddcm_fast.kernels.layout import group_range, place_of
from ddcm_fast.kernels.philox import INNER, OUTER, flip, in_order, masks_of, philox, sign_masks
from ddcm_fast.kernels.select import LOWEST, bias_stride, make_key, rank_value, store_best
from ddcm_fast.kernels.transform import hadamard
from torch import Tensor

from ddcm_fast.codebook.law import CodebookSpec

#: Entries of a program's tile; the longest transform has 16384.
_TILE = 4096

#: Bytes of sign words that a batch's programs share at a time.
_TABLE_BYTES = 4 << 20


@triton.jit(do_not_specialize=[
    "first_pair", "first_group", "num_held", "num_sub_blocks", "num_items", "seed_low", "seed_high",
])  # fmt: skip
def table_kernel(
    table_ptr, step_ptr,
    first_pair, first_group, num_held, num_sub_blocks, num_items,
    seed_low, seed_high,
    CALLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sign words of pairs from first_pair on and groups from first_group on, which the programs of a batch share.

    table (pairs, num_held, sub-blocks, inner and outer, CALLS, 4) uint32; num_items counts the calls of one stream.

    One program BLOCK calls. Traffic: 32 bytes written a call of both streams, 2 / n bits an atom and coordinate. Bound:
    Philox's multiplications and the stores. Source: docs/noise-law.md, sections 2 and 4.
    """
    item = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    call, sub_block = item % CALLS, item // CALLS
    block = (first_group * num_sub_blocks + sub_block % (num_held * num_sub_blocks)) * CALLS + call
    pair = first_pair + (sub_block // (num_held * num_sub_blocks)).to(tl.int64)
    step = tl.load(step_ptr)
    word = tl.arange(0, 4)[None, :]
    inside = (item < num_items)[:, None]
    words = table_ptr + (sub_block * 2 * CALLS + call)[:, None] * 4 + word
    w0, w1, w2, w3 = philox(block, pair, step, INNER, seed_low, seed_high)
    tl.store(words, tl.reshape(in_order(w0, w1, w2, w3), (BLOCK, 4)), mask=inside)
    w0, w1, w2, w3 = philox(block, pair, step, OUTER, seed_low, seed_high)
    tl.store(words + 4 * CALLS, tl.reshape(in_order(w0, w1, w2, w3), (BLOCK, 4)), mask=inside)


@triton.jit
def signs_of(
    words, block, pair, step, seed_low, seed_high,
    STREAM: tl.constexpr, TABLE: tl.constexpr, BLOCK_P: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """A stream's signs of one sub-block of pairs (P): masks (P, N) uint32, from a table's words or made here."""
    if TABLE:
        masks = masks_of(tl.load(words), BLOCK_P, N)
    else:
        masks = sign_masks(block, pair[:, None], step, STREAM, seed_low, seed_high, BLOCK_P, N)
    return masks


@triton.jit
def mix(
    rows, table_ptr, image, num_images, pair, first_pair, g, length, first_group, num_held, num_sub_blocks, step,
    seed_low, seed_high,
    BLOCK_P: tl.constexpr, BLOCK_B: tl.constexpr, N: tl.constexpr, LOG_N: tl.constexpr, CALLS: tl.constexpr,
):  # fmt: skip
    """sum_c e_c * H (d_c * w_c) of pairs (P) and images (B), w_c from `rows` (1, B, 1) on: (P, B, N) float32."""
    lane = tl.arange(0, N)
    word = tl.arange(0, N // 32)[None, :]
    n64 = tl.full((), N, tl.int64)
    mixed = tl.zeros((BLOCK_P, BLOCK_B, N), tl.float32)
    for c in range(0, num_sub_blocks):
        inner_words = table_ptr
        outer_words = table_ptr
        if table_ptr is not None:
            sub_block = ((pair - first_pair) * num_held + g - first_group) * num_sub_blocks + c
            inner_words = table_ptr + (sub_block * (8 * CALLS))[:, None] + word
            outer_words = inner_words + 4 * CALLS
        block = ((g.to(tl.int64) * num_sub_blocks + c) * CALLS + tl.arange(0, CALLS))[None, :]
        outer = signs_of(outer_words, block, pair, step, seed_low, seed_high, OUTER, table_ptr is not None, BLOCK_P, N)
        i = lane + c * n64
        loaded = (image < num_images)[None, :, None] & (i < length)[None, None, :]
        x = tl.load(rows + i[None, None, :], mask=loaded, other=0.0)
        x = flip(tl.broadcast_to(x, (BLOCK_P, BLOCK_B, N)), outer[:, None, :])
        x = hadamard(tl.reshape(x, (BLOCK_P * BLOCK_B, N)), BLOCK_P * BLOCK_B, N, LOG_N)
        inner = signs_of(inner_words, block, pair, step, seed_low, seed_high, INNER, table_ptr is not None, BLOCK_P, N)
        mixed += flip(tl.reshape(x, (BLOCK_P, BLOCK_B, N)), inner[:, None, :])
    return mixed


@triton.jit
def best_of_tile(score, place, inside, base, last, bias_ptr, END: tl.constexpr, SIGNED: tl.constexpr):
    """Key and score (B,) of the best of a tile's scores (P, B, N) of atoms base + place (P, 1, N), where inside.

    Places are below END and 32 bits wide: keys or addresses of every entry would fill two registers each.
    """
    value = tl.where(inside, rank_value(score, base + place, last, bias_ptr, SIGNED), -(2**31))
    top = tl.max(tl.max(value, axis=2), axis=0)
    best_place = tl.where(value == top[None, :, None], place, END)
    best_place = tl.min(tl.min(best_place, axis=2), axis=0)
    score = tl.where(place == best_place[None, :, None], score, 0.0)
    return make_key(top, base + best_place), tl.sum(tl.sum(score, axis=2), axis=0)


@triton.jit(do_not_specialize=[
    "stride_bias", "dim", "num_groups", "num_images", "num_sub_blocks", "first_group", "num_held",
    "first", "last", "span", "num_programs", "stride_out", "seed_low", "seed_high",
])  # fmt: skip
def score_kernel(
    w_ptr, table_ptr, step_ptr, bias_ptr, out_ptr, key_ptr, stride_bias,
    dim, num_groups, num_images, num_sub_blocks, first_group, num_held,
    first, last, span, num_programs, stride_out,
    seed_low, seed_high,
    BLOCK_P: tl.constexpr, BLOCK_B: tl.constexpr, N: tl.constexpr, LOG_N: tl.constexpr,
    CALLS: tl.constexpr, SCALE: tl.constexpr, SIGNED: tl.constexpr,
):  # fmt: skip
    """score = H (sum_c e_c * H (d_c * w_c)) / sqrt(n): all N atoms of each of BLOCK_P pairs, for BLOCK_B images.

    w (B, D) float32 in codebook order; other arguments and results as those of search_sign.small_kernel, with first and
    span multiples of BLOCK_P * N. CALLS = max(1, N / 128). With table, signs come from table_kernel's words of the
    pairs from `first` on, and a search replaces the best of the atoms before, which out and key hold, only by better
    ones.

    Traffic: w once for every tile of BLOCK_P pairs, out of caches, and with table 2 / N bits an atom and coordinate.
    Bound: the exchanges of the transforms through shared memory, log2(N) (1 + 1 / sub-blocks) stages a coordinate.
    Source: docs/noise-law.md, section 4; Andoni et al. 2015 (arXiv 1509.02897) for the trick.
    """
    p, g, image, _ = place_of(num_programs, num_groups, first_group, num_held, BLOCK_B)
    row = image.to(tl.int64) * num_held + (g - first_group)
    step = tl.load(step_ptr)
    start, length = group_range(g, dim, num_groups)
    place = (tl.arange(0, BLOCK_P)[:, None] * N + tl.arange(0, N)[None, :])[:, None, :]
    rows = w_ptr + image.to(tl.int64)[None, :, None] * dim + start
    if bias_ptr is not None:
        bias_ptr += g.to(tl.int64) * stride_bias
    begin = first + p.to(tl.int64) * span
    best_key = tl.full((BLOCK_B,), LOWEST, tl.int64)
    best_score = tl.zeros((BLOCK_B,), tl.float32)
    for k0 in range(begin, tl.minimum(begin + span, last), BLOCK_P * N):
        base = tl.zeros((), tl.int64) + k0
        pair = k0 // N + tl.arange(0, BLOCK_P).to(tl.int64)
        mixed = mix(
            rows, table_ptr, image, num_images, pair, first // N, g, length, first_group, num_held, num_sub_blocks,
            step, seed_low, seed_high, BLOCK_P, BLOCK_B, N, LOG_N, CALLS,
        )  # fmt: skip
        mixed = hadamard(tl.reshape(mixed, (BLOCK_P * BLOCK_B, N)), BLOCK_P * BLOCK_B, N, LOG_N) * SCALE
        score = tl.reshape(mixed, (BLOCK_P, BLOCK_B, N))
        inside = place < tl.minimum(last - base, BLOCK_P * N).to(tl.int32)
        if key_ptr is not None:
            key, score = best_of_tile(score, place, inside, base, last, bias_ptr, BLOCK_P * N, SIGNED)
            better = key > best_key
            best_key = tl.where(better, key, best_key)
            best_score = tl.where(better, score, best_score)
        else:
            row_start = (row * stride_out + (base - first))[None, :, None]
            tl.store(out_ptr + row_start + place, score, mask=inside & (image < num_images)[None, :, None])
    if key_ptr is not None:
        at_best = row * stride_out + p
        stored = image < num_images
        if table_ptr is not None:
            stored = stored & (best_key > tl.load(key_ptr + at_best, mask=stored, other=LOWEST))
        store_best(best_key, best_score, at_best, stored, key_ptr, out_ptr)


# ---- norms ---------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["num_groups", "num_sub_blocks", "num_pairs", "first_pair", "seed_low", "seed_high"])
def prefix_kernel(
    prefix_ptr, step_ptr,
    num_groups, num_sub_blocks, num_pairs, first_pair,
    seed_low, seed_high,
    N: tl.constexpr, LOG_N: tl.constexpr, CALLS: tl.constexpr,
):  # fmt: skip
    """prefix[g, pair, j] = sum_{l < j} ((H e)_l)^2, e the inner signs of each group's last sub-block.

    prefix (G, pairs, N + 1) int32, of pairs from first_pair on. One program a group and pair.

    Traffic: 4 bytes written an atom. Bound: the transform's exchanges. Source: norms_kernel's docstring.
    """
    pid = tl.program_id(0)
    pair = first_pair + (pid % num_pairs).to(tl.int64)
    g = (pid // num_pairs).to(tl.int64)
    block = (((g + 1) * num_sub_blocks - 1) * CALLS + tl.arange(0, CALLS))[None, :]
    atom = pair + tl.zeros((1, 1), tl.int64)
    inner = sign_masks(block, atom, tl.load(step_ptr), INNER, seed_low, seed_high, 1, N)
    x = hadamard(flip(tl.full((1, N), 1.0, tl.float32), inner), 1, N, LOG_N).to(tl.int32)
    row = prefix_ptr + pid.to(tl.int64) * (N + 1)
    tl.store(row, 0)
    tl.store(row + 1 + tl.arange(0, N)[None, :], tl.cumsum(x * x, axis=1))


@triton.jit(do_not_specialize=["dim", "size", "num_groups", "num_sub_blocks", "num_pairs", "first", "last"])
def norms_kernel(
    out_ptr, prefix_ptr,
    dim, size, num_groups, num_sub_blocks, num_pairs, first, last,
    N: tl.constexpr, LOG_N: tl.constexpr, SCALE: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """|y_k|^2 = (sub-blocks - 1) n + sum_{l < cut} s[l ^ j]^2, j = k % n: squared norms of atoms first .. last - 1.

    out (G, K) float32 from prefix_kernel's sums of their pairs. A full sub-block has norm n. Of the last, cut to `cut`
    entries, atom j takes s[l ^ j]^2 for l < cut: the interval is one aligned run of 2^t entries for every bit t of cut,
    and l -> l ^ j carries an aligned run to an aligned run, whose sum is a difference of two prefix sums. Integers
    until the last rounding.

    Traffic: up to 2 (LOG_N + 1) reads of 4 bytes, out of caches, and 4 bytes written an atom; bound by the reads.
    Source: derived here from docs/noise-law.md, section 4.
    """
    pid = tl.program_id(0)
    num_tiles = tl.cdiv(last - first, BLOCK_K)
    g = (pid // num_tiles).to(tl.int64)
    k = first + (pid % num_tiles).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    _, length = group_range(g, dim, num_groups)
    cut = length - (num_sub_blocks - 1) * N
    row = prefix_ptr + (g * num_pairs + (k - first) // N) * (N + 1)
    total = tl.zeros((BLOCK_K,), tl.int64) + N * ((num_sub_blocks - 1).to(tl.int64) * N)
    for t in tl.static_range(LOG_N + 1):
        begin = ((cut >> (t + 1) << (t + 1)) ^ (k % N)) >> t << t
        has = k < tl.where(((cut >> t) & 1) == 1, last, first)
        total += tl.load(row + begin + (1 << t), mask=has, other=0)
        total -= tl.load(row + begin, mask=has, other=0)
    tl.store(out_ptr + g * size + k, total.to(tl.float32) * SCALE, mask=k < last)


def _transform(spec: CodebookSpec) -> dict[str, int]:
    n = spec.hadamard_n
    return {"N": n, "LOG_N": n.bit_length() - 1, "CALLS": max(1, n // 128)}


def _warps(entries: int, most: int = 8) -> int:
    """Warps of a program that transforms so many entries: 8 entries a lane, or more with `most` warps.

    16384 entries need 16 warps and the 128 registers these leave a lane, or 8 and twice as many: which of the two
    spills nothing differs from kernel to kernel (tests/backends/test_triton_compile.py).
    """
    return max(1, min(most, entries // 256))


def norms(spec: CodebookSpec, step: Tensor) -> Tensor:
    """Squared norms of all atoms: (G, K) float32. Scratch is bounded by going over the pairs in chunks."""
    out = torch.empty(spec.groups, spec.size, device=step.device, dtype=torch.float32)
    n = spec.hadamard_n
    all_pairs = ceil_div(spec.size, n)
    chunk = max(1, min(all_pairs, (1 << 22) // (spec.groups * n)))
    prefix = torch.empty(spec.groups * chunk * (n + 1), dtype=torch.int32, device=step.device)
    for first_pair in range(0, all_pairs, chunk):
        pairs = min(chunk, all_pairs - first_pair)
        launch(prefix_kernel, spec.groups * pairs, prefix, step, spec.groups, spec.sub_blocks, pairs,
               first_pair, *seed_words(spec.seed), **_transform(spec), num_warps=_warps(n))  # fmt: skip
        first, last = first_pair * n, min(spec.size, (first_pair + pairs) * n)
        launch(norms_kernel, spec.groups * ceil_div(last - first, 256), out, prefix, spec.dim, spec.size,
               spec.groups, spec.sub_blocks, pairs, first, last, N=n, LOG_N=n.bit_length() - 1,
               SCALE=1.0 / n, BLOCK_K=256)  # fmt: skip
    return out


class Residual(residual.Residual):
    """Residuals in codebook order as they are, scored by whole transforms."""

    def __init__(self, spec: CodebookSpec, w: Tensor, peak: Tensor) -> None:
        self.spec, self.w, self.batch = spec, w, len(w)
        n = spec.hadamard_n
        vectors = max(1, _TILE // n)
        pairs = power_of_2(ceil_div(spec.size, n))
        self.images = min(power_of_2(len(w)), 4, vectors)
        self.pairs = min(pairs, vectors // self.images)
        self.align = self.tile = self.pairs * n

    def launch(self, work: residual.Work) -> None:
        if self.blocks == 1:
            self._score(work, None)
            return
        spec = self.spec
        calls = work.groups[1] * spec.calls_per_group
        pairs = max(1, _TABLE_BYTES // (32 * calls) // self.pairs) * self.pairs
        if work.keys is not None:
            work.keys.fill_(LOWEST.value)
        for first in range(work.first, work.last, pairs * spec.hadamard_n):
            last = min(work.last, first + pairs * spec.hadamard_n)
            items = ceil_div(last - first, self.tile) * self.pairs * calls
            table = torch.empty(items * 8, dtype=torch.uint32, device=self.w.device)
            launch(table_kernel, ceil_div(items, 256), table, work.step, first // spec.hadamard_n, *work.groups,
                   spec.sub_blocks, items, *seed_words(spec.seed), CALLS=_transform(spec)["CALLS"],
                   BLOCK=256)  # fmt: skip
            span = ceil_div(last - first, work.programs * self.tile) * self.tile
            out = work.out[..., first - work.first : last - work.first] if work.keys is None else work.out
            self._score(replace(work, first=first, last=last, span=span, out=out), table)

    def _score(self, work: residual.Work, table: Optional[Tensor]) -> None:
        spec = self.spec
        n = spec.hadamard_n
        entries = n * self.pairs * self.images
        warps = _warps(entries, 16 if work.keys is None and entries > _TILE else 8)
        # Left alone, ptxas (Triton 3.7) takes too few registers for some tiles, and up to 32 bytes of stack.
        limit = {"maxnreg": 255} if entries <= _TILE and PTX else {}
        launch(score_kernel, work.programs * work.groups[1] * self.blocks, self.w, table, *work.targets,
               bias_stride(work.bias), spec.dim, spec.groups, self.batch, spec.sub_blocks, *work.groups, *work.atoms,
               *seed_words(spec.seed), **_transform(spec), BLOCK_P=self.pairs,
               BLOCK_B=self.images, SCALE=n**-0.5, SIGNED=work.signed, num_warps=warps, **limit)  # fmt: skip

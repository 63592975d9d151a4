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
from ddcm_fast.kernels.hadamard import hadamard
from ddcm_fast.kernels.launch import PTX, ceil_div, launch, power_of_2, seed_words
from ddcm_fast.kernels.layout import group_range
from ddcm_fast.kernels.philox import INNER, OUTER, flip, in_order, masks_of, philox, sign_masks
from ddcm_fast.kernels.ranking import LOWEST, bias_stride, make_key, rank_value
from torch import Tensor

from ddcm_fast.codebook.law import CodebookSpec

#: Entries of a program's tile; the longest transform has 16384.
_TILE = 4096

#: Bytes of sign words that a batch's programs share at a time.
_TABLE_BYTES = 4 << 20


@triton.jit(do_not_specialize=["first_pair", "groups", "sub_blocks", "items", "seed_low", "seed_high"])
def table_kernel(table, step, first_pair, groups, sub_blocks, items, seed_low, seed_high, CALLS: tl.constexpr,
                 TILE: tl.constexpr):  # fmt: skip
    """Sign words of pairs from first_pair on: table (pairs, G, sub_blocks, inner and outer, CALLS, 4) uint32.

    2 / n bits an atom and coordinate. items counts the calls of one stream.
    """
    item = tl.program_id(0) * TILE + tl.arange(0, TILE)
    call, sub_block = item % CALLS, item // CALLS
    block = sub_block % (groups * sub_blocks) * CALLS + call
    pair = first_pair + (sub_block // (groups * sub_blocks)).to(tl.int64)
    now = tl.load(step)
    word = tl.arange(0, 4)[None, :]
    inside = (item < items)[:, None]
    at = table + (sub_block * 2 * CALLS + call)[:, None] * 4 + word
    w0, w1, w2, w3 = philox(block, pair, now, INNER, seed_low, seed_high)
    tl.store(at, tl.reshape(in_order(w0, w1, w2, w3), (TILE, 4)), mask=inside)
    w0, w1, w2, w3 = philox(block, pair, now, OUTER, seed_low, seed_high)
    tl.store(at + 4 * CALLS, tl.reshape(in_order(w0, w1, w2, w3), (TILE, 4)), mask=inside)


@triton.jit(do_not_specialize=[
    "bias_stride", "dim", "groups", "batch", "sub_blocks", "first", "last", "span", "programs", "width",
    "seed_low", "seed_high",
])  # fmt: skip
def score_kernel(w, table, step, bias, out, keys, bias_stride, dim, groups, batch, sub_blocks, first, last, span,
                 programs, width, seed_low, seed_high, P: tl.constexpr, B: tl.constexpr, N: tl.constexpr,
                 LOG: tl.constexpr, CALLS: tl.constexpr, SCALE: tl.constexpr, TABLE: tl.constexpr,
                 SEARCH: tl.constexpr, SIGNED: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """Scores of all atoms of P pairs for B images, w (B, D) float32 in codebook order.

    Arguments as those of sign.small_kernel; first and span are multiples of P * N. CALLS = max(1, N / 128). With
    TABLE, signs come from table_kernel's words of the pairs from `first` on, and a search replaces the best of the
    atoms before, which out and keys hold, only by better ones.
    """
    pid = tl.program_id(0)
    p = pid % programs
    g = (pid // programs) % groups
    image = (pid // programs // groups) * B + tl.arange(0, B)
    now = tl.load(step)
    start, length = group_range(g, dim, groups)
    lane = tl.arange(0, N)
    call = tl.arange(0, CALLS)
    at = (tl.arange(0, P)[:, None] * N + lane[None, :])[:, None, :]
    n64 = tl.full((), N, tl.int64)
    here = w + image.to(tl.int64)[None, :, None] * dim + start
    if BIAS:
        bias += g.to(tl.int64) * bias_stride
    begin = first + p.to(tl.int64) * span
    best_key = tl.full((B,), LOWEST, tl.int64)
    best_score = tl.zeros((B,), tl.float32)
    word = tl.arange(0, N // 32)[None, :]
    for k0 in range(begin, tl.minimum(begin + span, last), P * N):
        base = tl.zeros((), tl.int64) + k0
        pair = k0 // N + tl.arange(0, P).to(tl.int64)
        mixed = tl.zeros((P, B, N), tl.float32)
        for c in range(0, sub_blocks):
            if TABLE:
                sub_block = ((pair - first // N) * groups + g) * sub_blocks + c
                words = table + (sub_block * (8 * CALLS))[:, None] + word
                outer = masks_of(tl.load(words + 4 * CALLS), P, N)
            else:
                block = ((g.to(tl.int64) * sub_blocks + c) * CALLS + call)[None, :]
                outer = sign_masks(block, pair[:, None], now, OUTER, seed_low, seed_high, P, N)
            i = lane + c * n64
            inside = (image < batch)[None, :, None] & (i < length)[None, None, :]
            x = tl.load(here + i[None, None, :], mask=inside, other=0.0)
            x = flip(tl.broadcast_to(x, (P, B, N)), outer[:, None, :])
            x = tl.reshape(hadamard(tl.reshape(x, (P * B, N)), P * B, N, LOG), (P, B, N))
            if TABLE:
                inner = masks_of(tl.load(words), P, N)
            else:
                inner = sign_masks(block, pair[:, None], now, INNER, seed_low, seed_high, P, N)
            mixed += flip(x, inner[:, None, :])
        mixed = hadamard(tl.reshape(mixed, (P * B, N)), P * B, N, LOG) * SCALE
        score = tl.reshape(mixed, (P, B, N))
        # Places within the tile are 32 bits wide: keys or addresses of every entry would fill two registers each.
        exists = at < tl.minimum(last - base, P * N).to(tl.int32)
        if SEARCH:
            value = rank_value(score, base + at, last, bias, SIGNED, BIAS)
            value = tl.where(exists, value, -(2**31))
            top = tl.max(tl.max(value, axis=2), axis=0)
            place = tl.where(value == top[None, :, None], at, P * N)
            place = tl.min(tl.min(place, axis=2), axis=0)
            score = tl.where(at == place[None, :, None], score, 0.0)
            score = tl.sum(tl.sum(score, axis=2), axis=0)
            key = make_key(top, base + place)
            better = key > best_key
            best_key = tl.where(better, key, best_key)
            best_score = tl.where(better, score, best_score)
        else:
            where = (image.to(tl.int64) * groups + g) * width + (base - first)
            where = where[None, :, None]
            stored = exists & (image < batch)[None, :, None]
            tl.store(out + where + at, score, mask=stored)
    if SEARCH:
        at_best = (image.to(tl.int64) * groups + g) * width + p
        stored = image < batch
        if TABLE:
            stored = stored & (best_key > tl.load(keys + at_best, mask=stored, other=LOWEST))
        tl.store(keys + at_best, best_key, mask=stored)
        tl.store(out + at_best, best_score, mask=stored)


# ---- norms ---------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["groups", "sub_blocks", "pairs", "first_pair", "seed_low", "seed_high"])
def prefix_kernel(prefix, step, groups, sub_blocks, pairs, first_pair, seed_low, seed_high, N: tl.constexpr,
                  LOG: tl.constexpr, CALLS: tl.constexpr):  # fmt: skip
    """prefix (G, pairs, N + 1) int32: sums of the first entries of (H e)^2, e of each group's last sub-block."""
    pid = tl.program_id(0)
    pair = first_pair + (pid % pairs).to(tl.int64)
    g = (pid // pairs).to(tl.int64)
    block = (((g + 1) * sub_blocks - 1) * CALLS + tl.arange(0, CALLS))[None, :]
    atom = pair + tl.zeros((1, 1), tl.int64)
    inner = sign_masks(block, atom, tl.load(step), INNER, seed_low, seed_high, 1, N)
    x = hadamard(flip(tl.full((1, N), 1.0, tl.float32), inner), 1, N, LOG).to(tl.int32)
    at = prefix + pid.to(tl.int64) * (N + 1)
    tl.store(at, 0)
    tl.store(at + 1 + tl.arange(0, N)[None, :], tl.cumsum(x * x, axis=1))


@triton.jit(do_not_specialize=["dim", "size", "groups", "sub_blocks", "pairs", "first", "last"])
def norms_kernel(out, prefix, dim, size, groups, sub_blocks, pairs, first, last, N: tl.constexpr,
                 LOG: tl.constexpr, SCALE: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """out (G, K) float32: squared norms of atoms first .. last - 1 from their pairs' prefix sums.

    A full sub-block has norm n. Of the last, cut to `cut` entries, atom j takes s[l ^ j]^2 for l < cut: the
    interval is one aligned run of 2^t entries for every bit t of cut, and l -> l ^ j carries an aligned
    run to an aligned run, whose sum is a difference of two prefix sums. Integers until the last rounding.
    """
    pid = tl.program_id(0)
    tiles = tl.cdiv(last - first, TILE)
    g = (pid // tiles).to(tl.int64)
    k = first + (pid % tiles).to(tl.int64) * TILE + tl.arange(0, TILE)
    _, length = group_range(g, dim, groups)
    cut = length - (sub_blocks - 1) * N
    row = prefix + (g * pairs + (k - first) // N) * (N + 1)
    total = tl.zeros((TILE,), tl.int64) + N * ((sub_blocks - 1).to(tl.int64) * N)
    for t in tl.static_range(LOG + 1):
        begin = ((cut >> (t + 1) << (t + 1)) ^ (k % N)) >> t << t
        has = k < tl.where(((cut >> t) & 1) == 1, last, first)
        total += tl.load(row + begin + (1 << t), mask=has, other=0)
        total -= tl.load(row + begin, mask=has, other=0)
    tl.store(out + g * size + k, total.to(tl.float32) * SCALE, mask=k < last)


def _transform(spec: CodebookSpec) -> dict[str, int]:
    n = spec.hadamard_n
    return {"N": n, "LOG": n.bit_length() - 1, "CALLS": max(1, n // 128)}


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
               spec.groups, spec.sub_blocks, pairs, first, last, N=n, LOG=n.bit_length() - 1,
               SCALE=1.0 / n, TILE=256)  # fmt: skip
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
        """See residual.Residual.launch."""
        if self.blocks == 1:
            self._score(work, None)
            return
        spec = self.spec
        calls = spec.groups * spec.calls_per_group
        pairs = max(1, _TABLE_BYTES // (32 * calls) // self.pairs) * self.pairs
        if work.keys is not None:
            work.keys.fill_(LOWEST.value)
        for first in range(work.first, work.last, pairs * spec.hadamard_n):
            last = min(work.last, first + pairs * spec.hadamard_n)
            items = ceil_div(last - first, self.tile) * self.pairs * calls
            table = torch.empty(items * 8, dtype=torch.uint32, device=self.w.device)
            launch(table_kernel, ceil_div(items, 256), table, work.step, first // spec.hadamard_n, spec.groups,
                   spec.sub_blocks, items, *seed_words(spec.seed), CALLS=_transform(spec)["CALLS"],
                   TILE=256)  # fmt: skip
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
        launch(score_kernel, work.programs * spec.groups * self.blocks, self.w, table, *work.targets,
               bias_stride(work.bias), spec.dim, spec.groups, self.batch, spec.sub_blocks, *work.atoms,
               *seed_words(spec.seed), **_transform(spec), P=self.pairs, B=self.images, SCALE=n**-0.5,
               TABLE=table is not None, **work.meta, num_warps=warps, **limit)  # fmt: skip

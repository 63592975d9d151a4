"""Ranking atoms: one int64 key orders by value, then by lower index; and the search's last reduction."""

from __future__ import annotations

from typing import Optional

import torch
import triton
import triton.language as tl
from ddcm_fast.kernels.launch import ceil_div, launch, power_of_2
from ddcm_fast.kernels.layout import group_range
from torch import Tensor

from ddcm_fast.codebook.law import CodebookSpec

#: Below the key of every atom.
LOWEST: tl.constexpr = tl.constexpr(-(2**63))


@triton.jit
def rank_value(score, k, last, bias, SIGNED: tl.constexpr, BIAS: tl.constexpr):
    """|score| + bias (signed) or score + bias as an int32 of the same order.

    With BIAS, bias points to the (K,) floats of the group; k and last are read for it only.
    """
    value = score
    if SIGNED:
        value = tl.abs(score)
    if BIAS:
        value += tl.load(bias + k, mask=k < last, other=0.0)
    value = tl.where(value == 0, 0.0, value)  # -0 ties with +0
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def make_key(value, k):
    """rank_value in the high word and 2^32 - 1 - k in the low one."""
    return (value.to(tl.int64) << 32) | (0xFFFFFFFF - k)


@triton.jit
def rank_key(score, k, last, bias, SIGNED: tl.constexpr, BIAS: tl.constexpr):
    """Sortable key of atoms k (...) int64 of a group with scores (...) float32; LOWEST for k >= last.

    Of equal values the lower index has the larger key and no two keys are equal: a maximum over any
    tiling is then the same.
    """
    value = rank_value(score, k, last, bias, SIGNED, BIAS)
    return tl.where(k < last, make_key(value, k), LOWEST)


@triton.jit
def keep_best(score, k, last, bias, best_key, best_score, SIGNED: tl.constexpr, BIAS: tl.constexpr):
    """The better of (best_key, best_score) and a tile of scores of atoms k < last, entry by entry."""
    key = rank_key(score, k, last, bias, SIGNED, BIAS)
    better = key > best_key
    return tl.where(better, key, best_key), tl.where(better, score, best_score)


@triton.jit
def store_scores(score, k, b, g, batch, groups, first, last, width, out):
    """Write a tile of scores to out[b, g, k - first], a (B, G, width) float32 array.

    k and b broadcast to the shape of score.
    """
    where = (b.to(tl.int64) * groups + g) * width + (k - first)
    tl.store(out + where, score, mask=(b < batch) & (k < last))


@triton.jit
def emit_best(best_key, best_score, AXIS: tl.constexpr):
    """Reduce a program's best pairs along an axis: (key, score) of the largest key."""
    key = tl.max(best_key, axis=AXIS)
    # Keys differ, so one entry at most survives the mask and the sum is that entry; an image no
    # atom was scored for has LOWEST everywhere and its sum is not used.
    here = best_key == tl.expand_dims(key, AXIS)
    return key, tl.sum(tl.where(here, best_score, 0.0), axis=AXIS)


@triton.jit
def keep_best_atom(score, k, last, bias, best_key, best_score, SIGNED: tl.constexpr, BIAS: tl.constexpr):
    """The better of (best_key, best_score) (B,) and a tile of scores (K, B) of atoms k (K) < last, image by image.

    For tiles so large that a best of every entry, as keep_best has, would take three registers for each of them.
    """
    key = rank_key(score, k[:, None], last, bias, SIGNED, BIAS)
    key, score = emit_best(key, score, 0)
    better = key > best_key
    return tl.where(better, key, best_key), tl.where(better, score, best_score)


@triton.jit(do_not_specialize=["bias_stride", "groups", "first", "width", "tiles"])
def keys_kernel(scores, bias, keys, bias_stride, groups, first, width, tiles, N: tl.constexpr, SIGNED: tl.constexpr,
                BIAS: tl.constexpr):  # fmt: skip
    """keys (B * G, width) int64 of the scores (B * G, width) float32 of atoms first .. first + width - 1."""
    pid = tl.program_id(0)
    row = (pid // tiles).to(tl.int64)
    i = (pid % tiles).to(tl.int64) * N + tl.arange(0, N)
    score = tl.load(scores + row * width + i, mask=i < width, other=0.0)
    if BIAS:
        bias += row % groups * bias_stride
    key = rank_key(score, first + i, first + width, bias, SIGNED, BIAS)
    tl.store(keys + row * width + i, key, mask=i < width)


@triton.jit(do_not_specialize=["groups", "programs"])
def finish_kernel(keys, scores, peak, index, sign, score, groups, programs, N: tl.constexpr,
                  SIGNED: tl.constexpr):  # fmt: skip
    """The search's second stage, one program an image and group.

    keys (B * G, programs) int64, scores (B * G, programs) float32 -> index (B * G) int64, sign int8, score
    float32; index -1 and score NaN where the image's peak (B,) is infinite or NaN.
    """
    row = tl.program_id(0).to(tl.int64)
    best_key = tl.full((N,), LOWEST, tl.int64)
    best_score = tl.zeros((N,), tl.float32)
    for start in range(0, programs, N):
        i = start + tl.arange(0, N)
        key = tl.load(keys + row * programs + i, mask=i < programs, other=LOWEST)
        raw = tl.load(scores + row * programs + i, mask=i < programs, other=0.0)
        better = key > best_key
        best_key = tl.where(better, key, best_key)
        best_score = tl.where(better, raw, best_score)
    key, raw = emit_best(best_key, best_score, 0)
    finite = tl.load(peak + row // groups) < float("inf")  # False for NaN too
    negative = False
    if SIGNED:
        negative = raw < 0
    magnitude = tl.where(negative, -raw, raw)
    tl.store(index + row, tl.where(finite, 0xFFFFFFFF - (key & 0xFFFFFFFF), -1))
    tl.store(sign + row, tl.where(negative & finite, -1, 1).to(tl.int8))
    tl.store(score + row, tl.where(finite, magnitude, float("nan")))


@triton.jit(do_not_specialize=["dim", "groups", "batch", "tiles"])
def peak_kernel(w, peak, dim, groups, batch, tiles, N: tl.constexpr):
    """Largest magnitudes of w (B, D) float32: of every image in peak[:B] and of every group in peak[B:].

    peak (B + B * G) holds the bits of floats, 0 to begin with. As integers these bits are ordered like
    magnitudes, infinity and then NaN on top, and maxima of integers can be taken in any order.
    """
    pid = tl.program_id(0)
    tile, row = pid % tiles, (pid // tiles).to(tl.int64)
    b, g = row // groups, row % groups
    start, length = group_range(g, dim, groups)
    i = tile.to(tl.int64) * N + tl.arange(0, N)
    x = tl.load(w + b * dim + start + i, mask=i < length, other=0.0)
    top = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0)
    tl.atomic_max(peak + b, top)
    tl.atomic_max(peak + batch + row, top)


def peaks(spec: CodebookSpec, w: Tensor) -> tuple[Tensor, Tensor]:
    """Largest magnitudes of every image (B,) and of every group (B, G) float32 of w (B, D).

    An image or group that holds an infinity or NaN has such a peak.
    """
    batch, groups = len(w), spec.groups
    peak = torch.zeros(batch * (1 + groups), dtype=torch.int32, device=w.device)
    tiles = ceil_div(spec.max_group_dim, 4096)
    launch(peak_kernel, batch * groups * tiles, w, peak, spec.dim, groups, batch, tiles,
           N=min(4096, power_of_2(spec.max_group_dim)))  # fmt: skip
    values = peak.view(torch.float32)
    return values[:batch], values[batch:].view(batch, groups)


def bias_stride(bias: Optional[Tensor]) -> int:
    """From one group's entries of a contiguous bias to the next's: K for (G, K), 0 for (K,) or none."""
    return bias.shape[-1] if bias is not None and bias.dim() == 2 else 0


def rank(spec: CodebookSpec, scores: Tensor, first: int, bias: Optional[Tensor], signed: bool) -> Tensor:
    """Keys int64 of scores (B, G, width), both contiguous, of the atoms from `first` on."""
    batch, groups, width = scores.shape
    keys = torch.empty_like(scores, dtype=torch.int64)
    tiles = ceil_div(width, 1024)
    launch(keys_kernel, batch * groups * tiles, scores, bias, keys, bias_stride(bias), groups, first, width, tiles,
           N=1024, SIGNED=signed, BIAS=bias is not None)  # fmt: skip
    return keys


def finish(
    spec: CodebookSpec, keys: Tensor, scores: Tensor, peak: Tensor, signed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Stage two of the search: keys, scores (B, G, programs) -> index, sign, score (B, G)."""
    batch, groups, programs = keys.shape
    index = keys.new_empty(batch, groups)
    sign = torch.empty(batch, groups, dtype=torch.int8, device=keys.device)
    score = scores.new_empty(batch, groups)
    launch(finish_kernel, batch * groups, keys, scores, peak, index, sign, score, groups, programs,
           N=256, SIGNED=signed, num_warps=2)  # fmt: skip
    return index, sign, score

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
def rank_value(score, k, last, bias_ptr, SIGNED: tl.constexpr):
    """|score| + bias (signed) or score + bias as an int32 of the same order.

    bias points to the (K,) floats of the group or is None; k and last are read for it only.
    """
    value = score
    if SIGNED:
        value = tl.abs(score)
    if bias_ptr is not None:
        value += tl.load(bias_ptr + k, mask=k < last, other=0.0)
    value = tl.where(value == 0, 0.0, value)  # -0 ties with +0
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def make_key(value, k):
    """rank_value in the high word and 2^32 - 1 - k in the low one."""
    return (value.to(tl.int64) << 32) | (0xFFFFFFFF - k)


@triton.jit
def rank_key(score, k, last, bias_ptr, SIGNED: tl.constexpr):
    """Sortable key of atoms k (...) int64 of a group with scores (...) float32; LOWEST for k >= last.

    Of equal values the lower index has the larger key and no two keys are equal: a maximum over any tiling is then the
    same.
    """
    value = rank_value(score, k, last, bias_ptr, SIGNED)
    return tl.where(k < last, make_key(value, k), LOWEST)


@triton.jit
def keep_best(score, k, last, bias_ptr, best_key, best_score, SIGNED: tl.constexpr):
    """The better of (best_key, best_score) and a tile of scores of atoms k < last, entry by entry."""
    key = rank_key(score, k, last, bias_ptr, SIGNED)
    better = key > best_key
    return tl.where(better, key, best_key), tl.where(better, score, best_score)


@triton.jit
def store_scores(score, k, image, held, num_images, num_held, first, last, stride_out, out_ptr):
    """Write a tile of scores to out[image, held, k - first], (B, num_held, atoms) float32 with rows stride_out apart.

    k and image broadcast to the shape of score.
    """
    offset = (image.to(tl.int64) * num_held + held) * stride_out + (k - first)
    tl.store(out_ptr + offset, score, mask=(image < num_images) & (k < last))


@triton.jit
def emit_best(best_key, best_score, AXIS: tl.constexpr):
    """Reduce a program's best pairs along an axis: (key, score) of the largest key."""
    key = tl.max(best_key, axis=AXIS)
    # Keys differ, so one entry at most survives the mask and the sum is that entry; an image no
    # atom was scored for has LOWEST everywhere and its sum is not used.
    is_best = best_key == tl.expand_dims(key, AXIS)
    return key, tl.sum(tl.where(is_best, best_score, 0.0), axis=AXIS)


@triton.jit
def store_best(key, score, at, valid, key_ptr, out_ptr):
    """Write what a program found for its images, (B,) int64 and float32, to places at (B,)."""
    tl.store(key_ptr + at, key, mask=valid)
    tl.store(out_ptr + at, score, mask=valid)


@triton.jit
def keep_best_atom(score, k, last, bias_ptr, best_key, best_score, SIGNED: tl.constexpr):
    """The better of (best_key, best_score) (B,) and a tile of scores (K, B) of atoms k (K) < last, image by image.

    For tiles so large that a best of every entry, as keep_best has, would take three registers for each of them.
    """
    key = rank_key(score, k[:, None], last, bias_ptr, SIGNED)
    key, score = emit_best(key, score, 0)
    better = key > best_key
    return tl.where(better, key, best_key), tl.where(better, score, best_score)


@triton.jit(do_not_specialize=["stride_bias", "num_groups", "first", "num_atoms", "num_tiles"])
def keys_kernel(
    score_ptr, bias_ptr, key_ptr, stride_bias,
    num_groups, first, num_atoms, num_tiles,
    BLOCK_K: tl.constexpr, SIGNED: tl.constexpr,
):  # fmt: skip
    """key = rank_key(score): key (B * G, atoms) int64 of the scores (B * G, atoms) float32 of atoms from `first` on.

    One program a row and BLOCK_K atoms. Traffic: 4 bytes read and 8 written an atom; bound by it. Source:
    docs/noise-law.md, section 8 (ties).
    """
    pid = tl.program_id(0)
    row = (pid // num_tiles).to(tl.int64)
    i = (pid % num_tiles).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    score = tl.load(score_ptr + row * num_atoms + i, mask=i < num_atoms, other=0.0)
    if bias_ptr is not None:
        bias_ptr += row % num_groups * stride_bias
    key = rank_key(score, first + i, first + num_atoms, bias_ptr, SIGNED)
    tl.store(key_ptr + row * num_atoms + i, key, mask=i < num_atoms)


@triton.jit(do_not_specialize=["num_groups", "num_programs"])
def finish_kernel(
    key_ptr, score_ptr, peak_ptr, index_ptr, sign_ptr, best_ptr,
    num_groups, num_programs,
    BLOCK: tl.constexpr, SIGNED: tl.constexpr,
):  # fmt: skip
    """The search's second stage, best = max over programs by key: one program an image and group.

    key (B * G, programs) int64, score (B * G, programs) float32 -> index (B * G) int64, sign int8, best float32; index
    -1 and best NaN where the image's peak (B,) is infinite or NaN.

    Traffic: 12 bytes read a candidate. Bound: latency, that of the launch first. Source: docs/noise-law.md, section 8.
    """
    row = tl.program_id(0).to(tl.int64)
    best_key = tl.full((BLOCK,), LOWEST, tl.int64)
    best_score = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, num_programs, BLOCK):
        i = start + tl.arange(0, BLOCK)
        key = tl.load(key_ptr + row * num_programs + i, mask=i < num_programs, other=LOWEST)
        score = tl.load(score_ptr + row * num_programs + i, mask=i < num_programs, other=0.0)
        better = key > best_key
        best_key = tl.where(better, key, best_key)
        best_score = tl.where(better, score, best_score)
    key, score = emit_best(best_key, best_score, 0)
    finite = tl.load(peak_ptr + row // num_groups) < float("inf")  # False for NaN too
    negative = False
    if SIGNED:
        negative = score < 0
    magnitude = tl.where(negative, -score, score)
    tl.store(index_ptr + row, tl.where(finite, 0xFFFFFFFF - (key & 0xFFFFFFFF), -1))
    tl.store(sign_ptr + row, tl.where(negative & finite, -1, 1).to(tl.int8))
    tl.store(best_ptr + row, tl.where(finite, magnitude, float("nan")))


@triton.jit(do_not_specialize=["dim", "num_groups", "num_images", "num_tiles"])
def peak_kernel(
    w_ptr, peak_ptr,
    dim, num_groups, num_images, num_tiles,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """peak = max |w|: of every image in peak[:B] and of every group in peak[B:], from w (B, D) float32.

    peak (B + B * G) holds the bits of floats, 0 to begin with. As integers these bits are ordered like magnitudes,
    infinity and then NaN on top, and maxima of integers can be taken in any order.

    One program an image, group and BLOCK_D entries. Traffic: 4 bytes read a coordinate; bound by it. Source: IEEE 754's
    order of magnitudes.
    """
    pid = tl.program_id(0)
    tile, row = pid % num_tiles, (pid // num_tiles).to(tl.int64)
    b, g = row // num_groups, row % num_groups
    start, length = group_range(g, dim, num_groups)
    i = tile.to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    x = tl.load(w_ptr + b * dim + start + i, mask=i < length, other=0.0)
    top = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0)
    tl.atomic_max(peak_ptr + b, top)
    tl.atomic_max(peak_ptr + num_images + row, top)


def peaks(spec: CodebookSpec, w: Tensor) -> tuple[Tensor, Tensor]:
    """Largest magnitudes of every image (B,) and of every group (B, G) float32 of w (B, D).

    An image or group that holds an infinity or NaN has such a peak.
    """
    batch, groups = len(w), spec.groups
    peak = torch.zeros(batch * (1 + groups), dtype=torch.int32, device=w.device)
    tiles = ceil_div(spec.max_group_dim, 4096)
    launch(peak_kernel, batch * groups * tiles, w, peak, spec.dim, groups, batch, tiles,
           BLOCK_D=min(4096, power_of_2(spec.max_group_dim)))  # fmt: skip
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
           BLOCK_K=1024, SIGNED=signed)  # fmt: skip
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
           BLOCK=256, SIGNED=signed, num_warps=2)  # fmt: skip
    return index, sign, score

"""Between image order and codebook order: permutation, flips, block Hadamard (noise-law, section 5)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from ddcm_fast.kernels.launch import ceil_div, launch, seed_words
from ddcm_fast.kernels.philox import ROTATION, flip, philox
from ddcm_fast.kernels.transform import hadamard
from torch import Tensor

from ddcm_fast.codebook.law import CodebookSpec

_SIZES = ["dim", "stride", "num_blocks", "limit", "full", "seed_low", "seed_high"]
_PERMUTE_BLOCK = 1024


@triton.jit
def image_position(i, stride, dim):
    """pi(i) = stride * i % dim for i (...) int64."""
    return i * stride % dim


@triton.jit
def rotation_flips(i, seed_low, seed_high):
    """Flip masks f(i) (bit 31) for any coordinates i (...) int64.

    One Philox call an entry: a rotation touches D entries where a search touches K * D, and its blocks
    need not begin at a multiple of 128.
    """
    zero = tl.zeros((), tl.uint32)
    w0, w1, w2, w3 = philox(i >> 7, zero, zero, ROTATION, seed_low, seed_high)
    word = tl.where((i & 64) == 0, tl.where((i & 32) == 0, w0, w1), tl.where((i & 32) == 0, w2, w3))
    return (word << (31 - (i & 31)).to(tl.uint32)) & 0x80000000


@triton.jit(do_not_specialize=_SIZES)
def permute_kernel(
    source_ptr, target_ptr,
    dim, stride, num_blocks,
    BLOCK_D: tl.constexpr, TO_IMAGE: tl.constexpr,
):  # fmt: skip
    """gaussian: target[b, i] = source[b, pi(i)], or for TO_IMAGE target[b, pi(i)] = source[b, i].

    source, target (B, D) float32; one program a row b and block of BLOCK_D entries.

    Traffic: 4 bytes read and written an entry, one side scattered in sectors of 32 bytes; bound by it. Source:
    docs/noise-law.md, section 5.
    """
    pid = tl.program_id(0)
    row = (pid // num_blocks).to(tl.int64) * dim
    i = (pid % num_blocks).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = i < dim
    j = image_position(i, stride, dim)
    if TO_IMAGE:
        tl.store(target_ptr + row + j, tl.load(source_ptr + row + i, mask=inside), mask=inside)
    else:
        tl.store(target_ptr + row + i, tl.load(source_ptr + row + j, mask=inside), mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def to_codebook_kernel(
    r_ptr, w_ptr,
    dim, stride, num_blocks, limit,
    seed_low, seed_high,
    N: tl.constexpr, LOG_N: tl.constexpr, SCALE: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """One block of w = R^T r: w[b, i] = Had_N of f(i) * r[b, pi(i)], r and w (B, D) float32.

    TAIL transforms the last N coordinates (limit = D); otherwise program (b, m) transforms coordinates m*N .. m*N+N-1,
    of which those from `limit` on were already written to w by the tail.

    Traffic: 4 bytes read, scattered, and written an entry. Bound: the transform's exchanges and Philox, a call an
    entry. Source: docs/noise-law.md, section 5; Yu et al. 2016 (arXiv 1610.09072) for such rotations.
    """
    pid = tl.program_id(0)
    row = (pid // num_blocks).to(tl.int64) * dim
    if TAIL:  # noqa: SIM108
        i = tl.arange(0, N).to(tl.int64) + (dim - N)
    else:
        i = (pid % num_blocks).to(tl.int64) * N + tl.arange(0, N)
    unwritten = i < limit
    x = tl.load(r_ptr + row + image_position(i, stride, dim), mask=unwritten, other=0.0)
    x = flip(x, rotation_flips(i, seed_low, seed_high))
    if not TAIL:
        x = tl.where(unwritten, x, tl.load(w_ptr + row + i, mask=i >= limit, other=0.0))
    x = tl.reshape(hadamard(tl.reshape(x, (1, N)), 1, N, LOG_N), (N,)) * SCALE
    tl.store(w_ptr + row + i, x)


@triton.jit(do_not_specialize=_SIZES)
def to_image_kernel(
    y_ptr, overlap_ptr, z_ptr,
    dim, stride, num_blocks, limit, full,
    seed_low, seed_high,
    N: tl.constexpr, LOG_N: tl.constexpr, SCALE: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """One block of z = R y: z[b, pi(i)] = f(i) * (Had_N y)(i), y and z (B, D) float32.

    The full blocks go first; what they make of coordinates from `limit` on waits in overlap (B, N) float32 for the
    TAIL, which takes it (below `full`) and the rest of y through a second transform.

    Traffic: 4 bytes read, and written, scattered, an entry. Bound: as to_codebook_kernel. Source: docs/noise-law.md,
    section 5.
    """
    pid = tl.program_id(0)
    b = (pid // num_blocks).to(tl.int64)
    row = b * dim
    if TAIL:
        i = tl.arange(0, N).to(tl.int64) + (dim - N)
        x = tl.load(y_ptr + row + i, mask=i >= full, other=0.0)
        x = tl.where(i < full, tl.load(overlap_ptr + b * N + (i - limit), mask=i < full, other=0.0), x)
    else:
        i = (pid % num_blocks).to(tl.int64) * N + tl.arange(0, N)
        x = tl.load(y_ptr + row + i)
    x = tl.reshape(hadamard(tl.reshape(x, (1, N)), 1, N, LOG_N), (N,)) * SCALE
    if not TAIL:
        tl.store(overlap_ptr + b * N + (i - limit), x, mask=i >= limit)
    x = flip(x, rotation_flips(i, seed_low, seed_high))
    j = image_position(i, stride, dim)
    if TAIL:
        tl.store(z_ptr + row + j, x)
    else:
        tl.store(z_ptr + row + j, x, mask=i < limit)


def _permute(spec: CodebookSpec, source: Tensor, to_image: bool) -> Tensor:
    target = torch.empty_like(source)
    blocks = ceil_div(spec.dim, _PERMUTE_BLOCK)
    launch(permute_kernel, len(source) * blocks, source, target, spec.dim, spec.stride, blocks,
           BLOCK_D=_PERMUTE_BLOCK, TO_IMAGE=to_image)  # fmt: skip
    return target


def _meta(n: int) -> dict[str, object]:
    # Without fused multiply-adds, whose single rounding would differ from the law's two.
    return {
        "N": n,
        "LOG_N": n.bit_length() - 1,
        "SCALE": n**-0.5,
        "num_warps": max(1, min(8, n // 512)),
        "enable_fp_fusion": False,
    }


def to_codebook_order(spec: CodebookSpec, residual: Tensor) -> Tensor:
    """R^T r: residual (B, D) float32 in image order -> w (B, D) float32 in codebook order."""
    if not spec.rotated:
        return _permute(spec, residual, to_image=False)
    n, dim, batch = spec.rotation_block, spec.dim, len(residual)
    blocks, seed = dim // n, seed_words(spec.seed)
    w = torch.empty_like(residual)
    limit = dim
    if dim % n:
        launch(to_codebook_kernel, batch, residual, w, dim, spec.stride, 1, dim, *seed, TAIL=True, **_meta(n))
        limit = dim - n
    launch(to_codebook_kernel, batch * blocks, residual, w, dim, spec.stride, blocks, limit, *seed,
           TAIL=False, **_meta(n))  # fmt: skip
    return w


def to_image_order(spec: CodebookSpec, y: Tensor) -> Tensor:
    """z = R y: (B, D) float32 in codebook order -> (B, D) float32 in image order."""
    if not spec.rotated:
        return _permute(spec, y, to_image=True)
    n, dim, batch = spec.rotation_block, spec.dim, len(y)
    blocks, seed = dim // n, seed_words(spec.seed)
    z = torch.empty_like(y)
    overlap = y.new_empty(batch, n)
    limit = dim - n if dim % n else dim
    args = (y, overlap, z, dim, spec.stride)
    launch(to_image_kernel, batch * blocks, *args, blocks, limit, blocks * n, *seed, TAIL=False, **_meta(n))
    if dim % n:
        launch(to_image_kernel, batch, *args, 1, limit, blocks * n, *seed, TAIL=True, **_meta(n))
    return z

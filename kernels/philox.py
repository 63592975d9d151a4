"""Philox4x32-10 and the bits made from it, as device functions (docs/noise-law.md, section 2)."""

import triton
import triton.language as tl

from ddcm_fast.codebook.law import STREAM_GAUSSIAN, STREAM_INNER, STREAM_OUTER, STREAM_ROTATION, STREAM_SIGN

# Kernels may only read globals that are constexpr.
GAUSSIAN: tl.constexpr = tl.constexpr(STREAM_GAUSSIAN)
SIGN: tl.constexpr = tl.constexpr(STREAM_SIGN)
INNER: tl.constexpr = tl.constexpr(STREAM_INNER)
OUTER: tl.constexpr = tl.constexpr(STREAM_OUTER)
ROTATION: tl.constexpr = tl.constexpr(STREAM_ROTATION)


@triton.jit
def philox(block, atom, step, STREAM: tl.constexpr, seed_low, seed_high):
    """P(block, atom, step, stream): four uint32 words of the broadcast shape of block and atom.

    block, atom and step are integers of which the low 32 bits count; seed_low and seed_high are int32
    scalars holding the key's bits. Give block and atom as (1, C) and (K, 1): what depends on one of
    them only (the first two rounds and part of the third) is then computed once a row or column.
    The product is written in 64 bits because ptxas makes one IMAD.WIDE of it, where umulhi beside a
    32 bit product stays two instructions.
    """
    c0, c1, c2 = block.to(tl.uint32), atom.to(tl.uint32), step.to(tl.uint32)
    c3 = tl.full((), STREAM, tl.uint32)
    k0 = seed_low.to(tl.uint32, bitcast=True)
    k1 = seed_high.to(tl.uint32, bitcast=True)
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def in_order(w0, w1, w2, w3):
    """The words of calls (...) side by side: (..., 2, 2) uint32, 0 to 3 once reshaped."""
    return tl.join(tl.join(w0, w2), tl.join(w1, w3))


@triton.jit
def sign_masks(block, atom, step, STREAM: tl.constexpr, seed_low, seed_high, ROWS: tl.constexpr,
               N: tl.constexpr):  # fmt: skip
    """Signs 0 .. N-1 from the calls of each row: (ROWS, N) uint32, bit 31 set for -1.

    block (ROWS or 1, max(1, N / 128)), atom (ROWS or 1, 1); N is 64 or a multiple of 128 (64 reads the first
    half of its call).
    """
    w0, w1, w2, w3 = philox(block, atom, step, STREAM, seed_low, seed_high)
    if N == 64:  # noqa: SIM108
        words = tl.join(w0, w1)
    else:
        words = in_order(w0, w1, w2, w3)
    return masks_of(tl.reshape(words, (ROWS, N // 32)), ROWS, N)


@triton.jit
def masks_of(words, ROWS: tl.constexpr, N: tl.constexpr):
    """The bits of words (ROWS, N / 32) as masks (ROWS, N) uint32, bit 31 set where a word's bit is."""
    shift = (31 - tl.arange(0, 32)).to(tl.uint32)
    return tl.reshape((words[:, :, None] << shift[None, None, :]) & 0x80000000, (ROWS, N))


@triton.jit
def flip(x, mask):
    """x with its sign changed where bit 31 of mask is set: one integer instruction."""
    return (x.to(tl.uint32, bitcast=True) ^ mask).to(tl.float32, bitcast=True)

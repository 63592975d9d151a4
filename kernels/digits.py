"""Integers as three balanced base-256 digits, and products with them: dp4a, or what it does where there is none."""

import triton
import triton.language as tl


@triton.jit
def digits(v):
    """Balanced base-256 digits of int32 v, |v| < 2^23, highest first; each -128 .. 127."""
    low = ((v + 128) & 255) - 128
    v = (v - low) >> 8
    middle = ((v + 128) & 255) - 128
    return (v - middle) >> 8, middle, low


@triton.jit
def _dp4a(a, b, c):
    """c + the dot product of the unsigned bytes of a (uint32) and the signed bytes of b (int32)."""
    return tl.inline_asm_elementwise(
        "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def add_products(x, a, b, c, high, middle, low, PTX: tl.constexpr):
    """Add to (high, middle, low) (B, A, C) the dot products of x's bytes (1, A, C) with each of a, b, c (B, 1, C)."""
    if PTX:
        high = _dp4a(x, a, high)
        middle = _dp4a(x, b, middle)
        low = _dp4a(x, c, low)
    else:
        for i in tl.static_range(4):
            byte = (x >> (8 * i)).to(tl.int32) & 0xFF
            high += byte * (a << (24 - 8 * i) >> 24)
            middle += byte * (b << (24 - 8 * i) >> 24)
            low += byte * (c << (24 - 8 * i) >> 24)
    return high, middle, low

"""Device functions on the geometry and scale of residuals that several families share."""

import triton
import triton.language as tl


@triton.jit
def power_scale(peak_ptr, BITS: tl.constexpr):
    """(2^q, 2^-q) such that |peak| * 2^q lies below 2^BITS and near it: exact, from the exponent bits."""
    exponent = (peak_ptr.to(tl.int32, bitcast=True) >> 23) & 0xFF
    biased = tl.minimum(tl.maximum(253 + BITS - exponent, 1), 253)
    scale = (biased << 23).to(tl.float32, bitcast=True)
    inverse = ((254 - biased) << 23).to(tl.float32, bitcast=True)
    return scale, inverse


@triton.jit
def group_range(g, dim, num_groups):
    """First coordinate and number of coordinates of group g, int64."""
    start = g.to(tl.int64) * dim // num_groups
    return start, (g.to(tl.int64) + 1) * dim // num_groups - start


@triton.jit
def place_of(num_programs, num_groups, first_group, num_held, BLOCK_B: tl.constexpr):
    """Where a scoring program is: its number among the group's, its group g, images (B,) and rows b * G + g.

    Groups are the num_held from first_group on.
    """
    pid = tl.program_id(0)
    block = pid // num_programs
    g = first_group + block % num_held
    image = (block // num_held) * BLOCK_B + tl.arange(0, BLOCK_B)
    return pid % num_programs, g, image, image.to(tl.int64) * num_groups + g


@triton.jit
def first_call(num_programs, num_groups, g, num_held, num_calls, BLOCK_C: tl.constexpr):
    """Calls before those of a scoring program's images and group in planes, which go by block of images, then group."""
    block = tl.program_id(0) // num_programs // num_held
    return (block.to(tl.int64) * num_groups + g) * (tl.cdiv(num_calls, BLOCK_C) * BLOCK_C)


@triton.jit
def word_of(v: tl.constexpr, w0, w1, w2, w3):
    """The v-th of a Philox call's four words, v known at compile time."""
    if v == 0:
        word = w0
    elif v == 1:
        word = w1
    elif v == 2:
        word = w2
    else:
        word = w3
    return word

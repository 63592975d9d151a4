"""The Walsh-Hadamard transform inside a program (docs/noise-law.md, section 5)."""

import triton
import triton.language as tl


@triton.jit
def hadamard(x, ROWS: tl.constexpr, N: tl.constexpr, LOG_N: tl.constexpr):
    """Unnormalised Sylvester-Hadamard transform of the rows of x (ROWS, N) float32, N = 2^LOG.

    A stage takes the pairs of the lowest index bit and moves that bit to the top, so that LOG equal stages
    visit h = 1, 2, 4, ... in the law's order and leave every entry where it began. Each stage is one
    rounded addition or subtraction: bit for bit the reference's sums. Fast Walsh-Hadamard transform
    in constant geometry (Pease 1968). The longest transform runs its stages in two rounds of a loop: unrolled, the
    addresses of all its exchanges would be kept in registers, which are full.
    """
    ROUNDS: tl.constexpr = 1 + LOG_N // 14
    for _round in range(ROUNDS):
        for _stage in tl.static_range(LOG_N // ROUNDS):
            a, b = tl.split(tl.reshape(x, (ROWS, N // 2, 2)))
            x = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 2, 1)), (ROWS, N))
    return x

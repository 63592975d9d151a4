"""Makes gaussian_coefficients.h: the table T of the noise law as 32 short polynomials.

AVX-512 holds 32 numbers in two registers and picks 16 of them at once with one instruction, while a
16 lane gather from the table itself costs some 40 cycles. Halfwords with magnitude j become the float
x = float32(((32767 - j) << 16) | 0xffff); the five lowest bits of exponent and mantissa above bit 22 pick one of
32 segments (half octaves of the distance to the table's end, where the quantile function is steep), and the
polynomial of the segment, evaluated by Horner's rule with fused multiply-adds, rounds to T[j] for every j.

A least squares fit of the quantile function would need an error below 2e-5, the closest any of its values comes
to a rounding tie. Only the rounded values matter, so a linear program instead looks for the polynomial that
stays as far inside every [T[j] - 1/2, T[j] + 1/2] as it can: degree 4 leaves a margin of 3e-4, ten times the
rounding error. The result is checked here for all j, and by the library itself when it is loaded.

Needs scipy: python csrc/cpu/gaussian_coefficients.py > csrc/cpu/gaussian_coefficients.h
"""

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial
from scipy.optimize import linprog

from ddcm_fast.codebook.law import gaussian_table

DEGREE = 4


def fit(x: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Coefficients (DEGREE + 1,) float32, lowest first, of one segment's polynomial."""
    degree = min(DEGREE, len(x) - 1)
    if degree == 0:
        return np.array([q[0]] + [0] * DEGREE, dtype=np.float32)
    # Where q stays constant over many points, those beside its steps imply the rest (verified below).
    step = np.flatnonzero(np.diff(q))
    keep = np.unique(np.r_[step, step + 1, 0, len(x) - 1, np.arange(0, len(x), 64)])
    low, high = x.min(), x.max()
    basis = np.polynomial.chebyshev.chebvander(2 * (x[keep] - low) / (high - low) - 1, degree)
    margin = np.ones((len(keep), 1))
    solution = linprog(
        np.r_[np.zeros(degree + 1), -1],
        A_ub=np.vstack([np.hstack([basis, margin]), np.hstack([-basis, margin])]),
        b_ub=np.r_[q[keep] + 0.5, 0.5 - q[keep]],
        bounds=[(None, None)] * (degree + 1) + [(None, 0.4)],
    )
    series = Chebyshev(solution.x[:-1], domain=[low, high])
    powers = series.convert(kind=Polynomial, domain=[-1, 1], window=[-1, 1]).coef
    return np.pad(powers, (0, DEGREE + 1 - len(powers))).astype(np.float32)


def evaluate(coefficient: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Horner's rule with fused multiply-adds in float32 (products of two float32 are exact in double)."""
    value = np.full(len(x), coefficient[DEGREE], dtype=np.float32)
    for i in range(DEGREE - 1, -1, -1):
        value = (value.astype(np.float64) * x + float(coefficient[i])).astype(np.float32)
    return value


def main() -> None:
    """Print the header."""
    table = gaussian_table().numpy().astype(np.int64)
    j = np.arange(len(table))
    x = (((32767 - j) << 16) | 0xFFFF).astype(np.int32).astype(np.float32)
    segment = (x.view(np.uint32) >> 22) & 31
    # Fitted in units of 2^31 for the linear program's sake, then scaled: powers of two are exact.
    unit = 2.0**31
    coefficients = np.zeros((DEGREE + 1, 32), dtype=np.float32)
    for s in np.unique(segment):
        in_segment = segment == s
        found = fit(x[in_segment].astype(np.float64) / unit, table[in_segment])
        coefficients[:, s] = found * np.float32(unit) ** -np.arange(DEGREE + 1, dtype=np.float32)
        rounded = np.rint(evaluate(coefficients[:, s], x[in_segment].astype(np.float64)))
        if not np.array_equal(rounded, table[in_segment]):
            raise SystemExit(f"segment {s}: the polynomial misses a value of the table")
    print("// Made by gaussian_coefficients.py, which says what this is.\n\n#pragma once\n")
    print(f"constexpr int kGaussianDegree = {DEGREE};\n")
    print("alignas(64) constexpr float kGaussianCoefficients[kGaussianDegree + 1][32] = {")
    for row in coefficients:
        print("    {")
        for i in range(0, 32, 4):
            print("        " + ", ".join(f"{float(c).hex()}f" for c in row[i : i + 4]) + ",")
        print("    },")
    print("};")


if __name__ == "__main__":
    main()

"""The combinatorial number system: an M-subset of {0, ..., K - 1} as one number below binom(K, M).

The rank of c_1 < c_2 < ... < c_M is binom(c_1, 1) + binom(c_2, 2) + ... + binom(c_M, M) (Lehmer 1964; Knuth, TAOCP
7.2.1.3), a bijection onto 0 to binom(K, M) - 1. Both directions go from the largest element down and carry one binomial
along, from each element to the next by one multiplication and one exact division with products of as many factors as
the gap. Finding an element takes no search over big integers: its place is estimated in floating point, then
corrected exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_NEWTON_STEPS = 64


def log2_comb(n: int, k: int) -> float:
    """log2 binom(n, k), infinite where k > n."""
    if k > n:
        return math.inf
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def _descend(value: int, x: int, k: int, y: int) -> int:
    """binom(y, k) from value = binom(x, k), k <= y <= x."""
    gap = x - y
    if gap > k:  # the products would be longer than the binomial itself
        return math.comb(y, k)
    return value * math.perm(x - k, gap) // math.perm(x, gap)


def _estimate(x: int, k: int, log_ratio: float) -> int:
    """About the largest y <= x with binom(y, k) <= exp(log_ratio) * binom(x, k); k <= y."""
    log_x = math.lgamma(x + 1) - math.lgamma(x - k + 1)
    y, value = float(x), 0.0
    # Newton's method on y -> ln binom(y, k), which is concave: after one step it climbs to the root from below.
    for _ in range(_NEWTON_STEPS):
        move = (log_ratio - value) / math.log((y + 0.5) / (y - k + 0.5))
        y = max(y + move, float(k))
        if abs(move) < 0.5:
            break
        value = math.lgamma(y + 1) - math.lgamma(y - k + 1) - log_x
    return min(x, math.floor(y))


def rank(elements: Sequence[int], size: int) -> int:
    """Strictly increasing elements of {0, ..., size - 1} -> the number of the set, below binom(size, len(elements)).

    Raises ValueError if they do not increase or are out of range (a bug of the caller, not bad input).
    """
    if any(a >= b for a, b in zip([-1, *elements], [*elements, size], strict=True)):
        raise ValueError(f"the elements of a set must increase and lie between 0 and {size - 1}")
    x, value, total = size - 1, math.comb(max(size - 1, 0), len(elements)), 0
    for k in range(len(elements), 0, -1):
        c = elements[k - 1]
        if c < k:  # the rest is 0, ..., k - 1 and adds nothing
            break
        value = _descend(value, x, k, c)
        total += value
        value = value * k // c  # binom(c - 1, k - 1)
        x = c - 1
    return total


def unrank(number: int, count: int, size: int) -> list[int]:
    """The inverse of `rank`: the increasing elements of the set of `count` elements with a number.

    Raises ValueError if there is no such set.
    """
    if not 0 <= count <= size or not 0 <= number < math.comb(size, count):
        raise ValueError(f"no set of {count} of {size} elements has the number given")
    x, value = size - 1, math.comb(max(size - 1, 0), count)
    descending: list[int] = []
    for k in range(count, 0, -1):
        if number == 0:
            descending += range(k - 1, -1, -1)
            break
        y = _estimate(x, k, math.log(number) - math.log(value))
        value = _descend(value, x, k, y)
        while value > number:
            value = value * (y - k) // y
            y -= 1
        while y < x and (above := value * (y + 1) // (y + 1 - k)) <= number:
            value = above
            y += 1
        descending.append(y)
        number -= value
        value = value * k // y
        x = y - 1
    return descending[::-1]

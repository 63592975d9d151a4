"""The noise law's parameters and geometry (docs/noise-law.md), shared by every backend.

Nothing here generates noise; this is the one place that says how a codebook of given kind, dim,
size and groups is laid out, so that backends cannot disagree about it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from numbers import Integral
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from ddcm_fast.errors import ConfigError
from ddcm_fast.lazy import deferred

if TYPE_CHECKING:
    import numpy as np
    import torch
else:
    deferred(globals(), np="numpy", torch="torch")

NOISE_LAW_VERSION = 1

#: Kinds of codebook; the position in this tuple is the kind's number in files and kernels.
KINDS = ("gaussian", "sign", "hadamard")

MAX_DIM = 2**31 - 1
MAX_SIZE = 2**32
MAX_STEP = 2**32 - 1
MAX_TOPK = 1024

#: Of a trellis: bits of a letter, and of a state.
MAX_LETTER_BITS, MAX_MEMORY = 8, 16

# Philox streams (docs/noise-law.md, section 2).
STREAM_INITIAL = 0
STREAM_GAUSSIAN = 1
STREAM_SIGN = 2
STREAM_INNER = 3
STREAM_OUTER = 4
STREAM_ROTATION = 5

GAUSSIANS_PER_CALL = 8  # 16 bits each
SIGNS_PER_CALL = 128
GAUSSIAN_SCALE = 1.0 / 256.0  # grid of the gaussian kind: fp16 holds every entry exactly
MAX_ROTATION_BLOCK = 4096
MIN_HADAMARD, MAX_HADAMARD = 64, 16384


@lru_cache(maxsize=1)
def _gaussian_values() -> np.ndarray[Any, np.dtype[np.int16]]:
    quantile = NormalDist().inv_cdf
    values = [round(256 * quantile((32768 + j + 0.5) / 65536)) for j in range(32768)]
    return np.array(values, dtype=np.int16)


def gaussian_table() -> torch.Tensor:
    """Upper half of the standard normal quantile function in 1/256ths: (32768,) int16, CPU.

    numpy keeps the numbers: a tensor kept from under a FakeTensorMode would have none.
    """
    return torch.from_numpy(_gaussian_values())


def integer(name: str, value: object, low: int, high: int) -> int:
    """The value as an int. Raises ConfigError unless it is an integer (numpy's too, no bool) from low to high."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise ConfigError(f"{name} is {value!r}; it must be an integer from {low} to {high}")
    return int(value)


def _largest_power_of_4(limit: int) -> int:
    return int(4 ** ((limit.bit_length() - 1) // 2))


@dataclass(frozen=True)
class CodebookSpec:
    """What one codebook is: kind, dim D, size K, groups G and 64 bit seed.

    Raises ConfigError for an unknown kind or a number outside the law's ranges.
    """

    kind: str
    dim: int
    size: int
    groups: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(
                f"unknown codebook kind {self.kind!r}: choose one of {', '.join(KINDS)}"
            )
        for name, field, low, high in (
            ("dim", "dim", 1, MAX_DIM),
            ("size (K)", "size", 1, MAX_SIZE),
            ("groups (G)", "groups", 1, self.dim),
            ("seed", "seed", 0, 2**64 - 1),
        ):
            value = integer(f"codebook {name}", getattr(self, field), low, high)
            object.__setattr__(self, field, value)
        if self.groups * self.calls_per_group >= 2**32:
            raise ConfigError(
                f"{self.groups} groups of {self.max_group_dim} entries exceed the 2^32 blocks "
                "that the noise law can address; use fewer groups"
            )

    @property
    def kind_number(self) -> int:
        """Number of the kind in files and kernels."""
        return KINDS.index(self.kind)

    @property
    def rotated(self) -> bool:
        """Whether codebook order and image order differ by the block Hadamard rotation."""
        return self.kind != "gaussian"

    def group_start(self, group: int) -> int:
        """First codebook-order coordinate of a group (group G gives D)."""
        return group * self.dim // self.groups

    @cached_property
    def max_group_dim(self) -> int:
        """Entries of the largest group: ceil(D / G)."""
        return -(-self.dim // self.groups)

    @cached_property
    def hadamard_n(self) -> int:
        """Length n of a `hadamard` sub-block (section 4)."""
        need = min(self.size, self.max_group_dim)
        n = MIN_HADAMARD
        while n < need and n < MAX_HADAMARD:
            n *= 4
        return n

    @cached_property
    def sub_blocks(self) -> int:
        """`hadamard` sub-blocks a group: ceil(dmax / n)."""
        return -(-self.max_group_dim // self.hadamard_n)

    @property
    def entries_per_call(self) -> int:
        """Entries of noise from one Philox block."""
        return GAUSSIANS_PER_CALL if self.kind == "gaussian" else SIGNS_PER_CALL

    @cached_property
    def calls_per_group(self) -> int:
        """Philox blocks a group and atom (for `hadamard`: a group, pair and stream)."""
        if self.kind == "hadamard":
            return self.sub_blocks * -(-self.hadamard_n // self.entries_per_call)
        return -(-self.max_group_dim // self.entries_per_call)

    @property
    def atoms_made_together(self) -> int:
        """Atoms that come from the same noise, all or none: a `hadamard` pair's n, else 1."""
        return self.hadamard_n if self.kind == "hadamard" else 1

    def shard(self, i: int, n: int) -> tuple[int, int]:
        """First atom, and one past the last, of the i-th of n ranges of nearly equal size.

        Raises ConfigError unless 0 <= i < n and there are n ranges of atoms to be had.
        """
        units = -(-self.size // self.atoms_made_together)
        integer("number of shards", n, 1, units)
        integer("shard", i, 0, n - 1)
        first, last = (j * units // n * self.atoms_made_together for j in (i, i + 1))
        return first, min(last, self.size)

    @property
    def orthogonal(self) -> bool:
        """Whether the atoms of a group are exactly orthogonal."""
        return self.kind == "hadamard" and self.size <= self.hadamard_n and self.dim % self.hadamard_n == 0

    @cached_property
    def rotation_block(self) -> int:
        """Length b of the rotation's Hadamard blocks (section 5)."""
        return _largest_power_of_4(min(self.dim, MAX_ROTATION_BLOCK))

    @cached_property
    def stride(self) -> int:
        """Golden-ratio stride a of the interleaving permutation pi(i) = a * i % D."""
        a = max(1, self.dim * 0x9E3779B97F4A7C15 >> 64)
        while math.gcd(a, self.dim) != 1:
            a += 1
        return a

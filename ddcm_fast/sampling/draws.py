"""What many images draw from one seed: seeds of their own, labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ddcm_fast.sampling.choosers import Seed, seeded


def drawn(choices: Sequence[int], count: int, seed: Seed) -> list[int]:
    """`count` of the choices, drawn with replacement; the first are the same for every count."""
    generator = seeded(seed)
    return [choices[_below(len(choices), generator)] for _ in range(count)]


def own_seeds(seed: Seed, count: int) -> list[int]:
    """A seed for each image, drawn from one; the first are the same for every count."""
    generator = seeded(seed)
    return [_below(2**63 - 1, generator) for _ in range(count)]


def _below(end: int, generator: torch.Generator) -> int:
    return int(torch.randint(end, (), generator=generator, dtype=torch.int64, device="cpu"))

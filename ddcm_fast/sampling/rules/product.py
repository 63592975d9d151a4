"""`product`: G signed groups of K atoms a step, a product codebook (docs: DESIGN; the chunks of DiffC)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ddcm_fast.lazy import deferred
from ddcm_fast.sampling.rules.base import Grouped, Plan, Rule, Settings, worth_of_largest
from ddcm_fast.sampling.schedule import Step

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ddcm_fast.codebook.codebook import Codebook
else:
    deferred(globals(), torch="torch", Codebook="ddcm_fast.codebook.codebook:Codebook")


class Product(Grouped):
    """The best signed atom of each of a step's G groups: G log2(2K) bits, for the search cost of one group.

    The groups' atoms stand side by side, so the noise is as Gaussian as one atom and needs no normalising, while a
    group's argmax gains E[max]^2 / (2 ln 2K) of the ideal information, more the larger K is.

    Args:
        kind, dim, size, seed, backend: as Codebook.
        groups: step index -> G of every coded step.
    """

    name, number = "product", 2
    capturable = True

    def __init__(self, kind: str, dim: int, size: int, groups: Mapping[int, int], seed: int, backend: str) -> None:
        def book(count: int) -> Codebook:
            return Codebook(kind, dim, size, count, seed, signed=True, backend=backend)

        super().__init__({index: book(count) for index, count in groups.items()}, book(1))

    @classmethod
    def make(cls, settings: Settings, steps: Sequence[Step], dim: int, backend: str) -> Rule:
        groups = cls.groups_of(settings, steps, dim)
        return cls(settings.kind, dim, settings.K, groups, settings.seed, backend)

    @classmethod
    def payload_bits(cls, settings: Settings, plan: Plan, dim: int) -> float:
        return settings.atoms * math.log2(2 * settings.K)

    @classmethod
    def worth(cls, settings: Settings, step_bits: float) -> float:
        return worth_of_largest(settings.K, 1)

    def radix(self, step: Step) -> int:
        """An index with its sign."""
        return 2 * self.codebook(step).spec.size

    def choose(self, direction: Tensor, step: Step) -> Tensor:
        """A letter is 2 index + (1 for a negative sign)."""
        index, sign, _ = self.codebook(step).search(direction, step.at)
        return torch.where(index < 0, index, 2 * index + (sign < 0))

    def noise(self, letters: Tensor, step: Step) -> Tensor:
        return self.codebook(step).atoms(letters >> 1, step.at, 1 - 2 * (letters & 1))

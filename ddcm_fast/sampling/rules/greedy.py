"""`greedy`: DDCM's rule, the one atom most correlated with the residual (Ohayon et al., ICML 2025)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddcm_fast.sampling.rules.base import Rule
from ddcm_fast.sampling.schedule import Step

if TYPE_CHECKING:
    from torch import Tensor


class Greedy(Rule):
    """One atom a step out of K: log2 K bits. Drawn at random it is DDCM's generator."""

    name, number = "greedy", 0
    capturable = True

    def radices(self, step: Step) -> list[int]:
        return [self._codebook.spec.size]

    def choose(self, direction: Tensor, step: Step) -> Tensor:
        index, _, _ = self._codebook.search(direction, step.at)
        return index

    def noise(self, letters: Tensor, step: Step) -> Tensor:
        return self._codebook.atoms(letters, step.at)

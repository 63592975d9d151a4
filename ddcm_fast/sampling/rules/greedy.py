"""`greedy`: DDCM's rule, the one atom most correlated with the residual (Ohayon et al., ICML 2025)."""

from __future__ import annotations

from torch import Tensor

from ddcm_fast.codebook.codebook import Codebook
from ddcm_fast.sampling.rules.base import Rule
from ddcm_fast.sampling.schedule import Step


class Greedy(Rule):
    """One atom a step out of K: log2 K bits. Drawn at random it is DDCM's generator."""

    def __init__(self, codebook: Codebook) -> None:
        self._codebook = codebook

    def codebook(self, step: Step) -> Codebook:
        """One codebook serves all steps."""
        return self._codebook

    def radices(self, step: Step) -> list[int]:
        """One index."""
        return [self._codebook.spec.size]

    def choose(self, direction: Tensor, step: Step) -> Tensor:
        """argmax over k of <z_k, direction>."""
        index, _, _ = self._codebook.search(direction, step.at)
        return index

    def noise(self, letters: Tensor, step: Step) -> Tensor:
        """The atom itself."""
        return self._codebook.atoms(letters, step.at)

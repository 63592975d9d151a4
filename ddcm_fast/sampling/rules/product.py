"""`product`: G signed groups of K atoms a step, a product codebook (docs: DESIGN; the chunks of DiffC)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ddcm_fast.codebook.codebook import Codebook
from ddcm_fast.sampling.rules.base import Rule
from ddcm_fast.sampling.schedule import Step


class Product(Rule):
    """The best signed atom of each of a step's G groups: G log2(2K) bits, for the search cost of one group.

    The groups' atoms stand side by side, so the noise is as Gaussian as one atom and needs no normalising, while a
    group's argmax gains E[max]^2 / (2 ln 2K) of the ideal information, more the larger K is.

    Args:
        kind, dim, size, seed, backend: as Codebook.
        groups: step index -> G of every coded step.
    """

    def __init__(self, kind: str, dim: int, size: int, groups: Mapping[int, int], seed: int, backend: str) -> None:
        self._groups = dict(groups)
        self._books = {
            g: Codebook(kind, dim, size, groups=g, seed=seed, signed=True, backend=backend)
            for g in {1, *self._groups.values()}
        }

    def codebook(self, step: Step) -> Codebook:
        """A step without bits uses one group."""
        return self._books[self._groups.get(step.index, 1)]

    def radices(self, step: Step) -> list[int]:
        """G indices with their signs."""
        book = self.codebook(step)
        return [2 * book.spec.size] * book.spec.groups

    def least_bits(self, step: Step) -> float:
        spec = self.codebook(step).spec
        return spec.groups * spec.size.bit_length()

    def choose(self, direction: Tensor, step: Step) -> Tensor:
        """A letter is 2 index + (1 for a negative sign)."""
        index, sign, _ = self.codebook(step).search(direction, step.at)
        return torch.where(index < 0, index, 2 * index + (sign < 0))

    def noise(self, letters: Tensor, step: Step) -> Tensor:
        return self.codebook(step).atoms(letters >> 1, step.at, 1 - 2 * (letters & 1))

"""`pursuit`: DDCM's matching pursuit over the codebook (Ohayon et al., ICML 2025, section on MP-like refinement)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from ddcm_fast.codebook.law import CodebookSpec
from ddcm_fast.lazy import deferred
from ddcm_fast.sampling.rules.base import Parameter, Rule, SearchCost, Settings, search_entries
from ddcm_fast.sampling.schedule import Step

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ddcm_fast.codebook.codebook import Codebook
else:
    deferred(globals(), torch="torch", Codebook="ddcm_fast.codebook.codebook:Codebook")


def coefficient_grid(bits: int, official: bool) -> list[float]:
    """The nonzero coefficients c of `bits` bits; the code 0 is kept for "no further atom".

    The official grid is linspace(0, 1, 2^C) without its 0. Its last value c = 1 adds no atom, it only renormalises,
    so its C = 1 cannot add anything; the default grid j / 2^C has no such code.
    """
    levels = 2**bits
    return [j / (levels - 1 if official else levels) for j in range(1, levels)]


def unbiased_std(x: Tensor) -> Tensor:
    """torch's unbiased standard deviation of each row: (B, D) -> (B, 1) float32, summed in float64."""
    return x.double().std(dim=1, keepdim=True).float()


class Pursuit(Rule):
    """Up to M atoms a step, refined greedily.

    It starts with the argmax atom. Then, M - 1 times, over all k and all nonzero coefficients c of the grid, the
    candidate (sqrt(c) best + sqrt(1 - c) z_k) / std(.) with the largest inner product with the direction replaces
    `best` if that is larger than before; else the code c = 0 ends the step.

    By linearity the candidates' inner products need only <z_k, r>, <z_k, best>, the sums and the norms of the
    atoms: one pass over the codebook for the direction (sums and norms come out of the same pass) and one for each
    new `best`, M passes in all, instead of (M - 1)(2^C - 1) with a K x D tensor each. Where the atoms are exactly
    orthogonal (`hadamard`, K <= n, D a multiple of n), <z_k, best> is D times the weight of z_k in `best`: one
    pass in all.

    Letters of a step: k_1, then M - 1 pairs (code of c, k), zero after the end. The symbol enumerates the valid
    sequences exactly: n_0 = 1, n_m = 1 + (2^C - 1) K n_(m-1) ways to go on with at most m atoms, K n_(M-1) in all.
    """

    name, number = "pursuit", 1
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "M": Parameter(1, 1024, "atoms a step, at most"),
        "C": Parameter(1, 16, "bits of a coefficient"),
        "official_grid": Parameter(0, 1, "coefficients as in the official code"),
    }

    def __init__(self, codebook: Codebook, atoms: int, bits: int, official_grid: bool) -> None:
        super().__init__(codebook)
        self._atoms = atoms
        self._grid = coefficient_grid(bits, official_grid)
        self._levels = torch.tensor([1.0, *self._grid], dtype=torch.float64, device="cpu")  # by code
        self._ways = [1]
        for _ in range(atoms - 1):
            self._ways.append(1 + len(self._grid) * codebook.spec.size * self._ways[-1])

    @classmethod
    def make(cls, settings: Settings, steps: Sequence[Step], dim: int, backend: str) -> Rule:
        book = Codebook(settings.kind, dim, settings.K, seed=settings.seed, signed=False, backend=backend)
        return cls(book, settings.M, settings.C, settings.official_grid)

    @classmethod
    def search_cost(cls, settings: Settings, dim: int) -> SearchCost:
        """Scores and norms, and about ten numbers from them for each coefficient and atom."""
        entries = search_entries(settings, dim)
        if settings.M == 1:
            return SearchCost(entries)
        passes = 1 if CodebookSpec(settings.kind, dim, settings.K).orthogonal else settings.M
        operations = 12 * settings.T * settings.M * settings.K << settings.C
        return SearchCost(passes * entries, 16 * settings.K, operations)

    def radices(self, step: Step) -> list[int]:
        return [self._codebook.spec.size * self._ways[-1]]

    def choose(self, direction: Tensor, step: Step) -> Tensor:
        """The search itself, in M passes."""
        book, at = self._codebook, step.at
        dim = direction.shape[1]
        if self._atoms == 1:
            return book.search(direction, at)[0]
        both = torch.cat((direction, torch.ones_like(direction[:1])))
        scores, norms = book.scores_and_norms(both, at)
        scores, norm = scores[:, 0].double(), norms[0].double()  # norm: |z_k|^2 (K,)
        score, total = scores[:-1], scores[-1]  # <z_k, r> (B, K) and the sum of z_k (K,)
        value, index = score.max(dim=1, keepdim=True)
        best = book.atoms(index, at)
        letters = [index]
        orthogonal = book.spec.orthogonal
        weight = torch.zeros_like(score).scatter_(1, index, 1.0)  # of each atom in best, where they are orthogonal
        active = torch.ones_like(index, dtype=torch.bool)
        for _ in range(self._atoms - 1):
            cross = dim * weight if orthogonal else book.scores(best, at)[:, 0].double()
            wide = best.double()
            best_total, best_norm = wide.sum(1, keepdim=True), wide.square().sum(1, keepdim=True)
            best_score = (wide * direction.double()).sum(1, keepdim=True)
            top = torch.full_like(value, -torch.inf)
            code = torch.zeros_like(index)
            atom = torch.zeros_like(index)
            for j, c in enumerate(self._grid):
                a, b = c**0.5, (1 - c) ** 0.5
                square = c * best_norm + (1 - c) * norm + 2 * a * b * cross
                mean = (a * best_total + b * total) / dim
                std = ((square - dim * mean.square()) / (dim - 1)).clamp_min(1e-12).sqrt()
                candidate, k = ((a * best_score + b * score) / std).max(dim=1, keepdim=True)
                better = candidate > top
                top = torch.where(better, candidate, top)
                code = torch.where(better, j + 1, code)
                atom = torch.where(better, k, atom)
            active = active & (top > value)
            value = torch.where(active, top, value)
            code, atom = torch.where(active, code, 0), torch.where(active, atom, 0)
            letters += [code, atom]
            mixed = self._mix(best, code, atom, at)
            if orthogonal:
                old, new = self._mixing(code, weight)
                added = (old * weight).scatter_add(1, atom, new)
                weight = torch.where(code > 0, added / unbiased_std(mixed), weight)
            best = torch.where(code > 0, mixed / unbiased_std(mixed), best)
        return torch.cat(letters, dim=1)

    def noise(self, letters: Tensor, step: Step) -> Tensor:
        z = self._codebook.atoms(letters[:, :1], step.at)
        on_cpu = letters.device.type == "cpu"  # elsewhere a look at the letters would wait for the device
        for m in range(1, 2 * self._atoms - 1, 2):
            if on_cpu and not letters[:, m].any():
                break
            z = self._refine(z, letters[:, m : m + 1], letters[:, m + 1 : m + 2], step.at)
        return z

    def _refine(self, best: Tensor, code: Tensor, atom: Tensor, at: int | Tensor) -> Tensor:
        """(sqrt(c) best + sqrt(1 - c) z_k) / std(.) where the code is not 0, else best."""
        mixed = self._mix(best, code, atom, at)
        return torch.where(code > 0, mixed / unbiased_std(mixed), best)

    def _mix(self, best: Tensor, code: Tensor, atom: Tensor, at: int | Tensor) -> Tensor:
        old, new = self._mixing(code, best)
        return old * best + new * self._codebook.atoms(atom, at)

    def _mixing(self, code: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(c), sqrt(1 - c) of the codes (B, 1), in the dtype of `like`; code 0 counts as c = 1."""
        c = self._levels.to(like)[code]
        return c.sqrt(), (1 - c).sqrt()

    def draw(self, batch: int, step: Step, generator: torch.Generator) -> Tensor:
        """Uniformly random letters that use all M atoms."""
        size, codes = self._codebook.spec.size, len(self._grid)
        columns = [torch.randint(size, (batch, 1), generator=generator, dtype=torch.int64, device="cpu")]
        for _ in range(self._atoms - 1):
            for low, high in ((1, codes + 1), (0, size)):
                drawn = torch.randint(low, high, (batch, 1), generator=generator, dtype=torch.int64, device="cpu")
                columns.append(drawn)
        return torch.cat(columns, dim=1)

    def to_symbols(self, letters: Sequence[int], step: Step) -> list[int]:
        """The sequence's number, most significant choice first."""
        size = self._codebook.spec.size
        tail = 0
        for left, m in enumerate(range(2 * self._atoms - 3, 0, -2), start=1):
            code, atom = letters[m], letters[m + 1]
            tail = 1 + ((code - 1) * size + atom) * self._ways[left - 1] + tail if code else 0
        return [letters[0] * self._ways[-1] + tail]

    def to_letters(self, symbols: Sequence[int], step: Step) -> list[int]:
        size = self._codebook.spec.size
        first, tail = divmod(symbols[0], self._ways[-1])
        letters = [first]
        for left in range(self._atoms - 1, 0, -1):
            if tail == 0:
                letters += [0, 0] * left
                break
            choice, tail = divmod(tail - 1, self._ways[left - 1])
            letters += [choice // size + 1, choice % size]
        return letters

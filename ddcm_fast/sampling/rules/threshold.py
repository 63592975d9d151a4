"""`threshold`: Turbo-DDCM's rule, the M atoms of largest |score| with their signs (Vaisman et al., ICLR 2026).

arXiv 2511.06424. For nearly orthogonal atoms the best M-sparse combination with coefficients +1 and -1 has a closed
form: no pursuit, one pass over the codebook whatever M is.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from math import comb
from typing import TYPE_CHECKING, ClassVar

from ddcm_fast.codebook.law import MAX_TOPK
from ddcm_fast.errors import ConfigError, InputError
from ddcm_fast.lazy import deferred
from ddcm_fast.sampling.combinatorics import log2_comb, rank, unrank
from ddcm_fast.sampling.rules.base import ATOMS, Parameter, Plan, Rule, Settings, planned_atoms, worth_of_largest
from ddcm_fast.sampling.rules.pursuit import unbiased_std
from ddcm_fast.sampling.schedule import Step

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ddcm_fast.codebook.codebook import Codebook
else:
    deferred(globals(), torch="torch", Codebook="ddcm_fast.codebook.codebook:Codebook")


class Threshold(Rule):
    """M of K atoms a step, added with the signs of their scores and divided by the sum's unbiased std.

    Letters of a step: 2 k + (1 if the sign is -) of every atom, in the order of k, so that encoder and decoder add in
    the same order. Symbols: the number of the index set (radix binom(K, M), see combinatorics) and the signs as a
    word of M bits, first atom first: log2 binom(K, M) + M bits, nothing is spent on the order of the atoms. On a
    `hadamard` codebook of at most n atoms the atoms are exactly orthogonal and the choice is exactly the best.

    Args:
        codebook: signed, of one group.
        atoms: step index -> M of every coded step, from 1 to min(K, 1024).

    Raises ConfigError: another kind of codebook, or an impossible M.
    """

    name, number = "threshold", 3
    parameters: ClassVar[Mapping[str, Parameter]] = {"atoms": ATOMS}
    capturable = True

    def __init__(self, codebook: Codebook, atoms: Mapping[int, int]) -> None:
        if not codebook.signed or codebook.spec.groups != 1:
            raise ConfigError(f"the rule 'threshold' needs a signed codebook of one group, not {codebook}")
        size = codebook.spec.size
        most = min(size, MAX_TOPK)
        for m in atoms.values():
            if not 1 <= m <= most:
                raise ConfigError(f"M is {m}; the rule 'threshold' takes 1 to {most} of K={size} atoms a step")
        super().__init__(codebook)
        self._atoms = dict(atoms)
        self._radices = {m: [comb(size, m), 1 << m] for m in set(atoms.values())}

    @classmethod
    def make(cls, settings: Settings, steps: Sequence[Step], dim: int, backend: str) -> Rule:
        book = Codebook(settings.kind, dim, settings.K, seed=settings.seed, backend=backend)
        return cls(book, planned_atoms(steps))

    @classmethod
    def payload_bits(cls, settings: Settings, plan: Plan, dim: int) -> float:
        """Without the binomials themselves."""
        return sum(log2_comb(settings.K, count) + count for count in planned_atoms(plan()).values())

    @classmethod
    def worth(cls, settings: Settings, step_bits: float) -> float:
        """The less the more atoms a step has, to a factor of two in their number."""
        count = 1
        while log2_comb(settings.K, 2 * count) + 2 * count <= step_bits:
            count *= 2
        return worth_of_largest(settings.K, count)

    def radices(self, step: Step) -> list[int]:
        return self._radices[self._atoms[step.index]]

    def choose(self, direction: Tensor, step: Step) -> Tensor:
        """The M largest |<z_k, direction>|."""
        index, sign, _ = self._codebook.topk(direction, step.at, self._atoms[step.index])
        letters: Tensor = 2 * index[:, 0] + (sign[:, 0] < 0)
        return letters.sort(dim=1).values

    def noise(self, letters: Tensor, step: Step) -> Tensor:
        z = self._codebook.combine(letters >> 1, 1.0 - 2.0 * (letters & 1), step.at)
        return z / unbiased_std(z)

    def draw(self, batch: int, step: Step, generator: torch.Generator) -> Tensor:
        """Uniform over the sets and signs."""
        size, m = self._codebook.spec.size, self._atoms[step.index]
        seeds = torch.randint(2**62, (batch,), generator=generator, dtype=torch.int64, device="cpu").tolist()
        sets = [sorted(random.Random(seed).sample(range(size), m)) for seed in seeds]
        signs = torch.randint(2, (batch, m), generator=generator, dtype=torch.int64, device="cpu")
        return 2 * torch.tensor(sets, dtype=torch.int64, device="cpu") + signs

    def to_symbols(self, letters: Sequence[int], step: Step) -> list[int]:
        word = int("".join("1" if letter & 1 else "0" for letter in letters), 2)
        return [rank([letter >> 1 for letter in letters], self._codebook.spec.size), word]

    def to_letters(self, symbols: Sequence[int], step: Step) -> list[int]:
        number, word = symbols
        m = self._atoms[step.index]
        signs = f"{word:0{m}b}"
        elements = unrank(number, m, self._codebook.spec.size)
        return [2 * k + (sign == "1") for k, sign in zip(elements, signs, strict=True)]


def pool_weight(mask: Tensor, latent_shape: Sequence[int]) -> Tensor:
    """Weight of the residual for priority-aware coding: a pixel mask averaged down to the latent size.

    Turbo-DDCM's variant: the rule follows w * (x0 - x0_hat) instead of the residual, so more of the same bits go where
    w is large; the decoder needs no w. It serves every rule.

    Args:
        mask: (H, W) of the padded image, at least 0; 1 everywhere changes nothing, larger is more important.
        latent_shape: (C, h, w) of the state, as DiffusionModel.latent_shape gives it.

    Returns:
        (1, 1, h, w) float32, to be multiplied with residuals (B, C, h, w).

    Raises InputError: not a mask, or one without any positive entry.
    """
    if mask.dim() != 2 or len(latent_shape) != 3:
        raise InputError(f"the mask has shape {tuple(mask.shape)}; it must be (height, width) for a model with images")
    mask = mask.to(torch.float32)
    if not bool(torch.isfinite(mask).all()) or bool((mask < 0).any()) or not bool((mask > 0).any()):
        raise InputError(
            f"the mask runs from {float(mask.min()):g} to {float(mask.max()):g}; it must be at least 0, and not 0 "
            "everywhere"
        )
    pooled: Tensor = torch.nn.functional.adaptive_avg_pool2d(mask[None, None], (latent_shape[1], latent_shape[2]))
    return pooled

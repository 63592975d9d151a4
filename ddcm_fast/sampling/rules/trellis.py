"""`trellis`: a product codebook whose groups are chosen together, by the Viterbi algorithm.

Choosing the best of K atoms group by group (rule `product`) is worth E[max]^2 / (2 ln 2K) of its bits: 0.84 at
K = 65536, and slow to grow, since a group's search is exponential in its bits. Source coding knows the way out: let a
group's atoms depend on the letters before it, so that a step is one long random codeword along a path, and search over
paths (tree and trellis source codes: Jelinek 1969, Viterbi and Omura 1974; trellis-coded quantization: Marcellin and
Fischer 1990). The score of a path is the sum of its groups' scores, so the best path through a shift-register trellis
is found exactly by dynamic programming.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from ddcm_fast.codebook.law import MAX_LETTER_BITS, MAX_MEMORY
from ddcm_fast.errors import ConfigError
from ddcm_fast.lazy import deferred
from ddcm_fast.sampling.rules.base import ATOMS, Grouped, Parameter, Plan, Rule, SearchCost, Settings, search_entries
from ddcm_fast.sampling.schedule import Step

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ddcm_fast.codebook.codebook import Codebook
else:
    deferred(globals(), torch="torch", Codebook="ddcm_fast.codebook.codebook:Codebook")


class Trellis(Grouped):
    """G letters of b bits a step; a group's atom is named by its own letter and the memory bits before it.

    The state of group g is the last `memory` bits of the letters of the groups before it (0 at the step's start); its
    codebook is unsigned and has 2^(memory + b - 1) atoms: atom state * 2^(b - 1) + letter // 2, with the sign - for odd
    letters.

    The encoder keeps, group after group, the best path to each of the 2^memory states: 2^(memory + b) additions a
    group (`Codebook.trellis_search`). The cpu, cuda and triton backends hold a byte a group and state for it, the
    reference all scores, 4 G 2^(memory + b - 1) bytes an image.

    Args:
        kind, dim, seed, backend: as Codebook.
        groups: step index -> G of every coded step.
        letter_bits: b, 1 to 8. Few bits make more and smaller groups.
        memory: bits of a state, b to 16. More is better, and slower in proportion to 2^memory.

    Raises ConfigError: impossible parameters.
    """

    name, number = "trellis", 5
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "C": Parameter(1, MAX_LETTER_BITS, "bits of a letter, K = 2^(memory + C)"),
        "atoms": ATOMS,
    }

    def __init__(
        self,
        kind: str,
        dim: int,
        groups: Mapping[int, int],
        letter_bits: int = 4,
        memory: int = 8,
        seed: int = 0,
        backend: str = "auto",
    ) -> None:
        if not 1 <= letter_bits <= MAX_LETTER_BITS:
            raise ConfigError(f"a letter has {letter_bits} bits; the rule 'trellis' takes 1 to {MAX_LETTER_BITS}")
        if not letter_bits <= memory <= MAX_MEMORY:
            raise ConfigError(
                f"memory is {memory} bits; the rule 'trellis' takes from a letter's {letter_bits} to {MAX_MEMORY}"
            )
        self._bits = letter_bits
        self._memory = memory

        def book(count: int) -> Codebook:
            return Codebook(kind, dim, 1 << (memory + letter_bits - 1), count, seed, signed=False, backend=backend)

        super().__init__({index: book(count) for index, count in groups.items()}, book(1))

    @classmethod
    def check(cls, settings: Settings) -> None:
        K, C = settings.K, settings.C
        if K & (K - 1) or not C <= _memory(settings) <= MAX_MEMORY:
            raise ConfigError(f"K is {K}, C {C}; trellis takes K = 2^(memory + C), memory C to {MAX_MEMORY}")

    @classmethod
    def make(cls, settings: Settings, steps: Sequence[Step], dim: int, backend: str) -> Rule:
        groups = cls.groups_of(settings, steps, dim)
        return cls(settings.kind, dim, groups, settings.C, _memory(settings), settings.seed, backend)

    @classmethod
    def payload_bits(cls, settings: Settings, plan: Plan, dim: int) -> float:
        return settings.atoms * settings.C

    @classmethod
    def worth(cls, settings: Settings, step_bits: float) -> float:
        """Measured (benchmarks/gaussian_field_rd.py)."""
        return 0.92

    @classmethod
    def search_cost(cls, settings: Settings, dim: int) -> SearchCost:
        """K counts atoms and signs. A byte for each group and state says where its best path came from."""
        groups = min(dim, max(1, settings.atoms // settings.T))
        atoms, states = settings.K // 2, 1 << _memory(settings)
        operations = settings.T * groups * settings.K // 2
        return SearchCost(search_entries(settings, dim, groups) // 2, groups * states // 8, operations, groups * atoms)

    def radix(self, step: Step) -> int:
        return 1 << self._bits

    def choose(self, direction: Tensor, step: Step) -> Tensor:
        """The letters of the path with the largest <z, direction>; -1 where that is not finite."""
        return self.codebook(step).trellis_search(direction, step.at, self._bits)

    def noise(self, letters: Tensor, step: Step) -> Tensor:
        state = torch.zeros_like(letters)
        reach = -(-self._memory // self._bits)  # letters that a state remembers, if so many came before
        for back in range(1, min(reach, letters.shape[1] - 1) + 1):
            state[:, back:] |= letters[:, :-back] << (self._bits * (back - 1))
        state &= (1 << self._memory) - 1
        index = (state << (self._bits - 1)) + (letters >> 1)
        return self.codebook(step).atoms(index, step.at, 1 - 2 * (letters & 1))


def _memory(settings: Settings) -> int:
    """Bits of a state: log2 K less a letter's."""
    return settings.K.bit_length() - 1 - settings.C

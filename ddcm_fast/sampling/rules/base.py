"""Rules: what is coded at a step. A rule chooses symbols for a direction and turns symbols into noise."""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from ddcm_fast.codebook.law import CodebookSpec
from ddcm_fast.errors import ConfigError, FormatError
from ddcm_fast.lazy import deferred
from ddcm_fast.sampling.bitstream import pack, unpack, unpack_prefix
from ddcm_fast.sampling.combinatorics import log2_comb
from ddcm_fast.sampling.schedule import Step

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ddcm_fast.codebook.codebook import Codebook
else:
    deferred(globals(), torch="torch", Codebook="ddcm_fast.codebook.codebook:Codebook")


class Parameter(NamedTuple):
    """A field of the configuration: its limits, and what it is, for the command line's help."""

    low: int
    high: int
    help: str


#: The parameter of rules whose steps share the file's atoms by their information.
ATOMS = Parameter(1, 2**32, "atoms in the whole file (instead of M)")


#: The steps of a configuration, made when asked for.
Plan = Callable[[], Sequence[Step]]


class SearchCost(NamedTuple):
    """What choosing an image's symbols takes: `entries` of noise made, and `numbers` of 8 bytes held at once beside the
    state, on which `operations` are done; `scores` more numbers where the backend holds them (Backend.holds_scores)."""

    entries: int
    numbers: int = 0
    operations: int = 0
    scores: int = 0


class Settings:
    """What rules read of a configuration; codec.config.CodecConfig is one."""

    kind: str
    K: int
    M: int
    C: int
    atoms: int
    T: int
    seed: int
    official_grid: bool


class Rule(ABC):
    """One way to code the noise of a step. docs/codec.md says how to add one.

    Inside the sampling loop the choice of a step is a tensor of *letters* (B, n) int64 on the device, so that nothing
    waits for it. For the file, one image's letters become *symbols*: integers with the step's radices, which cost
    exactly log2(radix) bits each. Most rules' letters are their symbols.

    The encoder calls `choose`, the generator `draw`, and everyone `noise`: encoder and decoder share the code that
    matters.

    Attributes:
        name: in configurations; rules that are used without one need none.
        number: in files, 0 to 14, of the package's rules; a rule from elsewhere has None and is there by its name.
        parameters: the fields M, C, atoms and official_grid of the configuration that it takes, with their limits. The
            steps of a rule that takes `atoms` share these by their information.
        capturable: whether choice and noise are functions of tensors on the device alone, as CUDA graphs need.
        varies: whether a payload's length depends on the image.
        samples: whether the noise chosen is a sample of the posterior, and not the one that comes nearest the image.
        unwritten: bits of a payload's end that may be missing from its file.
    """

    name: ClassVar[str] = ""
    number: ClassVar[int | None] = None
    parameters: ClassVar[Mapping[str, Parameter]] = {}
    capturable: ClassVar[bool] = False
    varies: ClassVar[bool] = False
    samples: ClassVar[bool] = False
    unwritten: ClassVar[int] = 0

    def __init__(self, codebook: Codebook) -> None:
        self._codebook = codebook

    # ---- what a configuration means --------------------------------------------------------------

    @classmethod  # noqa: B027  (most rules have nothing to check)
    def check(cls, settings: Settings) -> None:
        """Raise ConfigError for settings that are each within their limits but not possible together."""

    @classmethod
    def make(cls, settings: Settings, steps: Sequence[Step], dim: int, backend: str) -> Rule:
        """The rule of a configuration, its steps and states of `dim` entries. Raises ConfigError."""
        return cls(Codebook(settings.kind, dim, settings.K, seed=settings.seed, signed=False, backend=backend))

    @classmethod
    def payload_bits(cls, settings: Settings, plan: Plan, dim: int) -> float:
        """Bits of a payload, expected ones where they vary."""
        steps = plan()
        rule = cls.make(settings, steps, dim, "reference")
        return sum(rule.expected_bits(step) for step in steps if step.coded)

    @classmethod
    def worth(cls, settings: Settings, step_bits: float) -> float:
        """Part of the bits of a step that turns into information, in theory or as measured; with `atoms` only."""
        return 0.8

    @classmethod
    def search_cost(cls, settings: Settings, dim: int) -> SearchCost:
        """About what an encoder of states of `dim` entries does in all, as if its steps were alike."""
        return SearchCost(search_entries(settings, dim))

    # ---- a step ----------------------------------------------------------------------------------

    def codebook(self, step: Step) -> Codebook:
        """The codebook of a step: the same for all where nothing else is said."""
        return self._codebook

    @abstractmethod
    def radices(self, step: Step) -> list[int]:
        """Radices of the symbols of a step; the step costs sum(log2(radix)) bits."""

    def least_bits(self, step: Step) -> float:
        """Bits that a step takes in a payload at least; without a list of many radices, as files can ask for any."""
        return sum(radix.bit_length() - 1 for radix in self.radices(step))

    def expected_bits(self, step: Step) -> float:
        """Bits that a step is expected to take."""
        return sum(math.log2(radix) for radix in self.radices(step))

    @abstractmethod
    def choose(self, direction: Tensor, step: Step) -> Tensor:
        """Letters (B, n) whose noise is most aligned with a direction (B, D) float32."""

    def choose_near(
        self, direction: Tensor, step: Step, spent: float, goal: float, last: bool
    ) -> tuple[Tensor, float]:
        """Of choices as good for one direction (1, D), the one that brings the bits spent nearest to a goal.

        Returns letters (1, n) and the bits then spent. With `last` the goal should not be exceeded.
        """
        return self.choose(direction, step), spent + self.expected_bits(step)

    @abstractmethod
    def noise(self, letters: Tensor, step: Step) -> Tensor:
        """Noise z (B, D) float32 of the letters (B, n)."""

    def draw(self, batch: int, step: Step, generator: torch.Generator) -> Tensor:
        """Uniformly random letters (batch, n), on the CPU, for generation."""
        columns = [
            torch.randint(radix, (batch, 1), generator=generator, dtype=torch.int64, device="cpu")
            for radix in self.radices(step)
        ]
        return torch.cat(columns, dim=1)

    def to_symbols(self, letters: Sequence[int], step: Step) -> list[int]:
        """One image's letters -> symbols."""
        return list(letters)

    def to_letters(self, symbols: Sequence[int], step: Step) -> list[int]:
        """One image's symbols -> letters, the inverse of `to_symbols`."""
        return list(symbols)

    def write(self, letters: Sequence[Sequence[int]], steps: Sequence[Step]) -> bytes:
        """One image's letters of every coded step -> the payload of its file."""
        symbols = [s for own, step in zip(letters, steps, strict=True) for s in self.to_symbols(own, step)]
        return pack(symbols, [radix for step in steps for radix in self.radices(step)])

    def read(self, data: bytes, steps: Sequence[Step], prefix: bool = False) -> list[list[int]]:
        """The payload of a file -> the letters of every coded step, the inverse of `write`.

        With `prefix`, data is the beginning of a payload and only the steps that it determines are returned.
        Raises FormatError: the data is not what `write` writes.
        """
        if prefix:
            symbols = unpack_prefix(data, (radix for step in steps for radix in self.radices(step)))
        else:
            self.check_length(data, steps)
            symbols = unpack(data, [radix for step in steps for radix in self.radices(step)])
        letters: list[list[int]] = []
        first = 0
        for step in steps:
            last = first + len(self.radices(step))
            if last > len(symbols):
                break
            letters.append(self.to_letters(symbols[first:last], step))
            first = last
        return letters

    def check_length(self, data: bytes, steps: Sequence[Step]) -> None:
        """Raise FormatError for a payload that is shorter than any of the steps' would be."""
        if sum(self.least_bits(step) for step in steps) > 8 * len(data) + self.unwritten:
            raise FormatError("the payload is not as long as the header says: the file is truncated or corrupt")

    def uncoded_noise(self, batch: int, step: Step, device: torch.device) -> Tensor:
        """Noise of a step that carries no bits: atom 0 of every group, the same for every image."""
        book = self.codebook(step)
        index = torch.zeros(batch, book.spec.groups, dtype=torch.int64, device=device)
        return book.atoms(index, step.at)


class Grouped(Rule):
    """A rule that gives each atom of a step a group of coordinates of its own.

    Args:
        books: step index -> codebook of every coded step. plain: of the others.

    Attributes:
        held, worked: numbers of 8 bytes that a search keeps, and operations on them, for each atom of each group.
    """

    parameters: ClassVar[Mapping[str, Parameter]] = {"atoms": ATOMS}
    held: ClassVar[int] = 0
    worked: ClassVar[int] = 0

    def __init__(self, books: Mapping[int, Codebook], plain: Codebook) -> None:
        self._books = dict(books)
        self._plain = plain

    @classmethod
    def search_cost(cls, settings: Settings, dim: int) -> SearchCost:
        groups = min(dim, max(1, settings.atoms // settings.T))
        scores = groups * settings.K
        return SearchCost(search_entries(settings, dim, groups), cls.held * scores, cls.worked * settings.T * scores)

    @staticmethod
    def groups_of(settings: Settings, steps: Sequence[Step], dim: int) -> dict[int, int]:
        """Step index -> groups of the coded steps. Raises ConfigError: more than entries of a state."""
        groups = planned_atoms(steps)
        if max(groups.values(), default=0) > dim:
            raise ConfigError(f"{settings.atoms} atoms are more than one an entry and step; lower the bitrate")
        return groups

    def codebook(self, step: Step) -> Codebook:
        return self._books.get(step.index, self._plain)

    def radix(self, step: Step) -> int:
        """Radix of each of a step's symbols: by default its codebook's size."""
        return self.codebook(step).spec.size

    def radices(self, step: Step) -> list[int]:
        """One for each group."""
        return [self.radix(step)] * self.codebook(step).spec.groups

    def least_bits(self, step: Step) -> float:
        return self.codebook(step).spec.groups * (self.radix(step).bit_length() - 1)


def planned_atoms(steps: Sequence[Step]) -> dict[int, int]:
    """Step index -> atoms of the coded steps."""
    return {step.index: step.atoms for step in steps if step.coded}


def search_entries(settings: Settings, dim: int, groups: int = 1) -> int:
    """Entries of noise that one pass a step over the codebook makes."""
    spec = CodebookSpec(settings.kind, dim, settings.K, groups)
    return settings.T * settings.K * groups * spec.calls_per_group * spec.entries_per_call


def worth_of_largest(size: int, count: int) -> float:
    """Information of the `count` largest of K = `size` absolute scores, as part of the bits that name them with signs.

    The M largest of K scores, of size t sqrt(D), move the state like a noise channel of M t^2 / (2 ln 2) bits.
    """
    tail = min(1.0, count / size)
    normal = statistics.NormalDist()
    score = 2 * normal.pdf(normal.inv_cdf(1 - tail / 2)) / tail  # mean of the part `tail` of |N(0, 1)| that is largest
    return count * score**2 / (2 * math.log(2) * (log2_comb(size, count) + count))

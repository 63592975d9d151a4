"""CodecConfig: everything that decoder and encoder must agree on, and the presets that name good choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ddcm_fast.codebook.codebook import Codebook
from ddcm_fast.codebook.law import KINDS, MAX_SIZE, CodebookSpec, integer
from ddcm_fast.errors import ConfigError
from ddcm_fast.sampling.information import kl_timesteps, shares
from ddcm_fast.sampling.model import DiffusionModel
from ddcm_fast.sampling.rules import Greedy, Product, Pursuit, Rcc, Rule, Threshold, Trellis
from ddcm_fast.sampling.rules.rcc import DEFAULT_MARGIN
from ddcm_fast.sampling.rules.trellis import MAX_LETTER_BITS, MAX_MEMORY
from ddcm_fast.sampling.schedule import Step, allocate, linspace, plan, tail_timesteps, trailing

#: Positions in these tuples are the numbers in files: append only.
RULES = ("greedy", "pursuit", "product", "threshold", "rcc", "trellis")
SCHEDULES = ("linspace", "trailing", "kl")

#: Rules whose steps share the file's `atoms` by their information.
SHARING_RULES = ("product", "threshold", "rcc", "trellis")

#: Of these, the rules whose atoms are each of a group of coordinates.
GROUPED_RULES = ("product", "rcc", "trellis")

#: Rules that use C.
RULES_WITH_BITS = ("pursuit", "trellis")

MAX_T, MAX_M, MAX_C, MAX_STOP, MAX_ATOMS = 65535, 1024, 16, 65535, 2**32

_TIMESTEPS: dict[str, Callable[[DiffusionModel, int], list[float]]] = {
    "linspace": linspace,
    "trailing": trailing,
}


class SearchCost(NamedTuple):
    """What choosing an image's symbols takes: `entries` of noise made, and `numbers` of 8 bytes held at once beside the
    state, on which `operations` are done."""

    entries: int
    numbers: int = 0
    operations: int = 0


@dataclass(frozen=True)
class CodecConfig:
    """How an image is coded. All fields travel in the file.

    Attributes:
        rule: "greedy" (DDCM), "pursuit" (DDCM's matching pursuit), "threshold" (Turbo-DDCM), "product" (groups),
            "trellis" (groups chosen together) or "rcc" (DiffC's reverse channel coding).
        kind: of codebook, see Codebook.
        K: atoms in the codebook. M: atoms a step (pursuit). C: bits of a coefficient (pursuit) or of a letter
            (trellis, where K = 2^(memory + C) counts atoms and signs).
        atoms: chosen in the whole file, shared out among the coded steps by the information the model's curve expects
            of them (threshold: M a step; product, trellis and rcc: each in a group of its own).
        T: coded steps. schedule: "linspace", "trailing" or "kl" (equal information a step).
        stop: timestep at which coding ends ("kl" only). tail: steps without bits from there to the clean image;
            T + tail network evaluations in all. One gives the highest PSNR, more give sharper pictures.
        ancestral_tail: the tail's steps take the noise of atom 0 (DDPM) instead of none (DDIM).
        t_range: (high, low): only steps with low <= t <= high carry bits, the others use atom 0.
        seed: of codebook and x_T, 64 bit.
        official_grid: pursuit's coefficients as in the official code (see rules.pursuit).

    Raises ConfigError for impossible values.
    """

    rule: str = "greedy"
    kind: str = "sign"
    K: int = 4096
    M: int = 1
    C: int = 1
    atoms: int = 0
    T: int = 100
    schedule: str = "linspace"
    stop: int = 0
    tail: int = 0
    ancestral_tail: bool = False
    t_range: tuple[int, int] | None = None
    seed: int = 0
    official_grid: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("rule", RULES), ("kind", KINDS), ("schedule", SCHEDULES)):
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")
        for name, low, high in (
            ("K", 1, MAX_SIZE),
            ("M", 1, MAX_M),
            ("C", 1, MAX_C),
            ("atoms", 0, MAX_ATOMS),
            ("T", 1, MAX_T),
            ("stop", 0, MAX_STOP),
            ("tail", 0, MAX_T),
            ("seed", 0, 2**64 - 1),
        ):
            object.__setattr__(self, name, integer(name, getattr(self, name), low, high))  # numpy's, too
        if self.rule != "pursuit" and (self.M, self.official_grid) != (1, False):
            raise ConfigError(f"M belongs to the rule 'pursuit', not to {self.rule!r}")
        if self.rule not in RULES_WITH_BITS and self.C != 1:
            raise ConfigError(f"C belongs to {' and '.join(RULES_WITH_BITS)}, not to {self.rule!r}")
        if self.rule == "trellis" and (self.K & (self.K - 1) or not self.C <= self.trellis_memory <= MAX_MEMORY):
            raise ConfigError(f"K is {self.K}, C {self.C}; trellis takes K = 2^(memory + C), memory C to {MAX_MEMORY}")
        if self.rule == "trellis" and self.C > MAX_LETTER_BITS:
            raise ConfigError(f"C is {self.C}; trellis takes 1 to {MAX_LETTER_BITS}")
        if (self.rule in SHARING_RULES) != (self.atoms > 0):
            raise ConfigError(f"atoms is {self.atoms}; it must be at least 1 with {' or '.join(SHARING_RULES)}, else 0")
        if self.rule == "rcc" and (self.rcc_bits < 1 or self.K & (self.K - 1)):
            raise ConfigError(f"K is {self.K}; rcc takes a power of two, at least {2 ** (DEFAULT_MARGIN + 1)}")
        if (self.schedule == "kl") != (self.tail > 0) or (self.stop > 0 and self.schedule != "kl"):
            raise ConfigError("stop and tail belong to the schedule 'kl', which needs a tail of at least one step")
        if self.ancestral_tail and self.tail == 0:
            raise ConfigError("ancestral_tail needs the schedule 'kl' and its tail")
        if self.t_range is not None:
            high, low = (integer("t_range's timestep", t, 0, MAX_STOP) for t in _pair(self.t_range))
            if low > high:
                raise ConfigError(f"t_range is {self.t_range}; it must be (high, low) with high >= low")
            object.__setattr__(self, "t_range", (high, low))

    def steps(self, model: DiffusionModel) -> list[Step]:
        """The schedule's steps for a model, with what is coded in each: the plan that encoder and decoder follow.

        With the rules that share atoms, a step whose share rounds to nothing is worth no bits and is made
        deterministic: noise there would only have to be undone. The others then share all atoms, but have one at
        least, so a file can have a few more than `atoms`.
        """
        if self.schedule == "kl":
            timesteps = kl_timesteps(model, self.T, self.stop)
            end = tail_timesteps(self.stop, self.tail)
            coded = [True] * self.T + [False] * self.tail
            eta = [1.0] * self.T + [float(self.ancestral_tail)] * self.tail
            steps = plan(model, timesteps + end, coded, eta)
        else:
            steps = plan(model, _TIMESTEPS[self.schedule](model, self.T))
        if self.t_range is not None:
            high, low = self.t_range
            steps = [
                dataclasses.replace(step, coded=step.coded and low <= step.t <= high) for step in steps
            ]
        if self.rule not in SHARING_RULES:
            return steps
        noisy = [step for step in steps if step.coded]
        worth = [step for step, part in zip(noisy, self._parts(model, noisy), strict=True) if part]
        planned = {step.index: step.deterministic for step in noisy}
        for step, part in zip(worth, self._parts(model, worth), strict=True):
            planned[step.index] = dataclasses.replace(step, atoms=max(1, part))
        return [planned.get(step.index, step) for step in steps]

    def _parts(self, model: DiffusionModel, steps: Sequence[Step]) -> list[int]:
        return allocate(self.atoms, shares(model, steps))

    @property
    def trellis_memory(self) -> int:
        """Bits of a state of the rule trellis: log2 K less a letter's."""
        return self.K.bit_length() - 1 - self.C

    @property
    def rcc_bits(self) -> int:
        """Information of one group of the rule rcc: log2 K less the margin its search needs."""
        return self.K.bit_length() - 1 - DEFAULT_MARGIN

    def search_cost(self, dim: int) -> SearchCost:
        """About what an encoder of states of `dim` entries does in all, as if its steps were alike."""
        groups = min(dim, max(1, self.atoms // self.T)) if self.rule in GROUPED_RULES else 1
        spec = CodebookSpec(self.kind, dim, self.K, groups)
        whole = self.T * self.K * groups * spec.calls_per_group * spec.entries_per_call
        if self.rule == "pursuit" and self.M > 1:
            # Scores and norms of all atoms, and for each coefficient and atom about ten numbers from them.
            passes = 1 if spec.orthogonal else self.M
            return SearchCost(passes * whole, 16 * self.K, 12 * self.T * self.M * self.K << self.C)
        if self.rule == "trellis":  # scores and the paths' metrics
            return SearchCost(whole // 2, groups * self.K, 2 * self.T * groups * self.K)
        if self.rule == "rcc":  # arrival times
            return SearchCost(whole, 3 * groups * self.K, 8 * self.T * groups * self.K)
        return SearchCost(whole)

    def make_rule(self, steps: Sequence[Step], dim: int, backend: str) -> Rule:
        """The rule for states of `dim` entries; `steps` as returned by `steps`."""
        if self.rule in SHARING_RULES:
            atoms = {step.index: step.atoms for step in steps if step.coded}
            if self.rule == "threshold":
                return Threshold(Codebook(self.kind, dim, self.K, seed=self.seed, backend=backend), atoms)
            if max(atoms.values(), default=0) > dim:
                raise ConfigError(f"{self.atoms} atoms are more than one an entry and step; lower the bitrate")
            if self.rule == "product":
                return Product(self.kind, dim, self.K, atoms, self.seed, backend)
            if self.rule == "trellis":
                return Trellis(self.kind, dim, atoms, self.C, self.trellis_memory, self.seed, backend)
            bits = {index: float(count * self.rcc_bits) for index, count in atoms.items()}
            return Rcc(self.kind, dim, atoms, bits, self.seed, backend)
        book = Codebook(self.kind, dim, self.K, seed=self.seed, signed=False, backend=backend)
        if self.rule == "pursuit":
            return Pursuit(book, self.M, self.C, self.official_grid)
        return Greedy(book)


def _pair(value: Any) -> tuple[Any, Any]:
    """Two things. Raises ConfigError."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ConfigError(f"t_range is {value!r}; it must be (high, low)")
    return value[0], value[1]


#: Name -> configuration and what it is.
PRESETS: dict[str, tuple[CodecConfig, str]] = {
    "ddcm": (CodecConfig(rule="greedy"), "DDCM (ICML 2025): one atom of K a step, T steps evenly spaced"),
    "pursuit": (
        CodecConfig(rule="pursuit", M=4, C=3),
        "DDCM's matching pursuit: up to M atoms a step with C-bit coefficients, for higher rates",
    ),
    "product": (
        CodecConfig(rule="product", kind="hadamard", K=65536, atoms=1000, T=25, schedule="kl", stop=100, tail=1),
        "many signed atoms a step, each of K for its own group of coordinates; the best pictures for the bits",
    ),
    "trellis": (
        CodecConfig(
            rule="trellis", kind="hadamard", K=4096, C=4, atoms=4000, T=25, schedule="kl", stop=100, tail=1
        ),
        "product with its groups chosen together by the Viterbi algorithm; better still, the search takes longer",
    ),
    "turbo": (
        CodecConfig(rule="threshold", kind="sign", K=16384, atoms=1500, T=20, schedule="kl", stop=100, tail=3),
        "Turbo-DDCM (ICLR 2026): the M atoms of largest score with their signs, equal information a step",
    ),
    "turbo-hadamard": (
        CodecConfig(rule="threshold", kind="hadamard", K=16384, atoms=1500, T=20, schedule="kl", stop=100, tail=3),
        "turbo on a codebook of orthogonal atoms, where its choice is exactly the best and the search nearly free",
    ),
    "diffc": (
        CodecConfig(rule="rcc", kind="hadamard", K=65536, atoms=1600, T=40, schedule="kl", stop=100, tail=3),
        "DiffC: reverse channel coding, noise distributed as the forward process has it (needs constriction)",
    ),
}


def preset(name: str, **overrides: Any) -> CodecConfig:
    """A preset's configuration with some fields replaced; None keeps the preset's value.

    With the rules threshold, product and rcc, M atoms a step stands for atoms = M * T.

    Raises ConfigError: unknown preset or field, or an impossible value.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    fields = {f.name for f in dataclasses.fields(CodecConfig)}
    unknown = set(overrides) - fields
    if unknown:
        raise ConfigError(f"unknown setting {sorted(unknown)[0]!r}: choose among {', '.join(sorted(fields))}")
    base = PRESETS[name][0]
    given = {k: v for k, v in overrides.items() if v is not None}
    if base.rule in SHARING_RULES and "M" in given:
        if "atoms" in given:
            raise ConfigError("give M (atoms a step) or atoms (in the whole file), not both")
        given["atoms"] = given.pop("M") * given.get("T", base.T)
    return dataclasses.replace(base, **given)

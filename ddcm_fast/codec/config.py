"""CodecConfig: everything that decoder and encoder must agree on, and the presets that name good choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddcm_fast.codebook.law import KINDS, MAX_SIZE, integer
from ddcm_fast.errors import ConfigError
from ddcm_fast.lazy import deferred
from ddcm_fast.sampling.rules import RULES, Rule, rule_named
from ddcm_fast.sampling.rules.base import Parameter, Settings
from ddcm_fast.sampling.schedule import (
    Step,
    allocate,
    diffc,
    linspace,
    linspace_floor,
    plan,
    tail_timesteps,
    trailing,
)

if TYPE_CHECKING:
    from ddcm_fast.sampling import information
    from ddcm_fast.sampling.model import DiffusionModel
else:
    deferred(globals(), information="ddcm_fast.sampling.information")

#: Positions in this tuple are the numbers in files: append only. The first was `linspace` until that was mended.
SCHEDULES = ("linspace-floor", "trailing", "kl", "diffc", "linspace")
#: Those that end in a tail.
TAILED = ("kl", "diffc")

_MOST = 65535  # steps, and timesteps

_TIMESTEPS: dict[str, Callable[[DiffusionModel, int], list[float]]] = {
    "linspace": linspace,
    "linspace-floor": linspace_floor,
    "trailing": trailing,
}


#: Fields that belong to the rules with such a parameter. Files have the numbers of their rule, in this order.
RULE_NUMBERS = ("M", "C", "atoms")
_OWN = (*RULE_NUMBERS, "official_grid")


def _field(default: Any, help: str, limits: tuple[int, int] | None = None, **how: Any) -> Any:
    """A field: limits of an integer, and `how` argparse takes the option."""
    known = {} if limits is None else {"limits": Parameter(*limits, help), "type": int}
    return dataclasses.field(default=default, metadata={"help": help, **known, **how})


@dataclass(frozen=True)
class CodecConfig(Settings):
    """How an image is coded. All fields travel in the file.

    Attributes:
        rule: name of what is coded at a step (docs/codec.md). It says which of M, C, atoms and official_grid it takes,
            and what they are (`Rule.parameters`); the others keep their defaults.
        kind: of codebook, see Codebook.
        K: atoms in the codebook. M: atoms a step. C: bits of a coefficient or letter.
        atoms: chosen in the whole file, shared out among the coded steps by the information the model's curve expects
            of them.
        T: coded steps. schedule: "linspace", "trailing", "kl" (equal information a step) or "diffc" (DiffC's published
            timesteps, where steps share the atoms evenly); "linspace-floor" is what "linspace" was in files of 0.1.
        stop: timestep at which coding ends ("kl" only). tail: steps without bits after the coded ones;
            T + tail network evaluations in all. One gives the highest PSNR, more give sharper pictures.
        ancestral_tail: the tail's steps take the noise of atom 0 (DDPM) instead of none (DDIM).
        t_range: (high, low): only steps with low <= t <= high carry bits, the others use atom 0.
        seed: of codebook and x_T, 64 bit.
        official_grid: pursuit's coefficients as in the official code (see rules.pursuit).

    Raises ConfigError for impossible values.
    """

    rule: str = "greedy"
    kind: str = _field("sign", "of codebook", choices=KINDS)
    K: int = _field(4096, "atoms in the codebook; a larger K codes more bits a step", (1, MAX_SIZE))
    M: int = 1
    C: int = 1
    atoms: int = 0
    T: int = _field(100, "steps, which is network evaluations", (1, _MOST))
    schedule: str = _field("linspace", "which timesteps are visited", choices=SCHEDULES)
    stop: int = _field(0, "timestep at which coding ends (schedule kl)", (0, _MOST))
    tail: int = _field(0, "steps after it: 1 for the best PSNR, more for sharper pictures", (0, _MOST))
    ancestral_tail: bool = _field(
        False, "with noise in the tail (DDPM), which helps no PSNR", action="store_const", const=True
    )
    t_range: tuple[int, int] | None = _field(
        None, "timesteps that carry bits", type=int, nargs=2, metavar=("HIGH", "LOW")
    )
    seed: int = _field(0, "of the codebook, 64 bit (default: 0)", (0, 2**64 - 1))
    official_grid: bool = False

    def __post_init__(self) -> None:
        own = self.rule_type.parameters
        for field in dataclasses.fields(self):
            name, value, choices = field.name, getattr(self, field.name), field.metadata.get("choices")
            limits = own.get(name, field.metadata.get("limits"))
            if choices is not None and value not in choices:
                raise ConfigError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")
            if name in _OWN and name not in own:
                default: Any = field.default
                if value != default:
                    raise ConfigError(f"the rule {self.rule!r} takes no {name} (rules that do: {_takers(name)})")
                limits = Parameter(default, default, "")
            if limits is not None and not isinstance(field.default, bool):
                object.__setattr__(self, name, integer(name, value, limits.low, limits.high))  # numpy's, too
        self.rule_type.check(self)
        if (self.schedule in TAILED) != (self.tail > 0) or (self.stop > 0 and self.schedule != "kl"):
            raise ConfigError(
                f"stop is {self.stop} and tail {self.tail} with the schedule {self.schedule!r}; stop belongs to 'kl', "
                "tail to 'kl' and 'diffc', which need one of at least one step"
            )
        if self.ancestral_tail and self.tail == 0:
            raise ConfigError(f"ancestral_tail needs a schedule with a tail ('kl', 'diffc'), not {self.schedule!r}")
        if self.t_range is not None:
            high, low = (integer("t_range's timestep", t, 0, _MOST) for t in _pair(self.t_range))
            if low > high:
                raise ConfigError(f"t_range is {self.t_range}; it must be (high, low) with high >= low")
            object.__setattr__(self, "t_range", (high, low))

    @property
    def rule_type(self) -> type[Rule]:
        """The rule's class, with all that is true of it whatever the steps."""
        return rule_named(self.rule)

    @property
    def shares_atoms(self) -> bool:
        """Whether the steps share the file's `atoms` by their information."""
        return "atoms" in self.rule_type.parameters

    def steps(self, model: DiffusionModel) -> list[Step]:
        """The schedule's steps for a model, with what is coded in each: the plan that encoder and decoder follow."""
        if self.schedule in TAILED:
            coded = [True] * self.T + [False] * self.tail
            eta = [1.0] * self.T + [float(self.ancestral_tail)] * self.tail
            if self.schedule == "diffc":
                timesteps = diffc(model, self.T + self.tail)
            else:
                timesteps = information.kl_timesteps(model, self.T, self.stop) + tail_timesteps(self.stop, self.tail)
            steps = plan(model, timesteps, coded, eta)
        else:
            steps = plan(model, _TIMESTEPS[self.schedule](model, self.T))
        if self.t_range is not None:
            high, low = self.t_range
            steps = [
                dataclasses.replace(step, coded=step.coded and low <= step.t <= high) for step in steps
            ]
        return self.shared(model, steps)

    def shared(self, model: DiffusionModel, steps: list[Step]) -> list[Step]:
        """The steps, those of rules that share atoms with their numbers of them.

        A step whose share rounds to nothing is worth no bits and is made deterministic: noise there would only have to
        be undone. The others then share all atoms, but have one at least, so a file can have a few more than `atoms`.
        """
        if not self.shares_atoms:
            return steps
        noisy = [step for step in steps if step.coded]
        worth = [step for step, part in zip(noisy, self._parts(model, noisy), strict=True) if part]
        planned = {step.index: step.deterministic for step in noisy}
        for step, part in zip(worth, self._parts(model, worth), strict=True):
            planned[step.index] = dataclasses.replace(step, atoms=max(1, part))
        return [planned.get(step.index, step) for step in steps]

    def _parts(self, model: DiffusionModel, steps: Sequence[Step]) -> list[int]:
        even = self.schedule == "diffc"
        return allocate(self.atoms, [1.0] * len(steps) if even else information.shares(model, steps))

    def make_rule(self, steps: Sequence[Step], dim: int, backend: str) -> Rule:
        """The rule for states of `dim` entries; `steps` as returned by `steps`."""
        return self.rule_type.make(self, steps, dim, backend)


def _pair(value: Any) -> tuple[Any, Any]:
    """Two things. Raises ConfigError."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ConfigError(f"t_range is {value!r}; it must be (high, low)")
    return value[0], value[1]


DEFAULT_MODEL, DEFAULT_PRESET = "photo", "trellis"

#: Of the applications: the paper's, whose restoration objective is exact for one atom a step.
APPLICATION_PRESET = "ddcm"

#: Name -> configuration and what it is.
PRESETS: dict[str, tuple[CodecConfig, str]] = {
    "ddcm": (CodecConfig(rule="greedy"), "DDCM (ICML 2025): one atom of K a step, T steps evenly spaced"),
    "pursuit": (
        CodecConfig(rule="pursuit", M=4, C=3),
        "DDCM's matching pursuit: up to M atoms a step with C-bit coefficients, for higher rates",
    ),
    "product": (
        CodecConfig(rule="product", kind="hadamard", K=65536, atoms=1000, T=25, schedule="kl", stop=100, tail=1),
        "many signed atoms a step, each of K for its own group of coordinates, chosen independently",
    ),
    "trellis": (
        CodecConfig(
            rule="trellis", kind="hadamard", K=131072, C=5, atoms=3200, T=16, schedule="kl", stop=100, tail=1
        ),
        "many atoms a step, chosen together by the Viterbi algorithm; the best pictures for the bits",
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
    "turbo-paper": (
        CodecConfig(rule="threshold", kind="gaussian", K=16384, atoms=1425, T=19, schedule="diffc", tail=1),
        "Turbo-DDCM with its paper's codebook and timesteps, the same number of atoms at each; to compare with",
    ),
    "diffc-paper": (
        CodecConfig(
            rule="rcc_padded", kind="hadamard", K=65536, C=2, atoms=1200, T=60, schedule="kl", stop=100, tail=10
        ),
        "DiffC with its paper's chunks of 16 bits, 2 of them padding, in many steps; to compare with",
    ),
}


#: Bits a pixel of the qualities a person can choose without reading a paper.
QUALITIES = {"low": 0.1, "medium": 0.25, "high": 0.5, "best": 1.0}


def preset(name: str, **overrides: Any) -> CodecConfig:
    """A preset's configuration with some fields replaced; None keeps the preset's value.

    With rules that take `atoms`, M atoms a step stands for atoms = M * T.

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
    if base.shares_atoms and "M" in given:
        if "atoms" in given:
            raise ConfigError(
                f"M is {given['M']} and atoms {given['atoms']}; give M (a step) or atoms (in the whole file), not both"
            )
        given["atoms"] = given.pop("M") * given.get("T", base.T)
    return dataclasses.replace(base, **given)


def options() -> Iterator[tuple[str, dict[str, Any]]]:
    """The fields that the command line sets, each with what argparse's `add_argument` takes for its option."""
    for field in dataclasses.fields(CodecConfig):
        how = {key: value for key, value in field.metadata.items() if key != "limits"}
        if field.name in RULE_NUMBERS:
            how = {"type": int, "help": _help_by_rule(field.name)}
        if how:
            yield field.name, how


def _takers(name: str) -> str:
    return ", ".join(rule.name for rule in RULES.values() if name in rule.parameters)


def _help_by_rule(name: str) -> str:
    """What a field is to the rules that take it."""
    said: dict[str, list[str]] = {}
    for rule in RULES.values():
        if name in rule.parameters:
            said.setdefault(rule.parameters[name].help, []).append(rule.name)
    if name == "M":
        said["short for atoms = M T"] = [_takers("atoms")]
    return "; ".join(f"{text} ({', '.join(rules)})" for text, rules in said.items())

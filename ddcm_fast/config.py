"""CodecConfig: everything that decoder and encoder must agree on, and the presets that name good choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .codebook import Codebook
from .errors import ConfigError
from .law import KINDS, MAX_SIZE
from .models.base import DiffusionModel
from .rules import Greedy, Pursuit, Rule
from .schedule import Step, linspace, plan, trailing

#: Positions in these tuples are the numbers in files: append only.
RULES = ("greedy", "pursuit")
SCHEDULES = ("linspace", "trailing")

MAX_T, MAX_M, MAX_C = 65535, 1024, 16

_TIMESTEPS: dict[str, Callable[[DiffusionModel, int], list[float]]] = {
    "linspace": linspace,
    "trailing": trailing,
}


@dataclass(frozen=True)
class CodecConfig:
    """How an image is coded. All fields travel in the file.

    Attributes:
        rule: "greedy" (DDCM) or "pursuit" (DDCM's matching pursuit).
        kind: of codebook, see Codebook.
        K: atoms in the codebook. M: atoms a step (pursuit). C: bits of a coefficient (pursuit).
        T: steps, which is network evaluations. schedule: "linspace" or "trailing".
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
    T: int = 100
    schedule: str = "linspace"
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
            ("T", 1, MAX_T),
            ("seed", 0, 2**64 - 1),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"{name} is {value!r}; it must be an integer from {low} to {high}")
        if self.rule != "pursuit" and (self.M, self.C, self.official_grid) != (1, 1, False):
            raise ConfigError(f"M and C belong to the rule 'pursuit', not to {self.rule!r}")
        if self.t_range is not None and not 0 <= self.t_range[1] <= self.t_range[0]:
            raise ConfigError(f"t_range is {self.t_range}; it must be (high, low) with high >= low >= 0")

    def steps(self, model: DiffusionModel) -> list[Step]:
        """The schedule's steps for a model."""
        timesteps = _TIMESTEPS[self.schedule](model, self.T)
        coded = None
        if self.t_range is not None:
            high, low = self.t_range
            coded = [low <= t <= high for t in timesteps]
        return plan(model, timesteps, coded)

    def make_rule(self, dim: int, backend: str) -> Rule:
        """The rule for states of `dim` entries."""
        book = Codebook(self.kind, dim, self.K, seed=self.seed, signed=False, backend=backend)
        if self.rule == "pursuit":
            return Pursuit(book, self.M, self.C, self.official_grid)
        return Greedy(book)


#: Name -> configuration and what it is.
PRESETS: dict[str, tuple[CodecConfig, str]] = {
    "ddcm": (CodecConfig(rule="greedy"), "DDCM (ICML 2025): one atom of K a step, T steps evenly spaced"),
    "pursuit": (
        CodecConfig(rule="pursuit", M=4, C=3),
        "DDCM's matching pursuit: up to M atoms a step with C-bit coefficients, for higher rates",
    ),
}


def preset(name: str, **overrides: Any) -> CodecConfig:
    """A preset's configuration with some fields replaced; None keeps the preset's value.

    Raises ConfigError: unknown preset or field, or an impossible value.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    fields = {f.name for f in dataclasses.fields(CodecConfig)}
    unknown = set(overrides) - fields
    if unknown:
        raise ConfigError(f"unknown setting {sorted(unknown)[0]!r}: choose among {', '.join(sorted(fields))}")
    return dataclasses.replace(PRESETS[name][0], **{k: v for k, v in overrides.items() if v is not None})

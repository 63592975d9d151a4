"""Rules: what is coded at a step. One file a rule, and one row here."""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib.metadata import entry_points
from typing import TypeVar

from ddcm_fast.errors import ConfigError, DDCMWarning
from ddcm_fast.sampling.rules.base import Rule
from ddcm_fast.sampling.rules.greedy import Greedy
from ddcm_fast.sampling.rules.product import Product
from ddcm_fast.sampling.rules.pursuit import Pursuit
from ddcm_fast.sampling.rules.rcc import Rcc
from ddcm_fast.sampling.rules.rcc_padded import RccPadded
from ddcm_fast.sampling.rules.threshold import Threshold
from ddcm_fast.sampling.rules.trellis import Trellis

__all__ = [
    "RULES",
    "Greedy",
    "Product",
    "Pursuit",
    "Rcc",
    "RccPadded",
    "Rule",
    "Threshold",
    "Trellis",
    "register",
    "rule_named",
]

#: Rules of other packages: entry points of this group are loaded when a rule is named that is not registered.
ENTRY_POINTS = "ddcm_fast.rules"

#: Name -> rule.
RULES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (
        Greedy,
        Pursuit,
        Product,
        Threshold,
        Rcc,
        Trellis,
        RccPadded,
    )
}

R = TypeVar("R", bound=type[Rule])


def register(rule: R) -> R:
    """Make a rule of one's own known by its name, to configurations and to files; it serves as a class decorator.

    A class of the same module and name takes the place of its former self, as in a notebook.

    Raises ConfigError: a name that is none or another rule's, or a number.
    """
    known = RULES.get(rule.name, rule)
    same = (known.__module__, known.__qualname__) == (rule.__module__, rule.__qualname__)
    if not (same and rule.name.isidentifier() and rule.name.isascii()):
        raise ConfigError(f"the rule's name {rule.name!r} is taken, or is no ASCII identifier; choose another")
    if rule.number is not None:
        raise ConfigError(f"the rule {rule.name!r} has a number; those are the package's own, leave it out")
    RULES[rule.name] = rule
    return rule


@lru_cache(maxsize=1)
def _load_installed() -> None:
    """Register the rules of installed packages: all of them, so that no file decides which."""
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            register(entry.load())
        except Exception as error:  # whatever another package's import may raise
            warnings.warn(f"the rule of {entry.value} cannot be loaded: {error}", DDCMWarning, stacklevel=2)


def rule_named(name: str) -> type[Rule]:
    """The rule of a name. Raises ConfigError: there is none."""
    if not isinstance(name, str) or name not in RULES:
        _load_installed()
    if not isinstance(name, str) or name not in RULES:
        raise ConfigError(f"unknown rule {name!r}: choose one of {', '.join(RULES)}, or register it")
    return RULES[name]

"""`rcc_padded`: reverse channel coding in DiffC's own chunks, for comparison with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ddcm_fast.sampling.rules.base import ATOMS, Parameter, Settings
from ddcm_fast.sampling.rules.rcc import Rcc


class RccPadded(Rcc):
    """`rcc` whose groups have C candidates' bits beyond their information, where `rcc` itself has 6.

    DiffC's published code (Vonderfecht and Liu, ICLR 2025) cuts a step into chunks of at most 16 bits, 2 of them
    padding: K = 2^16 and C = 2. Longer chunks cost fewer bits; so few candidates carry a little less than they should.
    """

    name, number = "rcc_padded", 6
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "C": Parameter(0, 12, "padding bits of a group's index"),
        "atoms": ATOMS,
    }

    @classmethod
    def margin_of(cls, settings: Settings) -> int:
        return settings.C

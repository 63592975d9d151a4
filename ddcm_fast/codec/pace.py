"""The encoder of `rcc` at a bitrate. An index of reverse channel coding has a random length, so a file of hundreds of
them misses its expected size by some per cent. Of two samples of each group, both as good, the encoder takes the one
that keeps the file on its way. (Samples from one codebook often agree, so this moves a file by few per cent only.)"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ddcm_fast.sampling.choosers import StepContext, Toward
from ddcm_fast.sampling.rules.rcc import Rcc
from ddcm_fast.sampling.schedule import Step

#: Bits by which a payload can be longer than its symbols: whole bytes, and the coder's own precision.
_ROUNDING = 12


class Paced(Toward):
    """Follow one image with the rule `rcc` such that the payload takes a given number of bits or a little less.

    Waits for the device at every step: what is chosen next depends on the bits spent.

    Args:
        target, weight: as Toward, of one image.
        rule, steps: the coded steps.
        bits: of the payload; shared by the steps as they are expected to need them.
    """

    def __init__(self, target: Tensor, weight: Tensor | None, rule: Rcc, steps: Sequence[Step], bits: float) -> None:
        super().__init__(target, weight)
        self._rule = rule
        bits -= _ROUNDING
        expected = [rule.expected_length(step) for step in steps]
        total = sum(expected)
        self._plan = {
            step.index: bits * so_far / total
            for step, so_far in zip(steps, itertools.accumulate(expected), strict=True)
        }
        self._last = steps[-1].index
        self._spent = 0.0

    def choose(self, context: StepContext) -> Tensor:
        step, plan = context.step, self._plan[context.step.index]
        direction = self._residual(context).flatten(1)
        letters, other = (self._rule.choose(direction, step, draw)[0].tolist() for draw in (0, 1))
        lengths, others = self._rule.lengths(letters, step), self._rule.lengths(other, step)

        def miss(total: float) -> tuple[bool, float]:
            return step.index == self._last and total > plan, abs(total - plan)

        total = self._spent + sum(lengths)
        for g, (first, second) in enumerate(zip(lengths, others, strict=True)):
            if miss(total - first + second) < miss(total):
                total += second - first
                letters[g] = other[g]
        self._spent = total
        return torch.tensor([letters], device=direction.device, dtype=torch.int64)

"""Choosers: who says which letters a coded step gets. An encoder, a generator and a decoder differ in nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, Union

import torch
from torch import Tensor

from ddcm_fast.errors import ConfigError
from ddcm_fast.sampling.model import DiffusionModel
from ddcm_fast.sampling.rules import Rule
from ddcm_fast.sampling.schedule import Step


@dataclass(frozen=True)
class StepContext:
    """What is known when a step's noise is chosen; tensors are float32 (B, *latent_shape) on the model's device.

    `following` is the step after this one (None at the last), for choosers that look ahead.
    """

    model: DiffusionModel
    rule: Rule
    step: Step
    x: Tensor
    x0_hat: Tensor
    eps_hat: Tensor
    condition: Any
    following: Step | None = None


class Chooser(ABC):
    """Says which letters a coded step gets.

    Attributes:
        ahead: (x0_hat, eps_hat) at the end of the step just chosen, of a chooser that has looked there with the
            model's `predict` on the very same state: the loop then does not evaluate the model again.
    """

    ahead: tuple[Tensor, Tensor] | None = None

    @abstractmethod
    def choose(self, context: StepContext) -> Tensor | None:
        """Letters (B, n) of the step, or None: take the step without noise (DDIM)."""


class Match(Chooser):
    """Encoder: the letters whose noise is most aligned with a direction.

    `objective(context)` returns that direction, of the shape of the state: the residual target - x0_hat makes a codec,
    a gradient makes guidance.
    """

    def __init__(self, objective: Callable[[StepContext], Tensor]) -> None:
        self._objective = objective

    def choose(self, context: StepContext) -> Tensor:
        direction = self._objective(context).flatten(1)
        return context.rule.choose(direction, context.step)


class Toward(Match):
    """The codec's encoder: follow the residual r = target - x0_hat (DDCM), weighted where a weight is given.

    Args:
        target: x0, (B, *latent_shape) float32. weight: of the residual, of a shape that broadcasts to it, or None.
    """

    def __init__(self, target: Tensor, weight: Tensor | None = None) -> None:
        super().__init__(self._residual)
        self.target, self.weight = target, weight

    def _residual(self, context: StepContext) -> Tensor:
        residual = self.target - context.x0_hat
        return residual if self.weight is None else self.weight * residual


def toward(target: Tensor, weight: Tensor | None = None) -> Toward:
    """The codec's encoder, see Toward."""
    return Toward(target, weight)


#: What random choices may begin from: a number, or a generator from which one is drawn.
Seed = Union[int, torch.Generator]


def seeded(seed: Seed) -> torch.Generator:
    """A CPU generator of its own for a seed, or for the next number of a generator (of any device).

    Raises ConfigError: not an integer from 0 to 2^64 - 1 or a generator.
    """
    if isinstance(seed, torch.Generator):
        seed = int(torch.randint(2**63 - 1, (), dtype=torch.int64, generator=seed, device=seed.device))
    try:
        number = index(seed)
    except TypeError as error:
        raise ConfigError(f"the seed is {seed!r}; it must be an integer or a torch.Generator") from error
    if not 0 <= number < 2**64:
        raise ConfigError(f"the seed is {number}; it must be from 0 to 2^64 - 1")
    return torch.Generator("cpu").manual_seed(number)


class Blind(Chooser):
    """A chooser whose letters do not depend on what the model predicts."""

    @abstractmethod
    def letters(self, rule: Rule, step: Step, batch: int, device: torch.device) -> Tensor | None:
        """Letters (batch, n) int64 of the step on the device, or None: take the step without noise."""

    def choose(self, context: StepContext) -> Tensor | None:
        return self.letters(context.rule, context.step, len(context.x), context.x.device)


class Draw(Blind):
    """Generator: uniformly random letters, from CPU generators so that they do not depend on the device.

    Args:
        seed: of the whole batch; or a list of one for each image, whose letters then do not depend on the others.
    """

    def __init__(self, seed: Seed | Sequence[Seed]) -> None:
        self._alone = not isinstance(seed, Sequence)
        self._generators = [seeded(one) for one in (seed if isinstance(seed, Sequence) else [seed])]

    def letters(self, rule: Rule, step: Step, batch: int, device: torch.device) -> Tensor:
        if self._alone:
            drawn = rule.draw(batch, step, self._generators[0])
        elif batch == len(self._generators):
            drawn = torch.cat([rule.draw(1, step, generator) for generator in self._generators])
        else:
            raise ConfigError(f"{len(self._generators)} seeds for {batch} images; give one for all or one an image")
        # The copy takes the numbers before it returns; only waiting for the device's other work is left out.
        return drawn.to(device, non_blocking=True)


class Replay(Blind):
    """Decoder: the letters of the coded steps in order; where they end, the remaining steps are deterministic.

    Args:
        letters: (B, n) int64 a step; they go to the device in one piece at the first step.
    """

    def __init__(self, letters: Sequence[Tensor]) -> None:
        self._letters = list(letters)
        self._next = 0

    def letters(self, rule: Rule, step: Step, batch: int, device: torch.device) -> Tensor | None:
        if self._next == len(self._letters):
            return None
        if self._next == 0:
            whole = torch.cat(self._letters, dim=1).to(device)
            self._letters = list(whole.split([own.shape[1] for own in self._letters], dim=1))
        self._next += 1
        return self._letters[self._next - 1]

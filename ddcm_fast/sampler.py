"""The one sampling loop: generating, encoding, decoding, restoring and editing differ only in the chooser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .models.base import DiffusionModel
from .rules import Rule
from .schedule import Step


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
        """See Chooser.choose."""
        direction = self._objective(context).flatten(1)
        return context.rule.choose(direction, context.step)


def toward(target: Tensor) -> Match:
    """The codec's encoder: follow the residual r = target - x0_hat (DDCM)."""
    return Match(lambda context: target - context.x0_hat)


class Draw(Chooser):
    """Generator: uniformly random letters, from a CPU generator so that they do not depend on the device."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def choose(self, context: StepContext) -> Tensor:
        """See Chooser.choose."""
        letters = context.rule.draw(len(context.x), context.step, self._generator)
        return letters.to(context.x.device)


class Replay(Chooser):
    """Decoder: the letters of the coded steps in order; where they end, the remaining steps are deterministic."""

    def __init__(self, letters: Sequence[Tensor]) -> None:
        self._letters = iter(letters)

    def choose(self, context: StepContext) -> Tensor | None:
        """See Chooser.choose."""
        letters = next(self._letters, None)
        return None if letters is None else letters.to(context.x.device)


@dataclass(frozen=True)
class Sample:
    """x0 (B, *latent_shape) float32 and the letters (B, n) of every coded step, in order, on the device."""

    x0: Tensor
    letters: list[Tensor]


def initial_state(model: DiffusionModel, step: Step, noise: Tensor) -> Tensor:
    """x_T from standard normal noise: scaled to the model's total level sqrt(alpha^2 + sigma^2) (1 for VP models)."""
    return noise * (step.alpha_t**2 + step.sigma_t**2) ** 0.5


def advance(step: Step, x0_hat: Tensor, eps_hat: Tensor, z: Tensor | None) -> Tensor:
    """x_s = alpha_s x0_hat + direction eps_hat + v z, (B, *latent_shape); z (B, D), or None for a step without."""
    x = step.alpha_s * x0_hat + step.direction * eps_hat
    return x if z is None else x + step.noise * z.reshape(x.shape)


@torch.inference_mode()
def sample(
    model: DiffusionModel,
    steps: Sequence[Step],
    rule: Rule,
    chooser: Chooser,
    noise: Tensor,
    condition: Any = None,
    progress: bool | None = False,
    description: str = "",
) -> Sample:
    """Run the reverse process.

    Args:
        model, steps, rule: from load_model, schedule.plan and rules.
        chooser: Draw to generate, toward(x0) or Match to encode, Replay to decode.
        noise: x_T before scaling, (B, *latent_shape) float32 standard normal.
        condition: given to the model; or a function of the Step that returns it (editing).
        progress: show a progress bar: True, False, or None for "if standard error is a terminal".
        description: text of the progress bar.

    Returns:
        Sample. The same inputs give the same bits on the same device.
    """
    x = initial_state(model, steps[0], noise.to(model.device, torch.float32))
    letters: list[Tensor] = []
    hide = None if progress is None else not progress
    bar = tqdm(steps, disable=hide, desc=description, unit="step", leave=False)
    for step, following in zip(bar, [*steps[1:], None], strict=True):
        current = condition(step) if callable(condition) else condition
        x0_hat, eps_hat = model.predict(x, step.t, current) if chooser.ahead is None else chooser.ahead
        chooser.ahead = None
        z: Tensor | None = None
        if step.coded:
            context = StepContext(model, rule, step, x, x0_hat, eps_hat, current, following)
            choice = chooser.choose(context)
            if choice is None:
                step = step.deterministic
            else:
                letters.append(choice)
                z = rule.noise(choice, step)
        elif step.noise > 0:
            z = rule.uncoded_noise(len(x), step, x.device)
        x = advance(step, x0_hat, eps_hat, z)
    return Sample(x, letters)

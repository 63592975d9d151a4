"""The one sampling loop: generating, encoding, decoding, restoring and editing differ only in the chooser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from .autocast import without_autocast
from .errors import ConfigError
from .models.base import DiffusionModel
from .rules import Rule
from .schedule import Step

if TYPE_CHECKING:
    from .graphs import StepGraphs


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


def seeded(seed: int | torch.Generator) -> torch.Generator:
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
        """See Chooser.choose."""
        return self.letters(context.rule, context.step, len(context.x), context.x.device)


class Draw(Blind):
    """Generator: uniformly random letters, from a CPU generator so that they do not depend on the device."""

    def __init__(self, seed: int | torch.Generator) -> None:
        self._generator = seeded(seed)

    def letters(self, rule: Rule, step: Step, batch: int, device: torch.device) -> Tensor:
        """See Blind.letters."""
        # The copy takes the numbers before it returns; only waiting for the device's other work is left out.
        return rule.draw(batch, step, self._generator).to(device, non_blocking=True)


class Replay(Blind):
    """Decoder: the letters of the coded steps in order; where they end, the remaining steps are deterministic.

    Args:
        letters: (B, n) int64 a step; they go to the device in one piece at the first step.
    """

    def __init__(self, letters: Sequence[Tensor]) -> None:
        self._letters = list(letters)
        self._next = 0

    def letters(self, rule: Rule, step: Step, batch: int, device: torch.device) -> Tensor | None:
        """See Blind.letters."""
        if self._next == len(self._letters):
            return None
        if self._next == 0:
            whole = torch.cat(self._letters, dim=1).to(device)
            self._letters = list(whole.split([own.shape[1] for own in self._letters], dim=1))
        self._next += 1
        return self._letters[self._next - 1]


@dataclass(frozen=True)
class Sample:
    """x0 (B, *latent_shape) float32 and the letters (B, n) of every coded step, in order, on the device."""

    x0: Tensor
    letters: list[Tensor]


def initial_state(model: DiffusionModel, step: Step, noise: Tensor) -> Tensor:
    """x_T from standard normal noise: scaled to the model's total level sqrt(alpha^2 + sigma^2) (1 for VP models)."""
    return noise * (step.alpha_t**2 + step.sigma_t**2) ** 0.5


class Update(NamedTuple):
    """The numbers of advance as 0-d tensors, see Step."""

    alpha_s: Tensor
    direction: Tensor
    noise: Tensor


def advance(step: Step | Update, x0_hat: Tensor, eps_hat: Tensor, z: Tensor | None) -> Tensor:
    """x_s = alpha_s x0_hat + direction eps_hat + v z, (B, *latent_shape); z (B, D), or None for a step without."""
    x = step.alpha_s * x0_hat + step.direction * eps_hat
    return x if z is None else x + step.noise * z.reshape(x.shape)


def complete(context: StepContext, chooser: Chooser, update: Step | Update) -> tuple[Tensor, Tensor | None]:
    """What follows a step's prediction: choice, noise and update, for the loop and for captured steps alike.

    `update` has the step's numbers. Returns x_s (B, *latent_shape) and the letters (B, n), None of a step without.
    """
    step, rule = context.step, context.rule
    if not step.coded:
        z = rule.uncoded_noise(len(context.x), step, context.x.device) if step.noise > 0 else None
        return advance(update, context.x0_hat, context.eps_hat, z), None
    choice = chooser.choose(context)
    if choice is None:
        return advance(step.deterministic, context.x0_hat, context.eps_hat, None), None
    return advance(update, context.x0_hat, context.eps_hat, rule.noise(choice, step)), choice


@without_autocast
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
    graphs: StepGraphs | None = None,
) -> Sample:
    """Run the reverse process, all of it inside `model.using()`.

    Args:
        model, steps, rule: from load_model, schedule.plan and rules.
        chooser: Draw to generate, toward(x0) or Match to encode, Replay to decode.
        noise: x_T before scaling, (B, *latent_shape) float32 standard normal.
        condition: given to the model; or a function of the Step that returns it (editing).
        progress: show a progress bar: True, False, or None for "if standard error is a terminal".
        description: text of the progress bar.
        graphs: take the steps as CUDA graphs; made of the same model, steps and rule.

    Returns:
        Sample. The same inputs give the same bits on the same device.
    """
    letters: list[Tensor] = []
    hide = None if progress is None else not progress
    bar = tqdm(steps, disable=hide, desc=description, unit="step", leave=False)
    with model.using():
        x = initial_state(model, steps[0], noise.to(model.device, torch.float32))
        if graphs is not None:
            graphs.begin(x, chooser)
        for step, following in zip(bar, [*steps[1:], None], strict=True):
            current = condition(step) if callable(condition) else condition
            if graphs is not None:
                choice = graphs.take(step, chooser, current)
            else:
                x0_hat, eps_hat = model.predict(x, step.t, current) if chooser.ahead is None else chooser.ahead
                chooser.ahead = None
                x, choice = complete(
                    StepContext(model, rule, step, x, x0_hat, eps_hat, current, following), chooser, step
                )
            if choice is not None:
                letters.append(choice)
    return Sample(x if graphs is None else graphs.state(), letters)

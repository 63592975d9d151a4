"""The update of a step, one formula for every model: x_s = alpha_s x0_hat + direction eps_hat + v z (schedule.py)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ddcm_fast.sampling.choosers import Chooser, StepContext
from ddcm_fast.sampling.model import DiffusionModel
from ddcm_fast.sampling.schedule import Step


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

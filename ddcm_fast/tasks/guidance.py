"""Guidance by the choice of atoms: compressed classifier-free guidance, classifier guidance and any other objective.

A direction g says which noise is wanted: among some candidates the one with the largest <z, g> is taken. Candidates
are the whole codebook (`sampler.Match`, the fused search), which guides as hard as the codebook allows, or a random
subset of it (`Subset`), whose size is then the strength of the guidance. Either way the file holds plain indices and
decodes without the classifier, the label or whatever gave g.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ddcm_fast.errors import ConfigError
from ddcm_fast.models.wrapped import WrappedModel
from ddcm_fast.sampling.choosers import Chooser, StepContext, seeded
from ddcm_fast.sampling.condition import Condition
from ddcm_fast.sampling.model import DiffusionModel

Objective = Callable[[StepContext], Tensor]
"""StepContext -> a direction of the state's shape (B, *latent_shape): noise along it is wanted."""

Classifier = Callable[[Tensor, float, float], Tensor]
"""(state (B, *latent_shape), alpha, sigma) -> logits (B, classes), differentiable in the state."""


class Subset(Chooser):
    """The best of `size` random words of the codebook, drawn with replacement.

    For `size` = 1 it is plain generation. Their atoms are made one by one: for small sizes that is much less work than
    a search of the whole codebook. The words come from a CPU generator, so that they do not depend on the device.

    Raises ConfigError for a size below 1.
    """

    def __init__(self, objective: Objective, size: int, seed: int | torch.Generator = 0) -> None:
        if size < 1:
            raise ConfigError(f"the subset has {size} atoms; it needs at least 1")
        self._objective = objective
        self._size = size
        self._generator = seeded(seed)

    def choose(self, context: StepContext) -> Tensor:
        rule, step = context.rule, context.step
        direction = self._objective(context).flatten(1)
        batch, dim = direction.shape
        letters = rule.draw(batch * self._size, step, self._generator).to(direction.device)
        z = rule.noise(letters, step).view(batch, self._size, dim)
        best = torch.einsum("bnd,bd->bn", z.double(), direction.double()).argmax(1)
        rows = torch.arange(batch, device=direction.device, dtype=torch.int64) * self._size + best
        return letters[rows]


def ccfg_direction(condition: Any) -> Objective:
    """g = eps_uncond - eps_cond, with which compressed classifier-free guidance follows a condition.

    By Bayes grad log p(c | x) = grad log p(x | c) - grad log p(x), and the score is -eps / sigma, so that
    sigma grad log p(c | x) = eps_uncond - eps_cond: noise along it makes the condition likelier. The sampler's own
    predictions must be unconditional.
    """

    def objective(context: StepContext) -> Tensor:
        _, conditional = context.model.predict(context.x, context.step.t, condition)
        return context.eps_hat - conditional

    return objective


def ccfg(condition: Any, size: int, seed: int | torch.Generator = 0) -> Subset:
    """Compressed classifier-free guidance (Ohayon et al., ICML 2025): no guidance scale, but a subset size.

    The sampler runs unconditionally; at each step a random subset of the codebook is drawn and the atom with the
    largest <z, eps_uncond - eps_cond> is taken. The index into the whole codebook is coded, so the file decodes
    without the condition. The paper's codebook has K = 64 atoms and its subsets 2 to 9.
    """
    return Subset(ccfg_direction(condition), size, seed)


def classifier_gradient(classify: Classifier, label: int | Tensor) -> Objective:
    """g = grad_x log p(label | x_t) of a classifier of noisy states (Dhariwal and Nichol 2021).

    `label` is one for all images, or (B,) int64.
    """

    def objective(context: StepContext) -> Tensor:
        step = context.step
        # The sampler runs in inference mode, whose tensors take no gradients: leave it and copy.
        with torch.inference_mode(False), torch.enable_grad():
            x = context.x.clone().requires_grad_()
            labels = torch.as_tensor(label, device=x.device, dtype=torch.int64).expand(len(x)).clone()
            log_p = classify(x, step.alpha_t, step.sigma_t).log_softmax(1)
            (gradient,) = torch.autograd.grad(log_p.gather(1, labels[:, None]).sum(), x)
        return gradient

    return objective


class ClassifierGuided(WrappedModel):
    """A model under classifier guidance of some scale (Dhariwal and Nichol 2021): eps - scale sigma grad log p(c | x).

    Unlike the choosers of this module it changes the model's predictions, so its files decode only with the same
    classifier, label and scale; they say so, since those are part of its fingerprint.

    A step's mean moves by beta / sqrt(1 - beta) times scale times the gradient, beta = 1 - (alpha_t / alpha_s)^2 (their
    algorithm 2). Their ancestral sampler (algorithm 1) moves it by the variance of the step, which its networks learn,
    between beta sigma_s^2 / sigma_t^2 and beta: nearly the same for many steps.

    Args:
        model: the model that is guided. classify: (state, t) -> logits, differentiable in the state; where it has a
            `digest`, that tells it from others in fingerprints, else its answer to noise does.
        label: the class of all images; None: the label of each one's condition, which a model without classes of its
            own is not told.
        scale: how strongly.

    Raises ConfigError: a scale that is no number.
    """

    def __init__(
        self,
        model: DiffusionModel,
        classify: Callable[[Tensor, float], Tensor],
        label: int | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__(model)
        if not math.isfinite(scale):
            raise ConfigError(f"the scale of classifier guidance is {scale}; it must be a number")
        self._classify = classify
        self._label, self._scale = label, scale
        # Whether the model is told all of a condition: where it has no classes, labels are for the classifier alone.
        self._tells = bool(model.classes) or label is not None
        if not self._tells:
            self.classes = self._answer().numel()

    def complete_condition(self, condition: Condition | None) -> Condition | None:
        """See DiffusionModel. Where the labels are the conditions', each needs one that the classifier knows."""
        label = None if condition is None else condition.label
        told = self.inner.complete_condition(condition if self._tells else _without_label(condition))
        if self._label is None and (label is None or label >= self.classes):
            raise ConfigError(f"the label is {label}; classifier guidance needs one from 0 to {self.classes - 1}")
        return told if self._tells else replace(told or Condition(), label=label)

    def predict(self, x: Tensor, t: float, condition: Any = None) -> tuple[Tensor, Tensor]:
        """Where the state is noise alone, it says nothing of the class."""
        alpha, sigma = self.alpha_sigma(t)
        own = condition if isinstance(condition, tuple) else (condition,)
        told = own if self._tells else tuple(_without_label(each) for each in own)
        x0_hat, eps_hat = self.inner.predict(x, t, told[0] if len(set(told)) == 1 else told)
        if alpha == 0:
            return x0_hat, eps_hat
        with torch.inference_mode(False), torch.enable_grad():
            state = x.clone().requires_grad_()
            labels = [each.label for each in own] if self._label is None else [self._label]
            classes = torch.tensor(labels, dtype=torch.int64, device=x.device).expand(len(x))
            log_p = self._classify(state, t).log_softmax(1).gather(1, classes[:, None]).sum()
            (gradient,) = torch.autograd.grad(log_p, state)
        eps_hat = eps_hat - self._scale * sigma * gradient
        return (x - sigma * eps_hat) / alpha, eps_hat

    def changes(self) -> str:
        """The label, the scale and what tells the classifier from others."""
        digest = getattr(self._classify, "digest", None) or self._answer().argsort()[None].tolist()
        return f"{self._label} {self._scale} {digest}"

    def _answer(self) -> Tensor:
        """The classifier's answer to noise, (classes,) float32 on the CPU."""
        shape = (1, *self.latent_shape(self.default_side, self.default_side))
        probe = torch.randn(shape, generator=seeded(0), dtype=torch.float32, device="cpu")
        with torch.no_grad():
            return self._classify(probe.to(self.device), self.max_timestep / 2)[0].float().cpu()


def _without_label(condition: Condition | None) -> Condition | None:
    """What a model without classes is told of a condition."""
    return None if condition is None else replace(condition, label=None) or None

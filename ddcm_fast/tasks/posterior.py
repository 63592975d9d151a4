"""Compressed posterior sampling for y = H x + n (Ohayon et al., ICML 2025, section on image restoration).

At each step the atom is chosen that brings the estimate closest to the measurement:

    k = argmin_k || y - H(x0_hat + (v / alpha_s) z_k) ||^2
      = argmax_k (v / alpha_s) <z_k, H^T (y - H x0_hat)> - (v / alpha_s)^2 ||H z_k||^2 / 2

The linear part is one fused search for the direction H^T (y - H x0_hat), and a shortlist of its best atoms is rescored
exactly. Where v / alpha_s is small, late in the process, ||H z_k||^2 hardly matters and that is the exact choice; early
it is not. No harm is done: the linear part alone restores as well as brute force (benchmarks/results/restoration.md).

Where the gap ||y - H x0_hat|| has come down to the noise of y there is nothing left to learn from y but its noise, and
the step takes a random atom (Morozov's discrepancy principle).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from ddcm_fast.codebook.law import MAX_TOPK
from ddcm_fast.codec.codec import Codec, Encoded
from ddcm_fast.errors import ConfigError, InputError
from ddcm_fast.sampling.choosers import Chooser, StepContext, seeded
from ddcm_fast.sampling.model import DiffusionModel
from ddcm_fast.sampling.rules import Greedy
from ddcm_fast.tasks.operators import LinearOperator
from ddcm_fast.tasks.physics import as_operator

DEFAULT_SHORTLIST = 16


def check_sigma(sigma: float) -> None:
    """Raises ConfigError for a noise level that no picture has."""
    if not 0 <= sigma < 10:
        raise ConfigError(f"the noise level sigma is {sigma}; it must be from 0 to 10, in units of [-1, 1]")


class Posterior(Chooser):
    """Chooses atoms that agree with a measurement.

    The rule `greedy` gets the exact objective on a shortlist; other rules (several atoms a step) follow its linear
    part, the direction H^T (y - H x0_hat).

    Args:
        operator: H, on images of height x width.
        measurement: y (1, c, h, w).
        shortlist: atoms rescored exactly; 1 uses the linear part alone, K or more is brute force.
        sigma: standard deviation of the measurement's noise. seed: of the random atoms.

    A batch takes y (B, c, h, w), one measurement an image.
    """

    def __init__(
        self,
        operator: LinearOperator,
        measurement: Tensor,
        height: int,
        width: int,
        shortlist: int = DEFAULT_SHORTLIST,
        sigma: float = 0.0,
        seed: int | torch.Generator = 0,
    ) -> None:
        if shortlist < 1:
            raise ConfigError(f"shortlist is {shortlist}; it must be at least 1")
        check_sigma(sigma)
        self._sigma = sigma
        self._generator = seeded(seed)
        self._operator = operator
        self._y = operator.project(measurement)
        self._height, self._width = height, width
        self._shortlist = shortlist

    def choose(self, context: StepContext) -> Tensor:
        letters, gap = self._follow(context)
        if self._sigma == 0:
            return letters
        random = context.rule.draw(len(letters), context.step, self._generator).to(letters.device)
        return torch.where((gap > self._sigma)[:, None], letters, random)

    def _follow(self, context: StepContext) -> tuple[Tensor, Tensor]:
        """Letters (B, n) that lead towards y, and the gap's root mean square (B,)."""
        patch = _patch(context.model)
        image = self._image(context.x0_hat, patch)
        rms = self._operator.gap(self._y, image)
        back = self._operator.adjoint(self._y - self._operator.forward(image), self._height, self._width)
        shape = context.x0_hat.shape
        grow = (0, shape[3] * patch - self._width, 0, shape[2] * patch - self._height)
        direction = pixel_unshuffle(pad(back, grow), patch).flatten(1)
        rule = context.rule
        if not isinstance(rule, Greedy) or self._shortlist == 1:
            return rule.choose(direction, context.step), rms
        book = rule.codebook(context.step)
        count = min(self._shortlist, book.spec.size, MAX_TOPK)
        index, _, score = book.topk(direction, context.step.index, count)
        return index[:, 0].gather(1, self._rescore(context, index[:, 0], score[:, 0], patch)), rms

    def _rescore(self, context: StepContext, index: Tensor, score: Tensor, patch: int) -> Tensor:
        """Position (B, 1) in the shortlist of the exact objective's best: index, score (B, m)."""
        step = context.step
        batch, count = index.shape
        z = context.rule.noise(index.reshape(-1, 1), step).view(batch * count, *context.x0_hat.shape[1:])
        energy = self._operator.forward(self._image(z, patch)).double().square().sum((1, 2, 3)).view(batch, count)
        scale = step.noise / step.alpha_s
        return (score.double() - 0.5 * scale * energy).argmax(1, keepdim=True)

    def _image(self, state: Tensor, patch: int) -> Tensor:
        return pixel_shuffle(state, patch)[..., : self._height, : self._width]


def _patch(model: DiffusionModel) -> int:
    """The model's space-to-depth factor; the decoder must be linear for H to act on its states."""
    height = width = 16 * model.multiple
    shape = model.latent_shape(height, width)
    patch = height // shape[-2]
    if len(shape) != 3 or shape[0] != model.channels * patch**2:
        raise ConfigError(f"posterior sampling works on pixels; {model.name!r} is a latent model: choose another one")
    return patch


def restore(
    codec: Codec,
    measurement: Tensor,
    operator: LinearOperator | Any,
    sigma: float = 0.0,
    shortlist: int = DEFAULT_SHORTLIST,
    seed: int | torch.Generator = 0,
) -> Encoded:
    """An image that agrees with y = H x + n, and its file, which decodes without y and H.

    Args:
        codec: the model and configuration; a pixel-space model.
        measurement: y (1, c, h, w) float32, of an image in [-1, 1].
        operator: H, or one with `A` and `A_adjoint` such as deepinv's LinearPhysics (physics.py), whose measurement may
            have any shape (1, ...). sigma: standard deviation of n. shortlist, seed: see Posterior.

    Raises:
        InputError: a measurement with the wrong shape for H, or with NaN or infinite entries.
        ConfigError: a latent model, no linear operator, or settings the model cannot take.
    """
    if len(measurement) != 1 or (isinstance(operator, LinearOperator) and measurement.dim() != 4):
        raise InputError(f"a measurement must be (1, c, h, w), not {tuple(measurement.shape)}")
    if not bool(torch.isfinite(measurement).all()):
        raise InputError("the measurement has NaN or infinite entries")
    _patch(codec.model)
    operator, y = as_operator(operator, measurement.to(codec.model.device, torch.float32))
    height, width = operator.image_size(y.shape[2], y.shape[3])
    blank = torch.zeros(1, codec.model.channels, height, width, dtype=torch.float32, device=y.device)
    made = operator.forward(blank).shape
    if made != y.shape:
        raise InputError(f"the measurement is {tuple(y.shape)}; this operator needs {tuple(made)}")
    return codec.sample(Posterior(operator, y, height, width, shortlist, sigma, seed), height, width)[0]

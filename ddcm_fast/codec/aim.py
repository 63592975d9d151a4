"""What an encoder aims at: the image less the finest detail, which its bits cannot carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddcm_fast.codec.config import CodecConfig
from ddcm_fast.sampling.condition import Condition
from ddcm_fast.sampling.information import model_curve
from ddcm_fast.sampling.model import DiffusionModel
from ddcm_fast.sampling.schedule import Step

#: How much cleaner than the state at which coding ends the level is whose denoiser smooths the image, as a ratio of
#: SNR, and the part of the way from the image to the smoothed one. Measured on training photographs (docs/codec.md).
_CLEANER, _PART = 10.0, 0.7
#: What the denoiser changes, as a part of the squared error that is expected at coding's end: of a photograph 0.06 to
#: 1. Less is a drawing or a gradient, whose little changes are the network's mistakes; more is no denoiser's.
_LEAST, _MOST = 0.05, 1.0


def aims(config: CodecConfig, condition: Condition | None) -> bool:
    """Whether an encoder aims so.

    It does where information says at which noise coding stops and the nearest picture is asked for (a tail of one: more
    steps are taken for texture), where the rule takes the best noise and not a sample of the posterior, which is one of
    the image itself, and where no guidance bends the denoiser.
    """
    unguided = condition is None or condition.guidance_scale in (None, 1.0)
    return config.schedule == "kl" and config.tail <= 1 and not config.rule_type.samples and unguided


def aim_level(model: DiffusionModel, steps: Sequence[Step]) -> float | None:
    """The timestep whose denoiser `aim` asks: the noisiest that is clean enough; None if there is none."""
    coded = [step for step in steps if step.coded]
    if not coded or coded[-1].sigma_s == 0 or model.fresh_noise:
        return None
    goal = _CLEANER * (coded[-1].alpha_s / coded[-1].sigma_s) ** 2
    levels = ((t, *model.alpha_sigma(t)) for t in model.training_timesteps())
    return next((t for t, alpha, sigma in levels if alpha**2 >= goal * sigma**2), None)


@torch.inference_mode()
def aim(model: DiffusionModel, x0: Tensor, steps: Sequence[Step], condition: Any = None) -> Tensor:
    """What a file's steps are to follow instead of x0 (B, *latent_shape) float32; of the same shape.

    A step's bits go to all of the residual alike, also to detail far below the noise at which coding ends, which the
    decoder then takes for noise; the bound (reverse water-filling) gives such components no bits at all. The model's
    denoiser at a level ten times cleaner than that end removes them from the clean image, as a Wiener filter would
    from a Gaussian one. One evaluation, the encoder's alone: a decoder follows the letters whatever they aim at.

    x0 itself where the steps have no such level, and where the network changes an image by more or by much less than
    coding is expected to.
    """
    t = aim_level(model, steps)
    if t is None:
        return x0
    change = model.predict(model.alpha_sigma(t)[0] * x0, t, condition)[0] - x0
    end = steps[max(step.index for step in steps if step.coded) + 1].t
    part = change.square().flatten(1).mean(1) / model_curve(model).at(end)
    fits = (part >= _LEAST) & (part <= _MOST)
    return torch.where(fits.view(-1, *[1] * (x0.dim() - 1)), x0 + _PART * change, x0)

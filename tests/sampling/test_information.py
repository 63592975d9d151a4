"""Information curves: the published fallback and what schedules make of it."""

from __future__ import annotations

import math

import pytest
import torch

from ddcm_fast.errors import ModelError
from ddcm_fast.models.gaussian_field import GaussianField
from ddcm_fast.sampling.curve import InformationCurve
from ddcm_fast.sampling.information import fallback_curve, kl_timesteps, measure, spent_bits


class StableDiffusionSchedule:
    """The noise levels of Stable Diffusion 1.5, without a network."""

    information = None

    def __init__(self) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self._alpha_bar = (1 - betas).cumprod(0).tolist()

    def training_timesteps(self) -> list[float]:
        return [float(t) for t in range(999, -1, -1)]

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        return math.sqrt(self._alpha_bar[int(t)]), math.sqrt(1 - self._alpha_bar[int(t)])


def test_the_fallback_gives_back_the_published_bits() -> None:
    """DiffC's file says these steps of SD 1.5 cost these bits, for 4 x 64 x 96 latents."""
    model = StableDiffusionSchedule()
    grid, bits = spent_bits(fallback_curve(model), model)  # type: ignore[arg-type]
    spent = dict(zip(grid, bits, strict=True))
    # Sums of the published bits a step from the first timestep to the second.
    for high, low, published in ((972, 751, 415), (751, 530, 1387), (530, 276, 4562), (276, 101, 9796)):
        ours = (spent[low] - spent[high]) * 4 * 64 * 96
        assert abs(ours / published - 1) < 0.1, (high, low, ours, published)


def test_the_fallback_falls_with_the_noise_and_serves_a_schedule() -> None:
    model = StableDiffusionSchedule()
    curve = fallback_curve(model)  # type: ignore[arg-type]
    assert list(curve.mse) == sorted(curve.mse)
    assert max(curve.mse) < curve.power
    steps = kl_timesteps(model, 20, 100)  # type: ignore[arg-type]
    assert len(steps) == 20 and steps[0] == 999 and steps == sorted(steps, reverse=True) and steps[-1] > 100


def test_measuring_an_exact_model_gives_its_own_curve() -> None:
    """On a Gaussian source the error of the optimal x0_hat is known; measuring it must find it."""
    model = GaussianField()
    x0 = model.draw(8, 64, 64)
    assert isinstance(model.information, InformationCurve)
    levels = [50.0, 200.0, 500.0]
    for t, error in zip(levels, measure(model, x0, levels), strict=True):
        assert abs(error / model.information.at(t) - 1) < 0.1


@pytest.mark.parametrize(
    "changed",
    [
        {"t": [0, math.nan, 10]},
        {"t": [0, 5, math.inf]},
        {"t": [0, 5, 5]},
        {"t": [0]},
        {"mse": [0.1, math.nan, 0.3]},
        {"mse": [0.1, 0.2, math.inf]},
        {"mse": [0.1, -0.2, 0.3]},
        {"mse": [0.1, 10**400, 0.3]},
        {"mse": [0.1, 0.2]},
        {"mse": ["x", 0.2, 0.3]},
        {"power": math.nan},
        {"power": math.inf},
        {"power": 0},
        {"power": None},
        {"t": None},
    ],
)
def test_a_curve_that_is_none_is_refused(changed):
    curve = {"t": [0, 5, 10], "mse": [0.1, 0.2, 0.3], "power": 0.5}
    assert InformationCurve.from_json(curve).to_json() == curve
    with pytest.raises(ModelError):
        InformationCurve.from_json({**curve, **changed})

"""One step of our update against diffusers' own schedulers, for every parametrisation.

What matches: DDIM with eta = 1 and clipped outputs, DDPM with variance "fixed_small" (the posterior's variance). DDPM
with "fixed_large" has the same mean and the larger noise sqrt(beta_t), which no codebook step uses.
"""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from ddcm_fast.errors import ModelError
from ddcm_fast.models.levels import Levels, _quantile, levels_of
from ddcm_fast.sampling.model import DiffusionModel, eps_from_x0
from ddcm_fast.sampling.schedule import Step, plan

SHAPE = (2, 3, 8, 8)
PREDICTIONS = ("epsilon", "sample", "v_prediction")
BETAS: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear"},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"trained_betas": torch.linspace(1e-4, 0.03, 1000).tolist()},
}
CLIPS: dict[str, dict[str, Any]] = {
    "none": {"clip_sample": False},
    "clip": {"clip_sample": True},
    "clip range": {"clip_sample": True, "clip_sample_range": 2.0},
    "thresholding": {"clip_sample": False, "thresholding": True, "sample_max_value": 3.0},
}


class _Stub(DiffusionModel):
    """A model whose network's output is given."""

    name, device, dtype = "stub", torch.device("cpu"), torch.float32

    def __init__(self, levels: Levels) -> None:
        self.levels = levels
        self.max_timestep = levels.max_timestep
        self.fresh_noise = levels.fresh_noise

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        return self.levels.alpha_sigma(t)

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        raise NotImplementedError

    encode = decode = fingerprint = predict = latent_shape  # type: ignore[assignment]


def tensors(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    x, out, z = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return x, out, z


def tolerance(dtype: torch.dtype, wanted: Tensor) -> dict[str, float]:
    """1e-5 in float32, of what comes out where the first step divides by a small alpha."""
    return {"atol": (1e-5 if dtype == torch.float32 else 1e-9) * max(1.0, float(wanted.abs().max())), "rtol": 1e-5}


#: float64 checks the formulas at every timestep; float32, as it is used, where 1 - alphas_cumprod has digits left.
GRIDS = [(torch.float64, (980, 500, 20, 0)), (torch.float32, (500, 200))]


def in_dtype(scheduler: Any, dtype: torch.dtype) -> Any:
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(dtype)
    scheduler.set_timesteps(50)
    return scheduler


def our_step(levels: Levels, x: Tensor, out: Tensor, z: Tensor, times: list[float], eta: float) -> tuple[Tensor, Step]:
    step = plan(_Stub(levels), times, eta=[eta] * len(times))[0]
    x0_hat = levels.x0(x, out, levels.level(step.t))
    eps_hat = eps_from_x0(x, x0_hat, step.alpha_t, step.sigma_t)
    return step.alpha_s * x0_hat + step.direction * eps_hat + step.noise * z, step


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_eta_1(prediction: str, betas: str, clip: str) -> None:
    scheduler = diffusers.DDIMScheduler(prediction_type=prediction, **BETAS[betas], **CLIPS[clip])
    for dtype, grid in GRIDS:
        in_dtype(scheduler, dtype)
        levels, (x, out, z) = levels_of(scheduler), tensors(dtype)
        for t in grid:
            times = [float(t)] + ([float(t - 20)] if t >= 20 else [])
            ours, _ = our_step(levels, x, out, z, times, 1.0)
            theirs = scheduler.step(out, t, x, eta=1.0, use_clipped_model_output=True, variance_noise=z).prev_sample
            torch.testing.assert_close(ours, theirs, **tolerance(dtype, theirs))


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm_fixed_small(prediction: str, betas: str, clip: str) -> None:
    scheduler = diffusers.DDPMScheduler(
        prediction_type=prediction, variance_type="fixed_small", **BETAS[betas], **CLIPS[clip]
    )
    for dtype, grid in GRIDS:
        in_dtype(scheduler, dtype)
        levels, (x, out, _) = levels_of(scheduler), tensors(dtype)
        for t in grid:
            times = [float(t)] + ([float(t - 20)] if t >= 20 else [])
            z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7), dtype=dtype)
            ours, _ = our_step(levels, x, out, z, times, 1.0)
            theirs = scheduler.step(out, t, x, generator=torch.Generator().manual_seed(7)).prev_sample
            torch.testing.assert_close(ours, theirs, **tolerance(dtype, theirs))


def test_ddpm_fixed_large_has_our_mean_and_more_noise() -> None:
    scheduler = diffusers.DDPMScheduler(variance_type="fixed_large", clip_sample=False)
    scheduler.set_timesteps(50)
    levels, (x, out, _) = levels_of(scheduler), tensors()
    z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))
    ours, step = our_step(levels, x, out, z, [500.0, 480.0], 1.0)
    theirs = scheduler.step(out, 500, x, generator=torch.Generator().manual_seed(7)).prev_sample
    beta = 1 - (step.alpha_t / step.alpha_s) ** 2
    assert beta**0.5 > step.noise
    torch.testing.assert_close(theirs - ours, (beta**0.5 - step.noise) * z, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "name",
    [
        "PNDMScheduler",
        "DPMSolverMultistepScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "UniPCMultistepScheduler",
        "DDPMScheduler",
    ],
)
def test_any_scheduler_with_alphas_cumprod(name: str) -> None:
    betas = BETAS["scaled_linear"]
    scheduler = getattr(diffusers, name)(**betas)
    reference = levels_of(diffusers.DDIMScheduler(**betas))
    levels = levels_of(scheduler)
    assert [levels.alpha_sigma(t) for t in (0, 333, 999)] == [reference.alpha_sigma(t) for t in (0, 333, 999)]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_edm(prediction: str, spacing: str) -> None:
    scheduler = diffusers.EDMEulerScheduler(prediction_type=prediction, sigma_schedule=spacing, num_train_timesteps=40)
    scheduler.set_timesteps(40)
    levels, (x, out, z) = levels_of(scheduler), tensors()
    sigmas = scheduler.sigmas.tolist()
    ours = [levels.alpha_sigma(t)[1] for t in levels.timesteps()]
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(sigmas[:-1]), rtol=1e-5, atol=0)
    for i in (0, 17, 38):
        t, s = float(39 - i), float(38 - i)
        state = x * sigmas[i]
        scheduler._step_index = None
        scaled = scheduler.scale_model_input(state, scheduler.timesteps[i])
        scheduler._step_index = i
        level = levels.level(t)
        torch.testing.assert_close(levels.scale_input(state, level), state / (sigmas[i] ** 2 + 0.25) ** 0.5)
        assert scaled.shape == state.shape
        assert level.time == pytest.approx(float(scheduler.timesteps[i]), rel=1e-5, abs=1e-6)
        theirs = scheduler.step(out, scheduler.timesteps[i], state)
        torch.testing.assert_close(levels.x0(state, out, level), theirs.pred_original_sample, atol=1e-4, rtol=1e-5)
        mine, _ = our_step(levels, state, out, z, [t, s], 0.0)
        torch.testing.assert_close(mine, theirs.prev_sample, atol=1e-4, rtol=1e-5)
    # eta = 1 is k-diffusion's ancestral step: sigma_up^2 = sigma_s^2 (sigma_t^2 - sigma_s^2) / sigma_t^2.
    step = our_step(levels, x, out, z, [20.0, 19.0], 1.0)[1]
    up = (step.sigma_s**2 * (step.sigma_t**2 - step.sigma_s**2) / step.sigma_t**2) ** 0.5
    assert step.noise == pytest.approx(up)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching(shift: float) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    levels, (x, out, z) = levels_of(scheduler), tensors()
    torch.testing.assert_close(torch.tensor(levels.timesteps()), scheduler.timesteps, rtol=1e-5, atol=1e-3)
    scheduler.set_timesteps(10)
    times = [float(t) for t in scheduler.timesteps]
    for i in (0, 5, 9):
        scheduler._step_index = i
        mine, _ = our_step(levels, x, out, z, times[i:], 0.0)
        theirs = scheduler.step(out, scheduler.timesteps[i], x).prev_sample
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_flow_marginals_are_kept_by_the_stochastic_step() -> None:
    """With the true x0 and eps, x_s is again (1 - s) x0 + s noise of unit variance."""
    levels = levels_of(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    for t, s in ((1000.0, 700.0), (700.0, 300.0), (300.0, 10.0)):
        step = plan(_Stub(levels), [t, s])[0]
        assert step.direction**2 + step.noise**2 == pytest.approx(levels.alpha_sigma(s)[1] ** 2)
        assert step.noise > 0


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_lcm_few_steps(prediction: str) -> None:
    scheduler = diffusers.LCMScheduler(prediction_type=prediction, clip_sample=False, **BETAS["scaled_linear"])
    scheduler.set_timesteps(4)
    levels, (x, out, _) = levels_of(scheduler), tensors()
    assert levels.fresh_noise and levels.timesteps()[0] == 999 and len(levels.timesteps()) == 50
    times = [float(t) for t in scheduler.timesteps]
    assert set(times) <= set(levels.timesteps())
    z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))
    for i in range(4):
        scheduler._step_index = i
        ours, _ = our_step(levels, x, out, z, times[i:], 1.0)
        theirs = scheduler.step(out, int(times[i]), x, generator=torch.Generator().manual_seed(7))
        # diffusers' LCM ends at the level of timestep 0 only in name: its last step returns x0_hat, like ours.
        torch.testing.assert_close(ours, theirs.prev_sample, atol=1e-4, rtol=1e-5)


def test_consistency_models() -> None:
    scheduler = diffusers.CMStochasticIterativeScheduler()
    scheduler.set_timesteps(40)
    levels, (x, out, _) = levels_of(scheduler), tensors()
    for i, t in ((0, 39.0), (20, 19.0)):
        sigma = float(scheduler.sigmas[i])
        assert levels.alpha_sigma(t)[1] == pytest.approx(sigma, rel=1e-5)
        assert levels.level(t).time == pytest.approx(float(scheduler.timesteps[i]), rel=1e-5)
        scheduler._step_index = i
        scheduler.is_scale_input_called = True
        z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))
        theirs = scheduler.step(out, scheduler.timesteps[i], x * sigma, generator=torch.Generator().manual_seed(7))
        ours, step = our_step(levels, x * sigma, out, z, [t, t - 1], 1.0)
        # Theirs keeps sigma_min of the noise back, since x0_hat is a sample at sigma_min: a relative 1e-6 here.
        torch.testing.assert_close(ours, theirs.prev_sample, atol=1e-3 * step.noise, rtol=0)


def test_zero_terminal_snr() -> None:
    betas = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    levels = levels_of(diffusers.DDIMScheduler(prediction_type="v_prediction", **betas))
    x, out, z = tensors()
    assert our_step(levels, x, out, z, [999.0, 500.0], 1.0)[0].isfinite().all()
    with pytest.raises(ModelError, match="terminal SNR"):
        levels_of(diffusers.DDIMScheduler(prediction_type="epsilon", **betas))


def test_unknown_schedulers_are_named() -> None:
    with pytest.raises(ModelError, match="ScoreSdeVeScheduler is not supported"):
        levels_of(diffusers.ScoreSdeVeScheduler())


@pytest.mark.parametrize("entries", [1, 2, 201, 3 * 64 * 64, 100_003])
def test_quantile_is_torch_s(entries: int) -> None:
    x = torch.randn(3, entries, generator=torch.Generator().manual_seed(entries)).abs()
    for q in (0.0, 0.5, 0.95, 0.995, 1.0):
        assert torch.equal(_quantile(x, q), torch.quantile(x, q, dim=1))

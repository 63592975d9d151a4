"""Noise levels: alpha and sigma of a timestep, and what a network's output says about x0.

One class a parametrisation, all of x_t = alpha_t x0 + sigma_t eps, so that any network (pixel, latent, text) can go
with any of them. `levels_of(scheduler)` reads diffusers' scheduler configurations.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from torch import Tensor

from ddcm_fast.errors import ModelError
from ddcm_fast.sampling.model import Level

#: Network outputs: eps, x0, v = alpha eps - sigma x0 (Salimans & Ho 2022), velocity eps - x0 (rectified flow).
PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")


class Levels(ABC):
    """Noise levels of a model.

    Attributes:
        max_timestep: the noisiest timestep.
        prediction: what the network predicts, one of PREDICTIONS.
        fresh_noise: see DiffusionModel.fresh_noise.
    """

    max_timestep: float
    prediction: str
    fresh_noise: bool = False

    @abstractmethod
    def alpha_sigma(self, t: float) -> tuple[float, float]:
        """(alpha_t, sigma_t) in double precision."""

    @abstractmethod
    def timesteps(self) -> list[float]:
        """Timesteps the model was trained at, noisiest first."""

    def level(self, t: float) -> Level:
        """The numbers of a timestep, in double precision."""
        return Level(*self.alpha_sigma(t), t)

    def position(self, timestep: float, sigma: float) -> float:
        """The timestep of these levels for a diffusers scheduler's timestep and the sigma it has there."""
        return timestep

    def scale_input(self, x: Tensor, level: Level) -> Tensor:
        """What the network is given for a state x."""
        return x

    @abstractmethod
    def x0(self, x: Tensor, output: Tensor, level: Level) -> Tensor:
        """x0_hat from the network's output, clipped if the scheduler clips; all (B, C, H, W) float32."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Everything that makes these levels what they are, for the fingerprint."""


def _quantile(x: Tensor, q: float) -> Tensor:
    """Quantile q of each row of x (B, N) float32, to the bit torch.quantile's.

    That one refuses rows of more than 2^24 entries and cannot be traced by every version of torch.compile.
    """
    rank = np.float32(q) * np.float32(x.shape[1] - 1)
    below = int(rank)
    ordered = x.sort(dim=1).values
    above = ordered[:, min(below + 1, x.shape[1] - 1)]
    return ordered[:, below].lerp(above, float(rank - np.float32(below)))


class Clip:
    """clip_sample and dynamic thresholding (Imagen, Saharia et al. 2022) as in diffusers' schedulers."""

    def __init__(self, config: Any) -> None:
        self.quantile = float(config.get("dynamic_thresholding_ratio", 0.995)) if config.get("thresholding") else None
        self.most = float(config.get("sample_max_value", 1.0))
        self.range = float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else None

    def __call__(self, x0: Tensor) -> Tensor:
        """x0_hat (B, C, H, W) -> clipped."""
        if self.quantile is not None:
            # Each image's own quantile of |x0| becomes 1, if it is larger than 1.
            top = _quantile(x0.abs().flatten(1), self.quantile).clamp(1.0, max(1.0, self.most))
            top = top.view(-1, *[1] * (x0.dim() - 1))
            return x0.clamp(-top, top) / top
        return x0 if self.range is None else x0.clamp(-self.range, self.range)

    def describe(self) -> list[float | None]:
        """For the fingerprint."""
        return [self.quantile, self.most if self.quantile is not None else None, self.range]


class VarianceLevels(Levels):
    """Variance preserving: alpha^2 = alphas_cumprod, sigma^2 = 1 - alpha^2 (DDPM, Stable Diffusion, DiT, PixArt, LCM).

    Args:
        scheduler: any with `alphas_cumprod`; diffusers computes it from linear, scaled_linear, cosine or trained betas.
    """

    def __init__(self, scheduler: Any) -> None:
        config = scheduler.config
        self.prediction = config.get("prediction_type", "epsilon")
        if self.prediction not in PREDICTIONS[:3]:
            raise ModelError(
                f"the scheduler predicts {self.prediction!r}; it must be one of {', '.join(PREDICTIONS[:3])}"
            )
        self._alphas = scheduler.alphas_cumprod.double().cpu()
        if self.prediction == "epsilon" and float(self._alphas.min()) < 1e-9:
            raise ModelError(
                "the scheduler has zero terminal SNR, where epsilon says nothing of the image: use "
                "rescale_betas_zero_snr=False"
            )
        self._clip = Clip(config)
        self.max_timestep = float(len(self._alphas) - 1)
        self._stride = 1
        self._boundary: tuple[float, float] | None = None
        if type(scheduler).__name__ == "LCMScheduler":
            # Latent consistency models (Luo et al. 2023) know only every (training / original) steps-th timestep.
            self.fresh_noise = True
            self._stride = len(self._alphas) // int(config.get("original_inference_steps", 50))
            self._boundary = (float(config.get("timestep_scaling", 10.0)), 0.5)

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        """t is one of the training timesteps."""
        a = float(self._alphas[int(t)])
        return a**0.5, (1.0 - a) ** 0.5

    def timesteps(self) -> list[float]:
        return [float(t) for t in range(int(self.max_timestep), -1, -self._stride)]

    def level(self, t: float) -> Level:
        level = super().level(t)
        if self._boundary is None:
            return level
        scaling, data = self._boundary
        square = (t * scaling) ** 2
        return level._replace(skip=data**2 / (square + data**2), out=(square / (square + data**2)) ** 0.5)

    def x0(self, x: Tensor, output: Tensor, level: Level) -> Tensor:
        if self.prediction == "epsilon":
            x0 = (x - level.sigma * output) / level.alpha
        elif self.prediction == "sample":
            x0 = output
        else:
            x0 = level.alpha * x - level.sigma * output
        x0 = self._clip(x0)
        return x0 if self._boundary is None else level.skip * x + level.out * x0

    def describe(self) -> dict[str, Any]:
        levels = [round(float(a), 6) for a in self._alphas[:: max(1, len(self._alphas) // 8)]]
        said: dict[str, Any] = {"prediction": self.prediction, "levels": levels}
        if self._clip.describe() != [None, None, None]:
            said["clip"] = self._clip.describe()
        if self._boundary is not None:
            said["consistency"] = [self._stride, *self._boundary]
        return said


class CosineLevels(Levels):
    """Wuerstchen's (Pernias et al. 2023): variance preserving, epsilon, a cosine over continuous timesteps 1 to 0.

    alpha^2 = cos^2((t + s) / (1 + s) pi / 2), over its value at 0 and within [0.0001, 0.9999].

    Args:
        scheduler: DDPMWuerstchenScheduler; `scaler` bends t as there.
    """

    prediction = "epsilon"
    max_timestep = 1.0

    def __init__(self, scheduler: Any) -> None:
        self._offset, self._scaler = float(scheduler.config["s"]), float(scheduler.config["scaler"])

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        bent = 1 - (1 - t) ** self._scaler if self._scaler > 1 else t**self._scaler
        first, now = (math.cos((at + self._offset) / (1 + self._offset) * math.pi / 2) ** 2 for at in (0.0, bent))
        square = min(max(now / first, 1e-4), 0.9999)
        return square**0.5, (1 - square) ** 0.5

    def timesteps(self) -> list[float]:
        """A thousand of them."""
        return [i / 1000 for i in range(1000, 0, -1)]

    def x0(self, x: Tensor, output: Tensor, level: Level) -> Tensor:
        return (x - level.sigma * output) / level.alpha

    def describe(self) -> dict[str, Any]:
        return {"cosine": [self._offset, self._scaler]}


class EDMLevels(Levels):
    """Variance exploding, x_t = x0 + sigma eps, with EDM's preconditioning (Karras et al. 2022, table 1).

    x0_hat = c_skip x + c_out F(c_in x, c_noise), c_noise = ln(sigma) / 4. Timesteps are positions in the scheduler's
    grid of sigmas, 0 at sigma_min, so that they read like those of other models; fractions are positions between.

    Args:
        scheduler: EDMEulerScheduler, EDMDPMSolverMultistepScheduler, or CosineDPMSolverMultistepScheduler (Stable
            Audio), where c_noise is 2 / pi atan(sigma): gives sigma_min, sigma_max, sigma_data, rho.
    """

    def __init__(self, scheduler: Any) -> None:
        config = scheduler.config
        self.prediction = config.get("prediction_type", "epsilon")
        if self.prediction not in ("epsilon", "v_prediction"):
            raise ModelError(f"an EDM scheduler predicts {self.prediction!r}; it must be epsilon or v_prediction")
        self._low, self._high = float(config["sigma_min"]), float(config["sigma_max"])
        self._data, self._rho = float(config.get("sigma_data", 0.5)), float(config.get("rho", 7.0))
        self._count = int(config.get("num_train_timesteps", 1000))
        self._exponential = config.get("sigma_schedule", "karras") == "exponential"
        self._arc = type(scheduler).__name__.startswith("Cosine")
        self._clip = Clip(config)
        self.max_timestep = float(self._count - 1)

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        """1 and the scheduler's own spacing of sigmas."""
        return 1.0, self._sigma(t)

    def _sigma(self, t: float) -> float:
        place = t / (self._count - 1)
        if self._exponential:
            return float(self._low ** (1 - place) * self._high**place)
        low, high = self._low ** (1 / self._rho), self._high ** (1 / self._rho)
        return float((low + place * (high - low)) ** self._rho)

    def position(self, timestep: float, sigma: float) -> float:
        """Where sigma lies in the grid."""
        if self._exponential:
            place = math.log(sigma / self._low) / math.log(self._high / self._low)
        else:
            low, high = self._low ** (1 / self._rho), self._high ** (1 / self._rho)
            place = (sigma ** (1 / self._rho) - low) / (high - low)
        return min(1.0, max(0.0, place)) * (self._count - 1)

    def timesteps(self) -> list[float]:
        return [float(t) for t in range(self._count - 1, -1, -1)]

    def level(self, t: float) -> Level:
        """c_noise, c_in, c_skip and c_out."""
        sigma = self._sigma(t)
        total = sigma**2 + self._data**2
        out = sigma * self._data / total**0.5
        if self.prediction == "v_prediction":
            out = -out
        time = 2 / math.pi * math.atan(sigma) if self._arc else 0.25 * math.log(sigma)
        return Level(1.0, sigma, time, total**-0.5, self._data**2 / total, out)

    def scale_input(self, x: Tensor, level: Level) -> Tensor:
        """c_in x."""
        return x * level.scale

    def x0(self, x: Tensor, output: Tensor, level: Level) -> Tensor:
        return self._clip(level.skip * x + level.out * output)

    def describe(self) -> dict[str, Any]:
        said = {"edm": [self._low, self._high, self._data, self._rho, self._count, self._exponential],
                "prediction": self.prediction, "clip": self._clip.describe()}  # fmt: skip
        return {**said, "arc": True} if self._arc else said


class ConsistencyLevels(EDMLevels):
    """Consistency models (Song et al. 2023): EDM's levels, another skip and time, and fresh noise at every step.

    Args:
        scheduler: CMStochasticIterativeScheduler.
    """

    def __init__(self, scheduler: Any) -> None:
        super().__init__(scheduler)
        self.fresh_noise = True
        self._clip.range = 1.0 if scheduler.config.get("clip_denoised", True) else None

    def level(self, t: float) -> Level:
        """The boundary condition holds at sigma_min (their appendix C)."""
        sigma = self._sigma(t)
        above = sigma - self._low
        skip = self._data**2 / (above**2 + self._data**2)
        out = above * self._data / (sigma**2 + self._data**2) ** 0.5
        return super().level(t)._replace(time=250.0 * math.log(sigma), skip=skip, out=out)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "consistency": True}


class FlowLevels(Levels):
    """Rectified flow: x_t = (1 - s) x0 + s eps, s = t / 1000, the network predicts the velocity eps - x0.

    The stochastic step of schedule.py keeps these marginals, which is the SDE that codebooks need (gDDCM, 2025).

    Args:
        scheduler: FlowMatchEulerDiscreteScheduler, or one with use_flow_sigmas (Sana's DPM-Solver). Its shift bends
            the grid of timesteps: s -> shift s / (1 + (shift - 1) s) (Esser et al. 2024). Where the shift depends on
            the image's size (Flux), `mu` says which to take.
        time_scale: what the network is told is t * time_scale.
        mu: the logarithm of the shift, for schedulers with use_dynamic_shifting.
    """

    def __init__(self, scheduler: Any, time_scale: float = 1.0, mu: float | None = None) -> None:
        config = scheduler.config
        self.prediction = "flow_prediction"
        self._count = int(config.get("num_train_timesteps", 1000))
        self._time_scale = time_scale
        self._shift = float(config.get("flow_shift") or config.get("shift") or 1.0)
        if config.get("use_dynamic_shifting") and mu is not None:
            linear = config.get("time_shift_type", "exponential") == "linear"
            self._shift = mu if linear else math.exp(mu)
        if config.get("invert_sigmas"):
            raise ModelError("the flow scheduler has inverted sigmas: give one with invert_sigmas=False")
        self.max_timestep = float(self._count)

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        s = t / self._count
        return 1.0 - s, s

    def timesteps(self) -> list[float]:
        """The shifted grid."""
        n, shift = self._count, self._shift
        return [n * (shift * i / (n - i + shift * i)) for i in range(n, 0, -1)]

    def level(self, t: float) -> Level:
        return Level(*self.alpha_sigma(t), t * self._time_scale)

    def x0(self, x: Tensor, output: Tensor, level: Level) -> Tensor:
        return x - level.sigma * output

    def describe(self) -> dict[str, Any]:
        """The shift only places timesteps, yet a decoder must place them alike."""
        return {"flow": [self._count, round(self._shift, 9), self._time_scale]}


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler belongs to a rectified flow model."""
    config = scheduler.config
    return (
        type(scheduler).__name__.startswith("FlowMatch")
        or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") == "flow_prediction"
    )


def levels_of(scheduler: Any) -> Levels:
    """The levels a diffusers scheduler stands for; raises ModelError if it is of none of the supported kinds."""
    name = type(scheduler).__name__
    if is_flow(scheduler):
        return FlowLevels(scheduler)
    if name.startswith("EDM") or name == "CosineDPMSolverMultistepScheduler":
        return EDMLevels(scheduler)
    if name == "CMStochasticIterativeScheduler":
        return ConsistencyLevels(scheduler)
    if name == "DDPMWuerstchenScheduler":
        return CosineLevels(scheduler)
    if hasattr(scheduler, "alphas_cumprod"):
        return VarianceLevels(scheduler)
    raise ModelError(
        f"the scheduler {name} is not supported: it must have alphas_cumprod (DDPM, DDIM, PNDM, DPM-Solver, UniPC, "
        "Euler, LCM, ...), or be an EDM, consistency, flow matching or Wuerstchen's scheduler"
    )

"""MultiscaleModel: x0_hat at high noise from an averaged picture, where the information is.

Averaging x_t over 2^k x 2^k pixels averages the noise away, but hardly a photograph: the noise-to-signal ratio
sigma_t / alpha_t falls by 2^k. So a fully convolutional network can predict a smaller picture, at a noise level that
it knows better, for 1 / 4^k of the work and with 2^k times the receptive field; enlarged, that is x0_hat. The noise
levels from which on this predicts better are measured with the information curve (`ddcm calibrate`) and stored with it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad, pixel_shuffle, pixel_unshuffle

from ddcm_fast.models.network import gradients_of
from ddcm_fast.models.wrapped import WrappedModel
from ddcm_fast.sampling.model import DiffusionModel, Level, Predictor, eps_from_x0


class AveragedModel(WrappedModel):
    """A pixel-space model that predicts x0_hat on its picture averaged over 2^k x 2^k pixels.

    Args:
        model: with a `patch` and a `predictor`, whose network takes any size. k: 1 or more.
    """

    def __init__(self, model: DiffusionModel, k: int) -> None:
        super().__init__(model)
        assert model.patch is not None
        self._patch, self._k, self._factor = model.patch, k, 2**k
        #: (log of the noise-to-signal ratio, timestep), increasing.
        self._grid = sorted((_noise(*model.alpha_sigma(t)), t) for t in model.training_timesteps())

    def _small(self, shape: torch.Size) -> torch.Size:
        """Shape of the averaged state, its sides rounded up to what the network takes."""
        sides = (-(-side * self._patch // (self._factor * self.multiple)) * self.multiple for side in shape[-2:])
        return torch.Size((shape[0], *self.inner.latent_shape(*sides)))

    def cost(self, t: float, shape: torch.Size) -> float:
        """The work goes with the area."""
        return math.prod(self._small(shape)) / math.prod(shape)

    def level(self, t: float) -> Level:
        """Alpha and sigma are those of t, all else of the timestep nearest when averaged."""
        alpha, sigma = self.alpha_sigma(t)
        goal = _noise(alpha, sigma / self._factor)
        place = bisect_right(self._grid, (goal, -1.0))
        _, near = min(self._grid[max(0, place - 1) : place + 1], key=lambda pair: abs(pair[0] - goal))
        averaged_level = self.inner.level(near)
        weight = averaged_level.alpha / alpha if alpha > 0 else averaged_level.sigma * self._factor / sigma
        return averaged_level._replace(alpha=alpha, sigma=sigma, averaged=weight)

    def predict(self, x: Tensor, t: float, condition: Any = None) -> tuple[Tensor, Tensor]:
        # 0-d tensors on the device, as in a captured step: see NetworkModel._placed.
        numbers = (torch.full((), float(n), dtype=torch.float32, device=x.device) for n in self.level(t))
        with self.using(), gradients_of(x):
            return self.predictor(condition, x.shape)(x, Level(*numbers))

    def predictor(self, condition: Any, shape: torch.Size) -> Predictor:
        small = self._small(shape)
        inner = self.inner.predictor(condition, small)
        height, width = (side * self._patch for side in shape[-2:])
        below, beside = (side * self._patch * self._factor for side in small[-2:])

        def predict(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
            # The noise beyond an edge is that inside mirrored: what is averaged there must be different pixels, too.
            image = pad(self._image(x), (0, beside - width, 0, below - height), mode="reflect")
            state = pixel_unshuffle(avg_pool2d(image, self._factor), self._patch)
            alpha, sigma = level.averaged * level.alpha, level.averaged * level.sigma * 0.5**self._k
            x0, _ = inner(level.averaged * state, level._replace(alpha=alpha, sigma=sigma))
            large = interpolate(self._image(x0), (below, beside), mode="bicubic", align_corners=False)
            x0_hat = pixel_unshuffle(large[..., :height, :width].clamp(-1, 1), self._patch)
            return x0_hat, eps_from_x0(x, x0_hat, level.alpha, level.sigma)

        return predict

    def changes(self) -> str:
        return f"averaged {self._k}"

    def _image(self, state: Tensor) -> Tensor:
        return pixel_shuffle(state, self._patch)


def multiscale(model: DiffusionModel) -> DiffusionModel:
    """The model with all resolutions it can have; itself if it has them, or if it can have only one."""
    return model if model.patch is None or isinstance(model, MultiscaleModel) else MultiscaleModel(model)


def _noise(alpha: float, sigma: float) -> float:
    """Logarithm of the noise-to-signal ratio."""
    return math.log(sigma / alpha) if alpha > 0 else math.inf


class MultiscaleModel(WrappedModel):
    """A model that predicts on averaged pictures from the timesteps on that its information curve says.

    Without a curve, or one measured at full resolution alone, that is never. A picture that is too small to be averaged
    so often is averaged as often as it can be.

    Args:
        model: as AveragedModel's.
    """

    def __init__(self, model: DiffusionModel) -> None:
        super().__init__(model)
        self._models = [model]
        self._least = 0  # times that a picture is averaged

    def resolutions(self, shape: torch.Size) -> list[DiffusionModel]:
        """As often as leaves the smallest picture that the network takes."""
        assert self.patch is not None
        most = (min(shape[-2:]) * self.patch // self.multiple).bit_length()
        while len(self._models) < most:
            self._models.append(AveragedModel(self.inner, len(self._models)))
        return self._models[:most]

    def at(self, t: float, shape: torch.Size) -> DiffusionModel:
        models = self.resolutions(shape)
        k = bisect_right(self.information.averaged_from, t) if self.information is not None else 0
        return models[min(max(k, self._least), len(models) - 1)]

    def coarse(self, k: int) -> DiffusionModel:
        other = copy(self)
        other._least = k
        return other

    def sized(self, shape: torch.Size) -> DiffusionModel:
        if self.information is None:
            return self
        other = copy(self)
        other.information = self.information.limited(len(self.resolutions(shape)))
        return other

    def cost(self, t: float, shape: torch.Size) -> float:
        return self.at(t, shape).cost(t, shape)

    def predict(self, x: Tensor, t: float, condition: Any = None) -> tuple[Tensor, Tensor]:
        return self.at(t, x.shape).predict(x, t, condition)

    def changes(self) -> str:
        """The timesteps from which on it is averaged."""
        averaged_from = () if self.information is None else self.information.averaged_from
        return f"averaged from {averaged_from}" if averaged_from else ""

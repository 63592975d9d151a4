"""TiledModel: states larger than a network is comfortable with, denoised in overlapping, blended tiles.

As in MultiDiffusion (Bar-Tal et al. 2023), the predictions of overlapping tiles are averaged at every step, so one
state, one noise and one file cover the whole image. Tiles are part of the model's name ("photo#tile=64,16") and of its
fingerprint: a file says how it was tiled and decodes only with the same tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddcm_fast.errors import ConfigError
from ddcm_fast.models.wrapped import WrappedModel
from ddcm_fast.sampling.model import DiffusionModel, Level, Predictor, eps_from_x0


class TiledModel(WrappedModel):
    """A model whose states are denoised in tiles.

    Args:
        model: the model.
        size: side of a tile, in entries of the state (latents, or pixels of a pixel-space model).
        overlap: entries that neighbouring tiles share; over these they are blended linearly.

    Raises:
        ConfigError: impossible sizes.
    """

    def __init__(self, model: DiffusionModel, size: int, overlap: int) -> None:
        if not 0 <= overlap <= size // 2 or size < 1:
            raise ConfigError(f"tiles of {size} with an overlap of {overlap}: it must be at most half a tile")
        side = 16 * model.multiple
        self._factor = side // model.latent_shape(side, side)[-1]  # pixels an entry
        if size * self._factor % model.multiple:
            step = model.multiple // self._factor
            raise ConfigError(f"tiles of {size}: model {model.name!r} takes multiples of {step} entries")
        super().__init__(model)
        self.size, self.overlap = size, overlap
        self.name = f"{model.name}#tile={size},{overlap}"

    def _starts(self, length: int) -> list[int]:
        """Where tiles start along a side: evenly a stride apart, the last one flush with the end."""
        if length <= self.size:
            return [0]
        stride = self.size - self.overlap
        return [*range(0, length - self.size, stride), length - self.size]

    def _weights(self, length: int, device: torch.device) -> list[Tensor]:
        """Blending weights of the tiles along a side, which sum to 1 at every place."""
        starts, size = self._starts(length), min(self.size, length)
        place = torch.arange(size, dtype=torch.float32, device=device)
        ramp = torch.minimum(place + 1, size - place).clamp(max=self.overlap + 1)
        total = torch.zeros(length, device=device, dtype=torch.float32)
        for start in starts:
            total[start : start + size] += ramp
        return [ramp / total[start : start + size] for start in starts]

    def predict(self, x: Tensor, t: float, condition: Any = None) -> tuple[Tensor, Tensor]:
        """Only x0_hat is blended; eps_hat follows from it."""
        # 0-d tensors on the device, as in `predictor`: see NetworkModel._placed.
        alpha, sigma = (torch.full((), n, dtype=torch.float32, device=x.device) for n in self.alpha_sigma(t))
        return self._blended(x, alpha, sigma, lambda tile: self.inner.predict(tile, t, condition))

    def predictor(self, condition: Any, shape: torch.Size) -> Predictor:
        rows, columns = min(shape[-2], self.size), min(shape[-1], self.size)
        inner = self.inner.predictor(condition, torch.Size((*shape[:-2], rows, columns)))

        def predict(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
            return self._blended(x, level.alpha, level.sigma, lambda tile: inner(tile, level))

        return predict

    def _blended(
        self,
        x: Tensor,
        alpha: float | Tensor,
        sigma: float | Tensor,
        predict: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """(x0_hat, eps_hat) of a state from predictions for its tiles."""
        height, width = x.shape[-2:]
        if max(height, width) <= self.size:
            return predict(x)
        rows, columns = min(height, self.size), min(width, self.size)
        x0_hat = torch.zeros_like(x)
        down, across = self._weights(height, x.device), self._weights(width, x.device)
        for top, weight_down in zip(self._starts(height), down, strict=True):
            for left, weight_across in zip(self._starts(width), across, strict=True):
                area = (..., slice(top, top + rows), slice(left, left + columns))
                tile, _ = predict(x[area].contiguous())
                x0_hat[area] += tile * weight_down[:, None] * weight_across
        return x0_hat, eps_from_x0(x, x0_hat, alpha, sigma)

    def check_size(self, height: int, width: int) -> None:
        """What the network sees is a tile."""
        DiffusionModel.check_size(self, height, width)
        self.inner.check_size(*self._tile(height, width))

    def _tile(self, height: int, width: int) -> tuple[int, int]:
        """Pixels of a tile of an image."""
        most = self.size * self._factor
        return min(height, most), min(width, most)

    def calls(self, height: int, width: int) -> int:
        rows, columns = self.latent_shape(height, width)[-2:]
        tiles = len(self._starts(rows)) * len(self._starts(columns))
        return tiles * self.inner.calls(*self._tile(height, width))

    def changes(self) -> str:
        return f"tile {self.size} {self.overlap}"

"""Pixel-space denoising diffusion models: diffusers' UNet2DModel with its scheduler's noise levels."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from ..errors import ModelError
from .base import DiffusionModel, eps_from_x0, weights_fingerprint

_PREDICTIONS = ("epsilon", "sample", "v_prediction")


class PixelModel(DiffusionModel):
    """An unconditional pixel-space model.

    Args:
        unet: a UNet2DModel; called as unet(x, t).sample.
        scheduler: any diffusers scheduler with `alphas_cumprod` (DDPM, DDIM, ...); gives the noise levels,
            the prediction type and whether x0_hat is clipped.
        name: name that travels in files.
        patch: orthonormal space-to-depth factor in front of the network (1: none); the state is then
            (channels * patch^2, H / patch, W / patch).
    """

    def __init__(self, unet: Any, scheduler: Any, name: str, patch: int = 1) -> None:
        config = scheduler.config
        self.unet = unet.eval().requires_grad_(False)
        self.name = name
        self.patch = patch
        self.device = unet.device
        self.dtype = unet.dtype
        self.channels = unet.config.in_channels // patch**2
        self.prediction = config.get("prediction_type", "epsilon")
        if self.prediction not in _PREDICTIONS:
            raise ModelError(f"model {name!r} predicts {self.prediction!r}, which is not supported")
        if self.channels not in (1, 3):
            raise ModelError(f"model {name!r} has {self.channels} image channels; only 1 or 3 work")
        self._alphas_cumprod = scheduler.alphas_cumprod.double().cpu()
        self.max_timestep = float(len(self._alphas_cumprod) - 1)
        self._clip = float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else None
        self.multiple = patch * 2 ** (len(unet.config.down_block_types) - 1)
        self._fingerprint: bytes | None = None
        self._config_text = json.dumps(
            {
                "patch": patch,
                "prediction": self.prediction,
                "levels": [round(float(a), 6) for a in self._alphas_cumprod[:: max(1, len(self._alphas_cumprod) // 8)]],
                "blocks": list(unet.config.block_out_channels),
            }
        )

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        """See DiffusionModel.alpha_sigma; t is one of the training timesteps."""
        a = float(self._alphas_cumprod[int(t)])
        return a**0.5, (1.0 - a) ** 0.5

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """See DiffusionModel.latent_shape."""
        p = self.patch
        return (self.channels * p * p, height // p, width // p)

    def encode(self, image: Tensor) -> Tensor:
        """See DiffusionModel.encode."""
        image = image.to(self.device, torch.float32)
        return pixel_unshuffle(image, self.patch) if self.patch > 1 else image

    def decode(self, x0: Tensor) -> Tensor:
        """See DiffusionModel.decode."""
        image = pixel_shuffle(x0, self.patch) if self.patch > 1 else x0
        return image.clamp(-1, 1)

    def predict(self, x: Tensor, t: float, condition: Any = None) -> tuple[Tensor, Tensor]:
        """See DiffusionModel.predict."""
        alpha, sigma = self.alpha_sigma(t)
        memory = torch.channels_last if x.dim() == 4 else torch.contiguous_format
        sample = x.to(self.dtype).contiguous(memory_format=memory)
        timestep = torch.full((len(x),), t, dtype=torch.float32, device=x.device)
        out = self.unet(sample, timestep).sample.float().contiguous()
        if self.prediction == "epsilon":
            x0_hat = (x - sigma * out) / alpha
        elif self.prediction == "sample":
            x0_hat = out
        else:
            x0_hat = alpha * x - sigma * out
        if self._clip is not None:
            x0_hat = x0_hat.clamp(-self._clip, self._clip)
        return x0_hat, eps_from_x0(x, x0_hat, alpha, sigma)

    def fingerprint(self) -> bytes:
        """See DiffusionModel.fingerprint."""
        if self._fingerprint is None:
            self._fingerprint = weights_fingerprint(
                self._config_text, self.unet.state_dict().items()
            )
        return self._fingerprint

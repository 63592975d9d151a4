"""Latent diffusion: an autoencoder in front of a denoising network. Here LDM (unconditional) and DiT (labels)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ddcm_fast.errors import ConfigError, ModelError
from ddcm_fast.models.lent import Part, execution_device, uncompiled
from ddcm_fast.models.levels import Levels, levels_of
from ddcm_fast.models.network import Inputs, NetworkModel, gradients_of
from ddcm_fast.sampling.autocast import without_autocast
from ddcm_fast.sampling.condition import Condition

#: Above so many pixels the autoencoder works in its own overlapping tiles, to bound memory. It depends on the image's
#: size alone, so encoder and decoder agree.
TILED_FROM = 2**21

#: Sizes of these tiles, which an autoencoder's owner can set.
_TILING = (
    "tile_sample_min_size", "tile_latent_min_size", "tile_overlap_factor", "tile_sample_min_height",
    "tile_sample_min_width", "tile_sample_stride_height", "tile_sample_stride_width",
)  # fmt: skip


class Autoencoder:
    """A pipeline's VAE with its scaling: images in [-1, 1] to latents of about unit variance and back.

    Images pass one at a time: memory stays bounded and the bits do not depend on the batch.

    Args:
        vae: AutoencoderKL, AutoencoderDC, AutoencoderTiny or VQModel.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = uncompiled(vae)
        config = self.vae.config
        blocks = config.get("encoder_block_out_channels") or config.get("block_out_channels")
        self.factor = 2 ** (len(blocks) - 1)
        self.channels = int(config.latent_channels)
        scale, shift = float(config.get("scaling_factor") or 1.0), float(config.get("shift_factor") or 0.0)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        self._std = torch.tensor(std or [1.0], dtype=torch.float32, device="cpu").view(-1, 1, 1) / scale
        self._mean = torch.tensor(mean or [shift], dtype=torch.float32, device="cpu").view(-1, 1, 1)

    def part(self) -> Part:
        """The network and the dtype it is evaluated in: some overflow in float16, and the pipelines widen them too."""
        widened = self.vae.dtype == torch.float16 and self.vae.config.get("force_upcast")
        return Part("vae.", self.vae, torch.float32 if widened else None)

    def describe(self) -> dict[str, Any]:
        """What besides weights makes the latents and the picture, for the fingerprint."""
        tiles = {name: getattr(self.vae, name) for name in _TILING if hasattr(self.vae, name)}
        return {"mean": self._mean.flatten().tolist(), "std": self._std.flatten().tolist(), "tiles": tiles}

    @without_autocast
    def encode(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) float32 -> the mode of the latents, scaled, (B, C, H / factor, W / factor) float32."""
        rows = []
        with self._tiling(image.shape[-2] * image.shape[-1]):
            for row in self._given(image).split(1):
                out = self.vae.encode(row)
                if hasattr(out, "latent_dist"):
                    rows.append(out.latent_dist.mode())
                else:
                    rows.append(out.latent if hasattr(out, "latent") else out.latents)
        z = torch.cat(rows).float()
        return (z - self._mean.to(z.device)) / self._std.to(z.device)

    @without_autocast
    def decode(self, x0: Tensor) -> Tensor:
        """The inverse, clamped to [-1, 1]."""
        z = x0 * self._std.to(x0.device) + self._mean.to(x0.device)
        with self._tiling(x0.shape[-2] * x0.shape[-1] * self.factor**2):
            image = torch.cat([self.vae.decode(row).sample for row in self._given(z).split(1)])
        return image.float().clamp(-1, 1)

    def _given(self, x: Tensor) -> Tensor:
        return x.to(execution_device(self.vae), self.vae.dtype)

    @contextmanager
    def _tiling(self, pixels: int) -> Iterator[None]:
        """Tiles for this size, whatever the pipeline's owner has chosen for theirs."""
        if not hasattr(self.vae, "use_tiling"):
            yield
            return
        before, self.vae.use_tiling = self.vae.use_tiling, pixels > TILED_FROM
        try:
            yield
        finally:
            self.vae.use_tiling = before


class LatentModel(NetworkModel):
    """A denoising network in an autoencoder's latent space.

    Args:
        network, levels, name, compiled: see NetworkModel.
        vae: the pipeline's autoencoder.
        patch: latents must be multiples of this (downsampling of a U-Net, patches of a transformer).
    """

    def __init__(self, network: Any, vae: Any, levels: Levels, name: str, patch: int, compiled: bool = False) -> None:
        super().__init__(network, levels, name, compiled)
        self.autoencoder = Autoencoder(vae)
        self.multiple = self.autoencoder.factor * patch
        self.channels = 3
        self._native_side(self.autoencoder.factor)

    def description(self) -> dict[str, Any]:
        return {"class": type(self.network).__name__, **self.levels.describe(), "vae": self.autoencoder.describe()}

    def parts(self) -> list[Part]:
        return [*super().parts(), self.autoencoder.part()]

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        a = self.autoencoder
        return (a.channels, height // a.factor, width // a.factor)

    def encode(self, image: Tensor) -> Tensor:
        with self.using(), gradients_of(image):
            return self.autoencoder.encode(image).to(self.device)

    def decode(self, x0: Tensor) -> Tensor:
        with self.using(), gradients_of(x0):
            return self.autoencoder.decode(x0).to(self.device)


def unet_patch(unet: Any) -> int:
    """What a U-Net's downsampling asks of the latents."""
    return int(2 ** (len(unet.config.block_out_channels) - 1))


class LDMModel(LatentModel):
    """Unconditional latent diffusion (LDMPipeline; Rombach et al. 2022): UNet2DModel and a VQModel."""

    @classmethod
    def from_pipeline(cls, pipe: Any, name: str, compiled: bool = False) -> LDMModel:
        """Wrap a pipeline."""
        vae = pipe.vqvae if hasattr(pipe, "vqvae") else pipe.vae
        return cls(pipe.unet, vae, levels_of(pipe.scheduler), name, unet_patch(pipe.unet), compiled)

    def call(self, sample: Tensor, time: Tensor, inputs: Inputs) -> Tensor:
        return self._run(sample, time).sample


class DiTModel(LatentModel):
    """Diffusion transformers with class labels (DiTPipeline; Peebles & Xie 2023).

    No label is their null class, the embedding after the last label.
    """

    default_guidance = 4.0

    @classmethod
    def from_pipeline(cls, pipe: Any, name: str, compiled: bool = False) -> DiTModel:
        """Wrap a pipeline."""
        network = pipe.transformer
        model = cls(network, pipe.vae, levels_of(pipe.scheduler), name, int(network.config.patch_size), compiled)
        model.classes = int(network.config.num_embeds_ada_norm or 0)
        if not model.classes:
            raise ModelError(f"model {name!r} has no class embeddings, which DiT needs: load a class-conditional one")
        return model

    def check_size(self, height: int, width: int) -> None:
        """diffusers puts the patches of a DiT together as a square."""
        super().check_size(height, width)
        if height != width:
            raise ConfigError(f"model {self.name!r} takes squares, not {width}x{height}; use tiles or pad the image")

    def complete_condition(self, condition: Condition | None) -> Condition | None:
        return self._complete_label(condition, self.classes)

    def prepare(self, condition: Condition | None, guided: bool, shape: torch.Size) -> Inputs:
        """The label."""
        labels = self._label_rows(condition, self.classes, guided)
        return {"class_labels": torch.tensor(labels, device=self.device, dtype=torch.int64)}

    def call(self, sample: Tensor, time: Tensor, inputs: Inputs) -> Tensor:
        return self._run(sample, timestep=time, **inputs).sample

"""Pixel-space diffusion models: diffusers' UNet2DModel with its scheduler's noise levels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from ddcm_fast.errors import ModelError
from ddcm_fast.models.levels import levels_of
from ddcm_fast.models.network import Inputs, NetworkModel
from ddcm_fast.sampling.condition import Condition


class PixelModel(NetworkModel):
    """A pixel-space model: DDPMPipeline, DDIMPipeline, ConsistencyModelPipeline, or a UNet2DModel and a scheduler.

    Args:
        unet: a UNet2DModel; called as unet(x, t, class_labels).sample. 6 output channels are a learned variance,
            which is ignored.
        scheduler: see levels_of; it also says whether x0_hat is clipped.
        name: name that travels in files.
        patch: orthonormal space-to-depth factor in front of the network (1: none); the state is then
            (channels * patch^2, H / patch, W / patch).
        classes: of a class-conditional network with one embedding more than that: the last stands for "no class".
            Without it all embeddings are classes, and each evaluation needs a label.
        compiled: call the network through torch.compile.
    """

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        name: str,
        patch: int = 1,
        classes: int | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__(unet, levels_of(scheduler), name, compiled)
        self.unet = unet
        self.patch: int = patch
        self.channels = unet.config.in_channels // patch**2
        if self.channels not in (1, 3):
            raise ModelError(f"model {name!r} has {self.channels} image channels; only 1 or 3 work")
        self.multiple = patch * 2 ** (len(unet.config.down_block_types) - 1)
        self._native_side(patch)
        embeddings = unet.config.get("num_class_embeds") or 0
        if classes is not None and embeddings != classes + 1:
            raise ModelError(f"model {name!r} must have {classes} classes, but has {embeddings} class embeddings")
        self.classes = embeddings if classes is None else classes
        self._no_class = classes

    @classmethod
    def from_pipeline(cls, pipe: Any, name: str, compiled: bool = False) -> PixelModel:
        """Wrap a pipeline."""
        return cls(pipe.unet, pipe.scheduler, name, compiled=compiled)

    def description(self) -> dict[str, Any]:
        blocks = list(self.unet.config.block_out_channels)
        return {"patch": self.patch, **self.levels.describe(), "blocks": blocks}

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        p = self.patch
        return (self.channels * p * p, height // p, width // p)

    def encode(self, image: Tensor) -> Tensor:
        image = image.to(self.device, torch.float32)
        return pixel_unshuffle(image, self.patch) if self.patch > 1 else image

    def decode(self, x0: Tensor) -> Tensor:
        image = pixel_shuffle(x0, self.patch) if self.patch > 1 else x0
        return image.clamp(-1, 1)

    def complete_condition(self, condition: Condition | None) -> Condition | None:
        """A label where the network has classes."""
        if not self.classes:
            return super().complete_condition(condition)
        return self._complete_label(condition, self._no_class)

    def prepare(self, condition: Condition | None, guided: bool, shape: torch.Size) -> Inputs:
        """The label."""
        if not self.classes:
            return {}
        labels = self._label_rows(condition, self._no_class, guided)
        return {"class_labels": torch.tensor(labels, device=self.device, dtype=torch.int64)}

    def call(self, sample: Tensor, time: Tensor, inputs: Inputs) -> Tensor:
        return self._run(sample, time, **inputs).sample

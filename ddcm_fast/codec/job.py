"""One configuration at one image size: sizes, steps and rule before the sampling loop, and what comes out of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from ddcm_fast.codebook.reference import initial_noise
from ddcm_fast.codec.config import CodecConfig
from ddcm_fast.codec.container import MAX_SIDE
from ddcm_fast.codec.images import ImageLike, to_mask, to_pil
from ddcm_fast.codec.limits import Limits
from ddcm_fast.errors import InputError
from ddcm_fast.sampling.graphs import StepGraphs
from ddcm_fast.sampling.model import DiffusionModel
from ddcm_fast.sampling.rules import Rule
from ddcm_fast.sampling.rules.threshold import pool_weight
from ddcm_fast.sampling.schedule import Step


@dataclass(frozen=True)
class Encoded:
    """One coded image.

    Attributes:
        data: the bytes of the .ddcm file.
        reconstruction: (C, H, W) float32 in [-1, 1], what decoding `data` gives (bit for bit on the same device).
    """

    data: bytes
    reconstruction: Tensor

    @property
    def bpp(self) -> float:
        """Bits of the whole file, header included, a pixel."""
        return 8 * len(self.data) / (self.reconstruction.shape[-2] * self.reconstruction.shape[-1])

    @property
    def image(self) -> Image.Image:
        """The reconstruction as a PIL image."""
        return to_pil(self.reconstruction)


@dataclass(frozen=True)
class Job:
    """One configuration at one image size: the steps, the rule and x_T; captured steps by images a run."""

    config: CodecConfig
    steps: list[Step]
    rule: Rule
    shape: tuple[int, ...]  # of a state
    height: int
    width: int
    graphs: dict[int, StepGraphs] = field(default_factory=dict)

    @property
    def coded(self) -> list[Step]:
        return [step for step in self.steps if step.coded]

    @cached_property
    def noise(self) -> Tensor:
        """x_T (1, *shape), made when a run begins: a payload that does not fit is refused before."""
        return initial_noise(math.prod(self.shape), self.config.seed).view(1, *self.shape)

    def crop(self, images: Tensor) -> Tensor:
        """Padded images (B, C, H, W) at the size they had."""
        return images[..., : self.height, : self.width]


def make_job(model: DiffusionModel, config: CodecConfig, height: int, width: int, backend: str, limits: Limits) -> Job:
    """Everything that a run needs but noise. Raises InputError, ConfigError or LimitError before any work."""
    padded = padded_size(model, height, width)
    limits.check_size(config, model, *padded)
    shape = model.latent_shape(*padded)
    steps = config.steps(model.sized(torch.Size((1, *shape))))
    return Job(config, steps, config.make_rule(steps, math.prod(shape), backend), shape, height, width)


def padded_size(model: DiffusionModel, height: int, width: int) -> tuple[int, int]:
    """Height and width up to the model's multiple. Raises InputError or ConfigError: sizes that it cannot take."""
    low = model.min_side
    if not (low <= height <= MAX_SIDE and low <= width <= MAX_SIDE):
        raise InputError(f"the image has {width}x{height} pixels; each side must be {low} to {MAX_SIDE}")
    padded = padded_side(model, height), padded_side(model, width)
    model.check_size(*padded)
    return padded


def padded_side(model: DiffusionModel, side: int) -> int:
    """A side up to the model's multiple, whether it can take that or not."""
    return -(-side // model.multiple) * model.multiple


def make_target(model: DiffusionModel, images: Tensor) -> Tensor:
    """x0 of images (B, C, H, W), padded by repeating the last row and column."""
    with torch.inference_mode():
        return model.encode(_padded(model, images.to(model.device)))


def make_weight(model: DiffusionModel, mask: ImageLike, height: int, width: int) -> Tensor:
    """A mask of the images' size -> weight of the residual, see rules.threshold.pool_weight."""
    plane = mask if isinstance(mask, Tensor) else to_mask(mask)
    if plane.shape != (height, width):
        raise InputError(f"the mask has shape {tuple(plane.shape)}, the image {(height, width)}; make them equal")
    padded = _padded(model, plane.float()[None, None])[0, 0]
    return pool_weight(padded, model.latent_shape(*padded.shape)).to(model.device)


def _padded(model: DiffusionModel, images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    high, wide = padded_size(model, height, width)
    return pad(images, (0, wide - width, 0, high - height), mode="replicate")

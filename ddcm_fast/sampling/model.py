"""What the sampler asks of a diffusion model: alpha, sigma, x0_hat and eps_hat (DESIGN: x_t = alpha x0 + sigma eps)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddcm_fast.errors import ConfigError
from ddcm_fast.sampling.condition import Condition
from ddcm_fast.sampling.curve import InformationCurve


class Level(NamedTuple):
    """The numbers of one timestep that a prediction computes with.

    Python numbers as Levels give them, or 0-d float32 tensors on the network's device: what a prediction does must
    not depend on their values, so that one captured graph serves all timesteps.

    Attributes:
        alpha, sigma: x_t = alpha x0 + sigma eps. scale: of the network's input, where the levels scale it.
        time: what the network is told. skip, out: x0_hat = skip x + out F, of levels with a preconditioning or a
            boundary condition, F the output or what it says of x0.
        averaged: weight of an averaged state as the network's input, of models that average (models/multiscale.py).
    """

    alpha: float | Tensor
    sigma: float | Tensor
    time: float | Tensor
    scale: float | Tensor = 1.0
    skip: float | Tensor = 0.0
    out: float | Tensor = 1.0
    averaged: float | Tensor = 1.0


#: (x, level) -> (x0_hat, eps_hat), see DiffusionModel.predictor.
Predictor = Callable[[Tensor, Level], tuple[Tensor, Tensor]]


class DiffusionModel(ABC):
    """A pretrained model behind one face: states are x_t = alpha_t x0 + sigma_t eps, t the model's timestep.

    Attributes:
        name: travels in files made with the model and finds it again (`load_model(name)`).
        device, dtype: of the network; states and predictions are float32 on `device`.
        max_timestep: the noisiest timestep; sampling starts there.
        multiple: image height and width must be multiples of this (the codec pads and crops).
        channels: of the image, 3 or 1.
        classes: number of labels that a condition can have; 0 of a model that takes none.
        fresh_noise: a consistency model's: x0_hat is a sample, and a step goes on from it with fresh noise alone
            (v = sigma_s), as such models are sampled.
        min_side: pixels that each side of an image must have at least.
        default_side: of generated images, in pixels: what the network was trained on.
        patch: of models whose network takes any size of picture: the state is pixel_unshuffle(image, patch).
        generation: another number after anything was done to the networks: what holds their memory is out of date.
        information: the curve measured by `ddcm calibrate`, if there is one.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    max_timestep: float
    multiple: int = 1
    channels: int = 3
    classes: int = 0
    min_side: int = 16
    default_side: int = 256
    fresh_noise: bool = False
    patch: int | None = None
    generation: int = 0
    information: InformationCurve | None = None

    @abstractmethod
    def alpha_sigma(self, t: float) -> tuple[float, float]:
        """(alpha_t, sigma_t) of a timestep, in double precision."""

    @abstractmethod
    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of one image's state, without the batch, for an image of height x width pixels."""

    @abstractmethod
    def encode(self, image: Tensor) -> Tensor:
        """Image (B, channels, H, W) float32 in [-1, 1] -> x0 (B, *latent_shape) float32."""

    @abstractmethod
    def decode(self, x0: Tensor) -> Tensor:
        """x0 (B, *latent_shape) float32 -> image (B, channels, H, W) float32 in [-1, 1]."""

    @abstractmethod
    def predict(self, x: Tensor, t: float, condition: Any = None) -> tuple[Tensor, Tensor]:
        """(x0_hat, eps_hat) of a state x (B, *latent_shape) float32 at timestep t, both float32.

        They satisfy x = alpha_t x0_hat + sigma_t eps_hat, also where x0_hat was clipped.
        """

    def at(self, t: float, shape: torch.Size) -> DiffusionModel:
        """What predicts at a timestep for states of one shape (B, *latent_shape), of a model that has several ways.

        Always the same object for the same way: `level` and `predictor` are asked of it.
        """
        return self

    def resolutions(self, shape: torch.Size) -> list[DiffusionModel]:
        """What `at` chooses from for states of one shape: at full resolution, averaged once, twice, ..."""
        return [self]

    def sized(self, shape: torch.Size) -> DiffusionModel:
        """This model with the information curve that states of one shape have, for schedules and rates."""
        return self

    def coarse(self, k: int) -> DiffusionModel:
        """This model for a preview: it predicts on pictures averaged k times or more, where `resolutions` has them."""
        return self

    def cost(self, t: float, shape: torch.Size) -> float:
        """Work of a prediction for states of one shape, in evaluations of the network at full resolution."""
        return 1.0

    def level(self, t: float) -> Level:
        """The numbers of a timestep that `predictor` takes, for models that have one."""
        raise ConfigError(f"model {self.name!r} cannot be captured in a CUDA graph; leave cuda_graph out")

    def predictor(self, condition: Any, shape: torch.Size) -> Predictor:
        """`predict` for one condition and states of one shape (B, *latent_shape), as a function of tensors alone.

        Whatever is prepared on the host is prepared here; the function itself neither waits for the device nor looks
        at the values of a Level of 0-d tensors, so that it can be captured in a CUDA graph.

        Raises ConfigError: this model has none.
        """
        raise ConfigError(f"model {self.name!r} cannot be captured in a CUDA graph; leave cuda_graph out")

    @abstractmethod
    def fingerprint(self, dtype: torch.dtype | None = None) -> bytes:
        """4 bytes that tell this model from another: two that no dtype changes, two of its weights' values.

        dtype: what the values are rounded to, the network's own where None. A wider network then has the fingerprint
        of the same network loaded in that dtype.
        """

    @contextmanager
    def using(self) -> Iterator[None]:
        """Around evaluations: what was done to the networks since the last time is noticed once, at the beginning.

        Networks that belong to a pipeline are as the model needs them inside, and as they were found outside.
        """
        yield

    def check_size(self, height: int, width: int) -> None:
        """Raise ConfigError if the model cannot take (already padded) images of this size."""
        if height % self.multiple or width % self.multiple:
            raise ConfigError(f"model {self.name!r} takes multiples of {self.multiple}, not {width}x{height}")

    def calls(self, height: int, width: int) -> int:
        """How often `predict` calls the network for an (already padded) image of this size."""
        return 1

    def complete_condition(self, condition: Condition | None) -> Condition | None:
        """The condition with this model's defaults filled in, as files keep it; None if it says nothing.

        Raises ConfigError if the model cannot take it.
        """
        if condition:
            raise ConfigError(f"model {self.name!r} is unconditional; leave {condition} out")
        return None

    def training_timesteps(self) -> list[float]:
        """Timesteps the model was trained at, noisiest first; schedules choose among them."""
        return [float(t) for t in range(int(self.max_timestep), -1, -1)]


def eps_from_x0(x: Tensor, x0_hat: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """The eps_hat that goes with x0_hat: (x - alpha x0_hat) / sigma."""
    return (x - alpha * x0_hat) / sigma

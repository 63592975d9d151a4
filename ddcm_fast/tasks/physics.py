"""Operators of other packages for y = A x + n, deepinv's `LinearPhysics` first of all, as a LinearOperator.

What is asked of one is what deepinv calls `A` (x -> y, without noise) and `A_adjoint` (y -> x), for images
(B, C, H, W) and measurements of any shape (B, ...). The package itself is not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddcm_fast.errors import ConfigError, InputError, first_line, out_of_memory
from ddcm_fast.sampling.choosers import seeded
from ddcm_fast.tasks.operators import LinearOperator


def as_operator(operator: LinearOperator | Any, measurement: Tensor) -> tuple[LinearOperator, Tensor]:
    """An operator and the measurement (B, ...) of its, as (B, c, h, w) for the LinearOperator that is returned.

    Raises:
        ConfigError: neither a LinearOperator nor one with `A` and `A_adjoint`.
        InputError: an operator that cannot take the measurement.
    """
    if isinstance(operator, LinearOperator):
        return operator, measurement
    wrapped = Physics(operator, measurement)
    return wrapped, wrapped.flat(measurement)


class Physics(LinearOperator):
    """An operator with `A` and `A_adjoint`, for measurements of one shape, as (B, 1, 1, entries).

    The size of its images is what A_adjoint makes of a measurement. Entries of y that are 0 for noise as the image
    (those in the holes of a mask) say nothing of x.

    Args:
        physics: the operator, on the measurement's device. measurement: y (B, ...).

    Raises ConfigError or InputError, see as_operator.
    """

    def __init__(self, physics: Any, measurement: Tensor) -> None:
        if not (callable(getattr(physics, "A", None)) and callable(getattr(physics, "A_adjoint", None))):
            name = type(physics).__name__
            raise ConfigError(f"{name} is no linear operator; give one with A and A_adjoint, or a LinearOperator")
        self._physics = physics
        self._shape = measurement.shape[1:]
        try:
            image = _alone(physics.A_adjoint, measurement)
            noise = torch.randn(image.shape, generator=seeded(0), dtype=torch.float32, device="cpu")
            made = _alone(physics.A, noise.to(image))
        except Exception as error:  # whatever the other package raises
            if out_of_memory(error):
                raise
            said = f"{type(physics).__name__} cannot take a measurement of shape {tuple(measurement.shape)}"
            raise InputError(f"{said}; give one that its A makes: {first_line(error)}") from error
        if image.dim() != 4 or made.is_complex() or made.shape != measurement.shape:
            raise InputError(
                f"{type(physics).__name__} makes {made.dtype} {tuple(made.shape)} of {tuple(image.shape)}; it must "
                f"make real measurements {tuple(measurement.shape)} of images (B, C, H, W)"
            )
        self._height, self._width = image.shape[2:]
        self._says = self.flat(made != 0)[:1]

    def flat(self, y: Tensor) -> Tensor:
        """A measurement (B, ...) as (B, 1, 1, entries)."""
        return y.reshape(len(y), 1, 1, -1)

    def forward(self, x: Tensor) -> Tensor:
        return self.flat(_alone(self._physics.A, x))

    def adjoint(self, u: Tensor, height: int, width: int) -> Tensor:
        return _alone(self._physics.A_adjoint, u.reshape(len(u), *self._shape))

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        return self._height, self._width

    def project(self, y: Tensor) -> Tensor:
        return y * self._says

    def estimate(self, y: Tensor, height: int, width: int) -> Tensor:
        """A_dagger y, where the operator has a pseudoinverse."""
        back = getattr(self._physics, "A_dagger", self._physics.A_adjoint)
        return _alone(back, y.reshape(len(y), *self._shape))


def _alone(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """Called outside of inference mode, since some adjoints are made by autograd."""
    with torch.inference_mode(False), torch.enable_grad():
        return function(value.clone()).detach()

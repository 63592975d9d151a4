"""OneByOneModel: a batch evaluated an image at a time, so that what an image gives does not depend on the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddcm_fast.models.wrapped import WrappedModel
from ddcm_fast.sampling.model import DiffusionModel, Level, Predictor


class OneByOneModel(WrappedModel):
    """A model whose network and autoencoder see one image at a time.

    A network sums floating point numbers in an order that can depend on how many images it is given; evaluated one by
    one it gives the bits that each image alone would. Everything else of a step (the search, the noise, the update) is
    the same for an image in any batch.
    """

    def __init__(self, inner: DiffusionModel) -> None:
        super().__init__(inner)
        self._ways: dict[int, OneByOneModel] = {}  # by the inner model's own at()

    def changes(self) -> str:
        return ""

    def encode(self, image: Tensor) -> Tensor:
        return torch.cat([self.inner.encode(row) for row in image.split(1)])

    def decode(self, x0: Tensor) -> Tensor:
        return torch.cat([self.inner.decode(row) for row in x0.split(1)])

    def at(self, t: float, shape: torch.Size) -> DiffusionModel:
        return self._way(self.inner.at(t, shape))

    def resolutions(self, shape: torch.Size) -> list[DiffusionModel]:
        return [self._way(model) for model in self.inner.resolutions(shape)]

    def sized(self, shape: torch.Size) -> DiffusionModel:
        return OneByOneModel(self.inner.sized(shape))

    def _way(self, inner: DiffusionModel) -> DiffusionModel:
        if inner is self.inner:
            return self
        return self._ways.setdefault(id(inner), OneByOneModel(inner))

    def predict(self, x: Tensor, t: float, condition: Any = None) -> tuple[Tensor, Tensor]:
        told = _each(condition, len(x))
        rows = [self.inner.predict(row, t, own) for row, own in zip(x.split(1), told, strict=True)]
        x0_hat, eps_hat = zip(*rows, strict=True)
        return torch.cat(x0_hat), torch.cat(eps_hat)

    def predictor(self, condition: Any, shape: torch.Size) -> Predictor:
        one = torch.Size((1, *shape[1:]))
        predictors = [self.inner.predictor(own, one) for own in _each(condition, shape[0])]

        def predict(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
            rows = [of(row, level) for of, row in zip(predictors, x.split(1), strict=True)]
            x0_hat, eps_hat = zip(*rows, strict=True)
            return torch.cat(x0_hat), torch.cat(eps_hat)

        return predict


def _each(condition: Any, count: int) -> tuple[Any, ...]:
    """What each of `count` images is told, where a tuple has one an image."""
    return condition if isinstance(condition, tuple) else (condition,) * count

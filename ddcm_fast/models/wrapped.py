"""WrappedModel: the base of models around another model, which it is like in all that it does not say itself."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from typing import Any

import torch

from ddcm_fast.sampling.model import DiffusionModel


class _Inner:
    """An attribute or method that is the inner model's at every moment, unless the wrapper has set its own."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, wrapper: Any, owner: type | None = None) -> Any:
        return self if wrapper is None else getattr(wrapper.inner, self._name)


def _inner() -> Any:
    return _Inner()


class WrappedModel(DiffusionModel):
    """A model that changes another one's predictions: subclasses say `predict`, and `changes` for the fingerprint.

    `predictor`, `at`, `resolutions`, `coarse` and `sized` are not handed on, since they would leave out what `predict`
    changes.

    Attributes:
        inner: the other model.
    """

    name = _inner()
    device = _inner()
    dtype = _inner()
    max_timestep = _inner()
    multiple = _inner()
    channels = _inner()
    classes = _inner()
    min_side = _inner()
    default_side = _inner()
    fresh_noise = _inner()
    patch = _inner()
    generation = _inner()
    information = _inner()
    alpha_sigma = _inner()
    latent_shape = _inner()
    encode = _inner()
    decode = _inner()
    level = _inner()
    using = _inner()
    check_size = _inner()
    calls = _inner()
    cost = _inner()
    complete_condition = _inner()
    training_timesteps = _inner()

    def __init__(self, inner: DiffusionModel) -> None:
        self.inner = inner

    @abstractmethod
    def changes(self) -> str:
        """What tells this model's predictions from the inner model's; nothing where they are the same."""

    def fingerprint(self, dtype: torch.dtype | None = None) -> bytes:
        """The inner model's, and what is changed."""
        own, changes = self.inner.fingerprint(dtype), self.changes()
        if not changes:
            return own
        return bytes(a ^ b for a, b in zip(own, hashlib.sha256(changes.encode()).digest()[:4], strict=True))

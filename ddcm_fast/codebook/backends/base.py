"""What a backend is: one object with the codebook operations, registered under a name (backends/__init__.py)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ddcm_fast.codebook import reference
from ddcm_fast.codebook.law import CodebookSpec

Chosen = tuple[Tensor, Tensor, Tensor]


class Backend(ABC):
    """The codebook operations on the tensors of some devices.

    What they return is defined by the function of the same name in `ddcm_fast.codebook.reference`, to the bit but for
    the rounding of scores and norms. Tensors were checked by `ddcm_fast.codebook.ops`: dense, contiguous, of the
    right shape and dtype, all on one device that `unavailable` has nothing against. Residuals and noise are in codebook
    order, float32; the step is a 0-d int64 tensor on the data's device, read modulo 2^32. On a GPU no operation waits
    for the device, a row that is not finite gets index -1, sign +1 and score NaN, and indices are clamped.

    Attributes:
        automatic: types of the devices that `auto` may choose this backend for.
        speed: `auto` tries the largest first. The built-in backends have 300 (cuda), 200 (triton), 100 (cpu) and 0.
    """

    automatic: tuple[str, ...] = ()
    speed: int = 50

    @abstractmethod
    def unavailable(self, device: torch.device) -> str | None:
        """Why it cannot serve a device, or None if it can."""

    def asked(self, device: torch.device) -> bool:
        """Whether its self-test is to be passed on a device before it serves there."""
        return True

    def identity(self, device: torch.device) -> str | None:
        """What its results on a device could depend on: hardware, driver and the code's hash, in one line.

        A passed self-test is kept under this text (selftest.py). None: the self-test runs in every process.
        """
        return None

    def enter(self, spec: CodebookSpec, residual: Tensor, together: bool) -> tuple[Tensor, Tensor | None]:
        """R^T of a residual brought into range; see reference.enter."""
        return reference.enter(self.to_codebook_order, spec, residual, together)

    @abstractmethod
    def to_codebook_order(self, spec: CodebookSpec, residual: Tensor) -> Tensor:
        """R^T r: (B, D) in image order -> (B, D) in codebook order."""

    @abstractmethod
    def to_image_order(self, spec: CodebookSpec, y: Tensor) -> Tensor:
        """R y: (B, D) in codebook order -> (B, D) in image order."""

    @abstractmethod
    def search(self, spec: CodebookSpec, w: Tensor, step: Tensor, signed: bool, bias: Tensor | None) -> Chosen:
        """The best atom of each group: index int64, sign int8, score float32, all (B, G)."""

    @abstractmethod
    def topk(self, spec: CodebookSpec, w: Tensor, step: Tensor, m: int, signed: bool, bias: Tensor | None) -> Chosen:
        """The m best atoms of each group, best first: index int64, sign int8, score float32, all (B, G, m)."""

    @abstractmethod
    def scores(self, spec: CodebookSpec, w: Tensor, step: Tensor) -> Tensor:
        """All scores: (B, G, K) float32."""

    @abstractmethod
    def scores_and_norms(self, spec: CodebookSpec, w: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """`scores` and the squared norms of all atoms: (B, G, K), (G, K) float32."""

    @abstractmethod
    def combine(self, spec: CodebookSpec, index: Tensor, coefficient: Tensor, step: Tensor) -> Tensor:
        """Weighted sums of atoms: index and coefficient (B, G, M) -> (B, D) float32 in codebook order."""

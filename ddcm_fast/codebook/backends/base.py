"""What a backend is: one object with the codebook operations, registered under a name (backends/__init__.py)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ddcm_fast.codebook import reference
from ddcm_fast.codebook.law import CodebookSpec

Chosen = tuple[Tensor, Tensor, Tensor]


#: Scores that a search of a range holds: 16 MB.
_SCORES_AT_ONCE = 1 << 22


class Backend(ABC):
    """The codebook operations on the tensors of some devices.

    What they return is defined by the function of the same name in `ddcm_fast.codebook.reference`, to the bit but for
    the rounding of scores and norms. Tensors were checked by `ddcm_fast.codebook.ops`: dense, contiguous, of the
    right shape and dtype, all on one device that `unavailable` has nothing against. Residuals and noise are in codebook
    order, float32; the step is a 0-d int64 tensor on the data's device, read modulo 2^32. On a GPU no operation waits
    for the device, a row that is not finite gets index -1, sign +1 and score NaN, and indices are clamped.

    Attributes:
        holds_scores: whether trellis_search keeps all scores at once, G K of them a row.
        automatic: types of the devices that `auto` may choose this backend for.
        speed: `auto` tries the largest first. The built-in backends have 300 (cuda), 200 (triton), 100 (cpu) and 0.
    """

    holds_scores: bool = True
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
    def search_range(
        self, spec: CodebookSpec, w: Tensor, step: Tensor, signed: bool, bias: Tensor | None, first: int, last: int
    ) -> Chosen:
        """`search` among the atoms first .. last - 1 alone; first is a multiple of spec.atoms_made_together."""

    @abstractmethod
    def topk(self, spec: CodebookSpec, w: Tensor, step: Tensor, m: int, signed: bool, bias: Tensor | None) -> Chosen:
        """The m best atoms of each group, best first: index int64, sign int8, score float32, all (B, G, m)."""

    @abstractmethod
    def scores(self, spec: CodebookSpec, w: Tensor, step: Tensor) -> Tensor:
        """All scores: (B, G, K) float32."""

    @abstractmethod
    def scores_and_norms(self, spec: CodebookSpec, w: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """`scores` and the squared norms of all atoms: (B, G, K), (G, K) float32."""

    def trellis_search(self, spec: CodebookSpec, w: Tensor, step: Tensor, letter_bits: int) -> Tensor:
        """The letters (B, G) int64 of the best path; see reference.trellis_search."""
        return reference.best_path(self.scores(spec, w, step), letter_bits)

    @abstractmethod
    def combine(self, spec: CodebookSpec, index: Tensor, coefficient: Tensor, step: Tensor) -> Tensor:
        """Weighted sums of atoms: index and coefficient (B, G, M) -> (B, D) float32 in codebook order."""


def search_by_scores(
    scores_of: Callable[[int, int], Tensor],
    spec: CodebookSpec,
    signed: bool,
    bias: Tensor | None,
    first: int,
    last: int,
    batch: int,
) -> Chosen:
    """`search_range` by a function that gives the scores (B, G, count) of a range of atoms, in bounded parts."""
    width = spec.atoms_made_together
    width *= max(1, _SCORES_AT_ONCE // (batch * spec.groups * width))
    best: Chosen | None = None
    for start in range(first, last, width):
        stop = min(start + width, last)
        scores = scores_of(start, stop)
        value = scores.abs() if signed else scores
        if bias is not None:
            value = value + bias[..., start:stop]
        top = value.amax(-1)
        k = torch.arange(start, stop, dtype=torch.int64, device=scores.device)
        index = torch.where(value == top.unsqueeze(-1), k, stop).amin(-1)  # the lower of equals; NaN equals nothing
        score = scores.gather(-1, (index - start).clamp(max=stop - start - 1).unsqueeze(-1)).squeeze(-1)
        if best is not None:
            better = (top > best[0]) | top.isnan()
            top, index, score = (torch.where(better, *pair) for pair in zip((top, index, score), best, strict=True))
        best = top, index, score
    assert best is not None
    top, index, score = best
    unknown = top.isnan()
    sign = torch.where((score < 0) & signed & ~unknown, -1, 1)
    return index.masked_fill(unknown, -1), sign.to(torch.int8), score * sign

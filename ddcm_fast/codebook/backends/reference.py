"""The reference backend: `ddcm_fast.codebook.reference` on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from ddcm_fast.codebook import reference
from ddcm_fast.codebook.backends.base import Backend, Chosen, search_by_scores
from ddcm_fast.codebook.law import CodebookSpec


def _number(step: Tensor) -> int:
    """A step counts modulo 2^32, as it does where kernels read it."""
    return int(step) % 2**32


class Reference(Backend):
    """The law in plain torch; wherever torch runs, slowly."""

    speed = 0

    def unavailable(self, device: torch.device) -> str | None:
        return None

    def asked(self, device: torch.device) -> bool:
        """The known answers are its own."""
        return False

    def to_codebook_order(self, spec: CodebookSpec, residual: Tensor) -> Tensor:
        return reference.to_codebook_order(spec, residual)

    def to_image_order(self, spec: CodebookSpec, y: Tensor) -> Tensor:
        return reference.to_image_order(spec, y)

    def search(self, spec: CodebookSpec, w: Tensor, step: Tensor, signed: bool, bias: Tensor | None) -> Chosen:
        return reference.search(spec, w, _number(step), signed, bias)

    def search_range(
        self, spec: CodebookSpec, w: Tensor, step: Tensor, signed: bool, bias: Tensor | None, first: int, last: int
    ) -> Chosen:
        number = _number(step)

        def scores(a: int, b: int) -> Tensor:
            return reference.scores(spec, w, number, a, b)

        return search_by_scores(scores, spec, signed, bias, first, last, len(w))

    def topk(self, spec: CodebookSpec, w: Tensor, step: Tensor, m: int, signed: bool, bias: Tensor | None) -> Chosen:
        return reference.topk(spec, w, _number(step), m, signed, bias)

    def scores(self, spec: CodebookSpec, w: Tensor, step: Tensor) -> Tensor:
        return reference.scores(spec, w, _number(step))

    def scores_and_norms(self, spec: CodebookSpec, w: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        return reference.scores_and_norms(spec, w, _number(step))

    def trellis_search(self, spec: CodebookSpec, w: Tensor, step: Tensor, letter_bits: int) -> Tensor:
        return reference.trellis_search(spec, w, _number(step), letter_bits)

    def combine(self, spec: CodebookSpec, index: Tensor, coefficient: Tensor, step: Tensor) -> Tensor:
        return reference.combine(spec, index, coefficient, _number(step))

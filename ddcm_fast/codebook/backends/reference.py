"""The reference backend: `ddcm_fast.codebook.reference` behind the backends' common face."""

from __future__ import annotations

import torch
from torch import Tensor

from ddcm_fast.codebook import reference
from ddcm_fast.codebook.law import CodebookSpec

#: A step counts modulo 2^32, as it does where kernels read it.
_MODULUS = 2**32

to_codebook_order = reference.to_codebook_order
to_image_order = reference.to_image_order


def unavailable(device: torch.device) -> str | None:
    """It runs wherever torch does."""
    return None


def search(
    spec: CodebookSpec, w: Tensor, step: Tensor, signed: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See ddcm_fast.codebook.reference.search."""
    return reference.search(spec, w, int(step) % _MODULUS, signed, bias)


def topk(
    spec: CodebookSpec, w: Tensor, step: Tensor, m: int, signed: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See ddcm_fast.codebook.reference.topk."""
    return reference.topk(spec, w, int(step) % _MODULUS, m, signed, bias)


def scores(spec: CodebookSpec, w: Tensor, step: Tensor) -> Tensor:
    """See ddcm_fast.codebook.reference.scores."""
    return reference.scores(spec, w, int(step) % _MODULUS)


def scores_and_norms(spec: CodebookSpec, w: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """See ddcm_fast.codebook.reference.scores_and_norms."""
    return reference.scores_and_norms(spec, w, int(step) % _MODULUS)


def combine(spec: CodebookSpec, index: Tensor, coefficient: Tensor, step: Tensor) -> Tensor:
    """See ddcm_fast.codebook.reference.combine."""
    return reference.combine(spec, index, coefficient, int(step) % _MODULUS)

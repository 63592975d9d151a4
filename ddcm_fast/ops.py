"""The codebook operations as torch custom ops, so that torch.compile and CUDA graphs see through them.

Each op takes the parameters of a CodebookSpec as plain numbers and the name of a resolved backend
(ddcm_fast.backends.resolve), and hands the work to that backend. The step is a 0-d int64 tensor on the
data's device: a captured graph can then be replayed for every step. Tensors are contiguous, in codebook
order, float32; `ddcm_fast.Codebook` is the checked face of this module.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Optional

import torch
from torch import Tensor

from . import backends
from .law import KINDS, CodebookSpec

_SIGN64 = 1 << 63


def pack_seed(seed: int) -> int:
    """A 64 bit seed as the signed integer a torch op can take."""
    return seed - (1 << 64) if seed >= _SIGN64 else seed


@lru_cache(maxsize=256)
def _spec(kind: int, dim: int, size: int, groups: int, seed: int) -> CodebookSpec:
    return CodebookSpec(KINDS[kind], dim, size, groups, seed % (1 << 64))


@torch.library.custom_op("ddcm_fast::to_codebook_order", mutates_args=())
def to_codebook_order(residual: Tensor, kind: int, seed: int, backend: str) -> Tensor:
    """R^T r: (B, D) float32 -> (B, D) float32."""
    spec = _spec(kind, residual.shape[1], 1, 1, seed)
    return backends.load(backend).to_codebook_order(spec, residual)


@to_codebook_order.register_fake
def _(residual: Tensor, kind: int, seed: int, backend: str) -> Tensor:
    return torch.empty_like(residual)


@torch.library.custom_op("ddcm_fast::to_image_order", mutates_args=())
def to_image_order(y: Tensor, kind: int, seed: int, backend: str) -> Tensor:
    """z = R y: (B, D) float32 -> (B, D) float32."""
    spec = _spec(kind, y.shape[1], 1, 1, seed)
    return backends.load(backend).to_image_order(spec, y)


@to_image_order.register_fake
def _(y: Tensor, kind: int, seed: int, backend: str) -> Tensor:
    return torch.empty_like(y)


@torch.library.custom_op("ddcm_fast::topk", mutates_args=())
def topk(
    w: Tensor,
    step: Tensor,
    bias: Optional[Tensor],
    m: int,
    signed: bool,
    kind: int,
    size: int,
    groups: int,
    seed: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The m best atoms of each group: index int64, sign int8, score float32, all (B, G, m)."""
    spec = _spec(kind, w.shape[1], size, groups, seed)
    return backends.load(backend).topk(spec, w, step, m, signed, bias)


@topk.register_fake
def _(
    w: Tensor,
    step: Tensor,
    bias: Optional[Tensor],
    m: int,
    signed: bool,
    kind: int,
    size: int,
    groups: int,
    seed: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (w.shape[0], groups, m)
    return (
        w.new_empty(shape, dtype=torch.int64),
        w.new_empty(shape, dtype=torch.int8),
        w.new_empty(shape),
    )


@torch.library.custom_op("ddcm_fast::search", mutates_args=())
def search(
    w: Tensor,
    step: Tensor,
    bias: Optional[Tensor],
    signed: bool,
    kind: int,
    size: int,
    groups: int,
    seed: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best atom of each group: index int64, sign int8, score float32, all (B, G)."""
    spec = _spec(kind, w.shape[1], size, groups, seed)
    return backends.load(backend).search(spec, w, step, signed, bias)


@search.register_fake
def _(
    w: Tensor,
    step: Tensor,
    bias: Optional[Tensor],
    signed: bool,
    kind: int,
    size: int,
    groups: int,
    seed: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (w.shape[0], groups)
    return (
        w.new_empty(shape, dtype=torch.int64),
        w.new_empty(shape, dtype=torch.int8),
        w.new_empty(shape),
    )


@torch.library.custom_op("ddcm_fast::scores", mutates_args=())
def scores(
    w: Tensor, step: Tensor, kind: int, size: int, groups: int, seed: int, backend: str
) -> Tensor:
    """All scores: (B, D) -> (B, G, K) float32."""
    spec = _spec(kind, w.shape[1], size, groups, seed)
    return backends.load(backend).scores(spec, w, step)


@scores.register_fake
def _(
    w: Tensor, step: Tensor, kind: int, size: int, groups: int, seed: int, backend: str
) -> Tensor:
    return w.new_empty(w.shape[0], groups, size)


@torch.library.custom_op("ddcm_fast::scores_and_norms", mutates_args=())
def scores_and_norms(
    w: Tensor, step: Tensor, kind: int, size: int, groups: int, seed: int, backend: str
) -> tuple[Tensor, Tensor]:
    """`scores` and, from the same generation, squared norms of all atoms: (B, G, K), (G, K) float32."""
    spec = _spec(kind, w.shape[1], size, groups, seed)
    return backends.load(backend).scores_and_norms(spec, w, step)


@scores_and_norms.register_fake
def _(
    w: Tensor, step: Tensor, kind: int, size: int, groups: int, seed: int, backend: str
) -> tuple[Tensor, Tensor]:
    return w.new_empty(w.shape[0], groups, size), w.new_empty(groups, size)


@torch.library.custom_op("ddcm_fast::combine", mutates_args=())
def combine(
    index: Tensor,
    coefficient: Tensor,
    step: Tensor,
    kind: int,
    dim: int,
    size: int,
    groups: int,
    seed: int,
    backend: str,
) -> Tensor:
    """Weighted sums of atoms: index, coefficient (B, G, M) -> (B, D) float32, codebook order."""
    spec = _spec(kind, dim, size, groups, seed)
    return backends.load(backend).combine(spec, index, coefficient, step)


@combine.register_fake
def _(
    index: Tensor,
    coefficient: Tensor,
    step: Tensor,
    kind: int,
    dim: int,
    size: int,
    groups: int,
    seed: int,
    backend: str,
) -> Tensor:
    return coefficient.new_empty(index.shape[0], dim)

"""The triton backend's operations, as ddcm_fast.codebook.backends.base describes them.

Nothing here waits for the device or looks at its data: the step is read by the kernels through its pointer, every
launch depends on shapes alone, and so all of it can be captured into a CUDA graph once a first call has
compiled and tuned the kernels.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from ddcm_fast.kernels import search_gaussian, search_hadamard, search_sign, trellis
from ddcm_fast.kernels.combine import combine
from ddcm_fast.kernels.entering import bring_into_range
from ddcm_fast.kernels.rotate import to_codebook_order, to_image_order
from ddcm_fast.kernels.select import finish, peaks, rank
from torch import Tensor

from ddcm_fast.codebook.law import CodebookSpec
from ddcm_fast.errors import InputError

__all__ = [
    "combine", "enter", "scores", "scores_and_norms", "search", "to_codebook_order", "to_image_order", "topk",
    "trellis_search",
]  # fmt: skip

_RESIDUALS: dict[str, Any] = {
    "gaussian": search_gaussian.Residual,
    "sign": search_sign.Residual,
    "hadamard": search_hadamard.Residual,
}

#: Candidates that topk holds at once, over all images and groups: 24 MB of keys and scores.
_CANDIDATES = 1 << 21


def enter(spec: CodebookSpec, residual: Tensor, together: bool) -> tuple[Tensor, Tensor]:
    """R^T of a residual brought into range, and its rows' units (B, 1); see ddcm_fast.codebook.reference.enter."""
    if not residual.is_cuda and not residual.isfinite().all():
        raise InputError("the residual has NaN or infinite entries")
    scaled, unit = bring_into_range(residual, together)
    return to_codebook_order(spec, scaled), unit


def search(
    spec: CodebookSpec, w: Tensor, step: Tensor, signed: bool, bias: Optional[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The best atom of each group; see ddcm_fast.codebook.reference.search.

    An image with an infinite or NaN entry gets index -1, sign +1 and score NaN in every group.
    """
    peak, group_peak = peaks(spec, w)
    residual = _RESIDUALS[spec.kind](spec, w, group_peak)
    score, key = residual.best(step, bias, signed)
    return finish(spec, key, score, peak, signed)


def topk(
    spec: CodebookSpec, w: Tensor, step: Tensor, m: int, signed: bool, bias: Optional[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The m best atoms of each group, best first; see ddcm_fast.codebook.reference.topk and `search`.

    The codebook goes by in ranges of bounded size; the m best so far stand before each range's candidates, and
    torch.topk on the keys, no two of which are equal, leaves nothing to chance.
    """
    peak, group_peak = peaks(spec, w)
    residual = _RESIDUALS[spec.kind](spec, w, group_peak)
    batch, groups = len(w), spec.groups
    align = residual.align
    chunk = -(-max(m, _CANDIDATES // (batch * groups)) // align) * align
    best_key = step.new_empty(batch, groups, 0)
    best_score = w.new_empty(batch, groups, 0)
    for first in range(0, spec.size, chunk):
        last = min(spec.size, first + chunk)
        score = w.new_empty(batch, groups, last - first)
        residual.scores(step, first, last, score)
        key = rank(spec, score, first, bias, signed)
        if first:
            key = torch.cat((best_key, key), dim=-1)
            score = torch.cat((best_score, score), dim=-1)
        best_key, at = key.topk(min(m, key.shape[-1]), dim=-1)
        best_score = score.gather(-1, at)
    finite = torch.isfinite(peak)[:, None, None]
    index = torch.where(finite, 0xFFFFFFFF - (best_key & 0xFFFFFFFF), -1)
    negative = (best_score < 0) & finite if signed else torch.zeros_like(best_key, dtype=torch.bool)
    sign = torch.where(negative, -1, 1).to(torch.int8)
    score = torch.where(finite, torch.where(negative, -best_score, best_score), float("nan"))
    return index, sign, score


def scores(spec: CodebookSpec, w: Tensor, step: Tensor) -> Tensor:
    """All scores (B, G, K) float32; see ddcm_fast.codebook.reference.scores."""
    out = w.new_empty(len(w), spec.groups, spec.size)
    _RESIDUALS[spec.kind](spec, w, peaks(spec, w)[1]).scores(step, 0, spec.size, out)
    return out


def trellis_search(spec: CodebookSpec, w: Tensor, step: Tensor, letter_bits: int) -> Tensor:
    """The letters (B, G) int64 of the best path; see ddcm_fast.codebook.reference.trellis_search.

    An image with an infinite or NaN entry gets letters of -1. Images go in parts whose paths take bounded memory.
    """
    letters = []
    for part in w.split(trellis.images_at_once(spec, letter_bits)):
        peak, group_peak = peaks(spec, part)
        residual = _RESIDUALS[spec.kind](spec, part, group_peak)
        letters.append(trellis.best_paths(residual, peak, step, letter_bits))
    return torch.cat(letters)


def scores_range(spec: CodebookSpec, w: Tensor, step: Tensor, first: int, last: int) -> Tensor:
    """Scores (B, G, last - first) float32 of the atoms first .. last - 1."""
    residual = _RESIDUALS[spec.kind](spec, w, peaks(spec, w)[1])
    start = first // residual.align * residual.align
    out = w.new_empty(len(w), spec.groups, last - start)
    residual.scores(step, start, last, out)
    return out[..., first - start :]


def scores_and_norms(spec: CodebookSpec, w: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """All scores (B, G, K) and squared norms (G, K) float32; see ddcm_fast.codebook.reference.scores_and_norms."""
    if spec.kind == "gaussian":
        out, norms = w.new_empty(len(w), spec.groups, spec.size), w.new_empty(spec.groups, spec.size)
        residual = search_gaussian.Residual(spec, w, peaks(spec, w)[1])
        residual.scores(step, 0, spec.size, out, norms)
        return out, norms
    if spec.kind == "hadamard":
        return scores(spec, w, step), search_hadamard.norms(spec, step)
    start = torch.arange(spec.groups + 1, device=step.device, dtype=torch.int64) * spec.dim // spec.groups
    return scores(spec, w, step), start.diff().float()[:, None].repeat(1, spec.size)

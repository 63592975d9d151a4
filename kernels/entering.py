"""Residuals brought into the range in which no sum of products overflows or is lost: reference.enter."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from ddcm_fast.kernels.launch import ceil_div, launch
from torch import Tensor

from ddcm_fast.codebook.reference import HIGHEST, LOWEST

_BLOCK = 1024


@triton.jit(do_not_specialize=["dim", "peak_stride", "blocks"])
def scale_kernel(residual, peak, unit, scaled, dim, peak_stride, blocks, LOW: tl.constexpr, HIGH: tl.constexpr,
                 N: tl.constexpr):  # fmt: skip
    """scaled[b] = 2^s * residual[b] and unit[b] = 2^-s, with s by the exponent field of peak[b * peak_stride].

    residual, scaled (B, D), unit (B,) float32; peak the bits of float32. One program a row b and block of N entries,
    which reads and writes 4 bytes an entry.
    """
    pid = tl.program_id(0)
    b, block = (pid // blocks).to(tl.int64), pid % blocks
    exponent = (tl.load(peak + b * peak_stride) >> 23) & 255
    shift = tl.minimum(tl.maximum(exponent, LOW), HIGH) - exponent
    power = ((127 + shift) << 23).to(tl.float32, bitcast=True)
    inverse = ((127 - shift) << 23).to(tl.float32, bitcast=True)
    tl.store(unit + b, inverse, mask=block == 0)
    i = block.to(tl.int64) * N + tl.arange(0, N)
    x = tl.load(residual + b * dim + i, mask=i < dim, other=0.0)
    tl.store(scaled + b * dim + i, x * power, mask=i < dim)


def bring_into_range(residual: Tensor, together: bool) -> tuple[Tensor, Tensor]:
    """The residual (B, D) times a power of two a row, or of all rows together, and the inverses (B, 1)."""
    batch, dim = residual.shape
    peak = torch.linalg.vector_norm(residual, math.inf, dim=(0, 1) if together else 1, keepdim=True)
    unit, scaled = residual.new_empty(batch, 1), torch.empty_like(residual)
    blocks = ceil_div(dim, _BLOCK)
    launch(scale_kernel, batch * blocks, residual, peak.view(torch.int32), unit, scaled, dim, 0 if together else 1,
           blocks, LOW=LOWEST, HIGH=HIGHEST, N=_BLOCK)  # fmt: skip
    return scaled, unit

"""The triton backend (installed as ddcm_fast.kernels): see operations.py for what it offers.

It imports without triton, so that `unavailable` can say what is missing.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

# In a checkout this folder also answers to the name of an unrelated package, `kernels`, that transformers looks for
# by importing it: that import must not fail.
if __name__ != "kernels" and find_spec("triton") is not None:
    from ddcm_fast.kernels.operations import (
        combine,
        scores,
        scores_and_norms,
        search,
        to_codebook_order,
        to_image_order,
        topk,
    )

__all__ = [
    "combine",
    "scores",
    "scores_and_norms",
    "search",
    "to_codebook_order",
    "to_image_order",
    "topk",
    "unavailable",
]


def unavailable(device: torch.device) -> str | None:
    """Why the triton backend cannot serve a device, or None if it can.

    CPU tensors are for tests: Triton's interpreter takes them, slowly, where TRITON_INTERPRET=1 was
    set before this package was imported.
    """
    if find_spec("triton") is None:
        return "triton is not installed (pip install 'ddcm-fast[triton]'; Linux only)"
    from ddcm_fast.kernels.launch import INTERPRETED

    if device.type == "cuda":
        if INTERPRETED:
            return "TRITON_INTERPRET=1 is set, which runs kernels on the CPU; unset it"
        if not torch.cuda.is_available():
            return "torch sees no CUDA device (is this a CPU build of torch, or the driver missing?)"
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
            return "its kernels need compute capability 8.0 (Ampere) or newer"
        return None
    if device.type == "cpu":
        if INTERPRETED:
            return None
        if os.environ.get("TRITON_INTERPRET") == "1":
            return "TRITON_INTERPRET was set after triton's kernels were imported; set it before"
        return "triton compiles for GPUs; TRITON_INTERPRET=1 runs its kernels on CPU tensors, slowly"
    return f"triton serves cuda devices, not {device.type!r}"

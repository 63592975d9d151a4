"""The triton backend: the kernels of kernels/ (installed as ddcm_fast.kernels), imported at first use."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddcm_fast.codebook.backends.base import Backend, Chosen, search_by_scores
from ddcm_fast.codebook.backends.hardware import gpu
from ddcm_fast.codebook.law import CodebookSpec

MIN_CAPABILITY = (8, 0)


class Triton(Backend):
    """Kernels compiled for the GPU at hand, or for tests run on CPU tensors by Triton's interpreter."""

    holds_scores = False
    automatic = ("cuda",)
    speed = 200

    @cached_property
    def _operations(self) -> Any:
        from ddcm_fast.kernels import operations

        return operations

    def unavailable(self, device: torch.device) -> str | None:
        """Why it cannot serve a device, or None.

        CPU tensors are for tests: Triton's interpreter takes them, slowly, where TRITON_INTERPRET=1 was set before its
        kernels were imported.
        """
        if find_spec("triton") is None:
            return "triton is not installed (pip install 'ddcm-fast[triton]'; Linux only)"
        from ddcm_fast.kernels.launch import INTERPRETED

        if device.type == "cuda":
            if INTERPRETED:
                return "TRITON_INTERPRET=1 is set, which runs kernels on the CPU; unset it"
            if not torch.cuda.is_available():
                return "torch sees no CUDA device (is this a CPU build of torch, or the driver missing?)"
            if torch.version.hip is None and torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
                return "its kernels need compute capability 8.0 (Ampere) or newer"
            return None
        if device.type == "cpu":
            if INTERPRETED:
                return None
            if os.environ.get("TRITON_INTERPRET") == "1":
                return "TRITON_INTERPRET was set after triton's kernels were imported; set it before"
            return "triton compiles for GPUs; TRITON_INTERPRET=1 runs its kernels on CPU tensors, slowly"
        return f"triton serves cuda devices, not {device.type!r}"

    def asked(self, device: torch.device) -> bool:
        """The interpreter serves tests, and would take minutes."""
        return device.type != "cpu"

    def identity(self, device: torch.device) -> str | None:
        import triton

        digest = hashlib.sha256()
        for path in sorted(Path(self._operations.__file__).parent.glob("*.py")):
            digest.update(path.read_bytes())
        return f"triton {triton.__version__} {digest.hexdigest()[:16]} on {gpu(device)}"

    def enter(self, spec: CodebookSpec, residual: Tensor, together: bool) -> tuple[Tensor, Tensor | None]:
        return self._operations.enter(spec, residual, together)

    def to_codebook_order(self, spec: CodebookSpec, residual: Tensor) -> Tensor:
        return self._operations.to_codebook_order(spec, residual)

    def to_image_order(self, spec: CodebookSpec, y: Tensor) -> Tensor:
        return self._operations.to_image_order(spec, y)

    def search(self, spec: CodebookSpec, w: Tensor, step: Tensor, signed: bool, bias: Tensor | None) -> Chosen:
        return self._operations.search(spec, w, step, signed, bias)

    def search_range(
        self, spec: CodebookSpec, w: Tensor, step: Tensor, signed: bool, bias: Tensor | None, first: int, last: int
    ) -> Chosen:
        def scores(a: int, b: int) -> Tensor:
            return self._operations.scores_range(spec, w, step, a, b)

        return search_by_scores(scores, spec, signed, bias, first, last, len(w))

    def topk(self, spec: CodebookSpec, w: Tensor, step: Tensor, m: int, signed: bool, bias: Tensor | None) -> Chosen:
        return self._operations.topk(spec, w, step, m, signed, bias)

    def scores(self, spec: CodebookSpec, w: Tensor, step: Tensor) -> Tensor:
        return self._operations.scores(spec, w, step)

    def scores_and_norms(self, spec: CodebookSpec, w: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        return self._operations.scores_and_norms(spec, w, step)

    def trellis_search(self, spec: CodebookSpec, w: Tensor, step: Tensor, letter_bits: int) -> Tensor:
        return self._operations.trellis_search(spec, w, step, letter_bits)

    def combine(self, spec: CodebookSpec, index: Tensor, coefficient: Tensor, step: Tensor) -> Tensor:
        return self._operations.combine(spec, index, coefficient, step)

"""The cpu backend: csrc/cpu behind ctypes, for float32 tensors in host memory.

Instruction set: the best of AVX-512 with VBMI and VNNI, AVX-512, AVX2 and portable C++ that the machine has; the
environment variable DDCM_CPU_ISA (avx512vnni, avx512, avx2 or portable) overrides it, read once at first use. Threads:
torch.get_num_threads(); results do not depend on it. The library itself releases the GIL during a call and lets
Python's signal handlers run ten times a second, so that Ctrl-C ends a long one.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char_p, c_int, c_int64, c_uint32, c_uint64, c_void_p
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ddcm_fast.codebook import build, library_cache
from ddcm_fast.codebook.backends.base import Backend, Chosen
from ddcm_fast.codebook.backends.hardware import processor
from ddcm_fast.codebook.law import CodebookSpec, gaussian_table
from ddcm_fast.errors import BackendError, InputError


class _Geometry(ctypes.Structure):
    """csrc/noise.h's struct Geometry."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("hadamard_n", ctypes.c_int32),
        ("rotation_block", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("dim", c_int64),
        ("size", c_int64),
        ("groups", c_int64),
        ("seed", c_uint64),
        ("max_group_dim", c_int64),
        ("sub_blocks", c_int64),
        ("calls_per_group", c_int64),
        ("stride", c_int64),
        ("first", c_int64),
    )


_G = POINTER(_Geometry)
_P = c_void_p  # of an array
_SIGNATURES = {
    "to_codebook_order": (_G, _P, c_int64, _P, c_int),
    "enter": (_G, _P, c_int64, c_int, _P, _P, c_int),
    "to_image_order": (_G, _P, c_int64, _P, c_int),
    "scores": (_G, _P, c_int64, c_uint32, _P, _P, c_int),
    "search": (_G, _P, c_int64, c_uint32, c_int, _P, c_int, _P, _P, _P, c_int),
    "topk": (_G, _P, c_int64, c_uint32, c_int64, c_int, _P, c_int, _P, _P, _P, c_int),
    "trellis_search": (_G, _P, c_int64, c_uint32, c_int, _P, c_int),
    "combine": (_G, _P, _P, c_int64, c_int64, c_uint32, _P, c_int),
}


#: What DDCM_CPU_ISA may say.
_NAMES = "avx512vnni, avx512, avx2, portable or auto"

#: What a native call needs of Python's C interface: see Interpreter in csrc/cpu/pool.h.
_INTERPRETER = ("PyEval_SaveThread", "PyEval_RestoreThread", "PyErr_CheckSignals")


@lru_cache(maxsize=1)
def _load() -> ctypes.PyDLL | str:
    """The library, ready to use, or why it cannot be had."""
    try:
        library = ctypes.PyDLL(str(library_cache.ensure(build.cpu_library())))
    except (build.BuildError, OSError) as error:
        return str(error)
    library.ddcm_cpu_set_interpreter.restype = None
    library.ddcm_cpu_set_interpreter(*(ctypes.cast(getattr(ctypes.pythonapi, name), _P) for name in _INTERPRETER))
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, f"ddcm_cpu_{name}")
        function.argtypes, function.restype = arguments, c_int
    library.ddcm_cpu_geometry.argtypes = (c_int, c_int64, c_int64, c_int64, c_uint64, _G)
    library.ddcm_cpu_geometry.restype = None
    library.ddcm_cpu_select.argtypes = (c_char_p,)
    library.ddcm_cpu_selected.restype = c_char_p
    library.ddcm_cpu_set_table.argtypes = (c_void_p,)
    library.ddcm_cpu_set_table.restype = None
    table = gaussian_table().contiguous()
    library.ddcm_cpu_set_table(table.data_ptr())
    asked = os.environ.get("DDCM_CPU_ISA") or "auto"
    if library.ddcm_cpu_select(asked.encode()) != 0:
        return f"DDCM_CPU_ISA={asked} is unknown or this machine lacks it; choose {_NAMES}"
    return library


def _library() -> ctypes.PyDLL:
    library = _load()
    if isinstance(library, str):
        raise BackendError(f"the cpu backend is not available, choose another or auto: {library}")
    return library


def instruction_set() -> str:
    """Name of the instruction set in use: avx512vnni, avx512, avx2 or portable."""
    name: bytes = _library().ddcm_cpu_selected()
    return name.decode()


def select_instruction_set(name: str) -> None:
    """Use another instruction set from now on, in the whole process: a name or "auto" (for tests).

    Raises BackendError if this machine lacks it.
    """
    if _library().ddcm_cpu_select(name.encode()) != 0:
        raise BackendError(f"instruction set {name!r} is unknown or not here; choose {_NAMES}")


@lru_cache(maxsize=256)
def _geometry(spec: CodebookSpec) -> ctypes._Pointer[_Geometry]:
    out = _Geometry()
    _library().ddcm_cpu_geometry(spec.kind_number, spec.dim, spec.size, spec.groups, spec.seed, ctypes.byref(out))
    return ctypes.pointer(out)


def _check(status: int) -> None:
    if status != 0:
        raise MemoryError("the cpu backend ran out of memory")


def _empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cpu")


def _chosen(shape: tuple[int, ...]) -> Chosen:
    return _empty(shape, torch.int64), _empty(shape, torch.int8), _empty(shape)


def _bias(bias: Tensor | None) -> tuple[int | None, bool]:
    """A bias's address, and whether it has entries for each group."""
    return (None, False) if bias is None else (bias.data_ptr(), bias.dim() == 2)


class Cpu(Backend):
    """The operations on tensors in host memory. A row with NaN or infinite entries gets index -1."""

    holds_scores = False

    automatic = ("cpu",)
    speed = 100

    def unavailable(self, device: torch.device) -> str | None:
        """Why it cannot serve a device, or None. Builds the library at the first call."""
        if device.type != "cpu":
            return "it serves tensors in host memory only"
        library = _load()
        return library if isinstance(library, str) else None

    def identity(self, device: torch.device) -> str:
        return f"{Path(_library()._name).stem} {instruction_set()} on {processor()}"

    def enter(self, spec: CodebookSpec, residual: Tensor, together: bool) -> tuple[Tensor, Tensor | None]:
        batch = residual.shape[0]
        w, unit = torch.empty_like(residual), _empty((batch, 1))
        threads = torch.get_num_threads()
        status = _library().ddcm_cpu_enter(
            _geometry(spec), residual.data_ptr(), batch, together, w.data_ptr(), unit.data_ptr(), threads
        )
        if status == 2:
            raise InputError("the residual has NaN or infinite entries")
        if status == 3:
            return w, unit
        _check(status)
        return w, None

    def to_codebook_order(self, spec: CodebookSpec, residual: Tensor) -> Tensor:
        w = torch.empty_like(residual)
        threads = torch.get_num_threads()
        _check(
            _library().ddcm_cpu_to_codebook_order(
                _geometry(spec), residual.data_ptr(), residual.shape[0], w.data_ptr(), threads
            )
        )
        return w

    def to_image_order(self, spec: CodebookSpec, y: Tensor) -> Tensor:
        z = torch.empty_like(y)
        threads = torch.get_num_threads()
        _check(_library().ddcm_cpu_to_image_order(_geometry(spec), y.data_ptr(), y.shape[0], z.data_ptr(), threads))
        return z

    def search(self, spec: CodebookSpec, w: Tensor, step: Tensor, signed: bool, bias: Tensor | None) -> Chosen:
        return self._search(_geometry(spec), spec, w, step, signed, bias)

    def search_range(
        self, spec: CodebookSpec, w: Tensor, step: Tensor, signed: bool, bias: Tensor | None, first: int, last: int
    ) -> Chosen:
        geometry = _Geometry.from_buffer_copy(_geometry(spec).contents)
        geometry.first, geometry.size = first, last
        if bias is not None:
            bias = bias[..., :last].contiguous()  # as many entries a group as the geometry has atoms
        return self._search(ctypes.pointer(geometry), spec, w, step, signed, bias)

    @staticmethod
    def _search(
        geometry: ctypes._Pointer[_Geometry],
        spec: CodebookSpec,
        w: Tensor,
        step: Tensor,
        signed: bool,
        bias: Tensor | None,
    ) -> Chosen:
        index, sign, score = _chosen((w.shape[0], spec.groups))
        _check(
            _library().ddcm_cpu_search(
                *(geometry, w.data_ptr(), w.shape[0], step.item(), signed, *_bias(bias)),
                *(index.data_ptr(), sign.data_ptr(), score.data_ptr(), torch.get_num_threads()),
            )
        )
        return index, sign, score

    def topk(self, spec: CodebookSpec, w: Tensor, step: Tensor, m: int, signed: bool, bias: Tensor | None) -> Chosen:
        index, sign, score = _chosen((w.shape[0], spec.groups, m))
        _check(
            _library().ddcm_cpu_topk(
                *(_geometry(spec), w.data_ptr(), w.shape[0], step.item(), m, signed, *_bias(bias)),
                *(index.data_ptr(), sign.data_ptr(), score.data_ptr(), torch.get_num_threads()),
            )
        )
        return index, sign, score

    def scores(self, spec: CodebookSpec, w: Tensor, step: Tensor) -> Tensor:
        return self._scores(spec, w, step, None)

    def scores_and_norms(self, spec: CodebookSpec, w: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        norms = _empty((spec.groups, spec.size))
        return self._scores(spec, w, step, norms), norms

    def _scores(self, spec: CodebookSpec, w: Tensor, step: Tensor, norms: Tensor | None) -> Tensor:
        out = _empty((w.shape[0], spec.groups, spec.size))
        _check(
            _library().ddcm_cpu_scores(
                *(_geometry(spec), w.data_ptr(), w.shape[0], step.item(), out.data_ptr()),
                *(None if norms is None else norms.data_ptr(), torch.get_num_threads()),
            )
        )
        return out

    def trellis_search(self, spec: CodebookSpec, w: Tensor, step: Tensor, letter_bits: int) -> Tensor:
        letters = _empty((w.shape[0], spec.groups), torch.int64)
        _check(
            _library().ddcm_cpu_trellis_search(
                *(_geometry(spec), w.data_ptr(), w.shape[0], step.item(), letter_bits),
                *(letters.data_ptr(), torch.get_num_threads()),
            )
        )
        return letters

    def combine(self, spec: CodebookSpec, index: Tensor, coefficient: Tensor, step: Tensor) -> Tensor:
        # Indices outside the codebook are clamped into it.
        batch, _, m = index.shape
        y = _empty((batch, spec.dim))
        _check(
            _library().ddcm_cpu_combine(
                *(_geometry(spec), index.data_ptr(), coefficient.data_ptr(), batch, m, step.item()),
                *(y.data_ptr(), torch.get_num_threads()),
            )
        )
        return y

"""The cpu backend: csrc/cpu behind ctypes, for float32 tensors in host memory.

Instruction set: the best of AVX-512, AVX2 and portable C++ that the machine has; the environment variable
DDCM_CPU_ISA (avx512, avx2 or portable) overrides it, read once at first use. Threads:
torch.get_num_threads(); results do not depend on it. Functions and shapes are those of
`ddcm_fast.codebook.reference`, with the step as a 0-d int64 tensor. The library itself releases the GIL during a call
and lets Python's signal handlers run ten times a second, so that Ctrl-C ends a long one.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char_p, c_int, c_int64, c_uint32, c_uint64, c_void_p
from functools import lru_cache

import torch
from torch import Tensor

from ddcm_fast.codebook import build, library_cache
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
    "combine": (_G, _P, _P, c_int64, c_int64, c_uint32, _P, c_int),
}


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
        return f"DDCM_CPU_ISA={asked} is unknown or this machine lacks it; choose avx512, avx2, portable or auto"
    return library


def _library() -> ctypes.PyDLL:
    library = _load()
    if isinstance(library, str):
        raise BackendError(f"the cpu backend is not available: {library}")
    return library


def unavailable(device: torch.device) -> str | None:
    """Why the cpu backend cannot serve a device, or None. Builds the library at the first call."""
    if device.type != "cpu":
        return "it serves tensors in host memory only"
    library = _load()
    return library if isinstance(library, str) else None


def instruction_set() -> str:
    """Name of the instruction set in use: avx512, avx2 or portable."""
    name: bytes = _library().ddcm_cpu_selected()
    return name.decode()


def select_instruction_set(name: str) -> None:
    """Use another instruction set from now on, in the whole process: a name or "auto" (for tests).

    Raises BackendError if this machine lacks it.
    """
    if _library().ddcm_cpu_select(name.encode()) != 0:
        raise BackendError(f"instruction set {name!r} is unknown or this machine lacks it")


@lru_cache(maxsize=256)
def _geometry(spec: CodebookSpec) -> ctypes._Pointer[_Geometry]:
    out = _Geometry()
    _library().ddcm_cpu_geometry(spec.kind_number, spec.dim, spec.size, spec.groups, spec.seed, ctypes.byref(out))
    return ctypes.pointer(out)


def _check(status: int) -> None:
    if status != 0:
        raise MemoryError("the cpu backend ran out of memory")


def to_codebook_order(spec: CodebookSpec, residual: Tensor) -> Tensor:
    """See ddcm_fast.codebook.reference.to_codebook_order."""
    w = torch.empty_like(residual)
    _check(
        _library().ddcm_cpu_to_codebook_order(
            _geometry(spec),
            residual.data_ptr(),
            residual.shape[0],
            w.data_ptr(),
            torch.get_num_threads(),
        )
    )
    return w


def enter(spec: CodebookSpec, residual: Tensor, together: bool) -> tuple[Tensor, Tensor | None]:
    """See ddcm_fast.codebook.reference.enter; in one pass."""
    w = torch.empty_like(residual)
    unit = residual.new_empty((residual.shape[0], 1), dtype=torch.float32)
    status = _library().ddcm_cpu_enter(
        _geometry(spec),
        residual.data_ptr(),
        residual.shape[0],
        together,
        w.data_ptr(),
        unit.data_ptr(),
        torch.get_num_threads(),
    )
    if status == 2:
        raise InputError("the residual has NaN or infinite entries")
    if status == 3:
        return w, unit
    _check(status)
    return w, None


def to_image_order(spec: CodebookSpec, y: Tensor) -> Tensor:
    """See ddcm_fast.codebook.reference.to_image_order."""
    z = torch.empty_like(y)
    _check(
        _library().ddcm_cpu_to_image_order(
            _geometry(spec), y.data_ptr(), y.shape[0], z.data_ptr(), torch.get_num_threads()
        )
    )
    return z


def _results(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty(shape, dtype=torch.int64, device="cpu"),
        torch.empty(shape, dtype=torch.int8, device="cpu"),
        torch.empty(shape, dtype=torch.float32, device="cpu"),
    )


def search(
    spec: CodebookSpec, w: Tensor, step: Tensor, signed: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See ddcm_fast.codebook.reference.search. A row with NaN or infinite entries gets index -1."""
    index, sign, score = _results((w.shape[0], spec.groups))
    _check(
        _library().ddcm_cpu_search(
            _geometry(spec),
            w.data_ptr(),
            w.shape[0],
            step.item(),
            signed,
            None if bias is None else bias.data_ptr(),
            bias is not None and bias.dim() == 2,
            index.data_ptr(),
            sign.data_ptr(),
            score.data_ptr(),
            torch.get_num_threads(),
        )
    )
    return index, sign, score


def topk(
    spec: CodebookSpec, w: Tensor, step: Tensor, m: int, signed: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See ddcm_fast.codebook.reference.topk. A row with NaN or infinite entries gets indices -1."""
    index, sign, score = _results((w.shape[0], spec.groups, m))
    _check(
        _library().ddcm_cpu_topk(
            _geometry(spec),
            w.data_ptr(),
            w.shape[0],
            step.item(),
            m,
            signed,
            None if bias is None else bias.data_ptr(),
            bias is not None and bias.dim() == 2,
            index.data_ptr(),
            sign.data_ptr(),
            score.data_ptr(),
            torch.get_num_threads(),
        )
    )
    return index, sign, score


def _scores(spec: CodebookSpec, w: Tensor, step: Tensor, norms: Tensor | None) -> Tensor:
    out = torch.empty((w.shape[0], spec.groups, spec.size), dtype=torch.float32, device="cpu")
    _check(
        _library().ddcm_cpu_scores(
            _geometry(spec),
            w.data_ptr(),
            w.shape[0],
            step.item(),
            out.data_ptr(),
            None if norms is None else norms.data_ptr(),
            torch.get_num_threads(),
        )
    )
    return out


def scores(spec: CodebookSpec, w: Tensor, step: Tensor) -> Tensor:
    """See ddcm_fast.codebook.reference.scores."""
    return _scores(spec, w, step, None)


def scores_and_norms(spec: CodebookSpec, w: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """See ddcm_fast.codebook.reference.scores_and_norms."""
    norms = torch.empty((spec.groups, spec.size), dtype=torch.float32, device="cpu")
    return _scores(spec, w, step, norms), norms


def combine(spec: CodebookSpec, index: Tensor, coefficient: Tensor, step: Tensor) -> Tensor:
    """See ddcm_fast.codebook.reference.combine. Indices outside the codebook are clamped into it."""
    batch, _, m = index.shape
    y = torch.empty((batch, spec.dim), dtype=torch.float32, device="cpu")
    _check(
        _library().ddcm_cpu_combine(
            _geometry(spec),
            index.data_ptr(),
            coefficient.data_ptr(),
            batch,
            m,
            step.item(),
            y.data_ptr(),
            torch.get_num_threads(),
        )
    )
    return y

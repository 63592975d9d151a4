"""The codebook operations as torch ops (`torch.ops.ddcm_fast`), opaque to torch.compile, FakeTensor and CUDA graphs.

A codebook is five integers here (`CodebookSpec.numbers`: kind, dim, size, groups, seed), followed by the name of a
resolved backend (`backends.resolve`). Residuals and noise are in image order, float32; the step is a 0-d int64 tensor
on the data's device, so that a captured graph can be replayed for every step.

This is the one place where tensors are checked before a backend reads their memory: dtype, shape, device and layout
always, values where the host can see them (tensors on a CPU). A tensor that is not contiguous is copied. On a GPU a
value could only be seen by waiting for the device: there a residual that is not finite, or a NaN in a bias, is
answered by index -1, sign +1 and score NaN, a step counts modulo 2^32 and `combine` clamps indices into the codebook.

No op has a gradient: a choice among atoms is piecewise constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ddcm_fast.codebook import backends, reference
from ddcm_fast.codebook.law import KINDS, MAX_STEP, MAX_TOPK, CodebookSpec
from ddcm_fast.errors import BackendError, ConfigError, InputError

_LIBRARY = torch.library.Library("ddcm_fast", "DEF")
_CODEBOOK = "int kind, int dim, int size, int groups, int seed, str backend"

_Chosen = tuple[Tensor, Tensor, Tensor]


def _op(arguments: str, results: str) -> Callable[[Callable[..., Any]], Any]:
    """Define the op of the decorated function's name; the function is what it does on every device."""

    def define(function: Callable[..., Any]) -> Any:
        name = function.__name__
        _LIBRARY.define(f"{name}({arguments}, {_CODEBOOK}) -> {results}", tags=torch.Tag.pt2_compliant_tag)
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        _LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
        return getattr(torch.ops.ddcm_fast, name).default

    return define


def _shape(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The decorated function makes an op's empty results, for whoever traces it without data."""
    return lambda function: torch.library.register_fake(f"ddcm_fast::{name}", function, lib=_LIBRARY)


# ---- checks --------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _spec(kind: int, dim: int, size: int, groups: int, seed: int) -> CodebookSpec:
    if not 0 <= kind < len(KINDS):
        raise ConfigError(f"codebook kind number is {kind}; it must be 0 to {len(KINDS) - 1}")
    return CodebookSpec(KINDS[kind], dim, size, groups, seed % (1 << 64))


@lru_cache(maxsize=64)
def _backend(name: str, device: torch.device) -> ModuleType:
    if name not in backends.BACKENDS:
        raise BackendError(f"unknown backend {name!r}: choose {', '.join(backends.BACKENDS)}")
    return backends.load(backends.resolve(name, device))


def _check(name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    if tensor.dtype is not dtype or tensor.layout is not torch.strided or tensor.device != device:
        raise InputError(
            f"{name} is {tensor.dtype}, {tensor.layout} on {tensor.device}; it must be dense {dtype} on {device}"
        )


def _check_residual(residual: Tensor, dim: int) -> None:
    _check("the residual", residual, torch.float32, residual.device)
    if residual.dim() != 2 or residual.shape[1] != dim or residual.shape[0] < 1:
        raise InputError(
            f"the residual has shape {tuple(residual.shape)}; this codebook takes (B, {dim}) with B at least 1"
        )


def _check_step(step: Tensor, device: torch.device) -> None:
    if step.dim() != 0 or step.dtype is not torch.int64 or step.device != device:
        raise InputError(
            f"step is {step.dtype} of shape {tuple(step.shape)} on {step.device}; "
            f"it must be an int or a 0-d int64 tensor on {device}"
        )


def _check_bias(bias: Tensor | None, size: int, groups: int, device: torch.device) -> None:
    if bias is None:
        return
    _check("bias", bias, torch.float32, device)
    if bias.shape not in ((size,), (groups, size)):
        raise InputError(f"bias has shape {tuple(bias.shape)}; it must be ({size},) or ({groups}, {size})")


def _check_m(m: int, size: int) -> None:
    if not 1 <= m <= min(MAX_TOPK, size):
        raise ConfigError(f"m is {m}; topk returns 1 to {min(MAX_TOPK, size)} atoms of this codebook")


def _check_combination(index: Tensor, coefficient: Tensor, groups: int) -> None:
    _check("index", index, torch.int64, index.device)
    _check("coefficient", coefficient, torch.float32, index.device)
    if index.dim() != 3 or index.shape[1] != groups:
        raise InputError(f"index has shape {tuple(index.shape)}; this codebook takes (B, {groups}, M)")
    if index.shape != coefficient.shape:
        raise InputError(f"index has shape {tuple(index.shape)} but coefficient {tuple(coefficient.shape)}")


def _see_step(step: Tensor) -> None:
    if step.device.type == "cpu" and not 0 <= step.item() <= MAX_STEP:
        raise ConfigError(f"step is {step.item()}; it must be an integer from 0 to {MAX_STEP}")


def see_index(index: Tensor, size: int) -> None:
    """Raise InputError for indices (on a CPU, int64) that no search of a codebook of this size returns."""
    if index.numel() == 0:
        return
    low, high = (int(n) for n in torch.aminmax(index))
    if low == -1:
        raise InputError("the residual or bias had NaN or infinite entries (search answered index -1)")
    if low < 0 or high >= size:
        raise InputError(f"index {low if low < 0 else high} is outside 0 to {size - 1}")


# ---- what the operations on a residual share -----------------------------------------------------


def _enter(
    residual: Tensor, step: Tensor, bias: Tensor | None, spec: CodebookSpec, name: str
) -> tuple[ModuleType, Tensor, Tensor | None, Tensor | None]:
    """The backend, the residual in codebook order, what to multiply its scores by (B, 1) or None, and the bias.

    Where a row's largest magnitude is so large or small that sums of products might leave float32's range, the row is
    multiplied by a power of two first (`reference.enter`), which changes no choice. With a bias, which all
    rows share, so do they share the power, and the bias takes it too.
    """
    device = residual.device
    _check_residual(residual, spec.dim)
    _check_step(step, device)
    _check_bias(bias, spec.size, spec.groups, device)
    _see_step(step)
    backend = _backend(name, device)
    residual = residual.detach().contiguous()
    enter = getattr(backend, "enter", None)
    if enter is None:
        w, unit = reference.enter(backend.to_codebook_order, spec, residual, bias is not None)
    else:
        w, unit = enter(spec, residual, bias is not None)
    if bias is not None:
        bias = bias.detach().contiguous()
        if device.type == "cpu" and math.isnan(bias.numpy().max()):
            raise InputError("the bias has NaN entries")
        if unit is not None:
            bias = bias / unit[0]
    return backend, w, unit, bias


def _leave(found: _Chosen, unit: Tensor | None, bias: Tensor | None) -> _Chosen:
    """Scores in the residual's own units, and the answer to a bias with NaN that could not be seen."""
    index, sign, score = found
    if unit is not None:
        score = score * unit.view(-1, *(1,) * (score.dim() - 1))
    if bias is not None and bias.device.type != "cpu":
        bad = bias.amax(dim=-1).isnan().view(-1, *(1,) * (index.dim() - 2))
        index, sign, score = index.masked_fill(bad, -1), sign.masked_fill(bad, 1), score.masked_fill(bad, math.nan)
    return index, sign, score


# ---- the ops -------------------------------------------------------------------------------------


@_op("Tensor residual, Tensor step, Tensor? bias, bool signed", "(Tensor index, Tensor sign, Tensor score)")
def search(
    residual: Tensor, step: Tensor, bias: Tensor | None, signed: bool,
    kind: int, dim: int, size: int, groups: int, seed: int, backend: str,
) -> _Chosen:  # fmt: skip
    """The best atom of each group: index int64, sign int8, score float32, all (B, G)."""
    spec = _spec(kind, dim, size, groups, seed)
    module, w, unit, bias = _enter(residual, step, bias, spec, backend)
    found = module.search(spec, w, step, signed, bias)
    return found if unit is None and bias is None else _leave(found, unit, bias)


@_op("Tensor residual, Tensor step, Tensor? bias, int m, bool signed", "(Tensor index, Tensor sign, Tensor score)")
def topk(
    residual: Tensor, step: Tensor, bias: Tensor | None, m: int, signed: bool,
    kind: int, dim: int, size: int, groups: int, seed: int, backend: str,
) -> _Chosen:  # fmt: skip
    """The m best atoms of each group, best first: index int64, sign int8, score float32, all (B, G, m)."""
    spec = _spec(kind, dim, size, groups, seed)
    _check_m(m, size)
    module, w, unit, bias = _enter(residual, step, bias, spec, backend)
    return _leave(module.topk(spec, w, step, m, signed, bias), unit, bias)


@_op("Tensor residual, Tensor step", "Tensor")
def scores(
    residual: Tensor, step: Tensor, kind: int, dim: int, size: int, groups: int, seed: int, backend: str
) -> Tensor:
    """All scores: (B, D) -> (B, G, K) float32."""
    spec = _spec(kind, dim, size, groups, seed)
    module, w, unit, _ = _enter(residual, step, None, spec, backend)
    out: Tensor = module.scores(spec, w, step)
    return out if unit is None else out.mul_(unit.unsqueeze(-1))


@_op("Tensor residual, Tensor step", "(Tensor scores, Tensor norms)")
def scores_and_norms(
    residual: Tensor, step: Tensor, kind: int, dim: int, size: int, groups: int, seed: int, backend: str
) -> tuple[Tensor, Tensor]:
    """`scores` and, from the same generation, squared norms of all atoms: (B, G, K), (G, K) float32."""
    spec = _spec(kind, dim, size, groups, seed)
    module, w, unit, _ = _enter(residual, step, None, spec, backend)
    out, norms = module.scores_and_norms(spec, w, step)
    return (out if unit is None else out.mul_(unit.unsqueeze(-1))), norms


@_op("Tensor index, Tensor coefficient, Tensor step", "Tensor")
def combine(
    index: Tensor, coefficient: Tensor, step: Tensor,
    kind: int, dim: int, size: int, groups: int, seed: int, backend: str,
) -> Tensor:  # fmt: skip
    """Weighted sums of atoms: index int64 and coefficient float32 (B, G, M) -> z (B, D) float32."""
    spec = _spec(kind, dim, size, groups, seed)
    _check_combination(index, coefficient, groups)
    _check_step(step, index.device)
    _see_step(step)
    module = _backend(backend, index.device)
    if index.device.type == "cpu":
        see_index(index, size)
    y = module.combine(spec, index.contiguous(), coefficient.detach().contiguous(), step)
    z: Tensor = module.to_image_order(spec, y)
    return z


# ---- their shapes --------------------------------------------------------------------------------


def _chosen(residual: Tensor, *shape: int) -> _Chosen:
    return (
        residual.new_empty(shape, dtype=torch.int64),
        residual.new_empty(shape, dtype=torch.int8),
        residual.new_empty(shape, dtype=torch.float32),
    )


def _check_enter(residual: Tensor, step: Tensor, bias: Tensor | None, dim: int, size: int, groups: int) -> None:
    _check_residual(residual, dim)
    _check_step(step, residual.device)
    _check_bias(bias, size, groups, residual.device)


@_shape("search")
def _(residual: Tensor, step: Tensor, bias: Tensor | None, signed: bool, kind: int, dim: int, size: int,
      groups: int, seed: int, backend: str) -> _Chosen:  # fmt: skip
    _check_enter(residual, step, bias, dim, size, groups)
    return _chosen(residual, residual.shape[0], groups)


@_shape("topk")
def _(residual: Tensor, step: Tensor, bias: Tensor | None, m: int, signed: bool, kind: int, dim: int, size: int,
      groups: int, seed: int, backend: str) -> _Chosen:  # fmt: skip
    _check_m(m, size)
    _check_enter(residual, step, bias, dim, size, groups)
    return _chosen(residual, residual.shape[0], groups, m)


@_shape("scores")
def _(residual: Tensor, step: Tensor, kind: int, dim: int, size: int, groups: int, seed: int,
      backend: str) -> Tensor:  # fmt: skip
    _check_enter(residual, step, None, dim, size, groups)
    return residual.new_empty((residual.shape[0], groups, size), dtype=torch.float32)


@_shape("scores_and_norms")
def _(residual: Tensor, step: Tensor, kind: int, dim: int, size: int, groups: int, seed: int,
      backend: str) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check_enter(residual, step, None, dim, size, groups)
    out = residual.new_empty((residual.shape[0], groups, size), dtype=torch.float32)
    return out, residual.new_empty((groups, size), dtype=torch.float32)


@_shape("combine")
def _(index: Tensor, coefficient: Tensor, step: Tensor, kind: int, dim: int, size: int, groups: int, seed: int,
      backend: str) -> Tensor:  # fmt: skip
    _check_combination(index, coefficient, groups)
    _check_step(step, index.device)
    return coefficient.new_empty((index.shape[0], dim), dtype=torch.float32)

"""The codebook operations as torch ops (`torch.ops.ddcm_fast`), opaque to torch.compile, FakeTensor and CUDA graphs.

A codebook is one text here, `codebook_text`: a resolved backend's name (`backends.resolve`) and the codebook's spec;
an op takes no value of a class of ours. Residuals and noise are in image order, float32; the step is a 0-d int64 tensor
on the data's device, so that a captured graph can be replayed for every step.

This is the one place where tensors are checked before a backend reads their memory: dtype, shape, device and layout
always, values where the host can see them (tensors on a CPU). A tensor that is not contiguous is copied. On a GPU a
value could only be seen by waiting for the device: there a residual that is not finite, or a NaN in a bias, is
answered by index -1, sign +1 and score NaN, a step counts modulo 2^32 and `combine` clamps indices into the codebook.

`scores` has a gradient, being linear in the residual. No other op has: a choice among atoms is piecewise constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ddcm_fast.codebook import backends
from ddcm_fast.codebook.law import MAX_LETTER_BITS, MAX_MEMORY, MAX_STEP, MAX_TOPK, CodebookSpec
from ddcm_fast.errors import ConfigError, InputError

_LIBRARY = torch.library.Library("ddcm_fast", "DEF")

_Chosen = tuple[Tensor, Tensor, Tensor]


def _op(arguments: str, results: str, differentiable: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Define the op of the decorated function's name; the function is what it does on every device."""

    def define(function: Callable[..., Any]) -> Any:
        name = function.__name__
        _LIBRARY.define(f"{name}({arguments}, str codebook) -> {results}", tags=torch.Tag.pt2_compliant_tag)
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        if not differentiable:
            _LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
        return getattr(torch.ops.ddcm_fast, name).default

    return define


def _shape(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The decorated function makes an op's empty results, for whoever traces it without data."""
    return lambda function: torch.library.register_fake(f"ddcm_fast::{name}", function, lib=_LIBRARY)


# ---- checks --------------------------------------------------------------------------------------


def codebook_text(spec: CodebookSpec, backend: str) -> str:
    """What an op takes for a codebook: "backend kind dim size groups seed"."""
    return f"{backend} {spec.kind} {spec.dim} {spec.size} {spec.groups} {spec.seed}"


@lru_cache(maxsize=256)
def _read(codebook: str) -> tuple[str, CodebookSpec]:
    """The backend's name and the spec of a text."""
    try:
        backend, kind, *numbers = codebook.split(" ")
        dim, size, groups, seed = map(int, numbers)
    except ValueError:
        raise ConfigError(f"codebook is {codebook!r}; it must be 'backend kind dim size groups seed'") from None
    return backend, CodebookSpec(kind, dim, size, groups, seed)


@lru_cache(maxsize=256)
def _open(codebook: str, device: torch.device) -> tuple[CodebookSpec, backends.Backend]:
    """The spec of a text, and the backend if it can serve the device."""
    name, spec = _read(codebook)
    backend = backends.load(name)
    backends.resolve(name, device)
    return spec, backend


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


def _check_bias(bias: Tensor, size: int, groups: int, device: torch.device) -> None:
    _check("bias", bias, torch.float32, device)
    if bias.shape not in ((size,), (groups, size)):
        raise InputError(f"bias has shape {tuple(bias.shape)}; it must be ({size},) or ({groups}, {size})")


def _check_m(m: int, size: int) -> None:
    if not 1 <= m <= min(MAX_TOPK, size):
        raise ConfigError(f"m is {m}; it must be from 1 to {min(MAX_TOPK, size)} for this codebook")


def _check_range(first: int, last: int, spec: CodebookSpec) -> None:
    if not 0 <= first < last <= spec.size or first % spec.atoms_made_together:
        raise ConfigError(
            f"atoms {first} to {last} are no range of this codebook's {spec.size}, "
            f"which must begin at a multiple of {spec.atoms_made_together}"
        )


def _check_trellis(letter_bits: int, size: int) -> None:
    memory = size.bit_length() - letter_bits
    if not 1 <= letter_bits <= MAX_LETTER_BITS or size & (size - 1) or not letter_bits <= memory <= MAX_MEMORY:
        raise ConfigError(
            f"K is {size}, letter_bits {letter_bits}; a trellis takes K = 2^(memory + letter_bits - 1), "
            f"letters of 1 to {MAX_LETTER_BITS} bits and a memory from a letter's bits to {MAX_MEMORY}"
        )


def _check_combination(index: Tensor, coefficient: Tensor, groups: int) -> None:
    _check("index", index, torch.int64, index.device)
    _check("coefficient", coefficient, torch.float32, index.device)
    if index.dim() != 3 or index.shape[1] != groups:
        raise InputError(f"index has shape {tuple(index.shape)}; this codebook takes (B, {groups}, M)")
    if index.shape != coefficient.shape:
        raise InputError(
            f"index has shape {tuple(index.shape)}, coefficient {tuple(coefficient.shape)}; they must be equal"
        )


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
        raise InputError(f"index is {low if low < 0 else high}; it must be from 0 to {size - 1}")


# ---- what the operations on a residual share -----------------------------------------------------


def _enter(
    residual: Tensor, step: Tensor, bias: Tensor | None, codebook: str
) -> tuple[CodebookSpec, backends.Backend, Tensor, Tensor | None, Tensor | None]:
    """Spec and backend, the residual in codebook order, what to multiply its scores by (B, 1) or None, and the bias.

    Where a row's largest magnitude is so large or small that sums of products might leave float32's range, the row is
    multiplied by a power of two first (`reference.enter`), which changes no choice. With a bias, which all
    rows share, so do they share the power, and the bias takes it too.
    """
    device = residual.device
    spec, backend = _open(codebook, device)
    _check_residual(residual, spec.dim)
    _check_step(step, device)
    _see_step(step)
    if bias is None:
        w, unit = backend.enter(spec, residual.detach().contiguous(), False)
        return spec, backend, w, unit, None
    _check_bias(bias, spec.size, spec.groups, device)
    bias = bias.detach().contiguous()
    if device.type == "cpu" and math.isnan(bias.numpy().max()):
        raise InputError("the bias has NaN entries")
    w, unit = backend.enter(spec, residual.detach().contiguous(), True)
    return spec, backend, w, unit, bias if unit is None else bias / unit[0]


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
def search(residual: Tensor, step: Tensor, bias: Tensor | None, signed: bool, codebook: str) -> _Chosen:
    """The best atom of each group: index int64, sign int8, score float32, all (B, G)."""
    spec, backend, w, unit, bias = _enter(residual, step, bias, codebook)
    found = backend.search(spec, w, step, signed, bias)
    return found if unit is None and bias is None else _leave(found, unit, bias)


@_op(
    "Tensor residual, Tensor step, Tensor? bias, bool signed, int first, int last",
    "(Tensor index, Tensor sign, Tensor score)",
)
def search_range(
    residual: Tensor, step: Tensor, bias: Tensor | None, signed: bool, first: int, last: int, codebook: str
) -> _Chosen:
    """`search` among the atoms first .. last - 1 alone."""
    _check_range(first, last, _read(codebook)[1])
    spec, backend, w, unit, bias = _enter(residual, step, bias, codebook)
    return _leave(backend.search_range(spec, w, step, signed, bias, first, last), unit, bias)


@_op("Tensor residual, Tensor step, Tensor? bias, int m, bool signed", "(Tensor index, Tensor sign, Tensor score)")
def topk(residual: Tensor, step: Tensor, bias: Tensor | None, m: int, signed: bool, codebook: str) -> _Chosen:
    """The m best atoms of each group, best first: index int64, sign int8, score float32, all (B, G, m)."""
    _check_m(m, _read(codebook)[1].size)
    spec, backend, w, unit, bias = _enter(residual, step, bias, codebook)
    return _leave(backend.topk(spec, w, step, m, signed, bias), unit, bias)


@_op("Tensor residual, Tensor step", "Tensor", differentiable=True)
def scores(residual: Tensor, step: Tensor, codebook: str) -> Tensor:
    """All scores: (B, D) -> (B, G, K) float32."""
    spec, backend, w, unit, _ = _enter(residual, step, None, codebook)
    out = backend.scores(spec, w, step)
    return out if unit is None else out.mul_(unit.unsqueeze(-1))


@_op("Tensor residual, Tensor step", "(Tensor scores, Tensor norms)")
def scores_and_norms(residual: Tensor, step: Tensor, codebook: str) -> tuple[Tensor, Tensor]:
    """`scores` and, from the same generation, squared norms of all atoms: (B, G, K), (G, K) float32."""
    spec, backend, w, unit, _ = _enter(residual, step, None, codebook)
    out, norms = backend.scores_and_norms(spec, w, step)
    return (out if unit is None else out.mul_(unit.unsqueeze(-1))), norms


@_op("Tensor residual, Tensor step, int letter_bits", "Tensor")
def trellis_search(residual: Tensor, step: Tensor, letter_bits: int, codebook: str) -> Tensor:
    """The letters (B, G) int64 of the best path through a trellis of atoms (`reference.best_path`)."""
    _check_trellis(letter_bits, _read(codebook)[1].size)
    spec, backend, w, _, _ = _enter(residual, step, None, codebook)
    return backend.trellis_search(spec, w, step, letter_bits)


@_op("Tensor index, Tensor coefficient, Tensor step", "Tensor")
def combine(index: Tensor, coefficient: Tensor, step: Tensor, codebook: str) -> Tensor:
    """Weighted sums of atoms: index int64 and coefficient float32 (B, G, M) -> z (B, D) float32."""
    spec, backend = _open(codebook, index.device)
    _check_combination(index, coefficient, spec.groups)
    _check_step(step, index.device)
    _see_step(step)
    if index.device.type == "cpu":
        see_index(index, spec.size)
    y = backend.combine(spec, index.contiguous(), coefficient.detach().contiguous(), step)
    return backend.to_image_order(spec, y)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    _, step, ctx.codebook = inputs
    ctx.save_for_backward(step)


def _scores_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    """The sum of all atoms, each times its score's gradient (B, G, K): (B, D). It needs the memory of three scores."""
    index = torch.arange(gradient.shape[-1], dtype=torch.int64, device=gradient.device).expand(gradient.shape)
    return combine(index, gradient.contiguous(), *ctx.saved_tensors, ctx.codebook), None, None


torch.library.register_autograd("ddcm_fast::scores", _scores_backward, setup_context=_keep, lib=_LIBRARY)


# ---- their shapes --------------------------------------------------------------------------------


def _chosen(residual: Tensor, *shape: int) -> _Chosen:
    return (
        residual.new_empty(shape, dtype=torch.int64),
        residual.new_empty(shape, dtype=torch.int8),
        residual.new_empty(shape, dtype=torch.float32),
    )


def _check_enter(residual: Tensor, step: Tensor, bias: Tensor | None, codebook: str) -> CodebookSpec:
    spec = _read(codebook)[1]
    _check_residual(residual, spec.dim)
    _check_step(step, residual.device)
    if bias is not None:
        _check_bias(bias, spec.size, spec.groups, residual.device)
    return spec


@_shape("search")
def _(residual: Tensor, step: Tensor, bias: Tensor | None, signed: bool, codebook: str) -> _Chosen:
    spec = _check_enter(residual, step, bias, codebook)
    return _chosen(residual, residual.shape[0], spec.groups)


@_shape("search_range")
def _(
    residual: Tensor, step: Tensor, bias: Tensor | None, signed: bool, first: int, last: int, codebook: str
) -> _Chosen:
    spec = _check_enter(residual, step, bias, codebook)
    _check_range(first, last, spec)
    return _chosen(residual, residual.shape[0], spec.groups)


@_shape("topk")
def _(residual: Tensor, step: Tensor, bias: Tensor | None, m: int, signed: bool, codebook: str) -> _Chosen:
    spec = _check_enter(residual, step, bias, codebook)
    _check_m(m, spec.size)
    return _chosen(residual, residual.shape[0], spec.groups, m)


@_shape("scores")
def _(residual: Tensor, step: Tensor, codebook: str) -> Tensor:
    spec = _check_enter(residual, step, None, codebook)
    return residual.new_empty((residual.shape[0], spec.groups, spec.size), dtype=torch.float32)


@_shape("scores_and_norms")
def _(residual: Tensor, step: Tensor, codebook: str) -> tuple[Tensor, Tensor]:
    spec = _check_enter(residual, step, None, codebook)
    out = residual.new_empty((residual.shape[0], spec.groups, spec.size), dtype=torch.float32)
    return out, residual.new_empty((spec.groups, spec.size), dtype=torch.float32)


@_shape("trellis_search")
def _(residual: Tensor, step: Tensor, letter_bits: int, codebook: str) -> Tensor:
    spec = _check_enter(residual, step, None, codebook)
    _check_trellis(letter_bits, spec.size)
    return residual.new_empty((residual.shape[0], spec.groups), dtype=torch.int64)


@_shape("combine")
def _(index: Tensor, coefficient: Tensor, step: Tensor, codebook: str) -> Tensor:
    spec = _read(codebook)[1]
    _check_combination(index, coefficient, spec.groups)
    _check_step(step, index.device)
    return coefficient.new_empty((index.shape[0], spec.dim), dtype=torch.float32)

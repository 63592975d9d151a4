"""Backends: which are here, why one is missing, and which serves a device.

A backend is a module with the functions of `ddcm_fast.codebook.reference` (to_codebook_order, to_image_order,
search, topk, scores, scores_and_norms, combine), taking the step as a 0-d int64 tensor on the data's device where
`reference` takes an int, a function `unavailable(device) -> str | None` that says why it cannot
serve a device (None: it can), and, if it has a quicker way, its own `enter(spec, residual, together)`. The
tensors it is given were checked (`ddcm_fast.codebook.ops`).
"""

from __future__ import annotations

import importlib
import os
import warnings
from functools import cache
from types import ModuleType

import torch

from ddcm_fast.errors import BackendError, DDCMWarning

#: Fastest first: `auto` takes the first that can serve the device.
BACKENDS = ("cuda", "triton", "cpu", "reference")

_MODULES = {
    "cuda": "ddcm_fast.codebook.backends.cuda",
    "triton": "ddcm_fast.kernels",
    "cpu": "ddcm_fast.codebook.backends.cpu",
    "reference": "ddcm_fast.codebook.backends.reference",
}


def load(name: str) -> ModuleType:
    """The backend's module. Raises BackendError when it cannot even be imported."""
    try:
        return importlib.import_module(_MODULES[name])
    except (ImportError, RuntimeError) as error:  # Triton 3.2 looks for a GPU's driver already when kernels are defined
        raise BackendError(f"backend {name!r} cannot be imported: {error}") from error


def why_not(name: str, device: torch.device | str) -> str | None:
    """Why a backend cannot serve a device, or None if it can."""
    try:
        reason: str | None = load(name).unavailable(torch.device(device))
    except BackendError as error:
        return str(error)
    return reason


def available(device: torch.device | str = "cpu") -> list[str]:
    """Names of the backends that can serve a device, fastest first."""
    return [name for name in BACKENDS if why_not(name, device) is None]


@cache
def _warn_of_reference(kind: str, reasons: str) -> None:
    """Say once that there are no kernels where there should be some."""
    if kind in ("cpu", "cuda"):
        warnings.warn(f"no kernels for {kind}, the slow reference serves ({reasons})", DDCMWarning, stacklevel=4)


def resolve(name: str, device: torch.device | str) -> str:
    """The backend to use for a device.

    `auto` is the environment variable DDCM_BACKEND if set, else the fastest present. A DDCMWarning says once
    where that is the reference on a device that there are kernels for.
    Raises BackendError if the one asked for is unknown or cannot serve the device.
    """
    asked = name
    if name == "auto":
        asked = os.environ.get("DDCM_BACKEND") or "auto"
    if asked == "auto":
        # On a CPU, triton could only run interpreted, thousands of times slower.
        candidates = ("cpu", "reference") if torch.device(device).type == "cpu" else BACKENDS
        reasons = {}
        for candidate in candidates:
            reason = why_not(candidate, device)
            if reason is None:
                break
            reasons[candidate] = reason
        if candidate == "reference":
            _warn_of_reference(torch.device(device).type, "; ".join(f"{b}: {text}" for b, text in reasons.items()))
        return candidate
    if asked not in BACKENDS:
        raise BackendError(f"unknown backend {asked!r}: choose auto, {', '.join(BACKENDS)}")
    reason = why_not(asked, device)
    if reason is not None:
        raise BackendError(
            f"backend {asked!r} cannot serve device {str(device)!r}: {reason}; "
            f"available: {', '.join(available(device))}"
        )
    return asked


# For torch.compile the answer is a constant of the device: a codebook resolves its backend once anyway.
# This is what torch.compiler.assume_constant_result sets; calling that here would import the compiler.
resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]

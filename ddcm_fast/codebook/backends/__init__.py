"""Backends by name: which are here, why one is missing, and which serves a device.

A backend is an object (base.py), made when it is first asked for. Beside the built-in ones there are those
that installed packages name in the entry-point group `ddcm_fast.backends` (name -> a `Backend` class), and
those given to `register`. None can take the name of a built-in one.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib.metadata import EntryPoint, entry_points

import torch

from ddcm_fast.codebook.backends import selftest
from ddcm_fast.codebook.backends.base import Backend
from ddcm_fast.errors import BackendError, DDCMWarning

__all__ = ["GROUP", "Backend", "available", "load", "names", "register", "resolve", "why_not"]

#: The group of entry points that other packages' backends stand in.
GROUP = "ddcm_fast.backends"

_BUILT_IN = {
    "cuda": EntryPoint("cuda", "ddcm_fast.codebook.backends.cuda:Cuda", GROUP),
    "triton": EntryPoint("triton", "ddcm_fast.codebook.backends.triton:Triton", GROUP),
    "cpu": EntryPoint("cpu", "ddcm_fast.codebook.backends.cpu:Cpu", GROUP),
    "reference": EntryPoint("reference", "ddcm_fast.codebook.backends.reference:Reference", GROUP),
}

_LOADED: dict[str, Backend] = {}


@cache
def _installed() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)} | _BUILT_IN


def names() -> tuple[str, ...]:
    """Names of all backends, whether or not they can be used here; the built-in ones first, fastest first."""
    return tuple(dict.fromkeys((*_BUILT_IN, *_installed(), *_LOADED)))


def register(name: str, backend: Backend) -> None:
    """Offer a backend under a name of its own, for this process.

    Raises BackendError if the name is taken, or is `auto`.
    """
    if name == "auto" or name in names():
        raise BackendError(f"there is a backend {name!r} already; register it under another name")
    _LOADED[name] = backend


def load(name: str) -> Backend:
    """The backend of a name. Raises BackendError if there is none, or it cannot be imported."""
    if name not in _LOADED:
        if name not in _installed():
            raise BackendError(f"unknown backend {name!r}: choose auto, {', '.join(names())}")
        try:
            backend = _installed()[name].load()()
        except Exception as error:  # other packages' code runs here
            raise BackendError(f"backend {name!r} cannot be imported: {error}") from error
        if not isinstance(backend, Backend):
            raise BackendError(f"backend {name!r} is no ddcm_fast.codebook.backends.Backend; update its package")
        _LOADED[name] = backend
    return _LOADED[name]


def missing(name: str, device: torch.device | str) -> str | None:
    """Why a backend cannot run on a device, or None if it can; whether it is right is not asked."""
    try:
        return load(name).unavailable(torch.device(device))
    except BackendError as error:
        return str(error)
    except (ImportError, RuntimeError) as error:  # Triton 3.2 looks for a GPU's driver when kernels are defined
        return f"backend {name!r} cannot be imported: {error}"


def why_not(name: str, device: torch.device | str) -> str | None:
    """Why a backend cannot serve a device, or None if it can: it runs there and has passed its self-test."""
    device = torch.device(device)
    reason = missing(name, device)
    return selftest.failure(name, load(name), device) if reason is None else reason


def available(device: torch.device | str = "cpu") -> list[str]:
    """Names of the backends that can serve a device, fastest first."""
    found = [name for name in names() if why_not(name, device) is None]
    return sorted(found, key=lambda name: -load(name).speed)


def _automatic(device: torch.device) -> list[str]:
    """Names of the backends that `auto` tries for a device, in turn; the reference comes last."""
    found = []
    for name in names():
        try:
            if device.type in load(name).automatic:
                found.append(name)
        except BackendError:
            continue
    return [*sorted(found, key=lambda name: -load(name).speed), "reference"]


@cache
def _warn(text: str) -> None:
    """Say once a process what the user should know of the backend that serves."""
    warnings.warn(text, DDCMWarning, stacklevel=4)


def resolve(name: str, device: torch.device | str) -> str:
    """The backend to use for a device.

    `auto` is the environment variable DDCM_BACKEND if set, else the fastest present. A DDCMWarning says once where
    that is the reference on a device that there are kernels for, or where a faster one failed its self-test.
    Raises BackendError if the one asked for is unknown or cannot serve the device.
    """
    device = torch.device(device)
    asked = (os.environ.get("DDCM_BACKEND") or "auto") if name == "auto" else name
    if asked == "auto":
        reasons = {}
        for candidate in _automatic(device):
            reason = why_not(candidate, device)
            if reason is None:
                break
            reasons[candidate] = reason
        if candidate == "reference" and device.type in ("cpu", "cuda"):
            text = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            _warn(f"no kernels for {device.type}, the slow reference serves ({text})")
        elif wrong := [f"{name}: {reason}" for name, reason in reasons.items() if missing(name, device) is None]:
            _warn(f"backend {candidate!r} serves {device} ({'; '.join(wrong)})")
        return candidate
    if asked not in names():
        raise BackendError(f"unknown backend {asked!r}: choose auto, {', '.join(names())}")
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

"""Autocast is kept out: a file must not depend on a context around the call that its header cannot know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

_DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")

_P = ParamSpec("_P")
_R = TypeVar("_R")


@contextmanager
def no_autocast() -> Iterator[None]:
    """Computing in the dtypes that are named, whatever torch.autocast is around."""
    with ExitStack() as stack:
        for device_type in _DEVICE_TYPES:
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


def without_autocast(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, in `no_autocast`."""

    @wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with no_autocast():
            return function(*args, **kwargs)

    return run

"""How long a call takes: warmed up, many times, the median."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

#: Samples of a measurement: at least, whatever they take, and at most.
_LEAST, _MOST = 3, 1000

#: Seconds of work between two events of a GPU, whose clock ticks in half microseconds.
_BETWEEN_EVENTS = 2e-3


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: the median and the least of `runs` samples."""

    seconds: float
    least: float
    runs: int


def once(work: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Seconds of a call, as a mean of `calls` in a row; waits for a GPU."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - start) / calls
    with torch.cuda.device(device):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        for _ in range(calls):
            work()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1e3 / calls


def measure(work: Callable[[], object], device: torch.device, seconds: float) -> Timing:
    """Time a function for about `seconds`, after a call that is not counted.

    On a GPU a sample is of several calls in a row, so that the time of one launch is hidden by the work before it.
    """
    once(work, device)
    samples = [once(work, device)]
    calls = 1
    if device.type == "cuda":
        calls = max(1, math.ceil(_BETWEEN_EVENTS / max(samples[0], 1e-6)))
        samples = [once(work, device, calls)]
    while len(samples) < _LEAST or (sum(samples) * calls < seconds and len(samples) < _MOST):
        samples.append(once(work, device, calls))
    return Timing(statistics.median(samples), min(samples), len(samples))

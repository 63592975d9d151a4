"""Seconds of GPU work, by events, and what it could take at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

#: Instructions an entry if they cannot be counted here (benchmarks/results/sass-sm90.json).
INSTRUCTIONS = {"sign": 0.6, "gaussian": 8.6}
BOOST_CLOCK = 1.755e9  # Hz, H100 SXM, where torch does not tell
LONG_ENOUGH = 1e-3  # seconds between two events; shorter work is repeated between them


def timed(run: Callable[[], Any], limit: float = 2.0, repeats: int = 20) -> tuple[float, int]:
    """Median seconds of a GPU function, by events, and the bytes it allocates at its peak.

    Work of less than a millisecond is done several times between two events: on an idle stream one graph's launch
    would be measured.
    """
    run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    begun = time.monotonic()
    run()
    torch.cuda.synchronize()
    times_each = max(1, min(64, int(LONG_ENOUGH / max(time.monotonic() - begun, 1e-5))))
    peak = torch.cuda.max_memory_allocated() - before
    times: list[float] = []
    end = time.monotonic() + limit
    while len(times) < repeats and (len(times) < 3 or time.monotonic() < end):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(times_each):
            run()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / 1e3 / times_each)
    return statistics.median(times), peak


def graphed(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same work as one graph launch: without the host's launch gaps."""
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def issue_bound(kind: str) -> float:
    """Entries/s if every scheduler issued an instruction of the search loop each clock."""
    properties = torch.cuda.get_device_properties(0)
    clock = float(getattr(properties, "clock_rate", 0)) * 1e3 or BOOST_CLOCK
    return float(properties.multi_processor_count * 4 * 32 * clock / INSTRUCTIONS[kind])

"""Fixtures of the microbenchmarks (`pytest benchmarks/`)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ddcm_fast.codebook import backends

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
BACKENDS = [
    (name, device)
    for device in DEVICES
    for name in backends.available(device)
    # Interpreted Triton tests kernels; its speed means nothing.
    if (name, device) != ("triton", "cpu")
]


@pytest.fixture(params=BACKENDS, ids=lambda p: f"{p[0]}-{p[1]}")
def backend(request: pytest.FixtureRequest) -> tuple[str, str]:
    """(name, device) of each backend that is here."""
    return request.param


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Each device that is here."""
    return request.param


@pytest.fixture
def measure(benchmark) -> Callable[..., None]:
    """Benchmark a function on a device, waiting for a GPU, and note entries/s."""

    def run(function: Callable[[], object], device: str, entries: int = 0) -> None:
        def work() -> None:
            function()
            if device == "cuda":
                torch.cuda.synchronize()

        benchmark(work)
        if entries and benchmark.stats is not None:
            benchmark.extra_info["entries"] = entries
            benchmark.extra_info["entries_per_s"] = entries / benchmark.stats.stats.median

    return run

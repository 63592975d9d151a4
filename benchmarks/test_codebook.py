"""The cases of `ddcm bench`, timed by pytest-benchmark.

pytest benchmarks/ [-k "search and hadamard and K65536"] [--benchmark-max-time 0.2]
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from ddcm_fast.measure.cases import Case, sweep
from ddcm_fast.measure.run import refusal
from ddcm_fast.measure.work import prepare

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CASES = [
    case
    for device in map(torch.device, DEVICES)
    for case in (*sweep(device), *sweep(device, ["search"], sizes=[1 << 12], batches=[1], groups=[64]))
]

#: Seconds that a call may take.
LONGEST = 1.0


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case} {case.device}".replace("=", ""))
def test_codebook(benchmark: BenchmarkFixture, case: Case) -> None:
    reason = refusal(case, LONGEST)
    if reason is not None:
        pytest.skip(reason)
    work = prepare(case)

    def call() -> None:
        work()
        if case.device.type == "cuda":
            torch.cuda.synchronize(case.device)

    benchmark.group = f"{case.op} K={case.size} D={case.dim} B={case.batch} G={case.groups} {case.device}"
    benchmark.extra_info.update(entries=case.entries, products=case.products)
    benchmark(call)

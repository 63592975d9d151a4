"""What is timed does what it says: baselines find what the backends find, and what is said of a case is right."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ddcm_fast.codebook import backends, reference
from ddcm_fast.codebook.law import KINDS
from ddcm_fast.errors import BackendError, ConfigError
from ddcm_fast.measure import memory, roofs, run
from ddcm_fast.measure.cases import BASELINES, OPERATIONS, Case, sweep
from ddcm_fast.measure.roofs import Roofs, bound, clocks_an_entry, intensity
from ddcm_fast.measure.timing import measure, once
from ddcm_fast.measure.work import prepare, stored_bytes

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
NAMES = [name for name in backends.available(CPU) if name != "triton"]


def case(op: str, by: str, kind: str = "sign", **shape: int) -> Case:
    return Case(op, by, kind, CPU, **({"size": 200, "dim": 256, "batch": 3} | shape))


# ---- work ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", NAMES)
@pytest.mark.parametrize("op, atoms", [("search", 1), ("topk", 7)])
def test_a_search_by_a_backend_finds_what_a_stored_codebook_finds(op, atoms, by, kind):
    ours, stored = (prepare(case(op, name, kind, atoms=atoms))() for name in (by, "stored"))
    assert ours.shape == ((3, 1) if op == "search" else (3, 1, 7)) and torch.equal(ours, stored)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op, atoms", [("combine", 5), ("noise", 1)])
def test_sums_of_atoms_are_those_of_a_stored_codebook(op, atoms, kind):
    ours, stored = (prepare(case(op, name, kind, atoms=atoms))() for name in (NAMES[0], "stored"))
    assert ours.shape == (3, 256)
    torch.testing.assert_close(ours, stored, rtol=0, atol=1e-4)


def test_the_dense_rotation_is_the_rotation():
    ours, dense = (prepare(case("rotate", name, size=1, dim=8192))() for name in (NAMES[0], "stored"))
    torch.testing.assert_close(ours, dense, rtol=0, atol=1e-4)


def test_a_codebook_that_is_drawn_in_parts_is_searched_whole(monkeypatch):
    """torch.randn replaced by one whose atom k is k times the residual: the last has the largest score."""
    residual = prepare(case("rotate", "reference", "gaussian", size=1, dim=64, batch=1))
    order = torch.arange(64) * case("rotate", "reference", dim=64).spec.stride % 64
    plain = torch.empty(64)
    plain[order] = residual()[0]
    drawn = []

    def rising(count, dim, **how):
        assert how == {"dtype": torch.float32, "device": CPU}
        first = sum(drawn)
        drawn.append(count)
        return torch.arange(first, first + count).float().unsqueeze(1) * plain

    search = prepare(case("search", "randn", "normal", size=100, dim=64, batch=1))
    top = prepare(case("topk", "randn", "normal", size=100, dim=64, batch=1, atoms=3))
    noise = prepare(case("noise", "randn", "normal", size=100, dim=64, batch=2))
    monkeypatch.setattr("ddcm_fast.measure.work._PART", 64 * 32)
    monkeypatch.setattr(torch, "randn", rising)
    assert search().tolist() == [[99]]
    drawn.clear()
    assert top().tolist() == [[[99, 98, 97]]]
    drawn.clear()
    index = torch.randint(100, (2,), generator=torch.Generator("cpu").manual_seed(0))
    assert torch.equal(noise(), index.float().unsqueeze(1) * plain)


def test_groups_are_searched_each():
    found = prepare(case("search", NAMES[0], groups=4))()
    spec = case("search", NAMES[0], groups=4).spec
    residual = torch.randn(3, 256, generator=torch.Generator("cpu").manual_seed(0))
    w = reference.to_codebook_order(spec, residual)
    assert found.shape == (3, 4) and torch.equal(found, reference.search(spec, w, 0, True, None)[0])


# ---- cases -----------------------------------------------------------------------------------------


def test_a_sweep_has_every_operation_backend_and_baseline_once():
    cases = sweep(CPU)
    assert len(set(cases)) == len(cases)
    assert {(c.op, c.by) for c in cases if c.baseline} == {(op, by) for op in OPERATIONS for by in OPERATIONS[op]}
    assert {c.by for c in cases} - set(BASELINES) == set(NAMES) - {"reference"}
    asked = sweep(CPU, ["search"], ["reference", "stored"], ["sign", "hadamard"], [64, 128], [32], [2], [1, 4])
    ours = [c for c in asked if c.by == "reference"]
    assert {(c.kind, c.size, c.groups) for c in ours} == {
        (k, s, g) for k in ("sign", "hadamard") for s in (64, 128) for g in (1, 4)
    }
    assert [(c.kind, c.size, c.groups) for c in asked if c.by == "stored"] == [("sign", 64, 1), ("sign", 128, 1)]


@pytest.mark.parametrize(
    "arguments, error, said",
    [
        ({"ops": ["sort"]}, ConfigError, "unknown operation 'sort': choose among search"),
        ({"kinds": ["cauchy"]}, ConfigError, "unknown kind 'cauchy'"),
        ({"by": ["cuda"]}, BackendError, "cannot serve device 'cpu'"),
        ({"by": ["numpy"]}, BackendError, "unknown backend 'numpy'"),
        ({"sizes": [2**33]}, ConfigError, "size"),
        ({"dims": [2**31]}, ConfigError, "dim"),
        ({"batches": [2**21]}, ConfigError, "B is 2097152"),
        ({"ops": ["topk"], "sizes": [16], "atoms": 17}, ConfigError, "M is 17; it must be an integer from 1 to 16"),
    ],
)
def test_impossible_sweeps_are_refused(arguments, error, said):
    with pytest.raises(error, match=said):
        sweep(CPU, **arguments)


def test_counts():
    search, total = case("search", "stored"), case("combine", "randn", "normal", atoms=5)
    assert (search.entries, search.products) == (200 * 256, 200 * 256 * 3)
    assert (total.entries, total.products) == (3 * 5 * 256,) * 2
    assert stored_bytes(search) == 200 * 256 * 4 and stored_bytes(total) == 0
    assert stored_bytes(case("rotate", "stored", size=1, dim=8192)) == 4096**2 * 4


# ---- measuring -------------------------------------------------------------------------------------


def test_what_has_no_room_or_takes_too_long_is_refused(monkeypatch):
    large = case("search", "stored", size=1 << 20, dim=1 << 14)
    monkeypatch.setattr(memory, "free", lambda device: 100 << 30)
    assert run.refusal(large, 1.0) == "would keep 64 GiB, and 100 GiB are free"
    monkeypatch.setattr(run, "prepare", lambda case: case)
    # Seconds of K atoms: what every call takes, and what an atom takes.
    assert "8.2e+03 s a call (by that of K=64)" in _with_seconds(monkeypatch, lambda k: 0.5, "randn")
    slow = _with_seconds(monkeypatch, lambda k: 0.03 + 3.5e-6 * k, "randn")
    assert "5.6 s a call (by that of K=16384)" in slow, "K grew while there was time"
    assert _with_seconds(monkeypatch, lambda k: 0.03 + 0.8e-6 * k, "randn") is None
    assert _with_seconds(monkeypatch, lambda k: 9.0, "reference", "noise") is None, "its time does not grow with K"
    assert run.refusal(case("rotate", "stored", size=1, dim=5000), 1.0) is not None


def _with_seconds(monkeypatch, seconds: Callable[[int], float], by: str, op: str = "search") -> str | None:
    monkeypatch.setattr(run, "once", lambda work, device: seconds(work.size))
    return run.refusal(case(op, by, size=1 << 20, dim=1 << 14, batch=1), 1.0)


def test_timings_are_of_calls_after_the_first():
    clock = iter([0.0, 9.0, 10.0, 10.5, 20.0, 20.25, 30.0, 30.75])  # the first call takes 9 s
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddcm_fast.measure.timing.time.perf_counter", lambda: next(clock))
        timing = measure(lambda: calls.append(1), CPU, 0.0)
    assert (timing.seconds, timing.least, timing.runs, len(calls)) == (0.5, 0.25, 3, 4)
    assert once(lambda: calls.append(1), CPU, 5) >= 0 and len(calls) == 9


def test_on_a_gpu_a_sample_is_of_several_calls_between_two_events(monkeypatch):
    """Events of a device whose clock only runs while it works: half a millisecond a call."""
    calls = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = -1.0

        def record(self) -> None:
            self.at = 0.5 * len(calls)

        def synchronize(self) -> None:
            assert self.at >= 0, "it was recorded"

        def elapsed_time(self, later: Event) -> float:
            return later.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    timing = measure(lambda: calls.append(1), torch.device("cuda"), 0.0)
    assert timing.seconds == timing.least == pytest.approx(5e-4)
    assert timing.runs == 3 and len(calls) == 1 + 1 + 3 * 4, "a warm-up, a first look, and samples of 2 ms"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells a process's peak")
def test_memory_is_measured():
    """A stored codebook of 32 MiB is seen, also after a larger one was freed; a search of ours takes none of it."""
    stored = case("search", "stored", size=1 << 13, dim=1 << 10, batch=1)
    with memory.Meter() as meter:
        larger, first, ours = (
            meter.peak(c)
            for c in (dataclasses.replace(stored, size=1 << 14), stored, dataclasses.replace(stored, by=NAMES[0]))
        )
    assert 32 << 20 <= first <= 40 << 20 and 64 << 20 <= larger <= 72 << 20
    assert ours <= 1 << 20 or NAMES == ["reference"]


def test_a_case_whose_process_dies_has_no_peak():
    with memory.Meter() as meter:
        assert meter.peak(case("noise", "fresh", "normal")) is not None or not Path("/proc").exists()
        if meter._process is not None:
            meter._process.kill()
            meter._process.join()
            assert meter.peak(case("noise", "fresh", "normal")) is None
            assert meter.peak(case("noise", "fresh", "normal")) is not None, "another process is started"


def test_what_runs_out_of_memory_is_skipped_and_other_errors_are_not(monkeypatch):
    limits = Roofs(torch.float32, 1e9, 1e9)
    told = []

    def failing(error):
        def prepare(case):
            raise error

        monkeypatch.setattr(run, "prepare", prepare)
        return run.run([case("noise", "fresh", "normal")], limits, 0.0, 1.0, told.append)

    rows = failing(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert rows == told and rows[0].skipped == "out of memory" and rows[0].facts()["ms"] is None
    with pytest.raises(RuntimeError, match="a bug"):
        failing(RuntimeError("a bug"))


# ---- bounds ----------------------------------------------------------------------------------------


def test_bounds_on_a_cpu():
    limits = Roofs(torch.float32, products_per_s=1e11, bytes_per_s=2e10)
    large = {"size": 1 << 14, "dim": 1 << 14}
    assert bound(case("search", "stored", batch=1, **large), limits).products_per_s == 2e10 / 4
    assert bound(case("search", "stored", batch=64, **large), limits).products_per_s == 1e11
    assert bound(case("search", "stored", batch=1), limits).products_per_s == 1e11, "it fits into caches"
    assert bound(case("search", "randn", "normal"), limits).source == "matrix product, measured"
    assert bound(case("search", "cpu", "gaussian"), limits).products_per_s == 1e11
    assert bound(case("search", "cpu", "sign"), limits) is None
    assert bound(case("combine", "stored", atoms=2), limits) is None
    assert intensity(case("search", "cpu", batch=8)) == 200 / 4


def test_the_cycle_model_is_that_of_the_compiled_kernels():
    """Every row of CYCLES is a kernel of the committed listing: its busiest pipe, and the entries of a lane."""
    listed = json.loads((ROOT / "benchmarks/results/sass-sm90.json").read_text())["kernels"]
    steps = [(row["kernel"], row["step"]) for row in listed if row["kernel"].endswith(", 0>") and "step" in row]
    for kind, table in roofs.CYCLES.items():
        kernels = {
            step["batch_rows"]: (max(step["cycles"].values()), step["lane_entries"])
            for name, step in steps
            if name.startswith(f"SearchKernel<{kind.capitalize()}")
        }
        for rows, (clocks, entries) in table.items():
            assert kernels[rows][1] == entries and clocks == pytest.approx(kernels[rows][0], abs=0.6)


def test_the_cycle_model_of_larger_batches():
    assert clocks_an_entry("sign", 1) == 806 / 1024 and clocks_an_entry("sign", 3) == 634 / 512
    assert clocks_an_entry("sign", 17) == 2477 / 1024 + 806 / 1024
    assert clocks_an_entry("sign", 256) == pytest.approx(16 * 2477 / 1024)
    assert clocks_an_entry("gaussian", 257) == 3716 / 48 + 904 / 64

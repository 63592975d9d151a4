"""Check and measure the GPU backends against the reference and the usual ways, in one run of minutes.

    python benchmarks/gpu_check.py --output DIR [--budget SECONDS]
    python benchmarks/gpu_check.py --output DIR --device cpu --quick    # the correctness grid on CPU backends

Needs a checkout, torch and a CUDA GPU (nvcc for the cuda backend); neither an installed package nor diffusers.
Writes DIR/gpu_check.json as it goes and prints a short table last. Exit code: 0 if every check passed, 1
if one failed, 2 where there is no GPU. Every section is guarded: one failure does not lose the rest, and what the
time or a missing header leaves out is reported as skipped. The cuda backend and the baselines come first; triton, which
compiles a kernel for every combination of options, gets the time that is left.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.abc
import importlib.machinery
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent


class _KernelsFinder(importlib.abc.MetaPathFinder):
    """Finds ddcm_fast.kernels in kernels/, as setup.py's package_dir does for an installed package."""

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "ddcm_fast.kernels":
            return None
        folder = REPOSITORY / "kernels"
        return importlib.util.spec_from_file_location(
            fullname, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def use_checkout() -> None:
    """Import ddcm_fast from this checkout, without running its __init__ (which needs diffusers)."""
    if "ddcm_fast" in sys.modules:
        return
    package = ModuleType("ddcm_fast")
    package.__path__ = [str(REPOSITORY / "ddcm_fast")]
    sys.modules["ddcm_fast"] = package
    sys.meta_path.insert(0, _KernelsFinder())
    sys.path[:0] = [str(REPOSITORY / "benchmarks"), str(REPOSITORY / "tests")]


use_checkout()

import backend_checks as shared  # noqa: E402
import torch  # noqa: E402
from backend_checks import KINDS, QUICK_SHAPES, SEED  # noqa: E402
from torch import Tensor  # noqa: E402

from ddcm_fast.codebook import backends  # noqa: E402
from ddcm_fast.codebook.backends import cuda  # noqa: E402
from ddcm_fast.codebook.build import nvcc  # noqa: E402
from ddcm_fast.codebook.codebook import Codebook  # noqa: E402
from ddcm_fast.codebook.law import CodebookSpec  # noqa: E402
from ddcm_fast.files import write_json  # noqa: E402

DEVICE = "cuda"  # of the measurements

#: Instructions an entry if they cannot be counted here (benchmarks/results/sass-sm90.json).
INSTRUCTIONS = {"sign": 0.6, "gaussian": 8.6}
BOOST_CLOCK = 1.755e9  # Hz, H100 SXM, where torch does not tell


class Report:
    """Results, written after every change; checks and measurements by section."""

    def __init__(self, folder: Path, budget: float) -> None:
        self.path = folder / "gpu_check.json"
        self.end = time.monotonic() + budget
        self.data: dict[str, Any] = {"checks": [], "measurements": [], "errors": [], "skipped": []}
        self.write()

    def write(self) -> None:
        write_json(self.path, self.data, 1)

    def left(self) -> float:
        return self.end - time.monotonic()

    def guard(self, name: str, run: Callable[[], None], need: float = 5.0) -> None:
        """Run a section unless time is short; note what it raises."""
        start = time.monotonic()
        if self.left() < need:
            self.skip(name, "out of time")
        else:
            try:
                run()
            except Exception as error:  # a section's failure must not lose the others
                trace = traceback.format_exc(limit=-4)
                self.data["errors"].append({"section": name, "error": str(error), "trace": trace})
        self.data.setdefault("seconds", {})[name] = round(time.monotonic() - start, 2)
        self.write()

    def check(self, backend: str, what: str, ok: bool, **details: Any) -> None:
        self.data["checks"].append({"backend": backend, "what": what, "ok": bool(ok), **details})

    def compare(self, backend: str, what: str, comparison: Callable[[], None]) -> None:
        """A check that holds if the comparison raises no AssertionError."""
        try:
            comparison()
        except AssertionError as error:
            self.check(backend, what, False, reason=str(error))
        else:
            self.check(backend, what, True)

    def skip(self, name: str, reason: str) -> None:
        self.data["skipped"].append({"section": name, "reason": reason})

    def measure(self, name: str, seconds: float, **details: Any) -> None:
        self.data["measurements"].append({"name": name, "ms": seconds * 1e3, **details})
        self.write()

    def failures(self) -> list[dict[str, Any]]:
        return [c for c in self.data["checks"] if not c["ok"]]


# ---- correctness -----------------------------------------------------------------------------------------


def check_shape(report: Report, name: str, kind: str, shape: tuple[int, int, int, int], device: str) -> None:
    """Every operation of one backend on one shape against the reference, on fresh random input."""
    case, backend = shared.Case(kind, *shape), backends.load(name)
    answer = shared.make_answers(case, device, seed=int(torch.randint(2**31, ())), step=2**31 + case.dim)
    for what, comparison in shared.COMPARISONS.items():
        report.compare(name, f"{what} {case}", partial(comparison, backend, answer, device))


def check_kind(report: Report, name: str, kind: str, device: str) -> None:
    """Residuals that are not finite, and the public face."""
    not_finite = partial(shared.check_not_finite, backends.load(name), kind, device)
    report.compare(name, f"not finite {kind}", not_finite)
    report.compare(name, f"codebook {kind}", partial(shared.check_codebook, name, kind, device))


def check_large(report: Report, name: str, case: shared.Case, device: str) -> None:
    """More than 2^32 entries."""
    planted = partial(shared.check_planted, backends.load(name), case, device)
    report.compare(name, f"more than 2^32 entries {case}", planted)


def check_streams_and_graphs(report: Report, name: str, kind: str) -> None:
    """A captured graph replayed with a changing step and residual; a stream that is not the default one."""
    codebook = Codebook(kind, 3000, 700, groups=2, seed=SEED, backend=name)
    spec, module = codebook.spec, backends.load(name)
    at = torch.tensor(0, device=DEVICE)
    r = torch.randn(3, 3000, device=DEVICE)

    def work() -> tuple[Tensor, ...]:
        w = module.to_codebook_order(spec, r)
        best = module.search(spec, w, at, True, None)
        top = module.topk(spec, w, at, 9, True, None)
        y = module.combine(spec, top[0], top[2], at)
        return *best, *top, module.to_image_order(spec, y), *module.scores_and_norms(spec, w, at)

    work()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        on_stream = work()
    torch.cuda.current_stream().wait_stream(stream)
    expected = work()
    same = all(torch.equal(a, b) for a, b in zip(on_stream, expected, strict=True))
    report.check(name, f"non-default stream {kind}", same)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    ok = True
    for step in (1, 2**32 - 1, 77):
        at.fill_(step)
        r.copy_(torch.randn_like(r))
        graph.replay()
        replayed = [t.clone() for t in captured]
        ok = ok and all(torch.equal(a, b) for a, b in zip(replayed, work(), strict=True))
    report.check(name, f"graph replay with changing steps {kind}", ok)


# ---- measurements ------------------------------------------------------------------------------------------


def timed(run: Callable[[], Any], limit: float = 2.0, repeats: int = 20) -> tuple[float, int]:
    """Median seconds of a GPU function, by events, and the bytes it allocates at its peak."""
    run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    times: list[float] = []
    end = time.monotonic() + limit
    while len(times) < repeats and (len(times) < 3 or time.monotonic() < end):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
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


def measure_search(
    report: Report, name: str, kind: str, dim: int, size: int, batch: int, groups: int = 1
) -> None:
    """One search, launched and as a graph."""
    spec = CodebookSpec(kind, dim, size, groups, SEED)
    module = backends.load(name)
    at = torch.tensor(1, device=DEVICE)
    w = torch.randn(batch, dim, device=DEVICE)
    run = partial(module.search, spec, w, at, True, None)
    launched, peak = timed(run)
    try:
        seconds = timed(graphed(run))[0]
    except RuntimeError:
        seconds = launched
    entries = size * dim
    extra: dict[str, Any] = {"launched_ms": launched * 1e3, "entries_per_s": entries / seconds}
    extra["entries_and_rows_per_s"] = batch * entries / seconds
    if kind in INSTRUCTIONS and batch <= 2:  # counted for the kernel of 1 and 2 rows; more are bound by the products
        extra["fraction_of_issue_bound"] = entries / seconds / issue_bound(kind)
    label = f"{name} {kind} K={size} D={dim} B={batch}" + (f" G={groups}" if groups > 1 else "")
    report.measure(label, seconds, peak_bytes=peak, **extra)


def measure_clusters(report: Report, shape: tuple[int, int, int] = (16384, 16384, 256)) -> None:
    """`sign` with a large batch of shape (D, K, B), one generation of the noise shared by 1, 2, 4 and 8 blocks."""
    capability = torch.cuda.get_device_capability()
    if capability < (9, 0):
        report.skip("clusters", "the GPU has none")
        return
    library = cuda.build(capability)
    dim, size, batch = shape
    spec, at = CodebookSpec("sign", dim, size, 1, SEED), torch.tensor(1, device=DEVICE)
    w = torch.randn(batch, dim, device=DEVICE)
    for blocks in (1, 2, 4, 8):
        kernels = cuda.Cuda(library, max_cluster=blocks)
        seconds = timed(graphed(partial(kernels.search, spec, w, at, True, None)))[0]
        report.measure(f"cuda sign K={size} D={dim} B={batch}, clusters of {blocks}", seconds)


def measure_others(
    report: Report, name: str, dim: int = 16384, size: int = 16384, rotations: tuple[int, ...] = (16384, 2**18)
) -> None:
    """topk, scores, synthesis and the rotation."""
    module = backends.load(name)
    at = torch.tensor(1, device=DEVICE)
    for kind in KINDS:
        spec = CodebookSpec(kind, dim, size, 1, SEED)
        w = torch.randn(1, dim, device=DEVICE)
        index = torch.randint(0, size, (1, 1, 64), device=DEVICE)
        coefficient = torch.randn(1, 1, 64, device=DEVICE)
        jobs: dict[str, Callable[[], Any]] = {
            "topk m=64": partial(module.topk, spec, w, at, 64, True, None),
            "topk m=1024": partial(module.topk, spec, w, at, 1024, True, None),
            "scores": partial(module.scores, spec, w, at),
            "scores and norms": partial(module.scores_and_norms, spec, w, at),
            "combine M=64": partial(module.combine, spec, index, coefficient, at),
        }
        for what, run in jobs.items():
            seconds, peak = timed(run, 0.5)
            label = f"{name} {kind} {what} K={size} D={dim}"
            report.measure(label, seconds, peak_bytes=peak)
    for length in rotations:
        spec = CodebookSpec("sign", length, 1, 1, SEED)
        r = torch.randn(1, length, device=DEVICE)
        for what, function in (("to codebook", module.to_codebook_order), ("to image", module.to_image_order)):
            seconds, peak = timed(graphed(partial(function, spec, r)), 0.5)
            report.measure(f"{name} rotation {what} D={length}", seconds, peak_bytes=peak)


def measure_torch_baselines(report: Report, size: int, dim: int, fits: bool = True) -> None:
    """(a) randn + matmul + argmax, (b) the same in chunks, (d) randn alone; (b) only if K x D does not fit."""
    for dtype in (torch.float16, torch.float32):
        label = str(dtype).removeprefix("torch.")
        r = torch.randn(dim, device=DEVICE, dtype=dtype)

        def whole(dtype: torch.dtype = dtype, r: Tensor = r) -> Tensor:
            return (torch.randn(size, dim, device=DEVICE, dtype=dtype) @ r).argmax()

        def chunked(dtype: torch.dtype = dtype, r: Tensor = r) -> Tensor:
            part = 1024
            scores = [
                torch.randn(min(part, size - k), dim, device=DEVICE, dtype=dtype) @ r
                for k in range(0, size, part)
            ]
            return torch.cat(scores).argmax()

        def alone(dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(size, dim, device=DEVICE, dtype=dtype)

        jobs = {"a": whole, "b, chunks": chunked, "d, randn alone": alone} if fits else {"b, chunks": chunked}
        for what, run in jobs.items():
            seconds, peak = timed(run)
            rate = size * dim / seconds
            name = f"baseline ({what}) {label} K={size} D={dim}"
            report.measure(name, seconds, peak_bytes=peak, entries_per_s=rate)


def measure_compiled_baseline(report: Report, size: int, dim: int) -> None:
    """(e) what Inductor makes of the one line."""
    compiled = torch.compile(lambda r: (torch.randn(size, dim, device=DEVICE) * r).sum(-1).argmax())
    r = torch.randn(dim, device=DEVICE)
    seconds, peak = timed(lambda: compiled(r))
    rate = size * dim / seconds
    name = f"baseline (e, torch.compile) K={size} D={dim}"
    report.measure(name, seconds, peak_bytes=peak, entries_per_s=rate)


class MissingHeader(RuntimeError):
    """A header that only a baseline needs is not here."""


def curand_includes() -> list[str]:
    """nvcc's options for the cuRAND headers that come with torch's CUDA wheels, where the toolkit has none."""
    packages = importlib.util.find_spec("nvidia")
    roots = packages.submodule_search_locations if packages is not None else None
    return [f"-I{header.parent}" for root in roots or () for header in Path(root).glob("*/include/curand_kernel.h")]


def compile_library(source: str, folder: Path) -> ctypes.CDLL:
    """Build a .cu file of benchmarks/ for the GPU at hand."""
    major, minor = torch.cuda.get_device_capability()
    arch = f"-gencode=arch=compute_{major}{minor},code=sm_{major}{minor}"
    library = folder / f"{Path(source).stem}.so"
    done = subprocess.run(
        [
            *(*nvcc(), "-O3", "-std=c++17", arch, "-shared", "-Xcompiler=-fPIC", *curand_includes()),
            *(str(REPOSITORY / "benchmarks" / source), "-o", str(library)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        if "curand_kernel.h" in done.stderr and "No such file" in done.stderr + done.stdout:
            raise MissingHeader("curand_kernel.h is not on this machine (it comes with the CUDA toolkit's cuRAND)")
        raise RuntimeError(f"nvcc failed: {(done.stderr + done.stdout)[:500]}")
    return ctypes.CDLL(str(library))


def measure_curand_baseline(report: Report, size: int, dim: int) -> None:
    """(c) one thread a candidate with a sequential generator."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            library = compile_library("curand_baseline.cu", Path(folder))
        except MissingHeader as error:
            report.skip(f"baseline (c, cuRAND a thread) K={size} D={dim}", str(error))
            return
        r = torch.randn(dim, device=DEVICE)
        scores = torch.empty(size, device=DEVICE)

        def run() -> Tensor:
            code = library.curand_baseline(
                ctypes.c_void_p(r.data_ptr()),
                ctypes.c_void_p(scores.data_ptr()),
                ctypes.c_int64(size),
                ctypes.c_int(dim),
                ctypes.c_ulonglong(1),
                ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
            )
            if code != 0:
                raise RuntimeError(f"CUDA error {code}")
            return scores.argmax()

        seconds, peak = timed(run)
    name = f"baseline (c, cuRAND a thread) K={size} D={dim}"
    report.measure(name, seconds, peak_bytes=peak, entries_per_s=size * dim / seconds)


def measure_sign_b1(report: Report) -> None:
    """The inner loop of a one bit variant of `sign`, which no backend uses: does BMMA's rate allow more?"""
    with tempfile.TemporaryDirectory() as folder:
        library = compile_library("sign_b1.cu", Path(folder))
        blocks, steps = 8 * torch.cuda.get_device_properties(0).multi_processor_count, 256
        out = torch.empty(blocks * 256, dtype=torch.int32, device=DEVICE)
        planes = torch.randint(-(2**31), 2**31, (steps * 8 * 128,), dtype=torch.int64, device=DEVICE)
        planes = planes.to(torch.int32)
        for path, label in ((0, "byte products"), (1, "one bit products")):

            def run(path: int = path) -> None:
                code = library.sign_rate(
                    ctypes.c_int(path),
                    ctypes.c_void_p(planes.data_ptr()),
                    ctypes.c_void_p(out.data_ptr()),
                    ctypes.c_int(blocks),
                    ctypes.c_int(steps),
                    ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
                )
                if code != 0:
                    raise RuntimeError(f"CUDA error {code}")

            seconds, _ = timed(run)
            entries = blocks * 8 * steps * 64 * 512  # warps a block, steps, atoms, coordinates
            report.measure(f"microbenchmark sign, {label}", seconds, entries_per_s=entries / seconds)


def measure_bounds(report: Report) -> None:
    """Copy bandwidth, counting bytes read and written."""
    a = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    b = torch.empty_like(a)
    a.random_()
    seconds, _ = timed(lambda: b.copy_(a))
    report.measure("copy of 1 GiB", seconds, bytes_per_s=2 * a.numel() / seconds)


def count_instructions(report: Report) -> None:
    """Instructions an entry of this build's kernels, where cuobjdump is here."""
    import sass

    if sass.find_cuobjdump() is None or "cuda" in report.data.get("missing", {}):
        report.data["instructions_per_entry"] = {**INSTRUCTIONS, "counted": False}
        return
    kernels = {f"SearchKernel<{kind.capitalize()}, 1, 1, 0>": kind for kind in INSTRUCTIONS}
    for row in sass.analyse(cuda.build(torch.cuda.get_device_capability()), kernels):
        INSTRUCTIONS[kernels[row["kernel"]]] = row["step"]["instructions_per_entry"]
    report.data["instructions_per_entry"] = {**INSTRUCTIONS, "counted": True}


# ---- the reach list -----------------------------------------------------------------------------------------


def reach(report: Report) -> list[dict[str, Any]]:
    """The targets of the kernels against the measurements of the cuda backend."""
    found = {m["name"]: m for m in report.data["measurements"]}

    def ms(name: str) -> float | None:
        return found[name]["ms"] if name in found else None

    def rate(name: str) -> float | None:
        return found[name]["entries_per_s"] if name in found else None

    gaussian, large = "cuda gaussian K=16384 D=16384 B=1", "K=1048576 D=36864 B=1"
    rows: list[tuple[str, float | None, float, bool]] = []  # what, value, target, larger is better
    base = [ms(f"baseline (a) {d} K=16384 D=16384") for d in ("float16", "float32")]
    mine = ms(gaussian)
    known = [b for b in base if b is not None]
    ratio = min(known) / mine if known and mine else None
    rows.append(("gaussian, times (a)'s faster dtype", ratio, 3.0, True))
    rows.append(("gaussian, entries/s", rate(gaussian), 1e12, True))
    rows.append(("sign, entries/s", rate(f"cuda sign {large}"), 1e13, True))
    rows.append(("sign K=2^20 D=36864, ms", ms(f"cuda sign {large}"), 4.0, False))
    rows.append(("hadamard K=2^20 D=36864, ms", ms(f"cuda hadamard {large}"), 0.3, False))
    rows.append(("rotation D=2^18, ms", ms("cuda rotation to codebook D=262144"), 0.02, False))
    peaks = [m["peak_bytes"] for n, m in found.items() if n.startswith("cuda ") and "peak_bytes" in m]
    rows.append(("peak bytes of any cuda operation", max(peaks) if peaks else None, 64 << 20, False))
    return [
        {
            "target": what,
            "value": value,
            "bar": bar,
            "met": None if value is None else (value >= bar if larger else value <= bar),
        }
        for what, value, bar, larger in rows
    ]


def summary(report: Report) -> str:
    """The short table that ends the run."""
    lines = []
    for m in report.data["measurements"]:
        extra = f"{m['entries_per_s']:11.3e} entries/s" if "entries_per_s" in m else ""
        if "fraction_of_issue_bound" in m:
            extra += f"  {m['fraction_of_issue_bound']:.2f} of issue bound"
        if "bytes_per_s" in m:
            extra = f"{m['bytes_per_s']:11.3e} bytes/s"
        peak = f"{m['peak_bytes'] / 2**20:9.1f} MiB" if "peak_bytes" in m else ""
        lines.append(f"{m['name']:54}{m['ms']:10.4f} ms {peak:>14} {extra}")
    for row in report.data.get("reach", []):
        value = "not measured" if row["value"] is None else f"{row['value']:.4g}"
        verdict = {None: "", True: "met", False: "NOT MET"}[row["met"]]
        lines.append(f"reach: {row['target']:42}{value:>14}  (bar {row['bar']:g}) {verdict}")
    for name, reason in report.data.get("missing", {}).items():
        lines.append(f"backend {name} is missing: {reason}")
    for error in report.data["errors"]:
        lines.append(f"section {error['section']}: {[*str(error['error']).splitlines(), ''][0][:150]}")
    for skipped in report.data["skipped"]:
        lines.append(f"skipped {skipped['section']}: {skipped['reason']}")
    for check in report.failures()[:20]:
        lines.append(f"FAILED {check['backend']}: {check['what']} {check}")
    total = len(report.data["checks"])
    lines.append(f"{total - len(report.failures())} of {total} checks passed; {report.path.name} has all numbers")
    return "\n".join(lines)


def check_backend(
    report: Report, name: str, device: str, shapes: list[tuple[int, int, int, int]], limit: float
) -> None:
    """Every operation of a backend; the grid of a kind stops after `limit` seconds."""
    for kind in KINDS:

        def grid(kind: str = kind) -> None:
            end = time.monotonic() + limit
            for number, shape in enumerate(shapes):
                if time.monotonic() > end or report.left() < 30:
                    report.skip(f"{name} {kind} grid, last {len(shapes) - number} shapes", "out of time")
                    break
                check_shape(report, name, kind, shape, device)

        report.guard(f"{name} {kind} grid", grid)
        report.guard(f"{name} {kind} ends", partial(check_kind, report, name, kind, device))
        if device == "cuda":
            report.guard(f"{name} {kind} streams and graphs", partial(check_streams_and_graphs, report, name, kind))
    if device == "cuda":
        for case in shared.GPU_LARGE_CASES:
            # The triton backend's 2^32 atoms would take the time of all the rest.
            if name == "cuda" or case.size < 2**32:
                report.guard(f"{name} large {case}", partial(check_large, report, name, case, device), 20)


def measure_backend(report: Report, name: str) -> None:
    """Searches of all kinds, sizes and batches, and the other operations."""
    jobs = [
        *((kind, 16384, size, 1) for kind in KINDS for size in (4096, 16384)),
        *((kind, 36864, 2**20, 1) for kind in ("sign", "hadamard", "gaussian")),
        *((kind, 16384, 16384, batch) for kind in KINDS for batch in (2, 8, 32, 64, 256)),
    ]
    for kind, dim, size, batch in jobs:
        section = f"{name} {kind} {size} {dim} {batch}"
        report.guard(section, partial(measure_search, report, name, kind, dim, size, batch), 20)
    report.guard(f"{name} product", partial(measure_search, report, name, "sign", 16384, 65536, 1, 32), 20)
    report.guard(f"{name} other operations", partial(measure_others, report, name), 30)


def measure_baselines(report: Report) -> None:
    """(a) to (e), the copy bandwidth and the rate of one bit products."""
    report.guard("copy", partial(measure_bounds, report))
    for size, dim in ((16384, 16384), (4096, 16384)):
        report.guard(f"baselines {size}", partial(measure_torch_baselines, report, size, dim), 20)
        report.guard(f"cuRAND baseline {size}", partial(measure_curand_baseline, report, size, dim), 20)
    report.guard("baseline in chunks", partial(measure_torch_baselines, report, 2**20, 36864, False), 30)
    report.guard("torch.compile baseline", partial(measure_compiled_baseline, report, 16384, 16384), 60)
    if (REPOSITORY / "benchmarks" / "sign_b1.cu").is_file():
        report.guard("one bit microbenchmark", partial(measure_sign_b1, report), 30)


@contextlib.contextmanager
def one_configuration() -> Iterator[None]:
    """Triton's autotuned kernels have their first configuration only: for checks that saves most compilations."""
    from ddcm_fast.kernels import search_gaussian, search_sign

    modules = (search_gaussian, search_sign)
    kernels = [k for m in modules for k in (m.small_kernel, m.large_kernel) if hasattr(k, "configs")]
    before = [kernel.early_config_prune for kernel in kernels]

    def first_of(prune: Any) -> Any:
        return lambda configs, arguments, **meta: (prune(configs, arguments, **meta) if prune else configs)[:1]

    for kernel, prune in zip(kernels, before, strict=True):
        kernel.early_config_prune = first_of(prune)
    try:
        yield
    finally:
        for kernel, prune in zip(kernels, before, strict=True):
            kernel.early_config_prune = prune


def run(report: Report, device: str, quick: bool) -> None:
    """Correctness of every backend that is here and (on a GPU) the measurements."""
    data = report.data
    data["torch"] = torch.__version__
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        data["device"] = {"name": properties.name, "multiprocessors": properties.multi_processor_count}
    wanted = ("cuda", "triton") if device == "cuda" else ("cpu", "triton")
    start = time.monotonic()
    reasons = {name: backends.why_not(name, device) for name in wanted}  # compiles the cuda backend
    data["seconds"] = {"build": round(time.monotonic() - start, 2)}
    data["missing"] = {name: reason for name, reason in reasons.items() if reason is not None}
    names = [name for name in wanted if reasons[name] is None]
    if device != "cuda":
        for name in names or ["reference"]:
            # Interpreted triton takes seconds even for the smallest shapes.
            check_backend(report, name, device, QUICK_SHAPES if quick else shared.GPU_SHAPES, report.left())
        return
    if "cuda" in names:
        check_backend(report, "cuda", device, QUICK_SHAPES if quick else shared.GPU_SHAPES, 40)
        report.guard("instruction count", partial(count_instructions, report), 60)
        measure_backend(report, "cuda")
        report.guard("clusters", partial(measure_clusters, report), 20)
    else:
        data["errors"].append({"section": "build", "error": data["missing"]["cuda"]})
    measure_baselines(report)
    if "triton" in names:
        with one_configuration():
            check_backend(report, "triton", device, QUICK_SHAPES if quick else shared.TRITON_SHAPES, 25)
        measure_backend(report, "triton")
    data["reach"] = reach(report)
    report.write()


def main(argv: list[str] | None = None) -> int:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for gpu_check.json")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for the whole run")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a few small shapes only")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("gpu_check needs a CUDA GPU that torch can use; there is none here", file=sys.stderr)
        return 2
    torch.manual_seed(time.time_ns() % 2**31)
    report = Report(arguments.output, arguments.budget)
    run(report, arguments.device, arguments.quick)
    report.data["passed"] = not report.failures() and not report.data["errors"]
    report.write()
    print(summary(report))
    return 0 if report.data["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())

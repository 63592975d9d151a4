"""The parts of a run, by name: each is done in a process of its own (gpu_check.py), so that a hang or an illegal access
of one ends no other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import backend_checks as shared
import torch
from backend_checks import QUICK_SHAPES
from gpu import baselines, checks, measurements
from gpu.report import Report

from ddcm_fast.codebook import backends
from ddcm_fast.codebook.backends import cuda


def environment(report: Report, device: str) -> None:
    """What this is measured on."""
    data = report.data
    data["torch"] = torch.__version__
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        data["device"] = {"name": properties.name, "multiprocessors": properties.multi_processor_count}
        data["cuda"] = torch.version.cuda
    missing = {name: backends.why_not(name, device) for name in ("triton",)}
    data["missing"] = {name: reason for name, reason in missing.items() if reason is not None}


def build(report: Report, device: str) -> None:
    """Compile the CUDA library, or find it compiled."""
    start = time.monotonic()
    reason = backends.why_not("cuda", device)
    report.data["build_seconds"] = round(time.monotonic() - start, 2)
    if reason is not None:
        raise RuntimeError(reason)
    print(f"the cuda library was there after {report.data['build_seconds']} s: {cuda.build(_capability()).name}")


def _capability() -> tuple[int, int]:
    return torch.cuda.get_device_capability()


def check(report: Report, device: str, backend: str, kind: str, shapes: list[tuple[int, int, int, int]]) -> None:
    """Every operation of a backend on shapes of one kind, in their order as long as there is time."""
    for number, shape in enumerate(shapes):
        if report.left() < 5:
            report.skip(f"{backend} {kind}, last {len(shapes) - number} shapes", "out of time")
            return
        checks.check_shape(report, backend, kind, shape, device)


def check_ends(report: Report, device: str, backend: str, kind: str) -> None:
    """What is not in the grid of shapes."""
    report.guard("not finite, codebook", partial(checks.check_kind, report, backend, kind, device))
    few = device == "cpu" or backend != "cuda"
    report.guard("trellis", partial(checks.check_trellises, report, backend, kind, few, device))
    if device == "cuda":
        report.guard("streams and graphs", partial(checks.check_streams_and_graphs, report, backend, kind))


def quick(report: Report, device: str, backend: str, kind: str) -> None:
    """The quick shapes, and on a GPU some more that take every path of the kernels; then what is not in the grid."""
    some = [] if device == "cpu" else [(777, 3000, 3, 2), (1100, 260, 1, 48), (1024, 512, 1, 256), (5000, 1025, 7, 9)]
    check(report, device, backend, kind, [*QUICK_SHAPES, *some])
    check_ends(report, device, backend, kind)


def memcheck(report: Report, device: str, kind: str) -> None:
    """What compute-sanitizer is to look at: the smallest shapes."""
    check(report, device, "cuda", kind, QUICK_SHAPES)
    report.guard("trellis", partial(checks.check_trellises, report, "cuda", kind, True, device))


def clusters(report: Report, device: str) -> None:
    """Clusters of two and of eight blocks."""
    if _capability() < (9, 0):
        report.skip("clusters", "the GPU has none")
        return
    for blocks in (2, 8):
        checks.check_clusters(report, blocks, device)


def triton(report: Report, device: str, kind: str, first: int) -> None:
    """One shape; the parts of all shapes compile side by side."""
    with checks.one_configuration():
        check(report, device, "triton", kind, [TRITON_SHAPES[first]])


def paths(report: Report, device: str, backend: str, kind: str) -> None:
    """The best paths of all shapes that a GPU takes, of a backend whose ends (check_ends) are not looked at."""
    with checks.one_configuration():
        report.guard("trellis", partial(checks.check_trellises, report, backend, kind, False, device))


#: Every Triton kernel, both large ones among them (batches from 33 rows, and 17 to 32 of `gaussian`).
TRITON_SHAPES = [*shared.TRITON_SHAPES[3:], (1100, 260, 1, 48), (1024, 512, 1, 256)]


def grid(report: Report, device: str, backend: str, kind: str) -> None:
    """All shapes that a GPU takes, then more than 2^32 entries."""
    check(report, device, backend, kind, shared.GPU_SHAPES if backend == "cuda" else shared.TRITON_SHAPES)
    for case in shared.GPU_LARGE_CASES:
        if case.kind == kind and (backend == "cuda" or case.size < 2**32):
            report.guard(f"large {case}", partial(checks.check_large, report, backend, case, device), 10)


# ---- measurements --------------------------------------------------------------------------------


def goals(report: Report, device: str) -> None:
    """The shapes that the goals are about, first."""
    report.guard("instruction count", partial(measurements.count_instructions, report))
    for kind in ("sign", "hadamard", "gaussian"):
        report.guard(kind, partial(measurements.measure_search, report, "cuda", kind, 36864, 2**20, 1), 10)
    report.guard("sign 256", partial(measurements.measure_search, report, "cuda", "sign", 16384, 16384, 256), 5)
    report.guard("GEMM 256", partial(baselines.measure_gemm, report, 16384, 16384, 256), 5)


def searches(report: Report, device: str, backend: str, kind: str) -> None:
    """Sizes and batches."""
    for size in (4096, 16384):
        report.guard(f"{size}", partial(measurements.measure_search, report, backend, kind, 16384, size, 1), 3)
    for batch in (256, 8, 2, 32, 64):
        report.guard(f"B={batch}", partial(measurements.measure_search, report, backend, kind, 16384, 16384, batch), 3)
    report.guard("product", partial(measurements.measure_search, report, backend, kind, 16384, 65536, 1, 32), 3)


def others(report: Report, device: str, backend: str) -> None:
    """topk, scores, synthesis, rotation, the best path; how many blocks share a generation of the noise."""
    report.guard("other operations", partial(measurements.measure_others, report, backend), 10)
    report.guard("trellis", partial(measurements.measure_trellis, report, backend), 5)
    if backend == "cuda":
        report.guard("clusters", partial(measurements.measure_clusters, report), 10)


def best_paths(report: Report, device: str, backend: str) -> None:
    """The best path alone, of a backend whose other operations are not measured."""
    report.guard("trellis", partial(measurements.measure_trellis, report, backend), 5)


def usual(report: Report, device: str) -> None:
    """What one would use instead."""
    report.guard("copy", partial(baselines.measure_bounds, report))
    for size, dim in ((16384, 16384), (4096, 16384)):
        report.guard(f"baselines {size}", partial(baselines.measure_torch_baselines, report, size, dim))
        report.guard(f"cuRAND baseline {size}", partial(baselines.measure_curand_baseline, report, size, dim))
    report.guard("in chunks", partial(baselines.measure_torch_baselines, report, 2**20, 36864, False), 10)
    report.guard("torch.compile", partial(baselines.measure_compiled_baseline, report, 16384, 16384), 10)


def ceilings(report: Report, device: str) -> None:
    """Rates of single instructions."""
    report.guard("instruction rates", partial(baselines.measure_rates, report))


# ---- with a model --------------------------------------------------------------------------------


def model(report: Report, device: str) -> None:
    """Steps of the built-in model: captured against launched, encoder against decoder, GPU against CPU."""
    try:
        from ddcm_fast.codec.codec import Codec
        from ddcm_fast.codec.config import preset
        from ddcm_fast.models.loading import load_model

        here = load_model("photo", device=device, dtype="float32")
    except ImportError as error:
        report.skip("model", f"it cannot be loaded here: {error}")
        return
    there = load_model("photo", device="cpu", dtype="float32")
    config = preset("product", T=8, atoms=64)
    image = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    files = {}
    for graph in (False, True) if device == "cuda" else (False,):
        codec = Codec(here, config, cuda_graph=graph)
        codec.encode(image)
        start = time.monotonic()
        coded = codec.encode(image)[0]
        label = "captured" if graph else "launched"
        report.measure(f"encode 128x128, {len(codec.config.steps(here))} steps, {label}", time.monotonic() - start)
        decoded = codec.decode(coded.data)
        report.check(label, "decoder repeats the encoder", torch.equal(decoded, coded.reconstruction))
        files[label] = coded
    if len(files) == 2:
        same = files["captured"].data == files["launched"].data
        report.check("captured", "the same file as launched", same)
    far = Codec(there, config).decode(files["launched"].data)
    drift = (far - files["launched"].reconstruction.cpu()).abs().max().item()
    report.data["drift_to_cpu"] = drift
    report.check("launched", "a CPU decodes it to nearly the same", math.isfinite(drift) and drift < 0.1, drift=drift)


def named(name: str) -> Callable[[Report, str], None]:
    """The function of a part; its name may carry its arguments after it: "quick cuda sign"."""
    word, *rest = name.split()
    arguments: list[Any] = [int(each) if each.isdecimal() else each for each in rest]
    return lambda report, device: PARTS[word](report, device, *arguments)


PARTS: dict[str, Callable[..., None]] = {
    function.__name__: function
    for function in (
        *(environment, build, quick, memcheck, clusters, triton, paths, grid),
        *(goals, searches, others, best_paths, usual, ceilings, model),
    )
}

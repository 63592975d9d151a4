"""The measurements: searches and the other operations of a backend."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from backend_checks import KINDS, SEED
from gpu.report import Report
from gpu.timing import INSTRUCTIONS, graphed, issue_bound, timed

from ddcm_fast.codebook import backends
from ddcm_fast.codebook.backends import cuda
from ddcm_fast.codebook.backends.base import Backend
from ddcm_fast.codebook.law import CodebookSpec

DEVICE = "cuda"


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


def measure_clusters(report: Report, shape: tuple[int, int, int] = (65536, 1024, 1)) -> None:
    """`sign` with few atoms, shape (D, K, B), its coordinates cut among at most 1, 2, 4 and 8 blocks of a cluster."""
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


def measure_trellis(
    report: Report, name: str, dim: int = 12288, groups: int = 200, letter_bits: int = 5, memory: int = 12
) -> None:
    """The best path through the letters of the default preset's step, beside the same of torch operations."""
    module, at = backends.load(name), torch.tensor(1, device=DEVICE)
    spec = CodebookSpec("hadamard", dim, 1 << (memory + letter_bits - 1), groups, SEED)
    for batch in (1, 8):
        w = torch.randn(batch, dim, device=DEVICE)
        jobs: dict[str, Callable[[], Any]] = {
            "trellis": partial(module.trellis_search, spec, w, at, letter_bits),
            "trellis of torch operations": partial(Backend.trellis_search, module, spec, w, at, letter_bits),
            "scores": partial(module.scores, spec, w, at),
        }
        for what, run in jobs.items():
            seconds, peak = timed(graphed(run), 0.5)
            label = f"{name} hadamard {what} K={spec.size} D={dim} G={groups} B={batch}"
            report.measure(label, seconds, peak_bytes=peak)


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

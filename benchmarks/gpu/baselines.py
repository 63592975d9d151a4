"""What one would use instead, and the rates of single instructions that bound the kernels."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import tempfile
from pathlib import Path

import torch
from gpu.checkout import REPOSITORY
from gpu.report import Report
from gpu.timing import timed
from torch import Tensor

from ddcm_fast.codebook.build import nvcc

DEVICE = "cuda"


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


def measure_bounds(report: Report) -> None:
    """Copy bandwidth, counting bytes read and written."""
    a = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    b = torch.empty_like(a)
    a.random_()
    seconds, _ = timed(lambda: b.copy_(a))
    report.measure("copy of 1 GiB", seconds, bytes_per_s=2 * a.numel() / seconds)


def measure_gemm(report: Report, size: int, dim: int, batch: int) -> None:
    """The whole codebook drawn anew and multiplied by a batch in bfloat16, in chunks of 1 GiB, and the best of each."""
    part = max(1, (1 << 29) // dim)
    r = torch.randn(dim, batch, device=DEVICE, dtype=torch.bfloat16)

    def run() -> Tensor:
        best = None
        for first in range(0, size, part):
            count = min(part, size - first)
            top = (torch.randn(count, dim, device=DEVICE, dtype=torch.bfloat16) @ r).max(0).values
            best = top if best is None else torch.maximum(best, top)
        assert best is not None
        return best

    seconds, peak = timed(run)
    name = f"baseline (randn + GEMM, bfloat16) K={size} D={dim} B={batch}"
    report.measure(name, seconds, peak_bytes=peak, entries_per_s=size * dim / seconds)


#: Of rates.cu: what runs, and the operations of one instruction of a warp.
RATES = ("IMAD.WIDE", "IMAD.HI", "IMAD", "DFMA", "IMMA u8.s8 m16n8k32", "BMMA m16n8k256", "HMMA m16n8k16", "LOP3")


def measure_rates(report: Report) -> None:
    """Warp instructions a clock and multiprocessor, of those that the kernels live on: measured ceilings."""
    properties = torch.cuda.get_device_properties(0)
    with tempfile.TemporaryDirectory() as folder:
        library = compile_library("rates.cu", Path(folder))
        blocks, steps = 4 * properties.multi_processor_count, 2048
        out = torch.empty(blocks * 256, dtype=torch.int32, device=DEVICE)
        for which, label in enumerate(RATES):

            def run(which: int = which) -> None:
                stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
                code = library.instruction_rate(which, ctypes.c_void_p(out.data_ptr()), blocks, steps, stream)
                if code != 0:
                    raise RuntimeError(f"CUDA error {code}")

            seconds, _ = timed(run, 0.5)
            issued = blocks * 8 * steps * library.instructions_a_step()  # by warps
            a_second = issued / seconds / properties.multi_processor_count
            report.measure(f"rate of {label}", seconds, warp_instructions_per_s_and_multiprocessor=a_second)

"""The cpu backend against the reference code's way, side by side in one run.

    python benchmarks/cpu_reach.py                # writes benchmarks/results/cpu-reach.json, prints a table

The baseline is DDCM's reference code in float32: scores = torch.randn(K, D) @ r, then argmax. Every figure is the
median of several runs after a warm-up; minima and processor time are given too, because they are steadier on a
machine that others use. Ratios compare figures of the same run. Extra memory is the growth of the
process's resident peak during
one search of K = 2^20, D = 16384, measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ddcm_fast.backends import cpu
from ddcm_fast.codebook import Codebook

KINDS = ("gaussian", "sign", "hadamard")
DIM = 16384
SIZES = (4096, 16384)
BATCHES = (1, 2, 4, 8, 16, 32)
GOAL = {"gaussian": 15, "sign": 200, "hadamard": 1500}


def seconds(function: Callable[[], object], budget: float, most: int = 50) -> dict[str, float]:
    """Median and minimum of several timed calls after one warm-up, within a budget of seconds.

    cpu_s is the median of the processor seconds that all threads of this process used together.
    """
    function()
    times: list[float] = []
    used: list[float] = []
    while len(times) < 3 or (sum(times) < budget and len(times) < most):
        start, start_used = time.perf_counter(), time.process_time()
        function()
        times.append(time.perf_counter() - start)
        used.append(time.process_time() - start_used)
    return {
        "median_s": statistics.median(times),
        "min_s": min(times),
        "cpu_s": statistics.median(used),
        "runs": len(times),
    }


def by_randn(size: int, residual: torch.Tensor) -> torch.Tensor:
    """The reference code's search: residual (B, D) -> index (B,)."""
    return (torch.randn(size, DIM) @ residual.T).argmax(0)


def machine() -> dict[str, object]:
    """What this ran on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": cpu.instruction_set(),
        "torch": torch.__version__,
        "load_average_before": os.getloadavg()[0],
    }


def peak_megabytes() -> float:
    """Resident peak of this process in MB (ru_maxrss is in KB, on macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def extra_memory(kind: str) -> float:
    """MB by which the resident peak grows in one search of K = 2^20, in a fresh process."""
    out = subprocess.run([sys.executable, __file__, "--memory-of", kind], capture_output=True, text=True, check=True)
    return float(out.stdout)


def memory_child(kind: str) -> None:
    """Print the growth of the resident peak; all that is loaded once has been loaded by a small search."""
    residual = torch.randn(1, DIM)
    Codebook(kind, DIM, 64, backend="cpu").search(residual, 0)
    codebook = Codebook(kind, DIM, 1 << 20, backend="cpu")
    before = peak_megabytes()
    codebook.search(residual, 0)
    print(peak_megabytes() - before)


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cpu-reach.json")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds for one figure")
    parser.add_argument("--memory-of", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        memory_child(options.memory_of)
        return

    torch.manual_seed(0)
    result: dict[str, object] = {
        "command": "python benchmarks/cpu_reach.py",
        "baseline": "torch.randn(K, D) float32, matmul, argmax",
        "dim": DIM,
        "machine": machine(),
    }
    rows = []
    print(f"{'kind':9} {'K':>6} {'ms':>10} {'G entries/s':>12} {'baseline ms':>12} {'ratio':>9}  goal")
    for size in SIZES:
        residual = torch.randn(1, DIM)
        baseline = seconds(lambda r=residual, k=size: by_randn(k, r), options.budget)
        for kind in KINDS:
            codebook = Codebook(kind, DIM, size, backend="cpu")
            found = seconds(lambda c=codebook, r=residual: c.search(r, 0), options.budget)
            ratio = baseline["median_s"] / found["median_s"]
            row = {
                "kind": kind,
                "size": size,
                **found,
                "entries_per_s": size * DIM / found["median_s"],
                "baseline": baseline,
                "ratio": ratio,
                "ratio_of_minima": baseline["min_s"] / found["min_s"],
                "ratio_of_cpu": baseline["cpu_s"] / found["cpu_s"],
                "goal": GOAL[kind],
            }
            rows.append(row)
            print(
                f"{kind:9} {size:6} {1e3 * found['median_s']:10.3f} {row['entries_per_s'] / 1e9:12.2f}"
                f" {1e3 * baseline['median_s']:12.1f} {ratio:9.0f}  {GOAL[kind]}"
            )
    result["search"] = rows

    print(f"\ncost of a batch over B = 1, K = 4096: {'':8}" + "".join(f"B={b:<6}" for b in BATCHES))
    sweep = []
    for kind in KINDS:
        codebook = Codebook(kind, DIM, 4096, backend="cpu")
        times = {}
        for batch in BATCHES:
            residual = torch.randn(batch, DIM)
            times[batch] = seconds(lambda c=codebook, r=residual: c.search(r, 0), options.budget / 2)
        first = times[1]["median_s"]
        sweep += [{"kind": kind, "batch": b, **t, "over_batch_1": t["median_s"] / first} for b, t in times.items()]
        print(f"{kind:46}" + "".join(f"{times[b]['median_s'] / first:<8.2f}" for b in BATCHES))
    result["batch"] = sweep

    residual = torch.randn(1, DIM)
    other: dict[str, object] = {}
    codebook = Codebook("sign", DIM, 1, backend="cpu")
    step = torch.tensor(0)
    spec = codebook.spec
    other["rotation"] = seconds(lambda: cpu.to_codebook_order(spec, residual), 0.2, 1000)
    other["randn_values_per_s"] = 2**22 / seconds(lambda: torch.randn(2**22), 0.5)["median_s"]
    small = Codebook("sign", 64, 16, backend="cpu")
    tiny = torch.randn(1, 64)
    other["search_overhead"] = seconds(lambda: small.search(tiny, step), 0.2, 1000)
    for kind in KINDS:
        codebook = Codebook(kind, DIM, 4096, backend="cpu")
        index = torch.zeros(1, 1, dtype=torch.int64)
        other[f"atoms_{kind}"] = seconds(lambda c=codebook, i=index: c.atoms(i, step), 0.2, 1000)
    result["other"] = other

    memory = {kind: extra_memory(kind) for kind in KINDS}
    result["extra_megabytes_at_2_20"] = memory
    print("\nextra memory, K = 2^20 (MB): " + ", ".join(f"{kind} {value:.1f}" for kind, value in memory.items()))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()

"""The cpu backend against the reference code's way, side by side in one run.

    python benchmarks/cpu_reach.py                # writes benchmarks/results/cpu-reach.json, prints a table

The baseline is DDCM's reference code in float32: scores = torch.randn(K, D) @ r, then argmax. All are timed in
turn, several rounds after a warm-up; a figure is the median. Minima and processor time are given too, because
they are steadier on a machine that others use; processor time is that of all threads together, and the baseline's
torch.randn has one. Ratios compare figures of the same run. Extra memory is the growth of the process's resident
peak during one search of K = 2^20, D = 16384, in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from ddcm_fast.codebook import backends
from ddcm_fast.codebook.backends import cpu
from ddcm_fast.codebook.codebook import Codebook
from ddcm_fast.files import write_json

KINDS = ("gaussian", "sign", "hadamard")
DIM = 16384
SIZES = (4096, 16384)
BATCHES = (1, 2, 4, 8, 16, 32)
GOAL = {"gaussian": 15, "sign": 200, "hadamard": 1500}


class Timing:
    """Wall and processor seconds of one function, collected over several rounds."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function
        self.wall: list[float] = []
        self.used: list[float] = []
        function()  # warm-up

    def run(self, budget: float, most: int = 200) -> None:
        """Time calls for about `budget` seconds, at least one."""
        end, done = time.perf_counter() + budget, 0
        while done == 0 or (time.perf_counter() < end and done < most):
            start, start_used = time.perf_counter(), time.process_time()
            self.function()
            self.wall.append(time.perf_counter() - start)
            self.used.append(time.process_time() - start_used)
            done += 1

    def summary(self) -> dict[str, float]:
        """Median and minimum of the wall seconds; median processor seconds of all threads together."""
        return {
            "median_s": statistics.median(self.wall),
            "min_s": min(self.wall),
            "cpu_s": statistics.median(self.used),
            "runs": len(self.wall),
        }


def rounds(timings: Iterable[Timing], count: int, budget: float) -> None:
    """Time all functions in turn, `count` times over, so that a change of the machine's load meets all."""
    timings = list(timings)
    for _ in range(count):
        for timing in timings:
            timing.run(budget)


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


def extra_memory(kind: str) -> float:
    """MB by which the resident peak grows in one search of K = 2^20, in a fresh process."""
    command = [sys.executable, __file__, "--memory-of", kind]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(out.stdout)


def _status(name: str) -> float:
    """A line of /proc/self/status, in MB."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1]) / 1024


def memory_child(kind: str) -> None:
    """Print the growth; all that is loaded once has been loaded by a small search before."""
    residual = torch.randn(1, DIM)
    Codebook(kind, DIM, 64, backend="cpu").search(residual, 0)
    codebook = Codebook(kind, DIM, 1 << 20, backend="cpu")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    codebook.search(residual, 0)
    print(_status("VmHWM") - before)


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cpu-reach.json")
    parser.add_argument("--rounds", type=int, default=5, help="times every figure is measured")
    parser.add_argument("--memory-of", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        memory_child(options.memory_of)
        return

    torch.manual_seed(0)
    result: dict[str, object] = {
        "command": f"python benchmarks/cpu_reach.py --output benchmarks/results/{options.output.name}",
        "baseline": "torch.randn(K, D) float32, matmul, argmax",
        "dim": DIM,
        "machine": machine(),
    }
    residual = torch.randn(1, DIM)
    books = {(kind, size): Codebook(kind, DIM, size, backend="cpu") for size in SIZES for kind in KINDS}
    randn = {size: Timing(lambda k=size: by_randn(k, residual)) for size in SIZES}
    ours = {key: Timing(lambda c=book: c.search(residual, 0)) for key, book in books.items()}
    rounds([*randn.values(), *ours.values()], options.rounds, 0.2)
    rows = []
    print(
        f"{'kind':9} {'K':>6} {'ms':>9} {'G entries/s':>12} {'baseline ms':>12}"
        f" {'ratio':>7} {'minima':>7} {'cpu':>7}  goal"
    )
    for (kind, size), timing in ours.items():
        found, baseline = timing.summary(), randn[size].summary()
        ratio, minima, used = (baseline[key] / found[key] for key in ("median_s", "min_s", "cpu_s"))
        rows.append(
            {
                "kind": kind,
                "size": size,
                **found,
                "entries_per_s": size * DIM / found["median_s"],
                "baseline": baseline,
                "ratio": ratio,
                "ratio_of_minima": minima,
                "ratio_of_cpu": used,
                "goal": GOAL[kind],
            }
        )
        print(
            f"{kind:9} {size:6} {1e3 * found['median_s']:9.3f} {size * DIM / found['median_s'] / 1e9:12.2f}"
            f" {1e3 * baseline['median_s']:12.1f} {ratio:7.0f} {minima:7.0f} {used:7.0f}  {GOAL[kind]}"
        )
    result["search"] = rows

    print(f"\n{'minimal cost over that of B = 1, K = 4096':46}" + "".join(f"B={b:<6}" for b in BATCHES))
    sweep = []
    for kind in KINDS:
        book = books[kind, 4096]
        batches = {b: torch.randn(b, DIM) for b in BATCHES}
        timings = {b: Timing(lambda r=r, c=book: c.search(r, 0)) for b, r in batches.items()}
        rounds(timings.values(), options.rounds, 0.1)
        found = {b: timing.summary() for b, timing in timings.items()}
        over = {b: f["min_s"] / found[1]["min_s"] for b, f in found.items()}
        sweep += [{"kind": kind, "batch": b, **f, "over_batch_1": over[b]} for b, f in found.items()]
        print(f"{kind:46}" + "".join(f"{over[b]:<8.2f}" for b in BATCHES))
    result["batch"] = sweep

    step, tiny, index = torch.tensor(0), torch.randn(1, 64), torch.zeros(1, 1, dtype=torch.int64)
    small, spec = Codebook("sign", 64, 16, backend="cpu"), books["sign", 4096].spec
    other = {
        "rotation": Timing(lambda: backends.load("cpu").to_codebook_order(spec, residual)),
        "randn_2_22": Timing(lambda: torch.randn(2**22)),
        "search_overhead_backend": Timing(lambda: backends.load("cpu").search(small.spec, tiny, step, True, None)),
        "search_overhead_codebook": Timing(lambda: small.search(tiny, step)),
        **{f"atoms_{k}": Timing(lambda c=books[k, 4096]: c.atoms(index, step)) for k in KINDS},
    }
    rounds(other.values(), options.rounds, 0.05)
    result["other"] = {name: timing.summary() for name, timing in other.items()}

    if Path("/proc/self/clear_refs").exists():
        memory = {kind: extra_memory(kind) for kind in KINDS}
        result["extra_megabytes_at_2_20"] = memory
        parts = (f"{kind} {value:.2f}" for kind, value in memory.items())
        print(f"\nextra memory, K = 2^20 (MB): {', '.join(parts)}")
    result["load_average_after"] = os.getloadavg()[0]
    write_json(options.output, result, 1)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()

"""What the CUDA kernels compile to: instructions, cycles a pipe, registers, spills. Needs nvcc, no GPU.

    python benchmarks/sass.py [--arch 90] [--output benchmarks/results/sass-sm90.json]

Compiles the library of the cuda backend, disassembles it and finds, in each search kernel, the loop over the k steps of
a warp. Where warps exchange entries, a lane makes those of one step and multiplies those of all the warps that share
them.

Times are estimates, not measurements: the cycles that each pipe of a scheduler is busy (CYCLES), of which the largest
bounds the loop. Latencies, dependences and what other warps do with a pipe meanwhile are not in it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from ddcm_fast.codebook import build
from ddcm_fast.files import write_json

REPOSITORY = Path(__file__).resolve().parent.parent

#: H100 SXM: multiprocessors, boost clock in Hz, schedulers a multiprocessor.
MULTIPROCESSORS, CLOCK, SCHEDULERS = 132, 1.755e9, 4

#: Entries of a Philox call, products of a row tile and column tile in a k step.
CALL_ENTRIES = {"SignPlane": 128, "Sign": 128, "Gaussian": 8}
PRODUCTS = {"SignPlane": 2, "Sign": 16, "Gaussian": 2}

Body = list[tuple[int, str]]  #: addresses and instructions

_MMA = re.compile(r"^(IMMA|HMMA|BMMA)")

#: Clocks that a scheduler's pipe takes for a warp's instruction, by the first pattern that fits it. ptxas spaces wide
#: multiplications by 4 clocks; measured, they take 6 (benchmarks/results/gpu-h200.json). Others take 2, and so do the
#: ALU's (16 lanes). mma.sync reaches about 62 % of the peak of the matrix units, which is 4 clocks for bytes and for
#: float16; products of single bits take as long, as measured. Loads and stores pass one unit of 128 bytes a clock,
#: which four schedulers share; a look-up of the `gaussian` table takes about 3.5 of its clocks, since 32 random reads
#: meet in 32 banks.
CYCLES: tuple[tuple[str, str, float], ...] = (
    ("multiply", r"IMAD\.(WIDE|HI)", 6),
    ("multiply", r"IMAD", 2),
    ("multiply", r"FMUL|FFMA|FADD|HADD2|HMUL2|HFMA2", 1),
    ("alu", r"LOP3|SHF|PRMT|IADD3|ISETP|LEA|SEL|PLOP3|MOV|VIADD|VIMNMX|IMNMX|FSETP|SGXT", 2),
    ("matrix", r"(IMMA\.16832|HMMA\.16816|BMMA\.168256)\.", 4 / 0.62),
    ("memory", r"LDS\.U16", 4 * 3.5),
    ("memory", r"(LDG|STG|LDS|STS|LD|ST)\..*128", 16),
    ("memory", r"(LDG|STG|LDS|STS|LD|ST)\..*64", 8),
    ("memory", r"(LDG|STG|LDS|STS|LD|ST)\b", 4),
)
_PIPES = [(pipe, re.compile(pattern), cycles) for pipe, pattern, cycles in CYCLES]
PIPES = ("issue", *dict.fromkeys(pipe for pipe, _, _ in CYCLES))

#: K and D of the search whose time is estimated.
SHAPE = (2**20, 36864)


def find_nvcc() -> str | None:
    """Path of nvcc, or None."""
    found = shutil.which("nvcc")
    if found is None and Path("/usr/local/cuda/bin/nvcc").is_file():
        found = "/usr/local/cuda/bin/nvcc"
    return found


def find_cuobjdump() -> str | None:
    """Path of cuobjdump: the toolkit's, or the one in triton's wheel."""
    found = shutil.which("cuobjdump")
    if found is not None:
        return found
    try:
        import triton
    except ImportError:
        return None
    wheel = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(wheel) if wheel.is_file() else None


def compile_library(arch: int, folder: Path) -> Path:
    """Compile the cuda backend's library for sm_<arch>; raises build.BuildError with nvcc's output."""
    return build.build(build.cuda_library(divmod(arch, 10)), folder)


def compile_cubin(arch: int, folder: Path, source: Path, options: Sequence[str] = ()) -> Path:
    """Compile a .cu file for sm_<arch>; raises CalledProcessError with nvcc's output."""
    nvcc = find_nvcc()
    assert nvcc is not None, "nvcc was not found"
    cubin = folder / f"{source.stem}-sm{arch}.cubin"
    subprocess.run(
        [
            *(nvcc, "-std=c++17", "-O3", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-cubin", *options),
            *(str(source), "-o", str(cubin)),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    return cubin


def _dump(cubin: Path, what: str) -> str:
    tool = find_cuobjdump()
    assert tool is not None, "cuobjdump was not found"
    done = subprocess.run([tool, what, str(cubin)], check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def kernel_name(mangled: str) -> str:
    """Readable name of a mangled instance: SearchKernel<Sign, 1, 0>, say."""
    match = re.search(r"run_kernelINS_\d+([A-Za-z]+?Kernel)(.*)", mangled)
    if match is None:
        return mangled
    arguments = re.findall(r"(SignPlane|Sign|Gaussian)Traits|L[ib](\d+)E", match.group(2))
    inside = ", ".join(name or number for name, number in arguments)
    return f"{match.group(1)}<{inside}>" if inside else match.group(1)


def resources(cubin: Path) -> dict[str, dict[str, int]]:
    """Registers and stack bytes of every kernel, by mangled name."""
    out: dict[str, dict[str, int]] = {}
    name = ""
    for line in _dump(cubin, "-res-usage").splitlines():
        if found := re.search(r"Function (\S+):", line):
            name = found.group(1)
        elif found := re.search(r"REG:(\d+) STACK:(\d+)", line):
            out[name] = {"registers": int(found.group(1)), "stack": int(found.group(2))}
    return out


def instructions(cubin: Path) -> dict[str, Body]:
    """(address, instruction without its predicate) of every kernel, by mangled name."""
    out: dict[str, Body] = {}
    body: Body = []
    for line in _dump(cubin, "-sass").splitlines():
        if found := re.search(r"Function : (\S+)", line):
            body = out.setdefault(found.group(1), [])
        elif found := re.search(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][^;]*);", line):
            body.append((int(found.group(1), 16), found.group(2).strip()))
    return out


def loops(body: Body) -> list[Body]:
    """Instructions of every loop, the shortest first."""
    found = set()
    for address, text in body:
        target = re.search(r"0x([0-9a-f]+)", text) if text.startswith("BRA") else None
        if target is not None and int(target.group(1), 16) < address:
            found.add((int(target.group(1), 16), address))
    return sorted(([line for line in body if low <= line[0] <= high] for low, high in found), key=len)


def _has_matrix(body: Body) -> bool:
    return any(_MMA.match(text) for _, text in body)


def _loop_of_a_step(kind: str, columns: int, row_groups: int, body: Body) -> Body:
    """What a warp does to make one step's entries and to multiply those of its team."""
    inner, *outer = filter(_has_matrix, loops(body))
    if kind == "Sign" and columns >= 6:
        # Two loops of products within the loop over steps, for two words each: four turns, of two bits each.
        return outer[1] + (inner + outer[0]) * 3
    # The inner loop multiplies one step's entries and the loop around it also makes one step's.
    return inner if row_groups == 1 else outer[0] + inner * (row_groups - 1)


def busy(instructions: Iterable[str]) -> dict[str, float]:
    """Clocks that each of PIPES is busy with a warp's instructions."""
    cycles = dict.fromkeys(PIPES, 0.0)
    for text in instructions:
        cycles["issue"] += 1
        for pipe, pattern, each in _PIPES:
            if pattern.match(text):
                cycles[pipe] += each
                break
    return {pipe: round(number, 1) for pipe, number in cycles.items()}


def _estimate(instructions: list[str], entries: int) -> dict[str, Any]:
    """Counts and bounds of a loop in which a lane makes so many entries."""

    def count(pattern: str | re.Pattern[str]) -> int:
        return sum(bool(re.match(pattern, text)) for text in instructions)

    cycles = busy(instructions)
    bound = max(cycles, key=lambda pipe: cycles[pipe])
    rate = MULTIPROCESSORS * SCHEDULERS * 32 * CLOCK * entries / cycles[bound]
    return {
        "instructions": len(instructions),
        "matrix": count(_MMA),
        "global_loads": count("LDG"),
        "shared_loads": count("LDS"),
        "lane_entries": entries,
        "instructions_per_entry": round(len(instructions) / entries, 3),
        "cycles": cycles,
        "bound": bound,
        "estimate_entries_per_s": rate,
        "estimate_ms": round(SHAPE[0] * SHAPE[1] / rate * 1e3, 3),
    }


def _step(name: str, body: Body) -> dict[str, Any]:
    """What a warp of a search kernel does to make one k step's entries and to multiply all it is given for them."""
    kind, *numbers = re.findall(r"SignPlane|Sign|Gaussian|\d+", name)
    columns, row_groups, writes = map(int, numbers)
    step = [text for _, text in _loop_of_a_step(kind, columns, row_groups, body)]
    squares = 2 if writes == 2 else 0
    products = sum(bool(_MMA.match(text)) for text in step)
    row_tiles = products // (PRODUCTS[kind] * (columns * row_groups + squares))
    rows = columns // 3 if kind == "SignPlane" else columns // 3 * 8 if columns % 3 == 0 else columns * 2
    return {
        "row_tiles": row_tiles,
        "batch_rows": rows * row_groups,
        **_estimate(step, 2 * row_tiles * CALL_ENTRIES[kind]),  # a lane makes two calls of each row tile
    }


def analyse(cubin: Path, only: Collection[str] | None = None) -> list[dict[str, Any]]:
    """One row a kernel, of all or of those named; search kernels get the numbers of a k step."""
    usage = resources(cubin)
    rows = []
    for mangled, body in instructions(cubin).items():
        name = kernel_name(mangled)
        if only is not None and name not in only:
            continue
        opcodes = Counter(text.split()[0].split(".")[0] for _, text in body)
        row: dict[str, Any] = {
            "kernel": name,
            "registers": usage[mangled]["registers"],
            "stack_bytes": usage[mangled]["stack"],
            "local_memory_instructions": opcodes["LDL"] + opcodes["STL"],
            "matrix_instructions": opcodes["IMMA"] + opcodes["HMMA"] + opcodes["BMMA"],
        }
        if name.startswith("SearchKernel"):
            row["step"] = _step(name, body)
        rows.append(row)
    return sorted(rows, key=lambda r: ("step" not in r, r["kernel"]))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [
        f"{'kernel':34}{'regs':>5}{'stack':>6}{'local':>6}{'rows':>5}{'entries':>8}"
        + "".join(f"{pipe:>9}" for pipe in PIPES)
        + f"{'entries/s':>11}{'ms':>8}"
    ]
    for row in rows:
        line = (
            f"{row['kernel']:34}{row['registers']:5}{row['stack_bytes']:6}"
            f"{row['local_memory_instructions']:6}"
        )
        if "step" in row:
            step = row["step"]
            line += (
                f"{step['batch_rows']:5}{step['lane_entries']:8}"
                + "".join(f"{cycles:9.0f}" for cycles in step["cycles"].values())
                + f"{step['estimate_entries_per_s']:11.2e}{step['estimate_ms']:8.2f}"
            )
        lines.append(line)
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", type=int, default=90, help="compute capability, for example 90")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--source", type=Path, help="a .cu file of its own, not the library")
    arguments = parser.parse_args(argv)
    for tool, found in (("nvcc", find_nvcc()), ("cuobjdump", find_cuobjdump())):
        if found is None:
            print(f"{tool} was not found; this script needs it", file=sys.stderr)
            return 2
    with tempfile.TemporaryDirectory() as folder:
        arch, source = arguments.arch, arguments.source
        compiled = compile_cubin(arch, Path(folder), source) if source else compile_library(arch, Path(folder))
        rows = analyse(compiled)
    print(table(rows))
    print(
        "Clocks of a scheduler's pipes for the entries of a lane, the entries made in a second on an H100 SXM and the "
        f"time for K = {SHAPE[0]}, D = {SHAPE[1]}: estimates from the compiled code, not measurements."
    )
    if arguments.output:
        report = {
            "arch": f"sm_{arguments.arch}",
            "estimate": "H100 SXM, 132 multiprocessors, 1.755 GHz, 4 schedulers; not measured",
            "estimate_ms": f"K = {SHAPE[0]}, D = {SHAPE[1]}",
            "kernels": rows,
        }
        write_json(arguments.output, report, 1)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

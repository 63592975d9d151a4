"""What the CUDA kernels compile to: instructions an entry, registers, spills. Needs nvcc, no GPU.

    python benchmarks/sass.py [--arch 90] [--output benchmarks/results/sass-sm90.json]

Compiles csrc/cuda/kernels.cu to a cubin, disassembles it and finds, in each search kernel, the innermost loop
with matrix instructions: one k step of a warp. Its instruction count over the entries a lane makes in it is the
number to watch. Rates are estimates, not measurements: one warp instruction a scheduler and clock,
and half of that for instructions of one 16 lane pipe (ALU or IMAD).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
KERNELS = REPOSITORY / "csrc" / "cuda" / "kernels.cu"

#: H100 SXM: multiprocessors, boost clock in Hz, schedulers a multiprocessor.
MULTIPROCESSORS, CLOCK, SCHEDULERS = 132, 1.755e9, 4

#: Entries of a Philox call.
CALL_ENTRIES = {"sign": 128, "gaussian": 8}

_MMA = re.compile(r"^(IMMA|HMMA|BMMA)")
_MULTIPLY = re.compile(r"^(IMAD|FMUL|FFMA|FADD)")
_ALU = re.compile(r"^(LOP3|SHF|PRMT|IADD3|ISETP|LEA|SEL|PLOP3|MOV|VIADD|IMNMX|FSETP|SGXT)")


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


def compile_cubin(arch: int, folder: Path, source: Path = KERNELS) -> Path:
    """Compile a .cu file for sm_<arch>; raises CalledProcessError with nvcc's output."""
    nvcc = find_nvcc()
    assert nvcc is not None, "nvcc was not found"
    cubin = folder / f"{source.stem}-sm{arch}.cubin"
    subprocess.run(
        [
            *(nvcc, "-std=c++17", "-O3", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-cubin"),
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
    """Readable name of a mangled run_kernel<...> instance, for example SearchKernel<Sign, 1, 0>."""
    match = re.search(r"run_kernelINS_\d+([A-Za-z]+?Kernel)(.*)", mangled)
    if match is None:
        return mangled
    arguments = re.findall(r"(Sign|Gaussian)Traits|L[ib](\d+)E", match.group(2))
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


def instructions(cubin: Path) -> dict[str, list[tuple[int, str]]]:
    """(address, instruction without its predicate) of every kernel, by mangled name."""
    out: dict[str, list[tuple[int, str]]] = {}
    body: list[tuple[int, str]] = []
    for line in _dump(cubin, "-sass").splitlines():
        if found := re.search(r"Function : (\S+)", line):
            body = out.setdefault(found.group(1), [])
        elif found := re.search(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][^;]*);", line):
            body.append((int(found.group(1), 16), found.group(2).strip()))
    return out


def matrix_loop(body: list[tuple[int, str]]) -> list[str]:
    """Instructions of the loop with most matrix instructions, innermost if several hold them all."""
    best: list[str] = []
    best_key = (0, 0)
    for address, text in body:
        if not text.startswith("BRA") or (found := re.search(r"0x([0-9a-f]+)", text)) is None:
            continue
        target = int(found.group(1), 16)
        if target >= address:
            continue
        loop = [t for a, t in body if target <= a <= address]
        key = (sum(bool(_MMA.match(t)) for t in loop), -len(loop))
        if key[0] and key > best_key:
            best, best_key = loop, key
    return best


def analyse(cubin: Path) -> list[dict[str, Any]]:
    """One row a kernel; search kernels get the numbers of their inner loop."""
    usage = resources(cubin)
    rows = []
    for mangled, body in instructions(cubin).items():
        name = kernel_name(mangled)
        opcodes = Counter(text.split()[0].split(".")[0] for _, text in body)
        row: dict[str, Any] = {
            "kernel": name,
            "registers": usage[mangled]["registers"],
            "stack_bytes": usage[mangled]["stack"],
            "local_memory_instructions": opcodes["LDL"] + opcodes["STL"],
            "matrix_instructions": opcodes["IMMA"] + opcodes["HMMA"] + opcodes["BMMA"],
        }
        loop = matrix_loop(body)
        if loop:
            # A lane makes two calls of each row tile: 4 row tiles, or 2 where 4 or more column tiles share them.
            columns = int(name.split(", ")[1])
            calls = 4 if columns >= 4 else 8
            entries = calls * CALL_ENTRIES["sign" if "Sign" in name else "gaussian"]
            alu = sum(bool(_ALU.match(t)) for t in loop)
            multiply = sum(bool(_MULTIPLY.match(t)) for t in loop)
            cycles = max(len(loop), 2 * alu, 2 * multiply)
            lanes = MULTIPROCESSORS * SCHEDULERS * 32 * CLOCK
            row["loop"] = {
                "instructions": len(loop),
                "matrix": sum(bool(_MMA.match(t)) for t in loop),
                "alu": alu,
                "multiply": multiply,
                "global_loads": sum(t.startswith("LDG") for t in loop),
                "shared_loads": sum(t.startswith("LDS") for t in loop),
                "local": sum(t.startswith(("LDL", "STL")) for t in loop),
                "lane_entries": entries,
                "batch_rows": 2 * columns,
                "instructions_per_entry": round(len(loop) / entries, 3),
                "estimate_entries_per_s_issue": lanes * entries / len(loop),
                "estimate_entries_per_s_pipes": lanes * entries / cycles,
            }
        rows.append(row)
    return sorted(rows, key=lambda r: ("loop" not in r, r["kernel"]))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [
        f"{'kernel':34}{'regs':>5}{'stack':>6}{'local':>6}{'mma':>5}{'loop':>6}{'alu':>5}{'mul':>5}"
        f"{'/entry':>8}{'issue est.':>12}{'pipe est.':>12}"
    ]
    for row in rows:
        line = (
            f"{row['kernel']:34}{row['registers']:5}{row['stack_bytes']:6}"
            f"{row['local_memory_instructions']:6}{row['matrix_instructions']:5}"
        )
        if loop := row.get("loop"):
            line += (
                f"{loop['instructions']:6}{loop['alu']:5}{loop['multiply']:5}"
                f"{loop['instructions_per_entry']:8.3f}{loop['estimate_entries_per_s_issue']:12.2e}"
                f"{loop['estimate_entries_per_s_pipes']:12.2e}"
            )
        lines.append(line)
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", type=int, default=90, help="compute capability, for example 90")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--source", type=Path, default=KERNELS, help="the .cu file")
    arguments = parser.parse_args(argv)
    for tool, found in (("nvcc", find_nvcc()), ("cuobjdump", find_cuobjdump())):
        if found is None:
            print(f"{tool} was not found; this script needs it", file=sys.stderr)
            return 2
    with tempfile.TemporaryDirectory() as folder:
        rows = analyse(compile_cubin(arguments.arch, Path(folder), arguments.source))
    print(table(rows))
    print("Rates are estimates from instruction counts (entries/s on an H100 SXM), not measurements.")
    if arguments.output:
        report = {
            "arch": f"sm_{arguments.arch}",
            "estimate": "H100 SXM, 132 multiprocessors, 1.755 GHz, 4 schedulers; not measured",
            "kernels": rows,
        }
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

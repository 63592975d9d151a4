"""What nvcc makes of the CUDA kernels: tensor-core instructions, no local memory, few instructions an entry."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from building import built_once

from ddcm_fast.codebook.build import source_hash

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import sass

pytestmark = [
    pytest.mark.slow,  # nvcc takes minutes over both architectures
    pytest.mark.skipif(sass.find_nvcc() is None or sass.find_cuobjdump() is None, reason="no nvcc or no cuobjdump"),
]

ARCHITECTURES = (80, 90)

#: Instructions of a warp's k step over the entries a lane makes in it, measured plus about 8 % headroom, by kind,
#: column tiles and row groups: batches of 1, 2 (sign in bit planes), up to 8, 16 (sign) and 2, 4, 8, 16, 32, 64, 128,
#: 256 rows (gaussian).
BOUNDS = {
    ("SignPlane", 3, 1): 0.35,
    ("SignPlane", 6, 1): 0.43,
    ("Sign", 3, 1): 1.07,
    ("Sign", 6, 1): 1.39,
    ("Gaussian", 1, 1): 9.4,
    ("Gaussian", 2, 1): 9.6,
    ("Gaussian", 3, 1): 10.6,
    ("Gaussian", 6, 1): 12.0,
    ("Gaussian", 12, 1): 13.2,
    ("Gaussian", 12, 2): 18.5,
    ("Gaussian", 12, 4): 27.3,
    ("Gaussian", 12, 8): 45.0,
}

#: More where squared norms are made beside the scores.
NORMS = 3.5

#: Row tiles of a warp; warps a multiprocessor is to hold, by kind and column tiles.
ROW_TILES = {
    **{("SignPlane", 3): 4, ("SignPlane", 6): 2, ("Sign", 3): 2, ("Sign", 6): 4},
    **{("Gaussian", tiles): rows for tiles, rows in ((1, 4), (2, 4), (3, 2), (6, 2), (12, 3))},
}
WARPS = {
    **{("SignPlane", 3): 16, ("SignPlane", 6): 16, ("Sign", 3): 12, ("Sign", 6): 8},
    **{("Gaussian", tiles): 16 if tiles < 12 else 8 for tiles in (1, 2, 3, 6, 12)},
}

CASES = [
    (*kernel, writes) for kernel in BOUNDS for writes in ((0, 1, 2) if kernel[0] == "Gaussian" else (0, 1))
]  # 0: search, 1: scores, 2: scores and norms


def cached_library(arch: int) -> Path:
    """The library, compiled once for these sources and this compiler, whoever asks first."""
    version = subprocess.run([str(sass.find_nvcc()), "--version"], capture_output=True, text=True, check=True).stdout
    name = f"kernels-sm{arch}-{source_hash('cuda', version)}.so"
    return built_once(name, lambda scratch: sass.compile_library(arch, scratch))


@pytest.fixture(scope="module")
def reports() -> dict[int, dict[str, dict[str, Any]]]:
    with ThreadPoolExecutor(2) as pool:
        libraries = pool.map(cached_library, ARCHITECTURES)
    return {
        arch: {row["kernel"]: row for row in sass.analyse(library)}
        for arch, library in zip(ARCHITECTURES, libraries, strict=True)
    }


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("kind", "tiles", "row_groups", "writes"), CASES)
def test_search_step(
    reports: dict[int, dict[str, dict[str, Any]]], arch: int, kind: str, tiles: int, row_groups: int, writes: int
) -> None:
    row = reports[arch][f"SearchKernel<{kind}, {tiles}, {row_groups}, {writes}>"]
    step, row_tiles = row["step"], ROW_TILES[kind, tiles]
    products = sass.PRODUCTS[kind]
    assert step["row_tiles"] == row_tiles
    # One generation of the entries serves the products of all rows, and their squares.
    assert step["matrix"] == products * row_tiles * (tiles * row_groups + (2 if writes == 2 else 0))
    bound = BOUNDS[kind, tiles, row_groups] + (NORMS if writes == 2 else 0)
    assert step["instructions_per_entry"] <= bound
    # One fragment of the residual serves two products of every row tile.
    assert step["global_loads"] == products // 2 * tiles * row_groups
    # The warps that a multiprocessor is to hold share 64 K registers.
    assert row["registers"] <= min(255, 65536 // (32 * WARPS[kind, tiles]) // 8 * 8)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tiles", [3, 6])
def test_signs_of_few_rows_cost_hardly_more_than_their_words(
    reports: dict[int, dict[str, dict[str, Any]]], arch: int, tiles: int
) -> None:
    """15 wide multiplications and 17 exclusive-ors a call, and no operation on what they make."""
    step = reports[arch][f"SearchKernel<SignPlane, {tiles}, 1, 0>"]["step"]
    calls = 2 * step["row_tiles"]
    assert step["cycles"]["alu"] <= calls * 17 * 2 + 24
    assert step["cycles"]["multiply"] <= calls * (15 * 6 + 10) + 48


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_local_memory(reports: dict[int, dict[str, dict[str, Any]]], arch: int) -> None:
    for name, row in reports[arch].items():
        assert row["stack_bytes"] == 0 and row["local_memory_instructions"] == 0, (name, row)


def test_products_use_the_integer_and_half_tensor_cores(
    reports: dict[int, dict[str, dict[str, Any]]],
) -> None:
    for arch in ARCHITECTURES:
        for name, row in reports[arch].items():
            assert bool(row["matrix_instructions"]) == name.startswith("SearchKernel"), name


def test_cycles_of_a_pipe() -> None:
    lines = ["IMAD.WIDE.U32 R2, R3, R4, RZ", "IMAD.SHL.U32 R2, R3, 0x4, RZ", "LOP3.LUT R2, R3, R4, R5, 0x96", "EXIT"]
    cycles = sass.busy([*lines, "IMMA.16832.S8.S8 R4, R8.ROW, R2.COL, R4", "LDG.E.128.CONSTANT R4, desc[UR4][R2.64]"])
    assert cycles == {"issue": 6, "multiply": 8, "alu": 2, "matrix": 6.5, "memory": 16}


def test_names() -> None:
    mangled = "_ZN4ddcm10run_kernelINS_12SearchKernelINS_10SignTraitsELi4ELb0EEEEEvT_"
    assert sass.kernel_name(mangled) == "SearchKernel<Sign, 4, 0>"
    assert sass.kernel_name("_ZN4ddcm10run_kernelINS_9MaxKernelEEEvT_") == "MaxKernel"
    mangled = "_ZN4ddcm10run_kernelINS_12SearchKernelINS_15SignPlaneTraitsELi3ELi1ELi0EEEEEvT_"
    assert sass.kernel_name(mangled) == "SearchKernel<SignPlane, 3, 1, 0>"
    assert sass.kernel_name("other") == "other"

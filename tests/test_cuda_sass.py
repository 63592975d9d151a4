"""What nvcc makes of the CUDA kernels: tensor-core instructions, no local memory, few instructions an entry."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ddcm_fast.backends import cuda

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import sass

pytestmark = pytest.mark.skipif(
    sass.find_nvcc() is None or sass.find_cuobjdump() is None, reason="no nvcc or no cuobjdump"
)

ARCHITECTURES = (80, 90)

#: Instructions of the inner loop over the entries a lane makes in it, measured plus about 8 % headroom. The second
#: number of a search kernel is its column tiles: 1, 2, 4, 8 or (gaussian) 16 for batches up to 2, 4, 8, 16 and 32 rows.
BOUNDS = {
    ("Sign", 1): 0.66,
    ("Sign", 2): 0.74,
    ("Sign", 4): 0.95,
    ("Sign", 8): 1.3,
    ("Gaussian", 1): 9.3,
    ("Gaussian", 2): 9.4,
    ("Gaussian", 4): 10.1,
    ("Gaussian", 8): 10.8,
    ("Gaussian", 16): 12.8,
}

#: The same where squared norms are made beside the scores.
NORM_BOUNDS = {1: 12.0, 2: 12.2, 4: 13.1, 8: 14.0, 16: 16.0}

#: Warps a multiprocessor is to hold, by kind and column tiles.
WARPS = {
    **{("Sign", tiles): warps for tiles, warps in ((1, 16), (2, 12), (4, 12), (8, 8))},
    **{("Gaussian", tiles): 16 if tiles < 8 else 8 for tiles in (1, 2, 4, 8, 16)},
}

CASES = [
    (kind, tiles, writes)
    for kind, tiles in BOUNDS
    for writes in ((0, 1) if kind == "Sign" else (0, 1, 2))
]  # 0: search, 1: scores, 2: scores and norms


def cached_cubin(arch: int) -> Path:
    """The kernels' cubin, compiled once for these sources and this compiler, whoever asks first."""
    version = subprocess.run([str(sass.find_nvcc()), "--version"], capture_output=True, text=True, check=True).stdout
    folder = Path(tempfile.gettempdir()) / f"ddcm-fast-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    cubin = folder / f"kernels-sm{arch}-{cuda.source_hash(version)}.cubin"
    if not cubin.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            sass.compile_cubin(arch, Path(scratch)).replace(cubin)
    return cubin


@pytest.fixture(scope="module")
def reports() -> dict[int, dict[str, dict[str, Any]]]:
    with ThreadPoolExecutor(2) as pool:
        cubins = pool.map(cached_cubin, ARCHITECTURES)
    return {
        arch: {row["kernel"]: row for row in sass.analyse(cubin)}
        for arch, cubin in zip(ARCHITECTURES, cubins, strict=True)
    }


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("kind", "tiles", "writes"), CASES)
def test_search_loop(
    reports: dict[int, dict[str, dict[str, Any]]], arch: int, kind: str, tiles: int, writes: int
) -> None:
    row = reports[arch][f"SearchKernel<{kind}, {tiles}, {writes}>"]
    loop = row["loop"]
    per_step = 16 if kind == "Sign" else 2
    row_tiles = 2 if tiles >= 4 else 4
    # One generation of the entries serves the products of all column tiles, and their squares.
    assert loop["matrix"] == per_step * row_tiles * (tiles + (2 if writes == 2 else 0))
    assert loop["instructions_per_entry"] <= (NORM_BOUNDS[tiles] if writes == 2 else BOUNDS[kind, tiles])
    assert loop["local"] == 0
    # One vector of the residual serves two products of every row tile.
    assert loop["global_loads"] == per_step // 2 * tiles
    # The warps that a multiprocessor is to hold share 64 K registers.
    assert row["registers"] <= min(255, 65536 // (32 * WARPS[kind, tiles]) // 8 * 8)
    if tiles == 1 or kind == "Gaussian":
        assert row["stack_bytes"] == 0 and row["local_memory_instructions"] == 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_kernel_spills_in_earnest(
    reports: dict[int, dict[str, dict[str, Any]]], arch: int
) -> None:
    """A few scalars of the outer loop may rest on the stack; arrays never."""
    for name, row in reports[arch].items():
        assert row["stack_bytes"] <= 48, (name, row)


def test_products_use_the_integer_and_half_tensor_cores(
    reports: dict[int, dict[str, dict[str, Any]]],
) -> None:
    for arch in ARCHITECTURES:
        for name, row in reports[arch].items():
            assert bool(row["matrix_instructions"]) == name.startswith("SearchKernel"), name


def test_names() -> None:
    mangled = "_ZN4ddcm10run_kernelINS_12SearchKernelINS_10SignTraitsELi4ELb0EEEEEvT_"
    assert sass.kernel_name(mangled) == "SearchKernel<Sign, 4, 0>"
    assert sass.kernel_name("_ZN4ddcm10run_kernelINS_9MaxKernelEEEvT_") == "MaxKernel"
    assert sass.kernel_name("other") == "other"

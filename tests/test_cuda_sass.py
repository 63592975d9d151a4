"""What nvcc makes of the CUDA kernels: tensor-core instructions, no local memory, few instructions an entry."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import sass

pytestmark = pytest.mark.skipif(
    sass.find_nvcc() is None or sass.find_cuobjdump() is None, reason="no nvcc or no cuobjdump"
)

ARCHITECTURES = (80, 90)

#: Instructions of the inner loop over the entries a lane makes in it, measured plus about 8 % headroom.
#: The third number of a search kernel is its column tiles: 1, 2 or 4 for batches up to 2, 4 and 8 rows.
BOUNDS = {
    ("Sign", 1): 0.66,
    ("Sign", 2): 0.74,
    ("Sign", 4): 0.95,
    ("Gaussian", 1): 9.3,
    ("Gaussian", 2): 9.4,
    ("Gaussian", 4): 10.1,
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("sass")
    with ThreadPoolExecutor(2) as pool:
        cubins = pool.map(lambda arch: sass.compile_cubin(arch, folder), ARCHITECTURES)
    return {
        arch: {row["kernel"]: row for row in sass.analyse(cubin)}
        for arch, cubin in zip(ARCHITECTURES, cubins, strict=True)
    }


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("kind", "tiles"), list(BOUNDS))
@pytest.mark.parametrize("scores", [0, 1])
def test_search_loop(
    reports: dict[int, dict[str, dict[str, Any]]], arch: int, kind: str, tiles: int, scores: int
) -> None:
    row = reports[arch][f"SearchKernel<{kind}, {tiles}, {scores}>"]
    loop = row["loop"]
    per_step = 16 if kind == "Sign" else 2
    row_tiles = 2 if tiles == 4 else 4
    assert loop["matrix"] == per_step * row_tiles * tiles
    assert loop["instructions_per_entry"] <= BOUNDS[kind, tiles]
    assert loop["local"] == 0
    # One vector of the residual serves two products of every row tile.
    assert loop["global_loads"] == per_step // 2 * tiles
    # The blocks that a multiprocessor is to hold share 64 K registers.
    assert row["registers"] <= (168 if kind == "Sign" and tiles > 1 else 128)
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

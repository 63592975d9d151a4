"""What bounds a case: two rates measured on the device, and the cycle model of the CUDA kernels.

A bound is given where one is known, in products (entries times rows) a second:

* A baseline multiplies and adds as torch does: no faster than a large matrix product of its, and what is stored (and
  larger than caches) no faster than memory is read. So does the kind `gaussian` on a CPU, in float32. Both rates are
  measured in the same run.
* The CUDA kernels on compute capability 9.0 have the clocks of their busiest pipe (benchmarks/sass.py, docs/kernels).
* `sign` and `hadamard` on a CPU need no multiplication for an entry, and no honest bound is known: none is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddcm_fast.measure.cases import Case
from ddcm_fast.measure.timing import measure
from ddcm_fast.measure.work import stored_bytes

#: Rows of a batch, at most -> clocks of a scheduler's busiest pipe, and entries that a lane makes in them
#: (benchmarks/results/sass-sm90.json). A larger batch takes several searches.
CYCLES: dict[str, dict[int, tuple[float, int]]] = {
    "sign": {1: (806, 1024), 2: (434, 512), 8: (634, 512), 16: (2477, 1024)},
    "gaussian": {
        **{2: (904, 64), 4: (912, 64), 8: (472, 32), 16: (496, 32), 32: (768, 48)},
        **{64: (1152, 48), 128: (1858, 48), 256: (3716, 48)},
    },
}

_SCHEDULERS, _LANES = 4, 32  # of a multiprocessor; of a warp
_CLOCK = 1.755e9  # Hz: H100 SXM, where torch does not tell

#: Of the matrices that are multiplied; bytes that are read, more than caches hold.
_SIDE, _CUDA_SIDE = 2048, 8192
_BYTES = 1 << 28
_SECONDS = 0.5


@dataclass(frozen=True)
class Roofs:
    """What a device does at most, measured: products of a matrix product a second, bytes read from memory a second."""

    dtype: torch.dtype
    products_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Bound:
    """Products a second that a case cannot exceed, and where that is from."""

    products_per_s: float
    source: str


def measure_roofs(device: torch.device) -> Roofs:
    """Both rates, of the best call; the matrix product in the dtype of the device's baselines.

    Memory is read by a product of a matrix and a vector, which of torch's ways was the fastest on a CPU. Takes about
    two seconds and 256 MiB.
    """
    cuda = device.type == "cuda"
    dtype, side = (torch.bfloat16, _CUDA_SIDE) if cuda else (torch.float32, _SIDE)
    square = torch.ones(side, side, dtype=dtype, device=device)
    product = measure(lambda: square @ square, device, _SECONDS)
    tall = torch.ones(_BYTES // (4 * side), side, dtype=torch.float32, device=device)
    vector = torch.ones(side, dtype=torch.float32, device=device)
    read = measure(lambda: tall @ vector, device, _SECONDS)
    return Roofs(dtype, side**3 / product.least, tall.numel() * 4 / read.least)


def intensity(case: Case) -> float:
    """Products a byte that a search moves to or from memory; ours reads nothing but the residual."""
    if case.by == "stored":
        return case.batch / case.dtype.itemsize
    if case.by == "randn":  # written, and read again
        return case.batch / (2 * case.dtype.itemsize)
    return case.products / (4 * case.batch * case.dim)


def bound(case: Case, roofs: Roofs) -> Bound | None:
    """What a case cannot exceed, None where nothing is known."""
    if not case.searches:
        return None
    streamed = roofs.bytes_per_s * intensity(case)
    if stored_bytes(case) >= _BYTES and streamed < roofs.products_per_s:
        return Bound(streamed, "memory, measured")
    if case.baseline or (case.kind == "gaussian" and case.device.type == "cpu"):
        return Bound(roofs.products_per_s, "matrix product, measured")
    if case.by != "cuda" or case.kind not in CYCLES or torch.cuda.get_device_capability(case.device) != (9, 0):
        return None
    properties = torch.cuda.get_device_properties(case.device)
    clock = getattr(properties, "clock_rate", 0) * 1e3 or _CLOCK
    lanes = properties.multi_processor_count * _SCHEDULERS * _LANES
    return Bound(case.batch * lanes * clock / clocks_an_entry(case.kind, case.batch), "cycle model")


def clocks_an_entry(kind: str, batch: int) -> float:
    """Clocks of a lane for an entry and all rows of a batch, by the cycle model."""
    table = CYCLES[kind]
    most = max(table)
    if batch <= most:
        clocks, entries = table[min(rows for rows in table if rows >= batch)]
        return clocks / entries
    clocks, entries = table[most]
    whole, rest = divmod(batch, most)
    return whole * clocks / entries + (clocks_an_entry(kind, rest) if rest else 0)

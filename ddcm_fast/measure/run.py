"""Cases measured one after the other, and what is said of each."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ddcm_fast import __version__
from ddcm_fast.codebook.backends import hardware
from ddcm_fast.errors import out_of_memory
from ddcm_fast.measure import memory
from ddcm_fast.measure.cases import Case
from ddcm_fast.measure.roofs import Bound, Roofs, bound
from ddcm_fast.measure.timing import Timing, measure, once
from ddcm_fast.measure.work import prepare, stored_bytes

#: Entries of the first small codebook by whose time that of a large one is foreseen; how much larger the next one is.
_TRIED, _GROWTH = 1 << 20, 16


@dataclass(frozen=True)
class Row:
    """A case and what was measured, or why it was not."""

    case: Case
    skipped: str | None = None
    timing: Timing | None = None
    bound: Bound | None = None
    peak_bytes: int | None = None

    @property
    def entries_per_s(self) -> float | None:
        """Entries of noise a second, counted once for all rows."""
        return self.case.entries / self.timing.seconds if self.timing else None

    @property
    def products_per_s(self) -> float | None:
        """Entries times rows a second."""
        return self.case.products / self.timing.seconds if self.timing else None

    @property
    def fraction(self) -> float | None:
        """Of the bound, None where there is none."""
        return self.products_per_s / self.bound.products_per_s if self.products_per_s and self.bound else None

    def facts(self) -> dict[str, Any]:
        """The row for JSON."""
        case = self.case
        return {
            **{"op": case.op, "by": case.by, "kind": case.kind, "device": str(case.device)},
            **{"K": case.size, "D": case.dim, "B": case.batch, "G": case.groups, "M": case.atoms},
            "dtype": str(case.dtype).removeprefix("torch."),
            "skipped": self.skipped,
            "ms": self.timing.seconds * 1e3 if self.timing else None,
            "least_ms": self.timing.least * 1e3 if self.timing else None,
            "runs": self.timing.runs if self.timing else None,
            "entries_per_s": self.entries_per_s,
            "products_per_s": self.products_per_s,
            "bound_products_per_s": self.bound.products_per_s if self.bound else None,
            "bound": self.bound.source if self.bound else None,
            "fraction_of_bound": self.fraction,
            "peak_bytes": self.peak_bytes,
        }


def refusal(case: Case, longest: float) -> str | None:
    """Why a case is not measured: it has no room, or a call would take more than `longest` seconds."""
    need, free = stored_bytes(case), memory.free(case.device)
    if free is not None and need > free // 2:
        return f"would keep {amount(need)}, and {amount(free)} are free"
    if case.op == "rotate" and case.baseline and case.dim % case.spec.rotation_block:
        return f"is not written for a D that is no multiple of {case.spec.rotation_block}"
    size = max(case.atoms, _TRIED // case.dim, 1) if case.grows else case.size
    while size < case.size:
        work = prepare(dataclasses.replace(case, size=size))
        once(work, case.device)
        seconds = min(once(work, case.device) for _ in range(2))
        if seconds * case.size <= longest * size:
            break
        if seconds * _GROWTH > longest:  # a larger one would tell more, and take too long
            return f"would take about {seconds * case.size / size:.2g} s a call (by that of K={size})"
        size *= _GROWTH
    return None


def run(cases: Sequence[Case], roofs: Roofs, seconds: float, longest: float, told: Callable[[Row], None]) -> list[Row]:
    """Measure cases for about `seconds` each, but those that `refusal` is against; `told` gets each row at once."""
    rows = []
    with memory.Meter() as meter:
        for case in cases:
            try:
                row = _measured(case, roofs, seconds, longest, meter)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                row = Row(case, "out of memory")
            rows.append(row)
            told(row)
    return rows


def _measured(case: Case, roofs: Roofs, seconds: float, longest: float, meter: memory.Meter) -> Row:
    skipped = refusal(case, longest)
    if skipped is not None:
        return Row(case, skipped)
    timing = measure(prepare(case), case.device, seconds)
    return Row(case, None, timing, bound(case, roofs), meter.peak(case))


def machine(device: torch.device) -> dict[str, Any]:
    """What it runs on, and how many processes want to run there now."""
    name = hardware.gpu(device) if device.type == "cuda" else hardware.processor()
    return {
        **{"device": str(device), "name": name, "threads": torch.get_num_threads()},
        **{"torch": torch.__version__, "ddcm-fast": __version__, "load_average": os.getloadavg()[0]},
    }


def amount(count: int) -> str:
    """Bytes as a person reads them."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return "< 1 MiB"  # which is about what can be told of a process

"""Results, written and printed as they come; what they say of the goals. Needs no torch: the driver reads it, too."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

LISTS = ("checks", "measurements", "errors", "skipped")


class Report:
    """Results, written after every change; checks and measurements by section."""

    def __init__(self, path: Path, budget: float) -> None:
        self.path = path
        self.end = time.monotonic() + budget
        self.data: dict[str, Any] = {name: [] for name in LISTS}
        self.write()

    def write(self) -> None:
        write(self.path, self.data)

    def left(self) -> float:
        return self.end - time.monotonic()

    def guard(self, name: str, run: Callable[[], None], need: float = 5.0) -> None:
        """Run a section unless time is short; note what it raises."""
        start = time.monotonic()
        if self.left() < need:
            self.skip(name, "out of time")
        else:
            try:
                run()
            except Exception as error:  # a section's failure must not lose the others
                trace = traceback.format_exc(limit=-4)
                self.data["errors"].append({"section": name, "error": str(error), "trace": trace})
                print(f"ERROR in {name}: {[*str(error).splitlines(), type(error).__name__][0]}", flush=True)
        self.data.setdefault("seconds", {})[name] = round(time.monotonic() - start, 2)
        self.write()

    def check(self, backend: str, what: str, ok: bool, **details: Any) -> None:
        self.data["checks"].append({"backend": backend, "what": what, "ok": bool(ok), **details})
        said = "ok" if ok else f"FAILED {details.get('reason', '')}"
        print(f"{backend}: {what}: {said}", flush=True)
        self.write()

    def compare(self, backend: str, what: str, comparison: Callable[[], None]) -> None:
        """A check that holds if the comparison raises no AssertionError."""
        try:
            comparison()
        except AssertionError as error:
            self.check(backend, what, False, reason=str(error))
        else:
            self.check(backend, what, True)

    def skip(self, name: str, reason: str) -> None:
        self.data["skipped"].append({"section": name, "reason": reason})
        print(f"skipped {name}: {reason}", flush=True)

    def measure(self, name: str, seconds: float, **details: Any) -> None:
        self.data["measurements"].append({"name": name, "ms": seconds * 1e3, **details})
        print(line(self.data["measurements"][-1]), flush=True)
        self.write()

    def failures(self) -> list[dict[str, Any]]:
        return failures(self.data)


def write(path: Path, data: dict[str, Any]) -> None:
    """Replace a file of results by new ones, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(data, indent=1) + "\n")
    part.replace(path)


def failures(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The checks that failed."""
    return [check for check in data["checks"] if not check["ok"]]


def line(m: dict[str, Any]) -> str:
    """A measurement in one line."""
    extra = f"{m['entries_per_s']:11.3e} entries/s" if "entries_per_s" in m else ""
    if "fraction_of_issue_bound" in m:
        extra += f"  {m['fraction_of_issue_bound']:.2f} of issue bound"
    if "bytes_per_s" in m:
        extra = f"{m['bytes_per_s']:11.3e} bytes/s"
    if "warp_instructions_per_s_and_multiprocessor" in m:
        extra = f"{m['warp_instructions_per_s_and_multiprocessor']:11.3e} warp instructions/s and multiprocessor"
    peak = f"{m['peak_bytes'] / 2**20:9.1f} MiB" if "peak_bytes" in m else ""
    return f"{m['name']:54}{m['ms']:10.4f} ms {peak:>14} {extra}"


def reach(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The targets of the kernels against the measurements of the cuda backend."""
    found = {m["name"]: m for m in data["measurements"]}

    def ms(name: str) -> float | None:
        return found[name]["ms"] if name in found else None

    def rate(name: str) -> float | None:
        return found[name]["entries_per_s"] if name in found else None

    gaussian, large = "cuda gaussian K=16384 D=16384 B=1", "K=1048576 D=36864 B=1"
    rows: list[tuple[str, float | None, float, bool]] = []  # what, value, target, larger is better
    base = [ms(f"baseline (a) {d} K=16384 D=16384") for d in ("float16", "float32")]
    mine = ms(gaussian)
    known = [b for b in base if b is not None]
    ratio = min(known) / mine if known and mine else None
    rows.append(("gaussian, times (a)'s faster dtype", ratio, 3.0, True))
    rows.append(("gaussian, entries/s", rate(gaussian), 1.5e12, True))
    rows.append(("sign, entries/s", rate(f"cuda sign {large}"), 3e13, True))
    rows.append(("sign K=2^20 D=36864, ms", ms(f"cuda sign {large}"), 1.3, False))
    rows.append(("hadamard K=2^20 D=36864, ms", ms(f"cuda hadamard {large}"), 0.04, False))
    rows.append(("rotation D=2^18, ms", ms("cuda rotation to codebook D=262144"), 0.02, False))
    batch = "K=16384 D=16384 B=256"
    gemm, ours = ms(f"baseline (randn + GEMM, bfloat16) {batch}"), ms(f"cuda sign {batch}")
    rows.append(("sign B=256, times randn + GEMM in bfloat16", gemm / ours if gemm and ours else None, 3.0, True))
    peaks = [m["peak_bytes"] for n, m in found.items() if n.startswith("cuda ") and "peak_bytes" in m]
    rows.append(("peak bytes of any cuda operation", max(peaks) if peaks else None, 64 << 20, False))
    return [
        {
            "target": what,
            "value": value,
            "bar": bar,
            "met": None if value is None else (value >= bar if larger else value <= bar),
        }
        for what, value, bar, larger in rows
    ]


def summary(data: dict[str, Any]) -> str:
    """The short table that ends the run."""
    lines = []
    lines += map(line, data["measurements"])
    for row in data.get("reach", []):
        value = "not measured" if row["value"] is None else f"{row['value']:.4g}"
        verdict = {None: "", True: "met", False: "NOT MET"}[row["met"]]
        lines.append(f"reach: {row['target']:42}{value:>14}  (bar {row['bar']:g}) {verdict}")
    for name, reason in data.get("missing", {}).items():
        lines.append(f"backend {name} is missing: {reason}")
    for error in data["errors"]:
        lines.append(f"section {error['section']}: {[*str(error['error']).splitlines(), ''][0][:150]}")
    for skipped in data["skipped"]:
        lines.append(f"skipped {skipped['section']}: {skipped['reason']}")
    for check in failures(data)[:20]:
        lines.append(f"FAILED {check['backend']}: {check['what']} {check}")
    total = len(data["checks"])
    lines.append(f"{total - len(failures(data))} of {total} checks passed")
    return "\n".join(lines)

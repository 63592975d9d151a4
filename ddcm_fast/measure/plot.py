"""Searches drawn: against the device's roofs, and against K."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from typing import Any

from ddcm_fast.errors import MissingExtraError
from ddcm_fast.measure.roofs import Roofs, intensity
from ddcm_fast.measure.run import Row


def check() -> None:
    """Raise MissingExtraError if there is no matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("a plot needs matplotlib: pip install 'ddcm-fast[benchmarks]'")


def plot(rows: Sequence[Row], roofs: Roofs, title: str) -> bytes:
    """A PNG of two diagrams: products a second against products a byte of memory, and milliseconds against K.

    Of the searches among the rows; the second has a line for each contender, kind, D, B and G.

    Raises MissingExtraError: there is no matplotlib.
    """
    check()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.5), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    lines: dict[tuple[str, str, int, int, int], list[Row]] = {}
    for row in rows:
        if row.case.op == "search" and row.timing is not None:
            case = row.case
            lines.setdefault((case.by, case.kind, case.dim, case.batch, case.groups), []).append(row)
    contenders = sorted({key[:2] for key in lines})
    shapes = sorted({key[2:] for key in lines})
    for (by, kind, dim, batch, groups), found in sorted(lines.items()):
        found.sort(key=lambda row: row.case.size)
        style = {
            "label": f"{by} {kind} D={dim} B={batch}" + (f" G={groups}" if groups > 1 else ""),
            "color": f"C{contenders.index((by, kind)) % 10}",
            "marker": "os^vDPX*"[shapes.index((dim, batch, groups)) % 8],
        }
        left.plot([intensity(row.case) for row in found], [row.products_per_s for row in found], ls="", **style)
        right.plot([row.case.size for row in found], [row.timing.seconds * 1e3 for row in found if row.timing], **style)
    _roofline(left, roofs)
    left.set(xlabel="products a byte of memory", ylabel="entries x rows a second", title="Searches under the roofs")
    right.set(xlabel="K", ylabel="ms", title="A search", yscale="log")
    right.set_xscale("log", base=2)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    if lines:
        figure.legend(*right.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120)
    return out.getvalue()


def _roofline(axes: Any, roofs: Roofs) -> None:
    """The rate of memory up to the corner, then that of the matrix product."""
    axes.set(xscale="log", yscale="log")
    corner = roofs.products_per_s / roofs.bytes_per_s
    low, high = axes.get_xlim()
    low, high = min(low, 1 / 16), max(high, 16 * corner)
    label = f"matrix product in {str(roofs.dtype).removeprefix('torch.')}, memory: measured"
    heights = [low * roofs.bytes_per_s, roofs.products_per_s, roofs.products_per_s]
    axes.plot([low, corner, high], heights, color="black", label=label)
    axes.legend(handles=[axes.lines[-1]], loc="lower right", fontsize=8)

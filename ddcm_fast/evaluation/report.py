"""What rows say: means, BD-rates, tables, curves and a sheet of pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ddcm_fast.errors import MissingExtraError
from ddcm_fast.evaluation.run import Row, decoded

#: The names that CompressAI gives metrics of RGB images; its plots read them.
_COMPRESSAI = {"psnr": "psnr-rgb", "ms-ssim": "ms-ssim-rgb"}


def whole(rows: Sequence[Row]) -> list[Row]:
    """The rows of images that every codec coded at every rate: means over others would compare different images."""
    failed = {row["image"] for row in rows if "error" in row}
    return [row for row in rows if row["image"] not in failed]


def means(rows: Sequence[Row], metrics: Sequence[str]) -> list[Row]:
    """The mean over the images of each codec and rate, in their order."""
    points: dict[tuple[str, float], list[Row]] = {}
    for row in whole(rows):
        points.setdefault((row["codec"], row["rate"]), []).append(row)
    out = []
    for (codec, rate), group in points.items():
        mean: Row = {"codec": codec, "rate": rate, "images": len(group), "over": sum(not r["fits"] for r in group)}
        for name in ("bpp", *metrics, "encode_seconds", "decode_seconds"):
            values = [row[name] for row in group if row.get(name) is not None]
            mean[name] = sum(values) / len(values) if values else None
        out.append(mean)
    return out


def bd_rates(points: Sequence[Row], metric: str = "psnr") -> dict[str, dict[str, float]]:
    """Percent of bits more (or, below 0, fewer) that a codec takes for the same quality: codec -> anchor -> percent.

    By the package bjontegaard, with Akima's interpolation, over the qualities that both reach, if that is half of them
    or more; four rates at least. Raises MissingExtraError.
    """
    try:
        bjontegaard: Any = import_module("bjontegaard")
    except ImportError as error:
        raise MissingExtraError("BD-rates need bjontegaard: pip install 'ddcm-fast[eval]'") from error
    curves = {name: _curve(points, name, metric) for name in dict.fromkeys(p["codec"] for p in points)}
    found: dict[str, dict[str, float]] = {}
    for name, (rate, quality) in curves.items():
        for anchor, (anchor_rate, anchor_quality) in curves.items():
            if name == anchor or min(len(rate), len(anchor_rate)) < 4:
                continue
            shared = min(quality[-1], anchor_quality[-1]) - max(quality[0], anchor_quality[0])
            if shared < 0.5 * min(quality[-1] - quality[0], anchor_quality[-1] - anchor_quality[0]):
                continue
            percent = bjontegaard.bd_rate(
                *(anchor_rate, anchor_quality, rate, quality),
                method="akima",
                require_matching_points=False,
                min_overlap=0,
            )
            found.setdefault(name, {})[anchor] = float(percent)
    return found


def _curve(points: Sequence[Row], codec: str, metric: str) -> tuple[list[float], list[float]]:
    """Rates and qualities that rise; a codec's lowest quality can stand for several rates."""
    pairs = sorted({(p["bpp"], p[metric]) for p in points if p["codec"] == codec and p[metric] is not None})
    rising = [pair for i, pair in enumerate(pairs) if all(pair[1] > before[1] for before in pairs[:i])]
    return [rate for rate, _ in rising], [quality for _, quality in rising]


def table(rows: Sequence[Row]) -> bytes:
    """Rows as CSV."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "key"))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def compressai(points: Sequence[Row], codec: str, metrics: Sequence[str], description: str) -> dict[str, Any]:
    """A codec's curve as CompressAI writes its results."""
    own = [point for point in points if point["codec"] == codec]
    results = {"bpp": [point["bpp"] for point in own]}
    for name in metrics:
        results[_COMPRESSAI.get(name, name)] = [point[name] for point in own]
    results["encoding_time"] = [point["encode_seconds"] for point in own]
    results["decoding_time"] = [point["decode_seconds"] for point in own]
    return {"name": codec, "description": description, "results": results}


def curves(points: Sequence[Row], metrics: Sequence[str]) -> bytes:
    """PNG of each metric over the bits a pixel. Raises MissingExtraError without matplotlib."""
    try:
        figures: Any = import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingExtraError("curves need matplotlib: pip install 'ddcm-fast[eval]'") from error
    shown = [name for name in metrics if any(point[name] is not None for point in points)]
    figure = figures.Figure(figsize=(6 * max(1, len(shown)), 4.5), layout="tight")
    for i, name in enumerate(shown):
        axis = figure.add_subplot(1, len(shown), i + 1)
        for codec in dict.fromkeys(point["codec"] for point in points):
            own = sorted((p["bpp"], p[name]) for p in points if p["codec"] == codec and p[name] is not None)
            axis.plot([x for x, _ in own], [y for _, y in own], marker=".", label=codec)
        axis.set(xlabel="bits a pixel", ylabel=f"{name} in dB" if name == "psnr" else name)
        axis.grid(alpha=0.3)
        axis.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def sheet(rows: Sequence[Row], folder: Path, side: int = 192, most: int = 4) -> bytes:
    """PNG of the first images as each codec decodes them at the rate in the middle, with their bits and PSNR."""
    good = whole(rows)
    codecs = list(dict.fromkeys(row["codec"] for row in good))
    rates = sorted({row["rate"] for row in good})
    rate = rates[len(rates) // 2]
    images = list(dict.fromkeys(row["image"] for row in good))[:most]
    place = {(row["image"], row["codec"]): row for row in good if row["rate"] == rate}
    out = Image.new("RGB", (len(codecs) * (side + 4), len(images) * (side + 18)), "white")
    draw = ImageDraw.Draw(out)
    for y, name in enumerate(images):
        for x, codec in enumerate(codecs):
            row, corner = place[name, codec], (x * (side + 4), y * (side + 18))
            with Image.open(decoded(folder, row)) as file:
                small = file.convert("RGB")
                small.thumbnail((side, side))
            out.paste(small, corner)
            quality = f" {row['psnr']:.1f} dB" if row.get("psnr") is not None else ""
            draw.text((corner[0], corner[1] + side + 2), f"{codec} {row['bpp']:.3f} bpp{quality}", fill="black")
    buffer = io.BytesIO()
    out.save(buffer, "PNG")
    return buffer.getvalue()

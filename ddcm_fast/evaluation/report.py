"""What rows say: means, BD-rates, tables, curves and a sheet of pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

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
        for name in ("bpp", *metrics, "encode_seconds", "encode_cpu_seconds", "decode_seconds"):
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


#: A picture of a page and what is written below it.
Cell = tuple[str, Image.Image]


def caption(title: str, bpp: float, psnr: float | None) -> str:
    """Two lines: what it is, and bits a pixel and PSNR in dB; None: the pictures are equal, or it was not measured."""
    return f"{title}\n{bpp:.3f} bpp" + ("" if psnr is None else f", {psnr:.2f} dB")


def cell(row: Row, folder: Path, title: str | None = None) -> Cell:
    """A row's picture, as it was decoded into a folder; called by the codec where no title is given."""
    with Image.open(decoded(folder, row)) as file:
        return caption(title or row["codec"], row["bpp"], row.get("psnr")), file.convert("RGB")


def page(rows: Sequence[Sequence[Cell]], side: int | None = None) -> bytes:
    """PNG of pictures in rows with their captions below, each row as high as its highest picture.

    Args:
        side: pictures with a longer one are made smaller, in pixels; None: they keep their size.
    """
    shown = [[(text, _small(image, side)) for text, image in row] for row in rows]
    width = max(image.width for row in shown for _, image in row) + _MARGIN
    heights = [max(image.height for _, image in row) + _CAPTION + _MARGIN for row in shown]
    size = (width * max(len(row) for row in shown) + _MARGIN, sum(heights) + _MARGIN)
    out, font = Image.new("RGB", size, "white"), ImageFont.load_default(13)
    draw, top = ImageDraw.Draw(out), _MARGIN
    for row, height in zip(shown, heights, strict=True):
        for x, (text, image) in enumerate(row):
            left = _MARGIN + x * width
            out.paste(image, (left, top))
            below = (left + 2, top + height - _CAPTION - _MARGIN + 2)
            draw.multiline_text(below, text, fill="black", font=font, spacing=1)
        top += height
    buffer = io.BytesIO()
    out.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


#: Pixels around pictures, and below each for two lines.
_MARGIN, _CAPTION = 6, 34


def _small(image: Image.Image, side: int | None) -> Image.Image:
    if side is not None and max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side))
    return image


def sheet(
    rows: Sequence[Row], folder: Path, original: Callable[[str], Image.Image], side: int = 192, most: int = 4
) -> bytes:
    """PNG of the first images, each beside what the codecs make of it at the rate in the middle.

    Args:
        original: an image by its name.
    """
    good = whole(rows)
    rates = sorted({row["rate"] for row in good})
    images = list(dict.fromkeys(row["image"] for row in good))[:most]
    lines: dict[str, list[Cell]] = {name: [(name, original(name))] for name in images}
    for row in good:
        if row["image"] in lines and row["rate"] == rates[len(rates) // 2]:
            lines[row["image"]].append(cell(row, folder))
    return page(list(lines.values()), side)

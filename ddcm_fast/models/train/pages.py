"""Pictures that no camera takes, drawn at random for training: text, user interfaces, diagrams, plots and gradients.

Everything is drawn with Pillow, in the fonts that matplotlib ships (DejaVu under the Bitstream Vera licence, STIX under
the SIL Open Font Licence, Computer Modern under Knuth's). DejaVu Serif, cmss10 and cmtt10 are not among them: pictures
that judge the model can be drawn in a font that it has not seen.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ddcm_fast.models.train.errors import TrainError

FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "STIXGeneral", "STIXGeneralItalic", "cmr10")
_LETTERS, _SHARES = "etaoinshrdlcumwfgypbvkjxqz", (12, 9, 8, 8, 7, 7, 6, 6, 6, 4, 4, 3, 3, 2, 2, 2, 2, 2, 2, 1, 1)

Colour = tuple[int, int, int]
Rng = np.random.Generator


@functools.cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Raises TrainError: matplotlib, whose fonts these are, is missing."""
    try:
        import matplotlib
    except ImportError as error:
        raise TrainError("drawn pictures take their fonts from matplotlib: pip install matplotlib") from error
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / f"{name}.ttf"), size)


def _word(rng: Rng) -> str:
    shares = np.array(_SHARES + (1,) * (len(_LETTERS) - len(_SHARES)), dtype=np.float64)
    kind = rng.random()
    if kind < 0.06:
        return str(rng.integers(10_000))
    word = "".join(rng.choice(list(_LETTERS), size=int(rng.integers(1, 10)), p=shares / shares.sum()))
    word = word.capitalize() if kind < 0.2 else word.upper() if kind < 0.24 else word
    return word + str(rng.choice(["", "", "", "", ",", ".", ":", "(", ")", "-", "_", "=", ";"]))


def _colour(rng: Rng, low: int = 0, high: int = 256) -> Colour:
    """Grey in three of ten cases."""
    if rng.random() < 0.3:
        return (int(rng.integers(low, high)),) * 3
    r, g, b = (int(c) for c in rng.integers(low, high, 3))
    return r, g, b


def _paper_and_ink(rng: Rng) -> tuple[Colour, Colour]:
    kind = rng.random()
    if kind < 0.45:
        return (255, 255, 255), (0, 0, 0) if rng.random() < 0.6 else _colour(rng, 0, 110)
    if kind < 0.7:
        return _colour(rng, 220, 256), _colour(rng, 0, 110)
    if kind < 0.9:
        return _colour(rng, 0, 70), _colour(rng, 150, 256)
    return _colour(rng), _colour(rng)


def _lines(draw: ImageDraw.ImageDraw, rng: Rng, box: tuple[int, int, int, int], ink: Colour, size: int) -> None:
    """Words in lines, from the top of the box (left, top, right, bottom) to its bottom."""
    font, leading = _font(str(rng.choice(FONTS)), size), rng.uniform(1.1, 1.7)
    left, y, right, bottom = box
    x: float
    ragged, indent = rng.random() < 0.4, size * 2 if rng.random() < 0.3 else 0
    while y + size < bottom:
        x = left + indent * int(rng.integers(0, 4))
        end = right - (rng.random() * 0.6 * (right - left) if ragged or rng.random() < 0.12 else 0)
        while x < end:
            text = _word(rng) + " "
            if x + draw.textlength(text, font=font) > right:
                break
            draw.text((x, y), text, fill=_colour(rng) if rng.random() < 0.03 else ink, font=font)
            x += draw.textlength(text, font=font)
        y += round(size * leading)
        if rng.random() < 0.08:
            y += size


def _page(image: Image.Image, rng: Rng) -> None:
    """A page of text, with a heading and perhaps two columns."""
    draw, (width, height) = ImageDraw.Draw(image), image.size
    paper, ink = _paper_and_ink(rng)
    draw.rectangle((0, 0, width, height), fill=paper)
    size, margin, top = int(rng.integers(9, 26)), int(rng.integers(2, 30)), int(rng.integers(0, 20))
    if rng.random() < 0.4:
        _lines(draw, rng, (margin, top, width - margin, top + 3 * size), ink, 2 * size)
        top += 3 * size
    columns = 2 if size < 14 and rng.random() < 0.4 else 1
    for column in range(columns):
        left = margin + column * (width - margin) // columns
        _lines(draw, rng, (left, top, left + (width - margin) // columns - margin, height), ink, size)


def _windows(image: Image.Image, rng: Rng) -> None:
    """Panels with titles, buttons, lists and fields."""
    draw, (width, height) = ImageDraw.Draw(image), image.size
    draw.rectangle((0, 0, width, height), fill=_paper_and_ink(rng)[0])
    for _ in range(int(rng.integers(2, 7))):
        paper, ink = _paper_and_ink(rng)
        left, top = int(rng.integers(-40, width - 60)), int(rng.integers(-40, height - 60))
        right, bottom = left + int(rng.integers(60, width)), top + int(rng.integers(50, height))
        radius, edge = int(rng.choice([0, 0, 4, 8, 14])), _colour(rng) if rng.random() < 0.5 else None
        draw.rounded_rectangle((left, top, right, bottom), radius, fill=paper, outline=edge)
        size = int(rng.integers(9, 18))
        if rng.random() < 0.7:
            draw.rectangle((left, top, right, top + 2 * size), fill=_colour(rng))
            _lines(draw, rng, (left + 6, top + 4, right, top + 2 * size), _colour(rng), size)
        y = top + 3 * size
        while y + 2 * size < bottom:
            if rng.random() < 0.3:
                box = (left + 8, y, left + 8 + int(rng.integers(30, 120)), y + 2 * size)
                draw.rounded_rectangle(box, int(rng.integers(0, 9)), fill=_colour(rng), outline=_colour(rng))
                _lines(draw, rng, (box[0] + 6, y + 3, box[2] - 4, y + 2 * size), _colour(rng), size)
            elif rng.random() < 0.7:
                _lines(draw, rng, (left + 10, y, right - 10, y + 2 * size), ink, size)
            else:
                draw.line((left + 4, y, right - 4, y), fill=_colour(rng))
                draw.ellipse((left + 8, y + 3, left + 8 + size, y + 3 + size), fill=_colour(rng), outline=ink)
            y += round(2.4 * size)


def _diagram(image: Image.Image, rng: Rng) -> None:
    """Boxes with labels joined by lines, drawn at twice the size so that edges are smooth, or not."""
    fine = 2 if rng.random() < 0.6 else 1
    large = Image.new("RGB", (image.width * fine, image.height * fine), _paper_and_ink(rng)[0])
    draw, (width, height) = ImageDraw.Draw(large), large.size
    _, ink = _paper_and_ink(rng)
    spots = [(int(rng.integers(0, width)), int(rng.integers(0, height))) for _ in range(int(rng.integers(4, 14)))]
    thick = fine * int(rng.integers(1, 4))
    for (x, y), (u, v) in itertools.pairwise(spots):
        draw.line((x, y, u, y, u, v) if rng.random() < 0.5 else (x, y, u, v), fill=ink, width=thick)
    for x, y in spots:
        w, h = (fine * int(n) for n in rng.integers(10, 60, 2))
        fill = _colour(rng, 100) if rng.random() < 0.8 else None
        shape = draw.ellipse if rng.random() < 0.3 else draw.rectangle
        shape((x - w, y - h, x + w, y + h), fill=fill, outline=ink, width=thick)
        if rng.random() < 0.7:
            _lines(draw, rng, (x - w + 4, y - h + 4, x + w - 4, y + h), ink, fine * int(rng.integers(9, 18)))
    image.paste(large.resize(image.size, Image.Resampling.LANCZOS))


def _plot(image: Image.Image, rng: Rng) -> None:
    """Axes, a grid, curves and bars."""
    fine = 2 if rng.random() < 0.7 else 1
    paper, ink = _paper_and_ink(rng)
    large = Image.new("RGB", (image.width * fine, image.height * fine), paper)
    draw, (width, height) = ImageDraw.Draw(large), large.size
    left, bottom = fine * int(rng.integers(5, 60)), height - fine * int(rng.integers(5, 50))
    step = fine * int(rng.integers(16, 70))
    if rng.random() < 0.6:
        pale = _colour(rng, 150, 240)
        for x in range(left, width, step):
            draw.line((x, 0, x, bottom), fill=pale, width=fine)
        for y in range(bottom, 0, -step):
            draw.line((left, y, width, y), fill=pale, width=fine)
    for _ in range(int(rng.integers(1, 6))):
        colour, xs = _colour(rng, 0, 220), np.linspace(left, width, int(rng.integers(4, 90)))
        ys = bottom * (0.5 + 0.4 * np.sin(xs / width * rng.uniform(2, 25) + rng.uniform(0, 6)) * rng.random())
        ys = ys + np.cumsum(rng.normal(0, fine * rng.uniform(0, 6), len(xs)))
        if rng.random() < 0.25:
            for x, y in zip(xs, ys, strict=True):
                draw.rectangle((x, min(y, bottom), x + 0.6 * width / len(xs), bottom), fill=colour)
        else:
            draw.line([*zip(xs.tolist(), ys.tolist(), strict=True)], fill=colour, width=fine * int(rng.integers(1, 4)))
    draw.line((left, 0, left, bottom, width, bottom), fill=ink, width=fine * int(rng.integers(1, 3)))
    size = fine * int(rng.integers(9, 15))
    for x in range(left, width, 2 * step):
        draw.text((x, bottom + 4), str(rng.integers(1000)), fill=ink, font=_font(str(rng.choice(FONTS)), size))
    image.paste(large.resize(image.size, Image.Resampling.LANCZOS))


def _line_art(image: Image.Image, rng: Rng) -> None:
    """Curves of a pen, and flat shapes as in a comic."""
    fine = 2
    paper, ink = _paper_and_ink(rng)
    large = Image.new("RGB", (image.width * fine, image.height * fine), paper)
    draw, (width, height) = ImageDraw.Draw(large), large.size
    for _ in range(int(rng.integers(3, 30))):
        ends = rng.uniform(-0.2, 1.2, (4, 2)) * (width, height)
        t = np.linspace(0, 1, 40)[:, None]
        curve = sum(math.comb(3, i) * t**i * (1 - t) ** (3 - i) * ends[i] for i in range(4))
        path = [(float(x), float(y)) for x, y in curve]
        if rng.random() < 0.35:
            draw.polygon(path, fill=_colour(rng))
        draw.line(path, fill=ink, width=int(rng.integers(1, 9)))
    image.paste(large.resize(image.size, Image.Resampling.LANCZOS))


def _gradient(image: Image.Image, rng: Rng) -> None:
    """Smooth colour between four corners, sometimes nearly or entirely flat, with a shape upon it."""
    corners = rng.uniform(0, 255, (2, 2, 3))
    corners = corners.mean((0, 1)) + (corners - corners.mean((0, 1))) * rng.choice([0.0, 0.1, 0.5, 1.0])
    small = Image.fromarray(np.uint8(np.clip(corners, 0, 255)))
    image.paste(small.resize(image.size, Image.Resampling.BICUBIC))
    if rng.random() < 0.6:
        draw = ImageDraw.Draw(image)
        for _ in range(int(rng.integers(1, 8))):
            x, y, w, h = (int(n) for n in rng.integers(4, min(image.size), 4))
            shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
            shape((x, y, x + w, y + h), fill=_colour(rng))


_DRAWERS: tuple[tuple[float, Callable[[Image.Image, Rng], None]], ...] = (
    (0.32, _page), (0.24, _windows), (0.14, _diagram), (0.12, _plot), (0.10, _line_art), (0.08, _gradient),
)  # fmt: skip


def draw_pages(count: int, seed: int, least: int = 0) -> list[torch.Tensor]:
    """``count`` pictures, each uint8 H x W x 3, no side below ``least``; the same seed and libraries draw the same.

    Raises TrainError: no fonts.
    """
    size = max(320, least), max(288, least)
    shares = [share for share, _ in _DRAWERS]
    pages = []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        image = Image.new("RGB", size)
        _DRAWERS[int(rng.choice(len(_DRAWERS), p=shares))][1](image, rng)
        pages.append(torch.from_numpy(np.array(image)))
    return pages

"""24 pictures that are no daylight photographs, drawn by this script: what else people compress.

    python benchmarks/pictures_of_all_kinds.py --photos DIR --output pictures
    ddcm eval --codecs jpeg,webp,avif,trellis --bpp 0.25,0.5,1 pictures --output results

Text, screens, diagrams, plots, line art, flat colour, gradients, icons, night photographs and noise, 256 x 256 but for
the icons. The fonts (DejaVu Serif, Computer Modern's cmss10 and cmtt10, and Pillow's own) are none of those that
`photo` was trained on (ddcm_fast/models/train/pages.py). The two night photographs are those of the folder, darkened.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 256
Size = tuple[int, int]
Colour = tuple[int, int, int]

TEXT = (
    "Denoising diffusion codebook models replace the Gaussian noise of every step of the reverse process by one vector "
    "of a fixed codebook. Which vector is chosen is all that has to be stored: the file is a list of indices. The "
    "larger the codebook, the more a step can say, and the search for the vector whose inner product with the residual "
    "is largest is all that an encoder does beside the network. Numbers such as 4096, 16384 and 65536 are typical. "
) * 4
HEAD: Colour = (33, 115, 70)
ROWS: tuple[Colour, Colour] = ((236, 243, 238), (255, 255, 255))
CODE = '''def search(residual, seed, step, K):
    """The atom nearest to a residual."""
    best, index = -inf, -1
    for k in range(K):
        atom = noise(seed, step, k)
        score = sum(a * r for a, r in zip(atom, residual))
        if score > best:
            best, index = score, k
    return index  # log2(K) bits

class Step:
    t: float = 999.0
    coded: bool = True

for step in schedule(T=16, stop=100):
    x = update(x, search(x0 - x0_hat, 0, step, 1 << 17))
print(f"{8 * len(data) / pixels:.3f} bpp")
'''


def font(name: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if name == "pillow":
        return ImageFont.load_default(size)
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / f"{name}.ttf"), size)


def page(name: str, size: int, paper: Colour, ink: Colour, text: str = TEXT, margin: int = 12) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), paper)
    draw, face, y = ImageDraw.Draw(image), font(name, size), margin
    for paragraph in text.splitlines():
        line = ""
        for word in [*paragraph.split(" "), None]:
            longer = f"{line} {word}" if line else str(word)
            if word is None or draw.textlength(longer, font=face) > SIDE - 2 * margin:
                draw.text((margin, y), line, fill=ink, font=face)
                y += round(1.35 * size)
                longer = str(word)
            line = longer
    return image


def desktop() -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), (0, 99, 140))
    draw, face = ImageDraw.Draw(image), font("pillow", 12)
    for x, y, title in ((14, 20, "Documents"), (90, 96, "Settings")):
        draw.rounded_rectangle((x, y, x + 150, y + 130), 6, fill=(245, 245, 247), outline=(120, 120, 120))
        draw.rounded_rectangle((x, y, x + 150, y + 20), 6, fill=(60, 64, 72))
        draw.text((x + 26, y + 3), title, fill="white", font=face)
        for i, colour in enumerate(((255, 95, 86), (255, 189, 46), (39, 201, 63))):
            draw.ellipse((x + 128 - 9 * i, y + 7, x + 134 - 9 * i, y + 13), fill=colour)
        for i, entry in enumerate(("network.txt", "atoms.bin", "residual.npy", "kodim23.png", "notes")):
            draw.rectangle((x + 8, y + 29 + 19 * i, x + 18, y + 39 + 19 * i), fill=(80, 140 + 20 * i, 230))
            draw.text((x + 24, y + 27 + 19 * i), entry, fill=(20, 20, 20), font=face)
    draw.rectangle((0, 238, SIDE, SIDE), fill=(28, 28, 32))
    draw.text((200, 240), "14:25", fill="white", font=face)
    return image


def spreadsheet() -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw, face, rng = ImageDraw.Draw(image), font("cmss10", 13), np.random.default_rng(1)
    for row, y in enumerate(range(0, SIDE, 18)):
        draw.rectangle((0, y, SIDE, y + 18), fill=HEAD if row == 0 else ROWS[row % 2])
        for column, x in enumerate(range(0, SIDE, 52)):
            text = ("K", "bpp", "PSNR", "s", "MB")[column] if row == 0 else f"{rng.uniform(0, 10 ** (column + 1)):.2f}"
            draw.text((x + 4, y + 2), text, fill="white" if row == 0 else "black", font=face)
            draw.line((x, 0, x, SIDE), fill=(200, 200, 200))
    return image


def dialog() -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), (205, 208, 214))
    draw, face = ImageDraw.Draw(image), font("DejaVuSerif", 12)
    draw.rounded_rectangle((18, 40, 238, 210), 12, fill="white", outline=(160, 160, 160))
    draw.ellipse((34, 58, 66, 90), fill=(255, 176, 0))
    draw.text((46, 64), "!", fill="white", font=font("DejaVuSerif", 18))
    for i, line in enumerate(("The file exists.", "Replace it with the", "picture of 24 kB?")):
        draw.text((82, 60 + 18 * i), line, fill="black", font=face)
    for x, label, fill, ink in ((40, "Cancel", (232, 232, 232), "black"), (140, "Replace", (20, 110, 240), "white")):
        draw.rounded_rectangle((x, 160, x + 80, 190), 8, fill=fill)
        draw.text((x + 16, 166), label, fill=ink, font=face)
    return image


def flow_chart() -> Image.Image:
    image = Image.new("RGB", (2 * SIDE, 2 * SIDE), "white")
    draw, face = ImageDraw.Draw(image), font("cmss10", 28)
    boxes = ((40, 30, "seed", (255, 230, 180)), (290, 30, "noise", (190, 225, 255)))
    boxes = (*boxes, (40, 210, "image", (210, 245, 210)), (290, 210, "search", (255, 205, 205)))
    boxes = (*boxes, (165, 390, "file", (230, 215, 255)))
    for x0, y0, x1, y1 in ((220, 75, 290, 75), (380, 120, 380, 210), (220, 255, 290, 255), (380, 300, 300, 390)):
        draw.line((x0, y0, x1, y1), fill="black", width=4)
        draw.ellipse((x1 - 7, y1 - 7, x1 + 7, y1 + 7), fill="black")
    for x, y, label, fill in boxes:
        draw.rounded_rectangle((x, y, x + 180, y + 90), 14, fill=fill, outline="black", width=4)
        draw.text((x + 46, y + 24), label, fill="black", font=face)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def chart(bars: bool) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.56, 2.56), dpi=100, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    x = np.linspace(0.05, 1, 40)
    with matplotlib.rc_context({"font.family": "DejaVu Serif", "font.size": 8}):
        if bars:
            axes.bar(["JPEG", "WebP", "AVIF", "ours"], [31.2, 33.0, 34.4, 34.1], color=["C0", "C1", "C2", "C3"])
            axes.set_ylim(28, 36)
        else:
            for rate, label in ((3.1, "K = 16"), (3.9, "K = 4096"), (4.6, "K = 65536")):
                axes.plot(x, 20 + rate * np.log2(1 + 12 * x), label=label)
            axes.legend()
            axes.grid(alpha=0.4)
        axes.set_ylabel("PSNR [dB]")
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def spiral() -> Image.Image:
    image = Image.new("RGB", (2 * SIDE, 2 * SIDE), "white")
    angle = np.linspace(0, 26 * math.pi, 4000)
    path = 256 + (2.8 * angle)[:, None] * np.stack((np.cos(angle), np.sin(1.02 * angle)), 1)
    ImageDraw.Draw(image).line([(float(x), float(y)) for x, y in path], fill="black", width=3)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def comic() -> Image.Image:
    image = Image.new("RGB", (2 * SIDE, 2 * SIDE), (255, 222, 89))
    draw = ImageDraw.Draw(image)
    draw.ellipse((90, 90, 420, 420), fill=(255, 190, 150), outline="black", width=7)
    for x in (180, 330):
        draw.ellipse((x - 36, 190, x + 36, 262), fill="white", outline="black", width=6)
        draw.ellipse((x - 12, 214, x + 12, 238), fill="black")
    draw.arc((160, 250, 350, 370), 20, 160, fill=(170, 20, 30), width=12)
    draw.polygon([(90, 200), (130, 60), (220, 120), (300, 40), (420, 180), (330, 110), (240, 150)], fill=(90, 50, 20))
    draw.rounded_rectangle((300, 20, 500, 90), 24, fill="white", outline="black", width=5)
    draw.text((330, 34), "eureka!", fill="black", font=font("pillow", 36))
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def hilbert() -> Image.Image:
    """A curve of one pixel: the hardest line art there is."""
    image, points = Image.new("RGB", (SIDE, SIDE), "white"), []
    for index in range(32 * 32):
        x = y = 0
        rest, side = index, 1
        while side < 32:
            right = 1 & (rest // 2)
            up = 1 & (rest ^ right)
            if up == 0:
                if right == 1:
                    x, y = side - 1 - x, side - 1 - y
                x, y = y, x
            x, y, rest, side = x + side * right, y + side * up, rest // 4, side * 2
        points.append((4 + 8 * x, 4 + 8 * y))
    ImageDraw.Draw(image).line(points, fill=(40, 0, 120))
    return image


def planes(make: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]]) -> Image.Image:
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    channels = [np.broadcast_to(channel, x.shape) for channel in make(x, y)]
    return Image.fromarray(np.uint8(np.clip(np.stack(channels, -1), 0, 1) * 255 + 0.5))


def icon(side: int, kind: str) -> Image.Image:
    image = Image.new("RGB", (4 * side, 4 * side), "white")
    draw, u = ImageDraw.Draw(image), side / 8
    if kind == "disk":
        draw.rounded_rectangle((2 * u, 2 * u, 30 * u, 30 * u), 3 * u, fill=(60, 110, 200))
        draw.rectangle((9 * u, 2 * u, 23 * u, 12 * u), fill=(220, 220, 225))
        draw.rectangle((8 * u, 17 * u, 24 * u, 30 * u), fill="white")
    else:
        draw.ellipse((3 * u, 3 * u, 22 * u, 22 * u), fill=(200, 230, 255), outline=(40, 40, 40), width=round(3 * u))
        draw.line((20 * u, 20 * u, 29 * u, 29 * u), fill=(150, 90, 30), width=round(4 * u))
    return image.resize((side, side), Image.Resampling.BOX)


def night(photo: Image.Image, light: float, seed: int) -> Image.Image:
    """The centre of a photograph in little light: darker, with the noise of few photons."""
    left, top = (photo.width - SIDE) // 2, (photo.height - SIDE) // 2
    linear = (np.asarray(photo.convert("RGB").crop((left, top, left + SIDE, top + SIDE))) / 255) ** 2.2 * light
    rng = np.random.default_rng(seed)
    photons = rng.poisson(linear * 2000) / 2000 + rng.normal(0, 0.0015, linear.shape)
    return Image.fromarray(np.uint8(np.clip(photons, 0, 1) ** (1 / 2.2) * 255 + 0.5))


def pictures(photos: list[Image.Image]) -> dict[str, Image.Image]:
    rng = np.random.default_rng(0)
    noise, speckle = rng.normal(0.5, 0.2, (SIDE, SIDE)), rng.random((SIDE, SIDE, 3))
    return {
        "text-serif": page("DejaVuSerif", 11, (255, 255, 255), (0, 0, 0)),
        "text-typewriter": page("cmtt10", 14, (250, 244, 230), (60, 40, 20)),
        "text-large": page("pillow", 26, (255, 255, 255), (20, 20, 20)),
        "text-code": page("cmtt10", 10, (30, 30, 38), (210, 210, 220), CODE, 6),
        "screen-desktop": desktop(),
        "screen-table": spreadsheet(),
        "screen-dialog": dialog(),
        "diagram-boxes": flow_chart(),
        "diagram-curves": chart(False),
        "diagram-bars": chart(True),
        "line-spiral": spiral(),
        "line-comic": comic(),
        "line-hilbert": hilbert(),
        "flat-red": planes(lambda x, y: (np.array(0.8), np.array(0.1), np.array(0.15))),
        "flat-halves": planes(lambda x, y: (1.0 * (x > y),) * 3),
        "gradient-linear": planes(lambda x, y: (x, 0.3 + 0.4 * y, 1 - x)),
        "gradient-radial": planes(lambda x, y: (1 - np.hypot(x - 0.5, y - 0.5), 0.5 + 0.3 * y, 0.2 + 0.5 * x * y)),
        "icon-disk-32": icon(32, "disk"),
        "icon-lens-48": icon(48, "lens"),
        "icon-disk-64": icon(64, "disk"),
        "night-city": night(photos[0], 0.06, 1),
        "night-room": night(photos[1], 0.03, 2),
        "noise-grey": Image.fromarray(np.uint8(np.clip(noise, 0, 1) * 255)).convert("RGB"),
        "noise-colour": Image.fromarray(np.uint8(speckle * 255)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder with two photographs or more for the night")
    parser.add_argument("--output", type=Path, required=True, help="folder to write PNG files to")
    args = parser.parse_args()
    found = sorted(args.photos.glob("*.png"))[:2]
    if len(found) < 2:
        parser.error(f"{args.photos} holds {len(found)} PNG files; two are needed")
    args.output.mkdir(parents=True, exist_ok=True)
    for name, image in pictures([Image.open(path) for path in found]).items():
        image.save(args.output / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

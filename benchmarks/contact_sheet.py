"""The same photographs through JPEG, DDCM, Turbo-DDCM and `product` at equal size, as one picture to look at.

    python benchmarks/contact_sheet.py --images DIR --pick kodim09 kodim15 kodim23 --output docs/comparison.png

Every column but the first is at most the bitrate on the left. DDCM is its matching pursuit with ten times the network
evaluations of the others and K = 4096 atoms; M atoms a step set its rate.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from photographs import centre_crops
from PIL import Image, ImageDraw, ImageFont

from ddcm_fast import Codec, load_model, preset
from ddcm_fast.codec.images import psnr, to_tensor
from ddcm_fast.files import picture, write

#: Bitrate -> atoms a step of DDCM's matching pursuit whose 280 steps stay below it.
RATES = {0.25: 4, 0.5: 8}
UNIFORM_STEPS = 280
MARGIN, CAPTION = 6, 34

Cell = tuple[str, Image.Image]


def caption(name: str, original: Image.Image, decoded: Image.Image, size: int) -> str:
    """Two lines: what it is, bits a pixel and PSNR."""
    quality = psnr(to_tensor(original), to_tensor(decoded))
    return f"{name}\n{8 * size / (original.width * original.height):.3f} bpp, {quality:.2f} dB"


def jpeg_at_most(image: Image.Image, size: int) -> Cell:
    """The best JPEG of at most `size` bytes, or the smallest there is."""
    best = None
    for quality in range(1, 96):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        if best is None or len(buffer.getvalue()) <= size:
            best = buffer
    assert best is not None
    decoded = Image.open(best).convert("RGB")
    return caption("JPEG", image, decoded, len(best.getvalue())), decoded


def row(codecs: dict[str, Codec], pursuit: Codec, crop: Image.Image, bpp: float) -> list[Cell]:
    """Original, JPEG, DDCM and the presets at one bitrate."""
    size = int(bpp * crop.width * crop.height / 8)
    cells = [(f"original\nto its right: at most {bpp:g} bpp", crop), jpeg_at_most(crop, size)]
    coded = {"DDCM (pursuit, T=280)": pursuit.encode(crop)[0]}
    coded |= {name: codec.encode(crop, bpp=bpp)[0] for name, codec in codecs.items()}
    cells += [(caption(name, crop, one.image, len(one.data)), one.image) for name, one in coded.items()]
    return cells


def sheet(rows: list[list[Cell]]) -> Image.Image:
    """Cells of one size, captions below the pictures."""
    width, height = rows[0][0][1].size
    step_x, step_y = width + MARGIN, height + CAPTION + MARGIN
    page = Image.new("RGB", (step_x * len(rows[0]) + MARGIN, step_y * len(rows) + MARGIN), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for y, cells in enumerate(rows):
        for x, (text, cell) in enumerate(cells):
            left, top = MARGIN + x * step_x, MARGIN + y * step_y
            page.paste(cell, (left, top))
            draw.multiline_text((left + 2, top + height + 2), text, fill="black", font=font, spacing=1)
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--pick", nargs="+", help="names, without the ending, of those to show (default: all)")
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")
    parser.add_argument("--crop", type=int, default=256, help="side of the centre crop (default: 256)")
    args = parser.parse_args()
    model = load_model("photo")
    codecs = {name: Codec(model, preset(name, T=20, tail=1)) for name in ("turbo", "product")}
    rows = []
    for name, crop in centre_crops(args.images, args.crop):
        if args.pick and name not in args.pick:
            continue
        for bpp, atoms in RATES.items():
            pursuit = Codec(model, preset("pursuit", K=4096, M=atoms, C=3, T=UNIFORM_STEPS))
            rows.append(row(codecs, pursuit, crop, bpp))
            print(name, bpp, [text.replace("\n", " ") for text, _ in rows[-1]], flush=True)
            whole = io.BytesIO()
            sheet(rows).save(whole, "PNG", optimize=True)
            write(args.output, whole.getvalue(), picture("PNG"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

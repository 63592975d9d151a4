"""The same photographs through JPEG, DDCM, Turbo-DDCM and `product` at equal size, as one picture to look at.

    python benchmarks/contact_sheet.py --images DIR --pick kodim09 kodim15 kodim23 --output docs/comparison.png

Every column but the first is at most the bitrate on the left. DDCM is its matching pursuit with ten times the network
evaluations of the others and K = 4096 atoms; M atoms a step set its rate.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from photographs import add_options, items, work

from ddcm_fast import load_model
from ddcm_fast.evaluation import report
from ddcm_fast.evaluation.codecs import make
from ddcm_fast.evaluation.metrics import Pairs
from ddcm_fast.evaluation.run import evaluate, original
from ddcm_fast.files import picture, write

#: Bitrate -> atoms a step of DDCM's matching pursuit whose 280 steps stay below it.
RATES = {0.25: 4, 0.5: 8}
PURSUIT = "pursuit:K=4096:M={}:C=3:T=280"
PRESETS = ("turbo", "product")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--pick", nargs="+", help="names, without the ending, of those to show (default: all)")
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")
    args = parser.parse_args()
    model, folder = load_model(args.model), work(args)
    images = [item for item in items(args.images) if not args.pick or item.name in args.pick]
    rows, titles = [], {"jpeg": "JPEG"} | {f"{name}:T=20:tail=1": name for name in PRESETS}
    for bpp, atoms in RATES.items():
        ours = {PURSUIT.format(atoms): "DDCM (pursuit, T=280)"}
        titles |= ours
        codecs = [make(text, model) for text in ("jpeg", *ours, *(f"{name}:T=20:tail=1" for name in PRESETS))]
        rows += evaluate(images, codecs, [bpp], Pairs(["psnr"]), folder, args.crop)
    lines: dict[tuple[str, float], list[report.Cell]] = {}
    for item in images:
        crop = original(item.read(), args.crop)
        lines |= {(item.name, bpp): [(f"original\nto its right: at most {bpp:g} bpp", crop)] for bpp in RATES}
    for row in report.whole(rows):
        lines[row["image"], row["rate"]].append(report.cell(row, folder, titles[row["codec"]]))
    write(args.output, report.page(list(lines.values())), picture("PNG"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

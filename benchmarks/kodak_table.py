"""Bits and PSNR of DDCM's rules on photographs, with JPEG's smallest files beside them: a call of `ddcm eval`'s parts.

    python benchmarks/kodak_table.py --images DIR --output benchmarks/results/kodak-table.json

Each image's centre crop is compressed with K in {16, 256, 4096} and two pursuit settings, and decompressed. The number
of steps is the same for all, so a file is as long as its settings make it. JPEG is asked for RATE bits a pixel, which
for most photographs is less than its lowest quality takes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from photographs import add_options, items, record, work

from ddcm_fast import load_model
from ddcm_fast.evaluation import report
from ddcm_fast.evaluation.codecs import make
from ddcm_fast.evaluation.metrics import Pairs
from ddcm_fast.evaluation.run import evaluate
from ddcm_fast.files import write_json

CODECS = ("ddcm:K=16", "ddcm:K=256", "ddcm:K=4096", "pursuit:K=1024:M=4:C=3", "pursuit:K=4096:M=12:C=3")
RATE = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument("-T", type=int, default=50, help="steps (default: 50)")
    args = parser.parse_args()
    model = load_model(args.model)
    codecs = [*(make(f"{text}:T={args.T}", model) for text in CODECS), make("jpeg")]
    rows = evaluate(items(args.images), codecs, [RATE], Pairs(["psnr"]), work(args), args.crop)
    points = report.means(rows, ["psnr"])
    write_json(args.output, record(args, model) | {"means": points, "rows": rows}, 1)
    for p in points:
        print(f"{p['codec']:30} {p['bpp']:.4f} bpp {p['psnr']:6.2f} dB {p['encode_seconds']:5.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Rate-distortion of presets on photographs, beside JPEG, WebP and AVIF: `ddcm eval` with DDCM's own rules added.

    python benchmarks/rd.py --images DIR --output benchmarks/results/rd.json --plot benchmarks/results/rd.png

All presets take the same steps, but for turbo-paper and diffc-paper, which have those of their papers. DDCM's own rules
take --uniform-steps evenly spaced steps, by default ten times the others' network evaluations, and M atoms a step,
which set their rates: in the results these are four points of one codec, with M in the place of a rate.

Rows go to --work as they come, and what is there is not measured again. Files are decoded, and rates are those of whole
files. BD-rates and means are those of `ddcm_fast.evaluation`; processor seconds are the encoder's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from photographs import add_options, items, record, work

from ddcm_fast import load_model
from ddcm_fast.codebook.law import KINDS
from ddcm_fast.evaluation import report
from ddcm_fast.evaluation.codecs import make
from ddcm_fast.evaluation.metrics import Pairs
from ddcm_fast.evaluation.run import evaluate
from ddcm_fast.files import picture, write, write_json

#: Atoms a step of DDCM's rules; one is the plain argmax.
UNIFORM_ATOMS = (1, 2, 4, 8)
#: Rates of the classical codecs, which have no files at the presets' lowest: more, for curves that overlap enough.
CLASSICAL_BPP = [0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 1.0]
METRICS = ("psnr", "ms-ssim")


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    parser.add_argument("--classical", nargs="*", default=["jpeg", "webp", "avif"])
    parser.add_argument("--classical-bpp", nargs="+", type=float, default=CLASSICAL_BPP)
    parser.add_argument("--presets", nargs="*", default=["product", "trellis", "turbo", "turbo-hadamard", "diffc"])
    parser.add_argument("--bpp", nargs="+", type=float, default=[0.05, 0.1, 0.2, 0.35, 0.5])
    parser.add_argument("-T", type=int, default=20, help="coded steps of the presets (default: 20)")
    parser.add_argument("--tail", type=int, default=1, help="steps after them (default: 1)")
    parser.add_argument("--kind", choices=KINDS, help="of all codebooks, instead of the presets' own")
    parser.add_argument("--uniform-steps", type=int, default=280, help="steps of DDCM's rules; 0: leave them out")
    parser.add_argument("--uniform-K", type=int, default=8192, help="their atoms in the codebook (default: 8192)")
    parser.add_argument("--count", type=int, help="only the first images")
    args = parser.parse_args()

    model = load_model(args.model)
    kind = f":kind={args.kind}" if args.kind else ""
    names = [n + kind if n.endswith("-paper") else f"{n}:T={args.T}:tail={args.tail}{kind}" for n in args.presets]
    images, folder, measure = items(args.images)[: args.count], work(args), Pairs(list(METRICS))
    rows = []
    for group, rates in ((args.classical, args.classical_bpp), (names, args.bpp)):
        rows += evaluate(images, [make(name, model) for name in group], rates, measure, folder, args.crop)
    for atoms in UNIFORM_ATOMS if args.uniform_steps else ():
        settings = f"K={args.uniform_K}:T={args.uniform_steps}"
        codec = make(f"pursuit:{settings}:M={atoms}:C=3" if atoms > 1 else f"ddcm:{settings}", model)
        own = evaluate(images, [codec], [24.0], measure, folder, args.crop)
        rows += [row | {"codec": f"ddcm:{settings}", "rate": atoms} for row in own]
    points = report.means(rows, METRICS)
    results = {"bd_rate_percent": report.bd_rates(points), "means": points, "rows": rows}
    write_json(args.output, record(args, model) | results, 1)
    for p in points:
        print(f"{p['codec']:24} {p['rate']:<6g} {p['bpp']:.4f} bpp {p['psnr']:6.2f} dB over {p['images']} images")
    for name, against in results["bd_rate_percent"].items():
        print(name, "BD-rate against", {anchor: round(value, 1) for anchor, value in against.items()})
    if args.plot:
        write(args.plot, report.curves(points, [*METRICS, "encode_cpu_seconds"]), picture("PNG"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The figures of docs/how-it-works.md, and the numbers in them.

A picture in prefixes of its file, what an argmax finds, and how the steps of a file share the bits.

    python benchmarks/how_it_works.py --output benchmarks/results/how_it_works.json

The photograph is scikit-image's astronaut (NASA, public domain), its centre crop of 256x256. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import io
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from PIL import Image
from skimage import data

from ddcm_fast import Codebook, Codec, load_model
from ddcm_fast.codec.container import read
from ddcm_fast.codec.images import psnr, to_tensor
from ddcm_fast.codec.job import make_job
from ddcm_fast.evaluation.report import Cell, caption, page
from ddcm_fast.files import picture, write, write_json

PARTS = (0.05, 0.15, 0.4, 1.0)
SIZES = tuple(1 << bits for bits in range(2, 21, 2))
#: Entries of the residual that is searched for, and how many are searched.
DIM, RESIDUALS = 4096, 64


def photograph() -> Image.Image:
    """The centre of the astronaut, 256x256 RGB."""
    return Image.fromarray(data.astronaut()).crop((96, 0, 352, 256))


def refine(codec: Codec, image: Image.Image, coded: bytes) -> tuple[list[Cell], list[dict[str, Any]]]:
    """Prefixes of a file, decoded, and the original."""
    cells, rows = [], []
    for part in PARTS:
        decoded = codec.decompress(coded, first=part)
        size = math.ceil(part * len(coded))
        bpp, quality = 8 * size / (image.width * image.height), psnr(to_tensor(image), to_tensor(decoded))
        text = caption(f"the first {size} bytes", bpp, quality)
        cells.append((text, decoded))
        rows.append({"first": part, "bytes": size, "caption": text})
    return [*cells, ("the original", image)], rows


def correlations() -> list[dict[str, float]]:
    """The correlation of the best of K atoms with a residual, in the mean, and what extreme values promise."""
    residual = torch.randn(RESIDUALS, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    rows = []
    for size in SIZES:
        score = Codebook("sign", DIM, size, signed=True).search(residual, step=0)[2]
        found = (score[:, 0] / (residual.norm(dim=1) * math.sqrt(DIM))).mean().item()
        promised = round(math.sqrt(2 * math.log(2 * size) / DIM), 5)
        rows.append({"K": size, "correlation": round(found, 5), "asymptote": promised})
    return rows


def shares(codec: Codec, coded: bytes) -> list[dict[str, float]]:
    """The coded steps of a file: where each begins, and its bits."""
    header, payload = read(coded)
    job = make_job(codec.model, header.config, header.height, header.width, "auto", codec.limits)
    total = sum(step.atoms for step in job.coded)
    return [
        {"t": round(step.t, 1), "atoms": step.atoms, "bits": round(8 * len(payload) * step.atoms / total, 1)}
        for step in job.coded
    ]


def plots(found: list[dict[str, float]], steps: list[dict[str, float]]) -> bytes:
    """What an argmax finds, and the bits of each step, side by side."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), dpi=110, layout="constrained")
    sizes = [row["K"] for row in found]
    left.semilogx(sizes, [row["correlation"] for row in found], "o-", base=2, label="found, kind sign")
    left.semilogx(sizes, [row["asymptote"] for row in found], "--", base=2, label=r"$\sqrt{2\,\ln(2K) / n}$")
    left.set(xlabel="K, signed atoms", ylabel="correlation with the residual", title=f"The best of K, n = {DIM}")
    left.set_ylim(0)
    left.legend(frameon=False)
    right.bar(range(len(steps)), [row["bits"] for row in steps])
    ticks = range(0, len(steps), 3)
    right.set_xticks(ticks, [f"{steps[tick]['t']:.0f}" for tick in ticks])
    right.set(xlabel="t at which the step begins", ylabel="bits", title="The bits of a file's steps")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON with the numbers")
    parser.add_argument("--figures", type=Path, default=Path("docs"), help="folder of the pictures (default: docs)")
    args = parser.parse_args()
    codec, image = Codec(load_model("photo")), photograph()
    coded = codec.compress(image, bpp=0.25)
    cells, prefixes = refine(codec, image, coded)
    found, steps = correlations(), shares(codec, coded)
    write(args.figures / "how-refines.png", page([cells]), picture("PNG"))
    write(args.figures / "how-bits.png", plots(found, steps), picture("PNG"))
    command = shlex.join(["python", *sys.argv])
    write_json(args.output, {"command": command, "prefixes": prefixes, "correlations": found, "steps": steps})
    return 0


if __name__ == "__main__":
    sys.exit(main())

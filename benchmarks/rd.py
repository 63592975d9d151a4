"""Rate-distortion of presets on photographs, with JPEG beside them.

    python benchmarks/rd.py --images DIR --output benchmarks/results/rd.json

Each preset compresses every image's centre crop at each bitrate (whole file, header included). JPEG is Pillow's with
optimised Huffman tables, at the quality whose file is nearest in size. BD-rate is Bjontegaard's, from cubic fits of the
logarithm of the mean bpp over the mean PSNR, where there are four points or more.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from kodak_table import jpeg_near, processor

from ddcm_fast import Codec, backends, container, load_model, preset
from ddcm_fast.images import load_image, psnr, to_tensor


def bd_rate(anchor: list[tuple[float, float]], test: list[tuple[float, float]]) -> float | None:
    """Percent of bits saved (negative) by `test` against `anchor`, each (bpp, PSNR); None without an overlap."""
    if min(len(anchor), len(test)) < 4:
        return None
    low = max(min(q for _, q in anchor), min(q for _, q in test))
    high = min(max(q for _, q in anchor), max(q for _, q in test))
    if high <= low:
        return None
    areas = []
    for curve in (anchor, test):
        fit = np.polyint(np.polyfit([q for _, q in curve], [np.log(r) for r, _ in curve], 3))
        areas.append(np.polyval(fit, high) - np.polyval(fit, low))
    return float(100 * (np.exp((areas[1] - areas[0]) / (high - low)) - 1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument("--model", default="photo", help="model (default: photo)")
    parser.add_argument("--presets", nargs="+", default=["product", "trellis", "turbo"])
    parser.add_argument("--bpp", nargs="+", type=float, default=[0.1, 0.2, 0.35, 0.5])
    parser.add_argument("--crop", type=int, default=256, help="side of the centre crop (default: 256)")
    parser.add_argument("--count", type=int, help="only the first images")
    parser.add_argument("-T", type=int, help="coded steps of every preset (default: the preset's own)")
    parser.add_argument("--tail", type=int, help="steps after them (default: the preset's own)")
    args = parser.parse_args()
    model = load_model(args.model)
    crops = []
    for path in sorted(args.images.iterdir())[: args.count]:
        image = load_image(path).convert("RGB")
        left, top = (image.width - args.crop) // 2, (image.height - args.crop) // 2
        crops.append(image.crop((left, top, left + args.crop, top + args.crop)))
    points = []
    curves: dict[str, list[tuple[float, float]]] = {}
    for bpp in args.bpp:
        for name in args.presets:
            codec = Codec(model, preset(name, T=args.T, tail=args.tail))
            rows = []
            for crop in crops:
                start = time.perf_counter()
                coded = codec.encode(crop, bpp=bpp)[0]
                seconds = time.perf_counter() - start
                used = container.read(coded.data)[0].config
                quality = psnr(to_tensor(crop)[0], coded.reconstruction.cpu())
                jpeg_bytes, jpeg_psnr = jpeg_near(crop, len(coded.data))
                rows.append((coded.bpp, quality, seconds, used.T + used.tail, 8 * jpeg_bytes / args.crop**2, jpeg_psnr))
            keys = ("bpp", "psnr", "encode_seconds", "evaluations", "jpeg_bpp", "jpeg_psnr")
            mean = dict(zip(keys, np.mean(rows, axis=0).tolist(), strict=True))
            points.append({"preset": name, **mean, "per_image": [dict(zip(keys, row, strict=True)) for row in rows]})
            curves.setdefault(name, []).append((mean["bpp"], mean["psnr"]))
            print(
                f"{name:14} {mean['bpp']:.4f} bpp {mean['psnr']:6.2f} dB {mean['encode_seconds']:5.1f} s   "
                f"JPEG {mean['jpeg_bpp']:.4f} bpp {mean['jpeg_psnr']:6.2f} dB",
                flush=True,
            )
            against = {name: bd_rate(curves["turbo"], curve) for name, curve in curves.items() if "turbo" in curves}
            record = {
                "command": " ".join(["python", "benchmarks/rd.py", *sys.argv[1:]]).replace(str(args.images), "DIR"),
                "machine": f"{processor()}, {torch.get_num_threads()} threads",
                "torch": torch.__version__,
                "backend": backends.resolve("auto", model.device),
                "model": f"{model.name} ({model.fingerprint().hex()}), {model.dtype}",
                "images": len(crops),
                "crop": args.crop,
                "bd_rate_percent_against_turbo": against,
                "points": points,
            }
            args.output.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

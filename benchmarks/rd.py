"""Rate-distortion of every preset on photographs, beside JPEG, WebP and, where Pillow has it, AVIF.

    python benchmarks/rd.py --images DIR --output benchmarks/results/rd.json --plot benchmarks/results/rd.png

The presets with rate control compress every image's centre crop at each --bpp, all with the same steps but for
turbo-paper and diffc-paper, which have those of their papers. DDCM's own rules take --uniform-steps evenly spaced
steps, by default ten times the others' network evaluations, and reach their rates with M atoms a step. Rates are those
of whole files, headers included. The classical codecs run through their qualities.

Measured for every file: bits a pixel, PSNR, MS-SSIM (torchmetrics), seconds and processor seconds to encode, network
evaluations (those of the rate control included), and the efficiency: the information of the steps taken,
sum |x0 - x0_hat|^2 (SNR_s - SNR_t) / (2 ln 2) over the coded steps, which DiffC would need at best, over the bits
spent. Far above 1 it says that steps ask for more than is spent on them, as DDCM's last ones do.

Results are kept image by image: run again with the same --output, and what is there already is not measured again.
BD-rate is Bjontegaard's, from cubic fits of the logarithm of the mean bpp over the mean PSNR, over the images both
have.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from photographs import centre_crops, processor
from PIL import Image, features
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from ddcm_fast import Codec, load_model, preset
from ddcm_fast.codebook import backends
from ddcm_fast.codebook.law import KINDS
from ddcm_fast.codec import container
from ddcm_fast.codec.images import psnr, to_tensor
from ddcm_fast.files import picture, write, write_json
from ddcm_fast.sampling.model import DiffusionModel

#: Pillow format -> settings of its files and the qualities tried.
CLASSICAL: dict[str, tuple[dict[str, Any], list[int]]] = {
    "JPEG": ({"optimize": True}, [1, 5, 8, 11, 15, 20, 27, 35, 45, 60, 75]),
    "WebP": ({"method": 6}, [0, 2, 5, 10, 18, 30, 45, 60, 75, 85]),
    "AVIF": ({"speed": 4}, [5, 12, 20, 28, 36, 44, 52, 60, 70]),
}
#: Atoms a step of DDCM's rules; one is the plain argmax.
UNIFORM_ATOMS = (1, 2, 4, 8)

Row = dict[str, Any]


class Meter:
    """Counts a model's evaluations and the error of each x0_hat, without changing anything."""

    def __init__(self, model: DiffusionModel) -> None:
        self.target: Tensor | None = None
        self.squares: list[float] = []
        predict = model.predict

        def counted(x: Tensor, t: float, condition: Any = None) -> tuple[Tensor, Tensor]:
            x0_hat, eps_hat = predict(x, t, condition)
            assert self.target is not None
            self.squares.append(float((self.target - x0_hat).double().square().sum()))
            return x0_hat, eps_hat

        model.predict = counted  # type: ignore[method-assign]


def ms_ssim(a: Tensor, b: Tensor) -> float:
    """Of images (C, H, W) in [-1, 1]."""
    return float(multiscale_structural_similarity_index_measure(a[None], b[None].cpu(), data_range=2.0))


def measure(codec: Codec, meter: Meter, crop: Image.Image, bpp: float | None) -> Row:
    """Encode one image and measure everything."""
    x0 = to_tensor(crop)
    meter.target, meter.squares = codec.model.encode(x0.to(codec.model.device)), []
    start, cpu = time.perf_counter(), time.process_time()
    coded = codec.encode(crop, bpp=bpp)[0]
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    steps = container.read(coded.data)[0].config.steps(codec.model)
    squares = meter.squares[len(meter.squares) - len(steps) :]  # rate control's own evaluations come before
    ideal = sum(
        square * step.snr_gain / (2 * math.log(2))
        for square, step in zip(squares, steps, strict=True)
        if step.coded and math.isfinite(step.snr_gain)
    )
    return {
        "bpp": coded.bpp,
        "psnr": psnr(x0[0], coded.reconstruction.cpu()),
        "ms_ssim": ms_ssim(x0[0], coded.reconstruction),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "evaluations": len(meter.squares),
        "efficiency": ideal / (8 * len(coded.data)),
    }


def classical(name: str, quality: int, crop: Image.Image) -> Row:
    """One file of one of Pillow's codecs."""
    buffer = io.BytesIO()
    start = time.perf_counter()
    crop.save(buffer, name, quality=quality, **CLASSICAL[name][0])
    seconds = time.perf_counter() - start
    x0, decoded = to_tensor(crop)[0], to_tensor(Image.open(buffer).convert("RGB"))[0]
    bpp = 8 * len(buffer.getvalue()) / (crop.width * crop.height)
    return {"bpp": bpp, "psnr": psnr(x0, decoded), "ms_ssim": ms_ssim(x0, decoded), "seconds": seconds}


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


def means(rows: list[Row], system: str, images: set[str]) -> list[Row]:
    """A system's points, each the mean over some images that have them all, by bitrate."""
    points: dict[str, list[Row]] = {}
    for row in rows:
        if row["system"] == system and row["image"] in images:
            points.setdefault(row["setting"], []).append(row)
    out = []
    for setting, group in points.items():
        keys = [key for key, value in group[0].items() if isinstance(value, (int, float))]
        out.append({"setting": setting, **{key: float(np.mean([row[key] for row in group])) for key in keys}})
    return sorted(out, key=lambda point: point["bpp"])


def complete(rows: list[Row], system: str) -> set[str]:
    """Images for which every setting of a system has been measured."""
    mine = [row for row in rows if row["system"] == system]
    settings = {row["setting"] for row in mine}
    count = {image: sum(row["image"] == image for row in mine) for image in {row["image"] for row in mine}}
    return {image for image, n in count.items() if n == len(settings)}


def summarise(rows: list[Row]) -> dict[str, Any]:
    """Mean points of every system and BD-rates between them."""
    systems = list(dict.fromkeys(row["system"] for row in rows))
    images = {system: complete(rows, system) for system in systems}
    curves = {system: means(rows, system, images[system]) for system in systems}
    rates: dict[str, dict[str, float | None]] = {}
    for system in systems:
        for anchor in systems:
            both = images[system] & images[anchor]
            if system != anchor and both:
                pair = [[(p["bpp"], p["psnr"]) for p in means(rows, name, both)] for name in (anchor, system)]
                rates.setdefault(system, {})[anchor] = bd_rate(*pair)
    return {
        "images": {system: len(images[system]) for system in systems},
        "bd_rate_percent": rates,
        "means": curves,
    }


def plot(summary: dict[str, Any], path: Path) -> None:
    """PSNR, MS-SSIM, processor seconds and efficiency against bpp."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(12, 9), layout="constrained")
    panels = (
        ("psnr", "PSNR (dB)"),
        ("ms_ssim", "MS-SSIM"),
        ("cpu_seconds", "processor seconds to encode"),
        ("efficiency", "information of the steps / bits spent"),
    )
    for axis, (key, label) in zip(axes.flat, panels, strict=True):
        for number, (system, points) in enumerate(summary["means"].items()):
            known = [point for point in points if key in point]
            if known:
                x, y = [p["bpp"] for p in known], [p[key] for p in known]
                line = "--" if system in CLASSICAL else "-"
                axis.plot(x, y, f"C{number}{line}", marker=".", label=system)
        axis.set(xlabel="bits a pixel", ylabel=label, xlim=(0, 0.75))
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylim(17, 32)
    axes[0, 1].set_ylim(0.5, 1)
    axes[1, 0].set_yscale("log")
    axes[1, 1].set_ylim(0.5, 3)  # DDCM's uniform steps ask for thousands of times what is spent on their last ones
    axes[0, 0].legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    write(path, image.getvalue(), picture("PNG"))


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write, or to go on with")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    parser.add_argument("--model", default="photo", help="model (default: photo)")
    parser.add_argument("--presets", nargs="*", default=["product", "trellis", "turbo", "turbo-hadamard", "diffc"])
    parser.add_argument("--bpp", nargs="+", type=float, default=[0.05, 0.1, 0.2, 0.35, 0.5])
    parser.add_argument("-T", type=int, default=20, help="coded steps of the presets (default: 20)")
    parser.add_argument("--tail", type=int, default=1, help="steps after them (default: 1)")
    parser.add_argument("--kind", choices=KINDS, help="of all codebooks, instead of the presets' own")
    parser.add_argument("--uniform-steps", type=int, default=280, help="steps of DDCM's rules; 0: leave them out")
    parser.add_argument("--uniform-K", type=int, default=8192, help="their atoms in the codebook (default: 8192)")
    parser.add_argument("--crop", type=int, default=256, help="side of the centre crop (default: 256)")
    parser.add_argument("--count", type=int, help="only the first images")
    args = parser.parse_args()

    model = load_model(args.model)
    jobs: list[tuple[str, str, Codec, float | None]] = []
    for name in args.presets:
        steps = {} if name.endswith("-paper") else {"T": args.T, "tail": args.tail}
        config = preset(name, **steps, kind=args.kind)
        jobs += [(name, f"{bpp:g} bpp", Codec(model, config), bpp) for bpp in args.bpp]
    for atoms in UNIFORM_ATOMS if args.uniform_steps else ():
        settings = {"K": args.uniform_K, "T": args.uniform_steps} | ({"M": atoms, "C": 3} if atoms > 1 else {})
        codec = Codec(model, preset("pursuit" if atoms > 1 else "ddcm", **settings))
        jobs.append(("ddcm", f"K={args.uniform_K} M={atoms} T={args.uniform_steps}", codec, None))

    identity = f"{model.name} ({model.fingerprint().hex()}), {model.dtype}"
    rows: list[Row] = []
    if args.output.is_file():
        before = json.loads(args.output.read_text())
        if (before["model"], before["crop"], before["T"], before["tail"]) != (identity, args.crop, args.T, args.tail):
            parser.error(f"{args.output} has results of another model or other settings; remove it first")
        rows = before["rows"]
    done = {(row["system"], row["setting"], row["image"]) for row in rows}

    def record() -> dict[str, Any]:
        command = ["python", "benchmarks/rd.py", *sys.argv[1:]]
        return {
            "command": " ".join(command).replace(str(args.images), "DIR"),
            "machine": f"{processor()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "backend": backends.resolve("auto", model.device),
            "model": identity,
            "crop": args.crop,
            "T": args.T,
            "tail": args.tail,
            **summarise(rows),
            "rows": rows,
        }

    meter = Meter(model)
    for image, crop in itertools.islice(centre_crops(args.images, args.crop), args.count):
        for name, (_, qualities) in CLASSICAL.items():
            for quality in qualities if name == "JPEG" or features.check(name.lower()) else ():
                if (name, f"quality {quality}", image) not in done:
                    row = classical(name, quality, crop)
                    rows.append({"system": name, "setting": f"quality {quality}", "image": image, **row})
        for system, setting, codec, bpp in jobs:
            if (system, setting, image) in done:
                continue
            row = measure(codec, meter, crop, bpp)
            rows.append({"system": system, "setting": setting, "image": image, **row})
            write_json(args.output, record(), 1)
            print(
                f"{image:10} {system:14} {setting:22} {row['bpp']:.4f} bpp {row['psnr']:6.2f} dB "
                f"MS-SSIM {row['ms_ssim']:.4f} {row['seconds']:6.1f} s {row['evaluations']:4} evaluations "
                f"efficiency {row['efficiency']:.2f}",
                flush=True,
            )
    final = record()
    write_json(args.output, final, 1)
    for system, points in final["means"].items():
        for p in points:
            print(f"{system:14} {p['setting']:22} {p['bpp']:.4f} bpp {p['psnr']:6.2f} dB MS-SSIM {p['ms_ssim']:.4f}")
    for system, against in final["bd_rate_percent"].items():
        print(system, "BD-rate against", {name: value and round(value, 1) for name, value in against.items()})
    if args.plot:
        plot(final, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())

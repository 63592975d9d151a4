"""Compressed posterior sampling, measured.

    python benchmarks/restoration.py digits                    # is the shortlist as good as brute force?
    python benchmarks/restoration.py photos --images KODAK     # every task on crops of photographs
    python benchmarks/restoration.py samples --images KODAK    # a sample of the posterior against the mean of several
    python benchmarks/restoration.py report                    # tables from the results

`gap` is the root mean square of y - H x over the measured entries, to be compared with the measurement's noise sigma:
an image agrees with y where it is no larger. PSNR is against the true image. The baseline of a task is the simplest
answer: bicubic interpolation, the grey image, the blurred or noisy image as it is, holes filled by blurring.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddcm_fast import Codec, DiffusionModel, load_model
from ddcm_fast.codec.images import load_image, psnr, to_tensor
from ddcm_fast.files import JSON, TEXT, write
from ddcm_fast.models import digits
from ddcm_fast.sampling.choosers import Chooser, StepContext
from ddcm_fast.tasks.operators import LinearOperator, operator
from ddcm_fast.tasks.posterior import Posterior, restore
from ddcm_fast.tasks.restorers import model_denoiser

RESULTS = Path(__file__).parent / "results"
SIGMA = 0.05
#: Task -> noise added to the measurement.
TASKS = {
    "sr2": SIGMA,
    "sr4": SIGMA,
    "srbox4": SIGMA,
    "sr8": SIGMA,
    "color": SIGMA,
    "blur2": SIGMA,
    "motion9@45": SIGMA,
    "inpaint": SIGMA,
    "denoise": 0.4,
}
DIGIT_TASKS = ("sr2", "srbox4", "blur1", "inpaint", "denoise")


def measure(h: LinearOperator, x: Tensor, sigma: float) -> Tensor:
    """y = H x + n with noise of a fixed seed."""
    y = h.forward(x)
    return y + sigma * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))


def rms(h: LinearOperator, y: Tensor, x: Tensor) -> float:
    """The gap between measurements and images (B, C, H, W), all together."""
    return float(h.gap(y, x).double().square().mean().sqrt())


def save(name: str, rows: list[dict[str, Any]]) -> None:
    """Write results, one row a line."""
    path = RESULTS / f"restoration_{name}.json"
    write(path, ("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n").encode(), JSON)


# ---- digits: shortlist against brute force -------------------------------------------------------


class Audit(Chooser):
    """Takes one chooser's atoms and counts where brute force would take others."""

    def __init__(self, used: Chooser, brute: Chooser) -> None:
        self._used, self._brute = used, brute
        self.differ: list[float] = []

    def choose(self, context: StepContext) -> Tensor | None:
        """See Chooser.choose."""
        mine, best = self._used.choose(context), self._brute.choose(context)
        assert mine is not None and best is not None
        self.differ.append(float((mine != best).float().mean()))
        return mine


def run_digits(args: argparse.Namespace) -> None:
    """Linear part alone, shortlists and brute force, all K scores of it exact."""
    model = load_model("digits", device="cpu")
    truth = digits.load_data(test=True)[0][:: 500 // args.count][: args.count]
    mask = torch.ones(8, 8)
    mask[2:6, 2:6] = 0
    rows = _load("digits")  # those that are there are not made again
    for task in args.tasks:
        h = operator(task, mask if task == "inpaint" else None)
        sigma = 0.4 if task == "denoise" else SIGMA
        y = measure(h, truth, sigma)
        codec = Codec.from_preset(model, "ddcm", K=args.K, T=args.T, batch_size=len(truth))
        brute = Posterior(h, y, 8, 8, shortlist=args.K)
        for shortlist in args.shortlists:
            key = {"task": task, "K": args.K, "T": args.T, "images": len(truth), "shortlist": shortlist}
            if any(all(row[k] == v for k, v in key.items()) for row in rows):
                continue
            audit = Audit(Posterior(h, y, 8, 8, shortlist), brute)  # sigma 0: every choice is compared
            coded = codec.sample(audit, 8, 8, len(truth))
            images = torch.stack([c.reconstruction for c in coded])
            third = len(audit.differ) // 3
            parts = (audit.differ[:third], audit.differ[third : 2 * third], audit.differ[2 * third :])
            row: dict[str, Any] = {**key, "sigma": sigma}
            row["differs"] = [round(sum(p) / len(p), 3) for p in parts]
            row["gap"] = round(rms(h, y, images), 4)
            row["psnr"] = round(psnr(images, truth), 2)
            row["baseline_psnr"] = round(psnr(h.estimate(y, 8, 8).clamp(-1, 1), truth), 2)
            rows.append(row)
            print(row, flush=True)
            save("digits", rows)


# ---- photographs ---------------------------------------------------------------------------------


def crops(folder: Path, size: int, count: int) -> list[tuple[str, Tensor]]:
    """Centre crops of the first images of a folder: (name, (1, 3, size, size))."""
    found = []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))[:count]:
        image = to_tensor(load_image(path))
        top, left = (image.shape[2] - size) // 2, (image.shape[3] - size) // 2
        found.append((path.stem, image[..., top : top + size, left : left + size]))
    return found


def holes(size: int) -> Tensor:
    """A mask with two bars and a square missing: (size, size)."""
    mask = torch.ones(size, size)
    mask[size // 4 : size // 4 + size // 16] = 0
    mask[:, size // 2 : size // 2 + size // 16] = 0
    mask[-size // 4 : -size // 8, size // 8 : size // 4] = 0
    return mask


def run_photos(args: argparse.Namespace) -> None:
    """Every task with every configuration."""
    model = load_model("photo", device=args.device)
    configs = {
        f"ddcm, K=4096, T={args.T}": Codec.from_preset(model, "ddcm", K=4096, T=args.T),
        f"product, {args.atoms} atoms, T=25": Codec.from_preset(model, "product", atoms=args.atoms, T=25),
    }
    weights = model.fingerprint().hex()
    rows = [row for row in _load("photos") if row["weights"] == weights]  # those of other weights are made again
    for task in args.tasks:
        for name, truth in crops(args.images, args.size, args.count):
            h = operator(task, holes(args.size) if task == "inpaint" else None)
            y = measure(h, truth, TASKS[task])
            for label, codec in configs.items():
                key = {"task": task, "image": name, "size": args.size, "config": label, "weights": weights}
                if not any(all(row[k] == v for k, v in key.items()) for row in rows):
                    rows.append({**key, **_photo(model, codec, h, y, truth, task)})
                    print(rows[-1], flush=True)
                    save("photos", rows)


def _photo(
    model: DiffusionModel, codec: Codec, h: LinearOperator, y: Tensor, truth: Tensor, task: str
) -> dict[str, Any]:
    begin = time.process_time()  # CPU seconds, which a shared machine does not stretch as much
    coded = restore(codec, y, h, TASKS[task])
    seconds = time.process_time() - begin
    image = coded.reconstruction[None].cpu()
    base = h.estimate(y, truth.shape[2], truth.shape[3]).clamp(-1, 1)
    row = {
        "sigma": TASKS[task],
        "psnr": round(psnr(image, truth), 2),
        "gap": round(rms(h, y, image), 4),
        "baseline_psnr": round(psnr(base, truth), 2),
        "baseline_gap": round(rms(h, y, base), 4),
        "bpp": round(coded.bpp, 4),
        "cpu_seconds": round(seconds, 1),
    }
    if task == "denoise":
        with torch.inference_mode():
            one_step = model_denoiser(model, TASKS[task])(y.to(model.device)).cpu()
        row["mmse_psnr"] = round(psnr(one_step, truth), 2)
    return row


# ---- one sample or several -----------------------------------------------------------------------


def run_samples(args: argparse.Namespace) -> None:
    """Restorations of one measurement under several codebook seeds, and their mean.

    A sample of the posterior has twice the squared error of its mean. Where the mean of n samples comes near the
    (1 + 1/n) / 2 of one sample's error that this implies, the loss in PSNR is that of sampling and no defect.
    """
    model = load_model("photo", device=args.device)
    rows = []
    for task in args.tasks:
        for atoms in args.atoms:
            errors: list[list[float]] = [[], [], []]
            gaps: list[list[float]] = [[], []]
            for _, truth in crops(args.images, args.size, args.count):
                h = operator(task, holes(args.size) if task == "inpaint" else None)
                y = measure(h, truth, TASKS[task])
                seeds = range(args.seeds)
                codecs = [Codec.from_preset(model, "product", atoms=atoms, T=25, seed=seed) for seed in seeds]
                made = torch.stack([restore(codec, y, h, TASKS[task]).reconstruction.cpu() for codec in codecs])
                base = h.estimate(y, args.size, args.size).clamp(-1, 1)
                for kept, images in zip(errors, (made, made.mean(0)[None], base), strict=True):
                    kept.append(float((images - truth).double().square().mean()))
                for kept, images in zip(gaps, (made, made.mean(0)[None]), strict=True):
                    kept.append(float(h.gap(y, images).double().square().mean()))
            mse = [sum(e) / len(e) for e in errors]
            row: dict[str, Any] = {"task": task, "sigma": TASKS[task], "atoms": atoms, "T": 25}
            row |= {"images": args.count, "size": args.size, "seeds": args.seeds}
            for name, value in zip(("psnr_one", "psnr_mean", "psnr_baseline"), mse, strict=True):
                row[name] = round(10 * math.log10(4 / value), 2)
            for name, squares in zip(("gap_one", "gap_mean"), gaps, strict=True):
                row[name] = round((sum(squares) / len(squares)) ** 0.5, 4)
            row["error_left"] = round(mse[1] / mse[0], 3)
            rows.append(row)
            print(row, flush=True)
            save("samples", rows)


# ---- report --------------------------------------------------------------------------------------


def report(args: argparse.Namespace) -> None:
    """Markdown tables of both."""
    lines = ["# Compressed posterior sampling", "", "python benchmarks/restoration.py report", ""]
    rows = _load("digits")
    if rows:
        lines += [
            f"`digits` model, sign codebook of K = {rows[0]['K']}, T = {rows[0]['T']}, {rows[0]['images']} held-out "
            "digits. How often the choice differs from brute force, in each third of the process; gap = rms(y - Hx).",
            "",
            "| task | sigma | shortlist | differs early | middle | late | gap | PSNR | baseline PSNR |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for r in rows:
            name = {1: "1 (linear)", r["K"]: f"{r['K']} (brute force)"}.get(r["shortlist"], r["shortlist"])
            early, middle, late = (f"{100 * d:.0f} %" for d in r["differs"])
            lines.append(
                f"| {r['task']} | {r['sigma']} | {name} | {early} | {middle} | {late} | {r['gap']:.3f} | "
                f"{r['psnr']:.2f} | {r['baseline_psnr']:.2f} |"
            )
        lines.append("")
    rows = _load("photos")
    if rows:
        lines += [
            f"`photo` model (weights {rows[0]['weights']}), centre crops of Kodak images; means over the images. The "
            "gap of the true image is sigma.",
            "",
            "| task | sigma | config | images | bpp | PSNR | baseline PSNR | gap | baseline gap |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for task in TASKS:
            for label in dict.fromkeys(r["config"] for r in rows):
                own = [r for r in rows if r["task"] == task and r["config"] == label]
                if own:
                    mean = {k: sum(r[k] for r in own) / len(own) for k in own[0] if isinstance(own[0][k], float)}
                    extra = f" (one-step MMSE {mean['mmse_psnr']:.2f})" if "mmse_psnr" in mean else ""
                    lines.append(
                        f"| {task} | {mean['sigma']:g} | {label} | {len(own)} of {own[0]['size']}x{own[0]['size']} | "
                        f"{mean['bpp']:.3f} | {mean['psnr']:.2f} | {mean['baseline_psnr']:.2f}{extra} | "
                        f"{mean['gap']:.3f} | {mean['baseline_gap']:.3f} |"
                    )
        lines.append("")
    rows = _load("samples")
    if rows:
        lines += [
            f"One sample against the mean of {rows[0]['seeds']} (codebook seeds), `product`, T = {rows[0]['T']}, "
            f"{rows[0]['images']} crops of {rows[0]['size']}x{rows[0]['size']}. `error left`: squared error of the "
            "mean over that of one sample; exact samples of the posterior would leave "
            f"{(1 + 1 / rows[0]['seeds']) / 2:.2f}.",
            "",
            "| task | sigma | atoms | PSNR of one | of the mean | simple | error left | gap of one | of the mean |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {r['task']} | {r['sigma']:g} | {r['atoms']} | {r['psnr_one']:.2f} | {r['psnr_mean']:.2f} | "
            f"{r['psnr_baseline']:.2f} | {r['error_left']:.2f} | {r['gap_one']:.3f} | {r['gap_mean']:.3f} |"
            for r in rows
        ]
    write(RESULTS / "restoration.md", ("\n".join(lines) + "\n").encode(), TEXT)
    print("\n".join(lines))


def _load(name: str) -> list[dict[str, Any]]:
    path = RESULTS / f"restoration_{name}.json"
    return json.loads(path.read_text()) if path.is_file() else []


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="CPU threads")
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("digits")
    p.add_argument("-K", type=int, default=256)
    p.add_argument("-T", type=int, default=200)
    p.add_argument("--count", type=int, default=50, help="digits")
    p.add_argument("--shortlists", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    p.add_argument("--tasks", nargs="+", default=list(DIGIT_TASKS), choices=DIGIT_TASKS)
    p.set_defaults(run=run_digits)
    p = commands.add_parser("photos")
    p.add_argument("--images", type=Path, required=True, help="folder of photographs")
    p.add_argument("--size", type=int, default=128, help="side of the centre crops")
    p.add_argument("--count", type=int, default=3, help="photographs")
    p.add_argument("-T", type=int, default=50, help="steps of the ddcm preset")
    p.add_argument("--atoms", type=int, default=500, help="of the product preset")
    p.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    p.add_argument("--device", default="cpu")
    p.set_defaults(run=run_photos)
    p = commands.add_parser("samples")
    p.add_argument("--images", type=Path, required=True, help="folder of photographs")
    p.add_argument("--size", type=int, default=128, help="side of the centre crops")
    p.add_argument("--count", type=int, default=2, help="photographs")
    p.add_argument("--seeds", type=int, default=4, help="samples of each")
    p.add_argument("--atoms", type=int, nargs="+", default=[500, 4000], help="in a file")
    p.add_argument("--tasks", nargs="+", default=["sr4", "inpaint", "denoise"], choices=list(TASKS))
    p.add_argument("--device", default="cpu")
    p.set_defaults(run=run_samples)
    commands.add_parser("report").set_defaults(run=report)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    main()

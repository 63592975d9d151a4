"""The DDCM paper's first experiment on the built-in `digits` model: is a small codebook as good as Gaussian noise?

    python benchmarks/generation_digits.py generation     # DDPM against DDCM, K and kind of codebook
    python benchmarks/generation_digits.py seeds --steps 100 --count 1000    # how far chance moves the numbers
    python benchmarks/generation_digits.py guidance       # classifier-free, compressed and classifier guidance
    python benchmarks/generation_digits.py report         # the table and the plots from the results

Frechet distance is between Gaussians fitted to the clean classifier's 32 features of the samples and of the 500
held-out digits; `train` is the same for the training set, the floor that a perfect generator would reach. Accuracy is
how often that classifier agrees with the label asked for. Diversity is the mean distance, in the same features, of two
samples of one class over that of two held-out digits of it. Results are saved after every configuration, and those
that are there already are not run again.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddcm_fast import Codebook, load_model
from ddcm_fast.codebook.reference import initial_noise
from ddcm_fast.files import JSON, TEXT, picture, write
from ddcm_fast.models import digits
from ddcm_fast.models.pixel import PixelModel
from ddcm_fast.sampling.choosers import Chooser, Draw
from ddcm_fast.sampling.condition import Condition
from ddcm_fast.sampling.rules import Greedy, Rule
from ddcm_fast.sampling.sampler import sample
from ddcm_fast.sampling.schedule import Step, linspace, plan
from ddcm_fast.tasks.guidance import Subset, ccfg, classifier_gradient

RESULTS = Path(__file__).parent / "results"
KINDS = ("gaussian", "sign", "hadamard")
SIZES = (2, 4, 8, 16, 64, 1024)
DIM = digits.SIDE**2


class FreshNoise(Rule):
    """DDPM: torch's Gaussian noise, drawn anew each time. Its letters say nothing, so it has no files."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def codebook(self, step: Step) -> Codebook:
        raise NotImplementedError("DDPM has no codebook")

    def radices(self, step: Step) -> list[int]:
        return [1]

    def choose(self, direction: Tensor, step: Step) -> Tensor:
        raise NotImplementedError("DDPM chooses nothing")

    def noise(self, letters: Tensor, step: Step) -> Tensor:
        return torch.randn(len(letters), DIM, generator=self._generator)


# ---- scores --------------------------------------------------------------------------------------


@torch.inference_mode()
def features(images: Tensor) -> np.ndarray:
    """(N, 1, 8, 8) -> (N, 32) float64."""
    return digits.load_classifier().features(images).double().numpy()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features (Heusel et al. 2017)."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The trace of sqrt(cov_a cov_b) from the eigenvalues, which are real and not negative.
    roots = np.sqrt(np.maximum(np.linalg.eigvals(cov_a @ cov_b).real, 0))
    gap = a.mean(0) - b.mean(0)
    return float(gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * roots.sum())


def spread(values: np.ndarray, labels: np.ndarray) -> float:
    """Mean distance of two members of a class, averaged over the classes."""
    means = []
    for c in range(digits.CLASSES):
        own = torch.from_numpy(values[labels == c])
        if len(own) > 1:
            means.append(float(torch.pdist(own).mean()))
    return float(np.mean(means))


def scores(images: Tensor, labels: Tensor) -> dict[str, float]:
    """The three numbers of the table."""
    held, held_labels = digits.load_data(test=True)
    own, reference = features(images), features(held)
    with torch.inference_mode():
        right = digits.load_classifier()(images).argmax(1) == labels
    return {
        "frechet": frechet(own, reference),
        "accuracy": float(right.float().mean()),
        "diversity": spread(own, labels.numpy()) / spread(reference, held_labels.numpy()),
    }


# ---- sampling ------------------------------------------------------------------------------------


def draw(
    model: PixelModel,
    rule: Rule,
    chooser: Chooser,
    steps: int,
    noise: Tensor,
    labels: Tensor,
    scale: float,
) -> Tensor:
    """Images (N, 1, 8, 8) of labels (N,); a label of 10 is unconditional."""
    given = tuple(Condition(label=int(c), guidance_scale=scale) if c < digits.CLASSES else None for c in labels)
    done = sample(model, plan(model, linspace(model, steps)), rule, chooser, noise, given)
    return model.decode(done.x0)


def start(count: int, seed: int | None, codebook_seed: int = 0) -> Tensor:
    """x_T (count, 4, 4, 4): the files' fixed vector, or (DDPM) fresh noise."""
    if seed is None:
        return initial_noise(DIM, codebook_seed).view(1, 4, 4, 4).expand(count, -1, -1, -1)
    return torch.randn(count, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


def generation(model: PixelModel, args: argparse.Namespace) -> None:
    """DDPM against DDCM: class-conditional samples, no further guidance."""
    labels = torch.arange(args.count) % digits.CLASSES
    runs: list[tuple[str, int | None]] = [("ddpm", None)]
    runs += [(kind, k) for k in args.sizes for kind in args.kinds]
    for kind, size in runs:

        def run(kind: str = kind, size: int | None = size) -> Tensor:
            if size is None:
                noise = start(args.count, 1)
                return draw(model, FreshNoise(2), Draw(3), args.steps, noise, labels, 1.0)
            rule = Greedy(Codebook(kind, DIM, size, signed=False))
            return draw(model, rule, Draw(3), args.steps, start(args.count, None), labels, 1.0)

        record("generation", args, {"noise": kind, "K": size, "T": args.steps}, labels, run)


def seeds(model: PixelModel, args: argparse.Namespace) -> None:
    """Small codebooks under several seeds, each with its own x_T: how far does chance move the numbers?"""
    labels = torch.arange(args.count) % digits.CLASSES
    for size, count in ((2, 4), (64, 2)):
        for seed in range(count):
            for kind in args.kinds:

                def run(kind: str = kind, size: int = size, seed: int = seed) -> Tensor:
                    rule = Greedy(Codebook(kind, DIM, size, seed=seed, signed=False))
                    return draw(model, rule, Draw(3 + seed), args.steps, start(args.count, None, seed), labels, 1.0)

                record("seeds", args, {"noise": kind, "K": size, "T": args.steps, "seed": seed}, labels, run)
    for seed in range(2):

        def fresh(seed: int = seed) -> Tensor:
            rule = FreshNoise(2 + 10 * seed)
            return draw(model, rule, Draw(3), args.steps, start(args.count, 1 + 10 * seed), labels, 1.0)

        record("seeds", args, {"noise": "ddpm", "K": None, "T": args.steps, "seed": seed}, labels, fresh)


def guidance(model: PixelModel, args: argparse.Namespace) -> None:
    """Guided samples: how much guidance costs diversity, and whether compressed guidance guides at all."""
    labels = torch.arange(args.count) % digits.CLASSES
    nothing = torch.full_like(labels, digits.CLASSES)
    noise = start(args.count, None)

    def rule(size: int = 64) -> Greedy:
        return Greedy(Codebook("sign", DIM, size, signed=False))

    def free(scale: float, fresh: bool = False) -> Callable[[], Tensor]:
        return lambda: draw(
            model, FreshNoise(2) if fresh else rule(), Draw(3), args.steps, start(args.count, 1) if fresh else noise,
            labels, scale,
        )

    def chosen(chooser: Callable[[], Chooser], size: int = 64) -> Callable[[], Tensor]:
        return lambda: draw(model, rule(size), chooser(), args.steps, noise, nothing, 1.0)

    given = tuple(Condition(label=int(c)) for c in labels)
    classify = digits.load_noisy_classifier()
    runs: list[tuple[str, Callable[[], Tensor]]] = [
        ("unconditional", chosen(lambda: Draw(3))),
        ("conditional, DDPM", free(1.0, True)),
        ("conditional", free(1.0)),
        ("CFG 2, DDPM", free(2.0, True)),
        ("CFG 2", free(2.0)),
        ("CFG 4, DDPM", free(4.0, True)),
        ("CFG 4", free(4.0)),
    ]
    for n in (2, 3, 4, 6, 9, 16):
        runs.append((f"CCFG {n} of 64", chosen(lambda n=n: ccfg(given, n, seed=3))))
    for n in (2, 4, 9):
        runs.append(
            (f"classifier {n} of 64", chosen(lambda n=n: Subset(classifier_gradient(classify, labels), n, seed=3)))
        )
    for name, run in runs:
        record("guidance", args, {"method": name, "T": args.steps}, labels, run)


# ---- results -------------------------------------------------------------------------------------


def record(
    experiment: str, args: argparse.Namespace, what: dict[str, Any], labels: Tensor, run: Callable[[], Tensor]
) -> None:
    """Run one configuration, score it and save it, unless it is there."""
    path = RESULTS / f"{experiment}_digits.json"
    saved = json.loads(path.read_text()) if path.is_file() else []
    key = {**what, "samples": len(labels)}
    if any(all(row.get(k) == v for k, v in key.items()) for row in saved):
        return
    begin, cpu = time.perf_counter(), time.process_time()
    images = run()
    row = {**key, **{k: round(v, 4) for k, v in scores(images, labels).items()}}
    row["seconds"] = round(time.perf_counter() - begin, 1)
    row["cpu_seconds"] = round(time.process_time() - cpu, 1)
    saved.append(row)
    write(path, ("[\n" + ",\n".join(json.dumps(r) for r in saved) + "\n]\n").encode(), JSON)
    print(row, flush=True)


def report(args: argparse.Namespace) -> None:
    """Markdown tables and plots of everything measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = ["# Generation on the `digits` model", "", "python benchmarks/generation_digits.py report", ""]
    images, labels = digits.load_data(test=False)
    floor = scores(images, labels)
    lines += ["Frechet distance (FD), class accuracy and within-class diversity against 500 held-out digits.", ""]
    lines += ["| noise | K | T | samples | FD | accuracy | diversity |", "|---|---|---|---|---|---|---|"]
    lines.append(
        f"| training set | | | {len(labels)} | {floor['frechet']:.2f} | {floor['accuracy']:.3f} | "
        f"{floor['diversity']:.2f} |"
    )
    rows = sorted(_load("generation"), key=lambda r: (r["K"] or 0, KINDS.index(r["noise"]) if r["K"] else 0))
    for r in rows:
        name, size = ("DDPM", "") if r["K"] is None else (r["noise"], r["K"])
        lines.append(
            f"| {name} | {size} | {r['T']} | {r['samples']} | {r['frechet']:.2f} | {r['accuracy']:.3f} | "
            f"{r['diversity']:.2f} |"
        )
    lines += _seed_table()
    guided = _load("guidance")
    if guided:
        lines += ["", "## Guidance", "", "`sign` codebooks of K = 64 but where it says DDPM.", ""]
        lines += ["| method | T | samples | FD | accuracy | diversity |", "|---|---|---|---|---|---|"]
        for r in guided:
            lines.append(
                f"| {r['method']} | {r['T']} | {r['samples']} | {r['frechet']:.2f} | {r['accuracy']:.3f} | "
                f"{r['diversity']:.2f} |"
            )
    write(RESULTS / "generation_digits.md", ("\n".join(lines) + "\n").encode(), TEXT)
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6))
    for axis, name, title in zip(
        axes, ("frechet", "accuracy", "diversity"), ("Frechet distance", "class accuracy", "diversity"), strict=True
    ):
        for r in rows:
            if r["K"] is None:
                axis.axhline(r[name], color="black", linestyle="--", label="DDPM")
        axis.axhline(floor[name], color="grey", linestyle=":", label="training set")
        for kind in KINDS:
            points = sorted((r["K"], r[name]) for r in rows if r["noise"] == kind)
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=kind)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("K")
        axis.set_title(title)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    write(RESULTS / "generation_digits.png", image.getvalue(), picture("PNG"))
    print("\n".join(lines))


def _seed_table() -> list[str]:
    rows = _load("seeds")
    if not rows:
        return []
    lines = ["", f"Codebook seeds (x_T differs too), T = {rows[0]['T']}, {rows[0]['samples']} samples each.", ""]
    lines += ["| noise | K | FD of each seed | mean | diversity of each seed |", "|---|---|---|---|---|"]
    for key in dict.fromkeys((r["noise"], r["K"]) for r in rows):
        own = [r for r in rows if (r["noise"], r["K"]) == key]
        name, size = ("DDPM", "") if key[1] is None else key
        every = ", ".join(f"{r['frechet']:.1f}" for r in own)
        mean = sum(r["frechet"] for r in own) / len(own)
        spreads = ", ".join(f"{r['diversity']:.2f}" for r in own)
        lines.append(f"| {name} | {size} | {every} | {mean:.1f} | {spreads} |")
    return lines


def _load(experiment: str) -> list[dict[str, Any]]:
    path = RESULTS / f"{experiment}_digits.json"
    return json.loads(path.read_text()) if path.is_file() else []


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=("generation", "seeds", "guidance", "report"))
    parser.add_argument("--count", type=int, default=2000, help="samples of each configuration")
    parser.add_argument("--steps", type=int, default=1000, help="T")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="K")
    parser.add_argument("--compile", action="store_true", help="compile the network: minutes at first, then faster")
    parser.add_argument("--threads", type=int, help="CPU threads")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.experiment == "report":
        report(args)
        return
    model = load_model("digits", device="cpu", compile=args.compile)
    assert isinstance(model, PixelModel)
    {"generation": generation, "seeds": seeds, "guidance": guidance}[args.experiment](model, args)


if __name__ == "__main__":
    main()

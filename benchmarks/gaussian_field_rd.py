"""Rules against each other and against the rate-distortion bound, on the analytic model `gaussian-field`.

    python benchmarks/gaussian_field_rd.py --output results.json --plot results.png

Every rule codes the same fresh images with its best-known settings; nothing but the rule's own loss is left, since the
model is exact. Reported per point: bits an image (of the symbols, without a header), PSNR (peak to peak 2, of the mean
error over the images), and three efficiencies, each "bits ideally needed / bits spent":

    kl           sum over the steps of |x0 - x0_hat|^2 (SNR_s - SNR_t) / (2 ln 2): what the steps taken should cost;
                 far above 1 where steps ask for more than is spent on them, as DDCM's last ones do
    information  mutual information of x0 and an x_t whose optimal denoiser has the error reached: what DiffC would need
    bound        reverse water-filling: what any code at all would need
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ddcm_fast import Codebook, preset
from ddcm_fast.files import picture, write, write_json
from ddcm_fast.models.gaussian_field import GaussianField
from ddcm_fast.sampling.choosers import Match, StepContext
from ddcm_fast.sampling.rules import Greedy, Product, Rule
from ddcm_fast.sampling.rules.rcc import DEFAULT_MARGIN, Rcc
from ddcm_fast.sampling.rules.threshold import Threshold
from ddcm_fast.sampling.rules.trellis import Trellis
from ddcm_fast.sampling.sampler import sample
from ddcm_fast.sampling.schedule import Step, allocate, linspace, plan

PSNR_GRID = range(18, 29)
# Share of a step's bits that its information should be: what a rule's choice is worth. Measured; the optimum is flat.
WORTH = {"product": 0.85, "trellis": 0.92, "threshold": 0.72, "rcc": 1.0}


@dataclass(frozen=True)
class Point:
    """One system at one rate; bits an image."""

    system: str
    setting: str
    evaluations: int
    bits: float
    psnr: float
    kl: float
    information: float
    bound: float
    seconds: float


@dataclass(frozen=True)
class Trial:
    """A schedule and a rule."""

    setting: str
    steps: list[Step]
    rule: Rule


class Bench:
    """Images of one size and the closed forms for it."""

    def __init__(self, size: int, images: int, seed: int) -> None:
        self.model = GaussianField()
        self.size = size
        self.dim = math.prod(self.model.latent_shape(size, size))
        self.x0 = self.model.draw(images, size, size, seed)
        self.seed = seed
        self._power = self.model.power(size, size)

    def information_schedule(self, step_bits: list[float]) -> list[Step]:
        """Coded steps of given information, then the denoised image of the last noise level.

        Timesteps are fractional, so each step's expected information is exact.
        """
        snr = [self.model.snr(self.model.max_timestep)]
        for bits in step_bits:
            mmse = float((self._power / (1 + snr[-1] * self._power)).mean())
            snr.append(snr[-1] + bits * 2 * math.log(2) / (self.dim * mmse))
        timesteps = [self.model.timestep_at(s) for s in snr]
        count = len(step_bits)
        return plan(self.model, timesteps, [True] * count + [False], [1.0] * count + [0.0])

    def run(self, system: str, trial: Trial) -> Point:
        """Code all images and measure."""
        ideal = 0.0

        def objective(context: StepContext) -> torch.Tensor:
            nonlocal ideal
            residual = self.x0 - context.x0_hat
            if math.isfinite(context.step.snr_gain):
                energy = float(residual.square().sum()) / len(residual)
                ideal += energy * context.step.snr_gain / (2 * math.log(2))
            return residual

        start = time.perf_counter()
        noise = trial.rule.codebook(trial.steps[0]).initial_noise(len(self.x0)).view_as(self.x0)
        done = sample(self.model, trial.steps, trial.rule, Match(objective), noise)
        seconds = time.perf_counter() - start
        mse = float((done.x0 - self.x0).double().square().mean())
        coded = [step for step in trial.steps if step.coded]
        if trial.rule.varies:
            rows = [letters.tolist() for letters in done.letters]
            files = [trial.rule.write([row[b] for row in rows], coded) for b in range(len(self.x0))]
            bits = 8 * sum(len(data) for data in files) / len(files)
        else:
            bits = sum(math.log2(radix) for step in coded for radix in trial.rule.radices(step))
        return Point(
            system,
            trial.setting,
            len(trial.steps),
            bits,
            10 * math.log10(4 / mse),
            ideal / bits,
            self._information_at(mse) / bits,
            self.model.rate(mse, self.size, self.size) * self.size**2 / bits,
            seconds / len(self.x0),
        )

    def _information_at(self, mse: float) -> float:
        low, high = 0.0, self.model.max_timestep
        for _ in range(60):
            middle = (low + high) / 2
            if self.model.mmse(middle, self.size, self.size) < mse:
                low = middle
            else:
                high = middle
        return self.model.mutual_information(low, self.size, self.size)

    # ---- systems: trials from low to high rates --------------------------------------------------

    def ddcm(self, size: int) -> Iterator[Trial]:
        """DDCM: one atom of K a step, timesteps evenly spaced."""
        rule = Greedy(Codebook("sign", self.dim, size, seed=self.seed, signed=False))
        for count in (50, 100, 200, 300, 450, 650, 1000):
            yield Trial(f"T={count}", plan(self.model, linspace(self.model, count)), rule)

    def threshold(self, count: int, size: int) -> Iterator[Trial]:
        """Turbo-DDCM: M atoms of K a step, equal information a step."""
        for total in _budgets():
            cost = [(math.log2(math.comb(size, m)) + m, m) for m in range(1, 200)]
            bits, atoms = min(cost, key=lambda pair: abs(pair[0] - total / count))
            steps = self.information_schedule([WORTH["threshold"] * bits] * count)
            book = Codebook("sign", self.dim, size, seed=self.seed)
            yield Trial(f"M={atoms}", steps, Threshold(book, dict.fromkeys(range(count), atoms)))

    def product(self, count: int, size: int, kind: str) -> Iterator[Trial]:
        """One signed atom of K in each group."""
        each = math.log2(size) + 1
        for total in _budgets():
            groups = [max(1, g) for g in allocate(round(total / each), [1.0] * count)]
            steps = self.information_schedule([WORTH["product"] * g * each for g in groups])
            rule = Product(kind, self.dim, size, dict(enumerate(groups)), self.seed, "auto")
            yield Trial(f"atoms={sum(groups)}", steps, rule)

    def trellis(self, count: int, letter_bits: int, memory: int) -> Iterator[Trial]:
        """Groups chosen together by the Viterbi algorithm."""
        for total in _budgets():
            groups = [max(1, g) for g in allocate(round(total / letter_bits), [1.0] * count)]
            steps = self.information_schedule([WORTH["trellis"] * g * letter_bits for g in groups])
            rule = Trellis("hadamard", self.dim, dict(enumerate(groups)), letter_bits, memory, self.seed)
            yield Trial(f"letters={sum(groups)}", steps, rule)

    def turbo_paper(self) -> Iterator[Trial]:
        """The preset: as many atoms at each of Turbo-DDCM's own timesteps, which know nothing of this source."""
        published = preset("turbo-paper")
        for total in _budgets():
            goal = total / published.T
            atoms = min(range(1, 200), key=lambda m: abs(math.log2(math.comb(published.K, m)) + m - goal))
            config = preset("turbo-paper", M=atoms, seed=self.seed)
            steps = config.steps(self.model)
            yield Trial(f"M={atoms}", steps, config.make_rule(steps, self.dim, "auto"))

    def rcc(self, count: int, group_bits: float) -> Iterator[Trial]:
        """DiffC: samples instead of the best atoms."""
        return self._samples(count, lambda bits: max(1, round(bits / group_bits)), DEFAULT_MARGIN)

    def chunks(self, count: int) -> Iterator[Trial]:
        """DiffC in the chunks of its published code: at most 16 bits, 2 of them padding."""
        return self._samples(count, lambda bits: math.ceil(bits / 14), 2)

    def _samples(self, count: int, groups_for: Callable[[float], int], margin: int) -> Iterator[Trial]:
        for total in _budgets():
            bits = total / count / 1.4  # an index is longer than its information
            groups = groups_for(bits)
            steps = self.information_schedule([WORTH["rcc"] * bits] * count)
            shared, informed = dict.fromkeys(range(count), groups), dict.fromkeys(range(count), bits)
            yield Trial(f"G={groups}", steps, Rcc("sign", self.dim, shared, informed, self.seed, margin=margin))


def _budgets() -> list[int]:
    """Bits an image around which points are taken; 18 to 28 dB at 32 x 32 x 3."""
    return [900, 1300, 1900, 2700, 3800, 5200, 6800, 8800, 11200]


def bits_at(points: list[Point], psnr: float) -> float | None:
    """Bits of a system at a PSNR, interpolated linearly between its points; None outside them."""
    ordered = sorted(points, key=lambda p: p.psnr)
    for a, b in itertools.pairwise(ordered):
        if a.psnr <= psnr <= b.psnr:
            return a.bits + (b.bits - a.bits) * (psnr - a.psnr) / max(b.psnr - a.psnr, 1e-9)
    return None


def compare(points: list[Point], bench: Bench) -> list[dict[str, float | None]]:
    """Bits of every system and of the bound on the grid of PSNR."""
    systems = list(dict.fromkeys(p.system for p in points))
    rows = []
    for psnr in PSNR_GRID:
        row: dict[str, float | None] = {"psnr": float(psnr)}
        row["bound"] = bench.model.rate(4 * 10 ** (-psnr / 10), bench.size, bench.size) * bench.size**2
        for system in systems:
            row[system] = bits_at([p for p in points if p.system == system], psnr)
        rows.append(row)
    return rows


def plot(points: list[Point], rows: list[dict[str, float | None]], path: Path) -> None:
    """PSNR against bits, the bound dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5))
    axes.plot([r["bound"] or 0.0 for r in rows], [r["psnr"] or 0.0 for r in rows], "k--", label="bound")
    for system in dict.fromkeys(p.system for p in points):
        own = sorted((p for p in points if p.system == system), key=lambda p: p.bits)
        axes.plot([p.bits for p in own], [p.psnr for p in own], "o-", markersize=3, label=system)
    axes.set(xlabel="bits an image", ylabel="PSNR (dB)", title="gaussian-field")
    axes.grid(alpha=0.3)
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120, bbox_inches="tight")
    write(path, image.getvalue(), picture("PNG"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--plot", type=Path, help="PNG file for the curves (needs matplotlib)")
    parser.add_argument("--size", type=int, default=32, help="side of the images (default 32)")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1, help="of images and codebooks")
    parser.add_argument("--steps", type=int, default=20, help="coded steps of all but DDCM (default 20)")
    parser.add_argument("--systems", nargs="*", help="only systems whose names contain one of these")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args.size, args.images, args.seed)
    systems: dict[str, Callable[[], Iterator[Trial]]] = {
        "ddcm K=4096": lambda: bench.ddcm(4096),
        "threshold K=16384": lambda: bench.threshold(args.steps, 16384),
        "product K=4096": lambda: bench.product(args.steps, 4096, "sign"),
        "product K=65536": lambda: bench.product(args.steps, 65536, "hadamard"),
        "product K=2^20": lambda: bench.product(args.steps, 1 << 20, "hadamard"),
        "product K=2^24": lambda: bench.product(args.steps, 1 << 24, "hadamard"),
        "trellis 2^8 states": lambda: bench.trellis(args.steps, 4, 8),
        "trellis 2^12 states": lambda: bench.trellis(args.steps, 4, 12),
        "rcc": lambda: bench.rcc(args.steps, 8.0),
        "turbo-paper": bench.turbo_paper,
        "rcc in diffc's chunks": lambda: bench.chunks(args.steps),
    }
    points = []
    for system, trials in systems.items():
        if args.systems and not any(word in system for word in args.systems):
            continue
        for trial in trials():
            points.append(bench.run(system, trial))
            p = points[-1]
            print(
                f"{system:20} {p.setting:12} {p.evaluations:5} evaluations {p.bits:7.0f} bits {p.psnr:6.2f} dB   "
                f"efficiency: kl {p.kl:.3f} information {p.information:.3f} bound {p.bound:.3f}   {p.seconds:.2f} s",
                flush=True,
            )
    rows = compare(points, bench)
    for row in rows:
        print("  ".join(f"{k} {'-' if v is None else format(v, '.0f')}" for k, v in row.items()))
    if args.output:
        result = {"arguments": {k: str(v) for k, v in vars(args).items()}, "points": [asdict(p) for p in points]}
        write_json(args.output, {**result, "bits_at_psnr": rows}, 1)
    if args.plot:
        plot(points, rows, args.plot)


if __name__ == "__main__":
    main()

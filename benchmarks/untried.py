"""What was tried beside the codec's own ways: a second-order mean, a trellis without ends, what the encoder aims at.

    python benchmarks/untried.py field --output benchmarks/results/untried-field.json
    python benchmarks/untried.py photos --images DIR --output benchmarks/results/untried-photos.json

`field`: the analytic source, 20 steps of `trellis` with letters of 4 bits and a memory of 12, the same bits in every
row: as it is; tail-biting (a step's first state is its last, which costs the decoder nothing); several paths at a
step's end, of which the encoder keeps the one whose next residual is smallest; means extrapolated from two evaluations
as DPM-Solver++(2M) does, and averaged; and the search for a part of the residual, Wiener filtered.

`photos`: centre crops, the default preset's file of each rate and number of steps, then the same configuration with the
extrapolated mean in all coded steps, and in the last prediction alone. All encodings aim at the same (codec/aim.py).
`statistics` are of the coded steps of the first: `level`, the noise in the state over the schedule's; `gain`, the
factor of x0_hat that would be nearest to x0; `weight`, that of x0_hat - the one before, and `removes`, the part of the
squared error that adding it so would remove.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gaussian_field_rd import WORTH, Bench
from photographs import add_options, centre_crops, ran
from torch import Tensor

from ddcm_fast import Codec, load_model
from ddcm_fast.codec import container
from ddcm_fast.codec.aim import aim
from ddcm_fast.codec.images import psnr, to_tensor
from ddcm_fast.codec.job import make_job, make_target
from ddcm_fast.codec.limits import Limits
from ddcm_fast.files import write_json
from ddcm_fast.models.wrapped import WrappedModel
from ddcm_fast.sampling.choosers import Match, Toward, toward
from ddcm_fast.sampling.model import DiffusionModel, eps_from_x0
from ddcm_fast.sampling.rules.trellis import Trellis
from ddcm_fast.sampling.sampler import sample
from ddcm_fast.sampling.schedule import Step, allocate

BITS, MEMORY, STEPS = 4, 12, 20


class Extrapolated(WrappedModel):
    """x0_hat + w (x0_hat - the one before), w of each timestep: DPM-Solver++(2M)'s (Lu et al. 2022) times a part."""

    def __init__(self, model: DiffusionModel, steps: list[Step], part: float, where: str) -> None:
        super().__init__(model)
        levels = [math.log(step.alpha_t / step.sigma_t) for step in steps]
        sizes = [after - before for before, after in itertools.pairwise(levels)]
        weights = [0.0, *(after / (2 * before) for before, after in itertools.pairwise(sizes)), 0.5]
        chosen = {"coded": steps[:-1], "last": steps[-1:]}[where]
        self._weights = {step.t: part * weight for step, weight in zip(steps, weights, strict=True) if step in chosen}
        self._before: Tensor | None = None

    def predict(self, x: Tensor, t: float, condition: Any = None) -> tuple[Tensor, Tensor]:
        x0_hat, _ = self.inner.predict(x, t, condition)
        before, self._before = self._before, x0_hat
        if before is not None:
            x0_hat = x0_hat + self._weights.get(t, 0.0) * (x0_hat - before)
        return x0_hat, eps_from_x0(x, x0_hat, *self.alpha_sigma(t))

    def changes(self) -> str:
        return "extrapolated"


class TailBiting(Trellis):
    """A ring of groups: the first follows the last. The best path: twice round, then held to its end."""

    def choose(self, direction: Tensor, step: Step) -> Tensor:
        scores = self.codebook(step).scores(direction, step.at)
        return torch.tensor([self._ring(row) for row in scores], dtype=torch.int64, device=direction.device)

    def _ring(self, scores: Tensor) -> list[int]:
        high = 1 << self._bits
        scores = scores.view(len(scores), high, scores.shape[1] >> (2 * self._bits - 1), high // 2)
        start = torch.zeros(high, scores.shape[2], 1, dtype=torch.float32, device=scores.device)
        once = self._metrics(scores, start)
        twice = self._metrics(scores, once[-1] - once[-1].max())
        end = int(twice[-1].argmax())
        ends = {int(once[-1].argmax()), end, self._back(scores, twice, end)[1]}
        paths = []
        for state in ends:
            held = torch.full_like(start, -math.inf)
            held.view(-1)[state] = 0
            metrics = self._metrics(scores, held)
            paths.append((float(metrics[-1].flatten()[state]), self._back(scores, metrics, state)[0]))
        return max(paths)[1]

    @staticmethod
    def _metrics(scores: Tensor, metric: Tensor) -> list[Tensor]:
        out = [metric]
        for row in scores:
            metric = torch.stack(((metric + row).amax(0), (metric - row).amax(0)), -1).view_as(metric)
            out.append(metric)
        return out

    def _back(self, scores: Tensor, metrics: list[Tensor], state: int) -> tuple[list[int], int]:
        letters = []
        for row, metric in zip(reversed(scores), reversed(metrics[:-1]), strict=True):
            letter, low = state & ((1 << self._bits) - 1), state >> self._bits
            best = int((metric[:, low, 0] + (1 - 2 * (letter & 1)) * row[:, low, letter >> 1]).argmax())
            state = best * scores.shape[2] + low
            letters.append(letter)
        return letters[::-1], state

    def noise(self, letters: Tensor, step: Step) -> Tensor:
        state = torch.zeros_like(letters)
        for back in range(1, -(-self._memory // self._bits) + 1):
            state |= letters.roll(back, 1) << (self._bits * (back - 1))
        index = ((state & ((1 << self._memory) - 1)) << (self._bits - 1)) + (letters >> 1)
        return self.codebook(step).atoms(index, step.at, 1 - 2 * (letters & 1))


class Listed(Match):
    """The encoder with several paths at each step's end: of the least residual after the step, by an evaluation each.

    Paths of the same letters but the last one; their scores are the largest of the 2^BITS that there are.
    """

    def __init__(self, x0: Tensor, paths: int) -> None:
        super().__init__(lambda context: x0 - context.x0_hat)
        self._x0, self._paths = x0, paths

    def choose(self, context: Any) -> Tensor:
        step, rule = context.step, context.rule
        letters = super().choose(context)
        if context.following is None:
            return letters
        ends = letters[:, None].repeat(1, 1 << BITS, 1)
        ends[:, :, -1] = torch.arange(1 << BITS, dtype=torch.int64, device=letters.device)
        noise = torch.stack([rule.noise(ends[:, i], step) for i in range(1 << BITS)], 1)
        scores = torch.einsum("bnd,bd->bn", noise, (self._x0 - context.x0_hat).flatten(1))
        kept = scores.topk(self._paths, 1).indices
        errors = []
        for i in range(self._paths):
            z = noise[torch.arange(len(kept)), kept[:, i]].view_as(context.x)
            x = step.alpha_s * context.x0_hat + step.direction * context.eps_hat + step.noise * z
            x0_hat, _ = context.model.predict(x, context.following.t)
            errors.append((self._x0 - x0_hat).square().flatten(1).sum(1))
        best = torch.stack(errors, 1).argmin(1)
        rows = torch.arange(len(kept))
        return ends[rows, kept[rows, best]]


class Watched(Toward):
    """The encoder, which writes down at each coded step how far x0_hat and the state are from what they stand for."""

    def __init__(self, goal: Tensor, x0: Tensor) -> None:
        super().__init__(goal)
        self._x0 = x0
        self._before: Tensor | None = None
        self.seen: list[dict[str, float]] = []

    def choose(self, context: Any) -> Tensor:
        step, x0, x0_hat = context.step, self._x0, context.x0_hat
        residual = x0 - x0_hat
        noise = (context.x - step.alpha_t * x0).square().mean().sqrt() / step.sigma_t
        row = {"t": step.t, "level": float(noise), "gain": float((x0 * x0_hat).sum() / x0_hat.square().sum())}
        if self._before is not None:
            change = x0_hat - self._before
            shared, own = float((residual * change).sum()), float(change.square().sum())
            row |= {"weight": shared / own, "removes": shared**2 / own / float(residual.square().sum())}
        self._before = x0_hat
        self.seen.append(row)
        return super().choose(context)


def field(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the analytic source."""
    bench, rows = Bench(32, args.count, seed=1), []
    power = bench.model.power(32, 32)

    def code(rule_type: type[Trellis], total: int, way: Callable[..., Match], part: float = 0.0) -> tuple[float, float]:
        groups = allocate(round(total / BITS), [1.0] * STEPS)
        steps = bench.information_schedule([WORTH["trellis"] * g * BITS for g in groups])
        rule = rule_type("hadamard", bench.dim, dict(enumerate(groups)), BITS, MEMORY, 1)
        noise = rule.codebook(steps[0]).initial_noise(args.count).view_as(bench.x0)
        done = sample(Extrapolated(bench.model, steps, part, "coded"), steps, rule, way(steps), noise)
        mse = float((done.x0 - bench.x0).double().square().mean())
        return 10 * math.log10(4 / mse), bench.model.rate(mse, 32, 32) * 32**2 / total

    def plain(steps: list[Step]) -> Match:
        return toward(bench.x0)

    def filtered(steps: list[Step]) -> Match:
        q = power * (steps[-1].alpha_t / steps[-1].sigma_t) ** 2
        return Match(lambda c: bench.model._filter((bench.x0 - c.x0_hat).double(), q / (q + 0.3)).float())

    def aimed(steps: list[Step]) -> Match:
        return toward(aim(bench.model, bench.x0, steps))

    trials: dict[str, tuple[type[Trellis], Callable[..., Match], float]] = {
        "as it is, toward x0": (Trellis, plain, 0.0),
        "tail-biting": (TailBiting, plain, 0.0),
        "4 paths at a step's end": (Trellis, lambda steps: Listed(bench.x0, 4), 0.0),
        "2M mean": (Trellis, plain, 1.0),
        "half of it": (Trellis, plain, 0.5),
        "averaged by a tenth of it": (Trellis, plain, -0.1),
        "residual filtered": (Trellis, filtered, 0.0),
        "aimed": (Trellis, aimed, 0.0),
        "aimed, tail-biting": (TailBiting, aimed, 0.0),
    }
    for name, (rule, way, part) in trials.items():
        for total in args.bits:
            quality, efficiency = code(rule, total, way, part)
            rows.append({"trial": name, "bits": total, "psnr": quality, "bound": efficiency})
            print(f"{name:28} {total:6} bits {quality:.3f} dB, {efficiency:.3f} of the bound", flush=True)
    return rows


def photos(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the photographs."""
    model, rows = load_model(args.model), []
    trials = {
        "as it is": (0.0, "coded"),
        "2M mean": (1.0, "coded"),
        "half of it": (0.5, "coded"),
        "last": (1.0, "last"),
    }
    for (name, image), count, bpp in itertools.product(centre_crops(args.images, args.crop), args.steps, args.bpp):
        if args.pick and Path(name).stem not in args.pick:
            continue
        coded = Codec.from_preset(model, T=count).encode(image, bpp=bpp)[0]
        config = container.read(coded.data)[0].config
        job = make_job(model, config, image.height, image.width, "auto", Limits())
        with torch.inference_mode(), model.using():
            x0 = make_target(model, to_tensor(image, 3))
            goal = aim(model, x0, job.steps)
        for trial, (part, where) in trials.items():
            other = Extrapolated(model, job.steps, part, where)
            chooser = Watched(goal, x0)
            done = sample(other, job.steps, job.rule, chooser, job.noise)
            quality = psnr(to_tensor(image, 3)[0], model.decode(done.x0)[0])
            rows.append({"image": name, "T": count, "bpp": bpp, "trial": trial, "psnr": quality})
            rows[-1] |= {"statistics": chooser.seen} if part == 0 else {}
            print(f"{name:10} T={count} {bpp:g} bpp {trial:12} {quality:.3f} dB", flush=True)
    return rows


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    one = commands.add_parser("field")
    one.add_argument("--count", type=int, default=16, help="images (default: 16)")
    one.add_argument("--bits", type=int, nargs="+", default=[900, 1300, 2700, 5200, 8800])
    two = commands.add_parser("photos")
    add_options(two)
    two.add_argument("--pick", nargs="*", help="only images of these names")
    two.add_argument("--steps", type=int, nargs="+", default=[10, 20])
    two.add_argument("--bpp", type=float, nargs="+", default=[0.1, 0.5])
    for each in (one, two):
        each.add_argument("--output", type=Path, required=True, help="JSON to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "field":
        head = {"command": " ".join(["python", "benchmarks/untried.py", *sys.argv[1:]])}
        write_json(args.output, {**head, "rows": field(args)}, 1)
    else:
        write_json(args.output, {**ran(args), "model": f"{args.model}, {args.crop}", "rows": photos(args)}, 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())

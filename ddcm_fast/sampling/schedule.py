"""Schedules: which timesteps are visited, where noise is added and where it carries bits.

Every model is x_t = alpha_t x0 + sigma_t eps, and a step from t to s is one formula (DDPM's ancestral step for
eta = 1, Ho et al. 2020; DDIM for eta = 0, Song et al. 2021):

    v^2 = eta^2 sigma_s^2 (1 - (alpha_t^2 sigma_s^2) / (alpha_s^2 sigma_t^2))
    x_s = alpha_s x0_hat + sqrt(sigma_s^2 - v^2) eps_hat + v z
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ddcm_fast.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from ddcm_fast.sampling.model import DiffusionModel


@dataclass(frozen=True)
class Step:
    """One step t -> s of the reverse process, all numbers in double precision.

    Attributes:
        index: position in the schedule; the `step` of codebooks.
        t, alpha_t, sigma_t: where the step starts. alpha_s, sigma_s: where it ends (1, 0 at the last).
        noise: v, the weight of the noise z (0: deterministic step). direction: weight of eps_hat.
        coded: whether z carries bits; a noisy step without bits uses atom 0.
        atoms: how many of them a coded step has, with the rules that share a file's atoms among its steps.
        position: the index as a 0-d int64 tensor on the device, in a step that stands for several alike (graphs.py).
    """

    index: int
    t: float
    alpha_t: float
    sigma_t: float
    alpha_s: float
    sigma_s: float
    noise: float
    direction: float
    coded: bool
    atoms: int = 0
    position: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def at(self) -> int | Tensor:
        """What codebooks are told of the index."""
        return self.index if self.position is None else self.position

    @property
    def deterministic(self) -> Step:
        """The same step with eta = 0 (DDIM) and no bits."""
        return Step(
            self.index,
            self.t,
            self.alpha_t,
            self.sigma_t,
            self.alpha_s,
            self.sigma_s,
            0.0,
            self.sigma_s,
            False,
        )

    @property
    def last(self) -> Step:
        """The same step taken to a clean image at once, which is x0_hat."""
        return Step(self.index, self.t, self.alpha_t, self.sigma_t, 1.0, 0.0, 0.0, 0.0, False)

    @property
    def snr_gain(self) -> float:
        """SNR_s - SNR_t, the information a step can carry: KL = |x0 - x0_hat|^2 * snr_gain / (2 ln 2) bits.

        It equals coef^2 / v^2 for eta = 1, coef the weight of x0 in the mean of q(x_s | x_t, x0).
        Infinite at the step that ends at a clean image.
        """
        if self.sigma_s == 0:
            return math.inf
        return (self.alpha_s / self.sigma_s) ** 2 - (self.alpha_t / self.sigma_t) ** 2


def plan(
    model: DiffusionModel,
    timesteps: Sequence[float],
    coded: Sequence[bool] | None = None,
    eta: Sequence[float] | None = None,
) -> list[Step]:
    """Steps through strictly decreasing timesteps and on to the clean image.

    Args:
        timesteps: where the network is evaluated, noisiest first.
        coded: per step, whether its noise carries bits (default: all that have noise).
        eta: per step, 1 (ancestral, the default) to 0 (deterministic).

    Raises:
        ConfigError: no timesteps, or not decreasing.
    """
    n = len(timesteps)
    if n == 0 or any(a <= b for a, b in itertools.pairwise(timesteps)):
        raise ConfigError(
            f"a schedule needs at least one timestep, each below the one before it, not {list(timesteps)[:9]}"
        )
    levels = [model.alpha_sigma(t) for t in timesteps] + [(1.0, 0.0)]
    steps = []
    for i, t in enumerate(timesteps):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = levels[i], levels[i + 1]
        ratio = (alpha_t * sigma_s) ** 2 / (alpha_s * sigma_t) ** 2
        share = 1.0 if model.fresh_noise else max(0.0, 1.0 - ratio)
        v2 = (1.0 if eta is None else eta[i]) ** 2 * sigma_s**2 * share
        steps.append(
            Step(
                index=i,
                t=t,
                alpha_t=alpha_t,
                sigma_t=sigma_t,
                alpha_s=alpha_s,
                sigma_s=sigma_s,
                noise=math.sqrt(v2),
                direction=math.sqrt(max(0.0, sigma_s**2 - v2)),
                coded=v2 > 0 and (coded is None or coded[i]),
            )
        )
    return steps


def for_scale(steps: Sequence[Step], scale: int) -> list[Step]:
    """The first steps of a plan, as many as a picture needs that is shown at 1 / scale of its sides.

    The last of them is `Step.last`. They end where the noise is sqrt(scale) times what it is in the last coded step.
    Averaged, white noise would be as low already at `scale` times that, but a network knows less of a smaller picture's
    pixels from their neighbours: the square root was chosen by looking and measuring (docs/pillow.md).
    """
    goal = ([step for step in steps if step.coded] or steps)[-1]
    most = math.sqrt(scale) * goal.sigma_t
    end = next(i for i, step in enumerate(steps) if step.sigma_t * goal.alpha_t <= most * step.alpha_t)
    return [*steps[:end], steps[end].last]


def linspace(model: DiffusionModel, count: int) -> list[float]:
    """`count` training timesteps evenly spaced from the noisiest to the cleanest, both included.

    Rounded as diffusers' "linspace" is, which DDCM's own code takes: to the nearest from the cleanest on, a half to the
    even one. A single one is the noisiest.
    """
    grid = model.training_timesteps()
    _check_count(count, len(grid))
    last = len(grid) - 1
    return [grid[last - place] for place in reversed(_evenly(count, last))] if count > 1 else [grid[0]]


def linspace_floor(model: DiffusionModel, count: int) -> list[float]:
    """`linspace` with places in the model's list of timesteps rounded down, as files were made before it was mended."""
    grid = model.training_timesteps()
    _check_count(count, len(grid))
    if count == 1:
        return [grid[0]]
    return [grid[i * (len(grid) - 1) // (count - 1)] for i in range(count)]


def trailing(model: DiffusionModel, count: int) -> list[float]:
    """`count` training timesteps evenly spaced from the noisiest, as diffusers' "trailing" (Lin et al. 2024).

    Where `count` is no divisor of their number, some are the next noisier one to diffusers'.
    """
    grid = model.training_timesteps()
    _check_count(count, len(grid))
    return [grid[i * len(grid) // count] for i in range(count)]


#: The timesteps at which DiffC's published code encodes with Stable Diffusion 1.5 (Vonderfecht and Liu 2025), each step
#: of about as much information; Turbo-DDCM (Vaisman et al. 2026) puts 999 before them.
_DIFFC = (
    *(999, 972, 949, 929, 897, 869, 834, 805, 780, 751, 726, 704, 688, 670, 648, 627, 608, 591, 578, 561),
    *(546, 530, 520, 510, 498, 491, 480, 465, 455, 447, 438, 429, 419, 410, 402, 390, 380, 371, 361, 353),
    *(345, 336, 326, 319, 313, 305, 296, 289, 282, 276, 269, 261, 254, 247, 242, 237, 231, 224, 219, 213),
    *(209, 204, 200, 194, 189, 185, 181, 175, 170, 167, 163, 160, 156, 153, 149, 146, 143, 139, 135, 132),
    *(129, 125, 121, 118, 116, 113, 110, 107, 104, 101, 99, 96, 94, 92, 90, 87, 85),
    *range(82, 48, -2),
    *range(48, 0, -1),
)


def diffc(model: DiffusionModel, count: int) -> list[float]:
    """`count` of DiffC's timesteps, evenly chosen from first to last as Turbo-DDCM does, or their nearest in the model.

    Raises ConfigError: more than there are, or a model that has not as many different ones.
    """
    _check_count(count, len(_DIFFC))
    chosen = [_DIFFC[place] for place in _evenly(count, len(_DIFFC) - 1)]
    grid = model.training_timesteps()
    near = [min(grid, key=lambda t: (abs(t - wanted), t)) for wanted in chosen]
    if len(set(near)) < count:
        raise ConfigError(
            f"T and tail are {count} steps; 'diffc' has only {len(set(near))} for this model: lower T or tail"
        )
    return near


def tail_timesteps(stop: int, count: int) -> list[float]:
    """`count` timesteps evenly spaced from `stop` towards the clean image, which follows the last.

    Raises ConfigError: fewer than `count` timesteps from `stop` down.
    """
    if count > stop + 1:
        raise ConfigError(f"tail is {count}; it must be at most {stop + 1} to fit below the timestep stop = {stop}")
    return [float(stop - i * stop // count) for i in range(count)]


def allocate(total: int, weights: Sequence[float]) -> list[int]:
    """Share `total` in proportion to weights: rounded down, the rest to the largest remainders, first come first."""
    whole = sum(weights)
    if whole <= 0:
        weights, whole = [1.0] * len(weights), float(len(weights))
    exact = [total * w / whole for w in weights]
    parts = [int(e) for e in exact]
    order = sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])
    for i in order[: total - sum(parts)]:
        parts[i] += 1
    return parts


def _evenly(count: int, last: int) -> list[int]:
    """`count` places evenly spaced from 0 to `last`, both included; a half goes to the even place, as numpy rounds."""
    spacing = last / max(1, count - 1)
    return [round(i * spacing) for i in range(count)]


def _check_count(count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise ConfigError(f"T is {count}; it must be from 1 to {most} for this model")

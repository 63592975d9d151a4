"""How much information each noise level holds: the curve that schedules and bit allocation follow.

A step t -> s with eta = 1 ideally costs KL = |x0 - x0_hat(x_t)|^2 (SNR_s - SNR_t) / (2 ln 2) bits, so the mean squared
error of x0_hat at each noise level says where the bits go (the I-MMSE relation of Guo, Shamai and Verdu 2005;
DiffC, Theis et al. 2022).
"""

from __future__ import annotations

import itertools
import json
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddcm_fast.errors import ConfigError, ModelError
from ddcm_fast.files import write_json
from ddcm_fast.sampling.curve import InformationCurve
from ddcm_fast.sampling.model import DiffusionModel
from ddcm_fast.sampling.schedule import Step

#: Noise levels of a curve.
_LEVELS = 24


def _snr(model: DiffusionModel, t: float) -> float:
    alpha, sigma = model.alpha_sigma(t)
    return (alpha / sigma) ** 2


def spent_bits(curve: InformationCurve, model: DiffusionModel) -> tuple[list[float], list[float]]:
    """Timesteps from the noisiest useful one on, and the bits an entry spent on the way to each of them.

    A network can be worse than knowing nothing near pure noise; coding starts below such timesteps.
    """
    grid = model.training_timesteps()
    useful = [t for t in grid if curve.at(t) < curve.power]
    grid = grid[grid.index(useful[0]) :] if useful else grid
    total, out = 0.0, [0.0]
    for t, s in itertools.pairwise(grid):
        total += curve.at(t) * (_snr(model, s) - _snr(model, t)) / (2 * math.log(2))
        out.append(total)
    return grid, out


#: Signal-to-noise ratio and mean squared error of x0_hat of Stable Diffusion 1.5 on photographs, from the bits a step
#: that DiffC publishes (Vonderfecht and Liu 2025, configs/SD-1.5-base.yaml; 4 x 64 x 96 latents assumed).
_DIFFC = (
    *((0.006457, 0.581), (0.01051, 0.528), (0.01975, 0.471), (0.03657, 0.429), (0.0728, 0.377), (0.1139, 0.338)),
    *((0.2043, 0.302), (0.312, 0.271), (0.4055, 0.246), (0.61, 0.215), (0.8927, 0.188), (1.265, 0.163)),
    *((1.796, 0.137), (2.622, 0.114), (3.799, 0.0925), (5.158, 0.0763), (7.182, 0.0622), (10.12, 0.05)),
    *((14.21, 0.0399), (21.08, 0.0304), (25.95, 0.0262), (33.28, 0.0221), (45.52, 0.0179), (65.71, 0.014)),
    *((94.58, 0.011), (127.3, 0.00919)),
)
_DIFFC_POWER = 0.65


def fallback_curve(model: DiffusionModel) -> InformationCurve:
    """A curve for models that were never calibrated: the one DiffC publishes, by signal-to-noise ratio.

    Between its points and beyond the cleanest it is linear in the logarithms of both, before the noisiest constant.
    """
    logs = [(math.log(snr), math.log(mse)) for snr, mse in _DIFFC]

    def error(snr: float) -> float:
        if snr <= _DIFFC[0][0]:
            return _DIFFC[0][1]
        i = min(bisect_right(logs, (math.log(snr), 0.0)), len(logs) - 1)
        (x0, y0), (x1, y1) = logs[i - 1], logs[i]
        return math.exp(y0 + (y1 - y0) * (math.log(snr) - x0) / (x1 - x0))

    levels = curve_levels(model)
    return InformationCurve(tuple(levels), tuple(error(_snr(model, t)) for t in levels), _DIFFC_POWER)


def curve_levels(model: DiffusionModel) -> list[float]:
    """Timesteps of a curve, increasing and denser at the clean end, where the signal-to-noise ratio grows fastest."""
    grid = model.training_timesteps()[::-1]
    n = min(_LEVELS, len(grid))
    return sorted({grid[round((len(grid) - 1) * (i / (n - 1)) ** 2)] for i in range(n)}) if n > 1 else grid


def model_curve(model: DiffusionModel) -> InformationCurve:
    """The curve stored with the model, or the fallback."""
    return model.information if model.information is not None else fallback_curve(model)


def step_pace(curve: InformationCurve, model: DiffusionModel) -> tuple[list[float], list[float]]:
    """Timesteps as `spent_bits`, and at each how many of the steps should have been taken, up to a common factor.

    Steps of equal information where all cost the same. Where the picture is averaged they cost less, and there are
    more of them: what a step loses by its size goes with the square of its information, so for the least loss at a
    given work a step's information is proportional to the square root of its work, halved by each averaging.
    """
    grid, spent = spent_bits(curve, model)
    steps = zip(grid[:-1], itertools.pairwise(spent), strict=True)
    parts = ((after - before) * 2 ** bisect_right(curve.averaged_from, t) for t, (before, after) in steps)
    return grid, list(itertools.accumulate(parts, initial=0.0))


def kl_timesteps(model: DiffusionModel, count: int, stop: int) -> list[float]:
    """`count` timesteps from the noisiest on, such that each step down to `stop` carries its part of the information.

    Equal parts, but where the picture is averaged smaller ones, see step_pace.

    The last of the `count` coded steps ends at timestep `stop`, which is not in the list.

    Raises ConfigError: fewer than `count` timesteps above `stop`.
    """
    return equal_steps(*step_pace(model_curve(model), model), count, stop)


def equal_steps(grid: Sequence[float], pace: Sequence[float], count: int, stop: int) -> list[float]:
    """kl_timesteps for timesteps and the part of the steps taken until each, as step_pace gives them."""
    above = [i for i, t in enumerate(grid) if t > stop]
    if count < 1 or len(above) < count:
        raise ConfigError(f"T is {count}, but only {len(above)} timesteps of this model lie above the stop step {stop}")
    end = pace[len(above)] if len(above) < len(pace) else pace[-1]
    chosen: list[int] = []
    position = 0
    for i in range(count):
        goal = end * i / count
        # The nearest timestep to an equal share, leaving room for those that follow.
        while position + 1 < len(above) and abs(pace[position + 1] - goal) <= abs(pace[position] - goal):
            position += 1
        position = min(max(position, chosen[-1] + 1 if chosen else 0), len(above) - count + i)
        chosen.append(position)
    return [grid[i] for i in chosen]


def shares(model: DiffusionModel, steps: Sequence[Step]) -> list[float]:
    """Expected bits an entry of each step, from the model's curve."""
    curve = model_curve(model)
    return [curve.at(step.t) * step.snr_gain / (2 * math.log(2)) for step in steps]


@torch.inference_mode()
def measure(
    model: DiffusionModel,
    x0: Tensor,
    timesteps: Sequence[float],
    seed: int = 0,
    on_level: Callable[[], Any] | None = None,
    condition: Any = None,
) -> list[float]:
    """Mean squared error a state entry of x0_hat from x_t = alpha_t x0 + sigma_t eps, for each timestep.

    x0 (B, *latent_shape) float32; eps is drawn on the CPU from `seed`.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    out = []
    for t in timesteps:
        alpha, sigma = model.alpha_sigma(t)
        eps = torch.randn(x0.shape, generator=generator, dtype=torch.float32, device="cpu").to(x0.device)
        x0_hat, _ = model.predict(alpha * x0 + sigma * eps, t, condition)
        out.append(float((x0 - x0_hat).double().square().mean()))
        if on_level is not None:
            on_level()
    return out


def calibrate(model: DiffusionModel, images: Sequence[Tensor], progress: bool | None = False) -> InformationCurve:
    """Measure a model's information curve on sample images.

    Of a model with several resolutions (MultiscaleModel) at each that fits the images: the curve then says where an
    averaged picture predicts better, and has the error of the better one.

    Args:
        images: each (1, channels, H, W) float32 in [-1, 1], H and W multiples of model.multiple.
        progress: show a progress bar; None: if standard error is a terminal.

    Raises ConfigError: no images.
    """
    if not images:
        raise ConfigError("calibration needs at least one image")
    levels = curve_levels(model)
    with torch.inference_mode():
        states = [model.encode(image) for image in images]
    models = min((model.resolutions(x0.shape) for x0 in states), key=len)
    errors = np.zeros((len(models), len(levels)))
    hide = None if progress is None else not progress
    with tqdm(total=errors.size * len(images), disable=hide, desc="calibrate", unit="eval", leave=False) as bar:
        for i, x0 in enumerate(states):
            errors += [measure(one, x0, levels, seed=i, on_level=bar.update) for one in models]
    errors /= len(images)
    averaged_from = _switches(levels, errors)
    power = _readable([sum(float(x0.double().square().mean()) for x0 in states) / len(states)])[0]
    rows = tuple(_readable(row) for row in errors[: len(averaged_from) + 1])
    mse = tuple(rows[bisect_right(averaged_from, t)][i] for i, t in enumerate(levels))
    return InformationCurve(tuple(levels), mse, power, averaged_from, rows if averaged_from else ())


def _readable(values: Iterable[float]) -> tuple[float, ...]:
    """To six digits, far below the measurement's own noise."""
    return tuple(float(f"{value:.6g}") for value in values)


def _switches(levels: Sequence[float], errors: np.ndarray) -> tuple[float, ...]:
    """Timesteps from which on averaging k times or more is always better than less often, for k = 1, 2, ...

    errors (k, levels); between two levels the difference is taken for linear.
    """
    out: list[float] = []
    for k in range(1, len(errors)):
        gain = errors[:k].min(0) - errors[k:].min(0)
        worse = np.flatnonzero(gain <= 0)
        if len(worse) == 0:
            out.append(levels[0])
        elif worse[-1] + 1 < len(levels):
            i = worse[-1]
            place = levels[i] + (levels[i + 1] - levels[i]) * gain[i] / (gain[i] - gain[i + 1])
            out.append(float(f"{place:.6g}"))
    return tuple(out)


def store(curve: InformationCurve, folder: Path) -> None:
    """Write a curve into a model folder's ddcm.json, whole or not at all. Raises ModelError if that cannot be."""
    path = folder / "ddcm.json"
    try:
        settings = json.loads(path.read_text()) if path.is_file() else {}
        settings["information"] = curve.to_json()
        write_json(path, settings)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"cannot store the curve in {path}: {error}") from error

"""Rate control: the configuration that codes an image at a bitrate or a quality.

The bits of a file follow from its configuration alone (but for `rcc`), so a bitrate is met by counting. Where coding
stops decides how well they are spent: down to the noise level whose information, *for this image*, the bits can
carry. A few network evaluations on the noisy image itself measure that.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from torch import Tensor

from ddcm_fast.codec.config import SHARING_RULES, CodecConfig
from ddcm_fast.errors import ConfigError, DDCMWarning
from ddcm_fast.sampling.curve import InformationCurve
from ddcm_fast.sampling.information import equal_steps, measure, model_curve, spent_bits, step_pace
from ddcm_fast.sampling.model import DiffusionModel
from ddcm_fast.sampling.rules.rcc import expected_bits

#: A file whose state is this many times farther from the image than the image's curve foretold stopped too late. Its
#: steps share the bits by the model's average photograph, and this image asked for more than that in its first ones:
#: what is missed there is never made up for. On photographs the ratio is 0.9 to 1.25.
MISSED = 2.5
#: Parts of the bits' worth that one encoding after the other then counts on.
TRUST = (1.0, 0.5, 0.25, 0.125)

#: Bits a pixel of the qualities a person can choose without reading a paper.
QUALITIES = {"low": 0.1, "medium": 0.25, "high": 0.5, "best": 1.0}

_PROBES = 7
_MAX_ENCODINGS = 5
_FIRST_SLOPE = 2.5  # dB for e times the bits, before two encodings say it
PSNR_TOLERANCE = 0.2
_FARTHEST = 1.0  # dB from the target at which a result is no answer

Result = TypeVar("Result")


def image_curve(model: DiffusionModel, x0: Tensor, condition: Any = None) -> InformationCurve:
    """The information curve of one image (1, *latent_shape), probed at 7 of the noise levels the model's curve has."""
    base = model_curve(model)
    useful = [t for t in base.t if t > 0 and base.at(t) < base.power]
    levels = sorted({useful[round(i * (len(useful) - 1) / (_PROBES - 1))] for i in range(_PROBES)})
    errors = measure(model, x0, levels, condition=condition)
    # Between the probes the image's error follows the shape of the model's curve.
    ratio = InformationCurve(tuple(levels), tuple(e / base.at(t) for t, e in zip(levels, errors, strict=True)), 1.0)
    return InformationCurve(base.t, tuple(base.at(t) * ratio.at(t) for t in base.t), base.power)


def stop_for_bits(model: DiffusionModel, curve: InformationCurve, entry_bits: float, steps: int) -> int:
    """The timestep down to which `steps` steps ask for `entry_bits` bits an entry of an image with this curve.

    A step asks for |x0 - x0_hat|^2 (SNR_s - SNR_t) / (2 ln 2) with the error at its start, so few steps ask for more
    than the curve's integral, and stop earlier for it.
    """
    grid, pace = step_pace(model_curve(model), model)
    low, high = min(steps, len(grid) - 1), len(grid) - 1  # the steps need as many timesteps above the stop
    while low < high:
        middle = (low + high) // 2
        stop = int(grid[middle])
        if _asked(model, curve, [*equal_steps(grid, pace, steps, stop), float(stop)]) >= entry_bits:
            high = middle
        else:
            low = middle + 1
    return int(grid[low])


def _asked(model: DiffusionModel, curve: InformationCurve, timesteps: list[float]) -> float:
    """Bits an entry that steps from each of these timesteps to the next ask for."""
    levels = [model.alpha_sigma(t) for t in timesteps]
    snr = [(alpha / sigma) ** 2 for alpha, sigma in levels]
    gains = zip(timesteps, itertools.pairwise(snr), strict=False)  # the stop itself starts no step
    return sum(curve.at(t) * (after - before) for t, (before, after) in gains) / (2 * math.log(2))


def bits_for_stop(model: DiffusionModel, curve: InformationCurve, dim: int, stop: float) -> float:
    """About the bits that carry an image's information down to a timestep, whatever the rule and the steps."""
    grid, spent = spent_bits(curve, model)
    place = next((i for i, t in enumerate(grid) if t <= stop), len(grid) - 1)
    return max(1.0, spent[place] * dim / 0.8)


def with_payload(
    config: CodecConfig, model: DiffusionModel, curve: InformationCurve, dim: int, bits: float, trust: float = 1.0
) -> CodecConfig:
    """The configuration whose payload is the largest of at most `bits` bits, stopping where the image's curve says.

    `trust` is the part of the bits' worth to count on.

    Raises ConfigError: not even one atom or step fits, or the rule has no such rate.
    """
    if config.rule not in SHARING_RULES:
        return _with_steps(config, model, dim, bits)

    @cache
    def stop_for(steps: int) -> int:
        return stop_for_bits(model, curve, trust * _worth(config, bits / steps) * bits / dim, steps)

    def make(atoms: int) -> CodecConfig:
        steps = min(config.T, atoms)
        stop = stop_for(steps) if config.schedule == "kl" else 0
        tail = min(config.tail, stop + 1) if config.schedule == "kl" else config.tail
        return dataclasses.replace(config, atoms=atoms, T=steps, stop=stop, tail=tail)

    return make(_largest(lambda atoms: _bits(make(atoms), model, dim) <= bits, config, bits))


def foretold_error(config: CodecConfig, curve: InformationCurve) -> float:
    """Mean squared error of the final state by the image's curve; infinite where rate control chooses no stop."""
    chosen = config.rule in SHARING_RULES and config.schedule == "kl"
    return curve.at(config.stop) if chosen else math.inf


def _worth(config: CodecConfig, step_bits: float) -> float:
    """Share of the bits of a step that turns into information, by a rule's theory.

    The M largest of K scores, of size t sqrt(D), move the state like a noise channel of M t^2 / (2 ln 2) bits.
    `trellis` was measured (benchmarks/gaussian_field_rd.py).
    """
    if config.rule == "trellis":
        return 0.92
    if config.rule == "rcc":
        return config.rcc_bits / expected_bits(config.rcc_bits)
    atoms = 1
    while config.rule == "threshold" and _log2_comb(config.K, 2 * atoms) + 2 * atoms <= step_bits:
        atoms *= 2
    tail = min(1.0, atoms / config.K)
    normal = statistics.NormalDist()
    score = 2 * normal.pdf(normal.inv_cdf(1 - tail / 2)) / tail  # mean of the part `tail` of |N(0, 1)| that is largest
    return atoms * score**2 / (2 * math.log(2) * (_log2_comb(config.K, atoms) + atoms))


def _with_steps(config: CodecConfig, model: DiffusionModel, dim: int, bits: float) -> CodecConfig:
    """One atom a step: the rate is the number of steps."""
    most = len(model.training_timesteps())

    def make(steps: int) -> CodecConfig:
        return dataclasses.replace(config, T=steps)

    steps = _largest(lambda count: count <= most and _bits(make(count), model, dim) <= bits, config, bits)
    if steps == most:
        raise ConfigError(
            f"{most} steps with K={config.K} spend less than the bitrate asked for; "
            "use a larger K or M, or the preset product"
        )
    return make(steps)


def _largest(fits: Callable[[int], bool], config: CodecConfig, bits: float) -> int:
    """The largest count that fits, by doubling and bisection."""
    if not fits(1):
        raise ConfigError(f"{bits:.0f} bits are not enough for one atom of K={config.K}; raise the bitrate or lower K")
    low = 1
    while fits(2 * low):
        low *= 2
    high = 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _bits(config: CodecConfig, model: DiffusionModel, dim: int) -> float:
    """Payload bits of a configuration (for rcc: expected)."""
    if config.rule == "product":
        return config.atoms * math.log2(2 * config.K)
    if config.rule == "trellis":
        return float(config.atoms * config.C)
    if config.rule == "rcc":
        return config.atoms * expected_bits(config.rcc_bits)
    steps = config.steps(model)
    coded = [step for step in steps if step.coded]
    if config.rule == "threshold":
        return sum(_log2_comb(config.K, step.atoms) + step.atoms for step in coded)
    rule = config.make_rule(steps, dim, "reference")
    return sum(math.log2(radix) for step in coded for radix in rule.radices(step))


def _log2_comb(n: int, k: int) -> float:
    if k > n:
        return math.inf
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def search_psnr(encode: Callable[[float], tuple[Result, float]], first: float, target: float, most: float) -> Result:
    """What `encode` (bits -> result, PSNR) gives within PSNR_TOLERANCE of a PSNR, by the secant rule on log(bits).

    PSNR is nearly linear in the logarithm of the bits. After 5 encodings the nearest is returned, with a DDCMWarning.

    Raises ConfigError: `most` bits do not reach the target, or nothing within 1 dB of it was found.
    """
    tried: list[tuple[float, float, Result]] = []  # log bits, PSNR, result
    bits = min(first, most)
    for _ in range(_MAX_ENCODINGS):
        result, quality = encode(bits)
        tried.append((math.log(bits), quality, result))
        if abs(quality - target) <= PSNR_TOLERANCE:
            break
        if bits >= most and quality < target:
            raise ConfigError(f"{target:g} dB is out of reach of this preset and model, which gets to {quality:.2f} dB")
        near, other = (*sorted(tried, key=lambda point: abs(point[1] - target)), None)[:2]
        assert near is not None
        slope = _FIRST_SLOPE
        if other is not None and (near[0] - other[0]) * (near[1] - other[1]) > 0:
            slope = (near[1] - other[1]) / (near[0] - other[0])
        bits = min(most, math.exp(near[0] + max(-2.0, min(2.0, (target - near[1]) / slope))))
        if any(abs(math.log(bits) - point[0]) < 1e-3 for point in tried):
            break  # more bits gave less quality, and the rule would only go round
    _, quality, result = min(tried, key=lambda point: abs(point[1] - target))
    if abs(quality - target) > _FARTHEST:
        raise ConfigError(
            f"no file of {target:g} dB was found, {quality:.2f} dB is the nearest; "
            "try another preset, more steps, or --bpp"
        )
    if abs(quality - target) > PSNR_TOLERANCE:
        warnings.warn(f"{quality:.2f} dB is the nearest to {target:g} dB that was found", DDCMWarning, stacklevel=2)
    return result


def mse_to_stop(curve: InformationCurve, psnr: float) -> float:
    """The timestep at which an image's x0_hat has a PSNR (peak 2): where coding for that quality ends, about."""
    goal = 4 / 10 ** (psnr / 10)
    for (t0, m0), (t1, m1) in itertools.pairwise(zip(curve.t, curve.mse, strict=True)):
        if m0 <= goal <= m1:
            return t0 + (t1 - t0) * (goal - m0) / (m1 - m0) if m1 > m0 else t0
    return curve.t[0] if goal < curve.mse[0] else curve.t[-1]


def finite_target(value: float, name: str) -> float:
    """A positive, finite rate or quality. Raises ConfigError otherwise."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} is {value}; it must be a positive number")
    return value

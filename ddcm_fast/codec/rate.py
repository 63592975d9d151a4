"""Rate control: the configuration that codes an image at a bitrate or a quality.

The bits of a file follow from its configuration alone (but for rules whose payload varies), so a bitrate is met by
counting. Where coding stops decides how well they are spent: down to the noise level whose information, *for this
image*, the bits can carry. A few network evaluations on the noisy image itself measure that.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, TypeVar

from torch import Tensor

from ddcm_fast.codec.aim import aims
from ddcm_fast.codec.config import CodecConfig
from ddcm_fast.codec.images import psnr as measured_psnr
from ddcm_fast.codec.job import Encoded
from ddcm_fast.errors import ConfigError, DDCMWarning
from ddcm_fast.sampling.choosers import StepContext, Toward
from ddcm_fast.sampling.curve import InformationCurve
from ddcm_fast.sampling.information import equal_steps, measure, model_curve, spent_bits, step_pace
from ddcm_fast.sampling.model import DiffusionModel
from ddcm_fast.sampling.rules import Rule
from ddcm_fast.sampling.schedule import Step

#: A file whose state is this many times farther from the image than the image's curve foretold stopped too late. Its
#: steps share the bits by the model's average photograph, and this image asked for more than that in its first ones:
#: what is missed there is never made up for. On photographs the ratio is 0.9 to 1.25. An image that was missed once is
#: none, and of it less is forgiven: boxes of flat colour came out at 34 dB where the next attempt had 42.
MISSED, MISSED_AGAIN = 1.5, 1.0
#: Parts of the bits' worth that one encoding after the other then counts on.
TRUST = (1.0, 0.5, 0.25, 0.125)
#: What an encoder that aims (aim.py) counts on before these. Steps towards a photograph without its finest detail ask
#: for less than the curve says, whose errors are to the whole image: by a factor of 1.19 at 0.1 bpp and 1.11 at 0.5,
#: measured on training photographs.
SPARED = 1.15

MAX_BPP = 8.0

#: Encodings in search of a file's size, for rules whose size depends on the image.
_MOST_RETRIES = 6

#: Bits by which a payload can be longer than its symbols: whole bytes, and the coder's own precision.
_PAYLOAD_ROUNDING = 12

_PROBES = 3
_MAX_ENCODINGS = 5
_FIRST_SLOPE = 2.5  # dB for e times the bits, before two encodings say it
PSNR_TOLERANCE = 0.2
_FARTHEST = 1.0  # dB from the target at which a result is no answer

Result = TypeVar("Result")


def image_curve(model: DiffusionModel, x0: Tensor, condition: Any = None) -> InformationCurve:
    """The information curve of one image (1, *latent_shape), probed at 3 of the noise levels the model's curve has."""
    base, levels = model_curve(model), probes(model)
    errors = measure(model, x0, levels, condition=condition)
    # Between the probes the image's error follows the shape of the model's curve.
    ratio = InformationCurve(tuple(levels), tuple(e / base.at(t) for t, e in zip(levels, errors, strict=True)), 1.0)
    return InformationCurve(base.t, tuple(base.at(t) * ratio.at(t) for t in base.t), base.power)


def probes(model: DiffusionModel) -> list[float]:
    """The timesteps at which an image's curve is measured, each by one prediction."""
    base = model_curve(model)
    useful = [t for t in base.t if t > 0 and base.at(t) < base.power]
    return sorted({useful[round(i * (len(useful) - 1) / (_PROBES - 1))] for i in range(_PROBES)})


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


@dataclass(frozen=True)
class Control:
    """Encodings of one image at a bitrate or a quality.

    Attributes:
        model, config, condition: of the encodings; their rate is chosen here.
        image: (1, C, H, W) float32 in [-1, 1]; x0: its state (1, *latent_shape).
        masked: whether the error is weighted, and then says nothing of whether the image could be followed.
        header: configuration -> bytes of its file's header.
        encode: configuration and bits of a payload -> file, and its state's mean squared error.
        curve: the image's, where it need not be measured.
    """

    model: DiffusionModel
    config: CodecConfig
    image: Tensor
    x0: Tensor
    condition: Any
    masked: bool
    header: Callable[[CodecConfig], int]
    encode: Callable[[CodecConfig, float], tuple[Encoded, float]]
    curve: InformationCurve | None = None

    @cached_property
    def _curve(self) -> InformationCurve:
        return self.curve or image_curve(self.model, self.x0, self.condition)

    @property
    def _trust(self) -> tuple[float, ...]:
        return (SPARED, *TRUST) if aims(self.config, self.condition) else TRUST

    @property
    def _pixels(self) -> int:
        return self.image.shape[-2] * self.image.shape[-1]

    @property
    def _dim(self) -> int:
        return self.x0[0].numel()

    def at_rate(self, bpp: float) -> Encoded:
        """The largest file of at most `bpp` bits a pixel. Raises ConfigError: there is none."""
        return self._sized(positive(bpp, "bpp") * self._pixels)

    def fixed(self, bpp: float) -> CodecConfig:
        """What `at_rate` codes with first. For rules that share no atoms the rate alone says it.

        Raises ConfigError: there is none.
        """
        config = self.config
        for _ in range(2):  # the header's length depends a little on what is in it
            bits = self._payload(positive(bpp, "bpp") * self._pixels, config)
            config = self._with_payload(config, bits, self._trust[0])
        return config

    def at_quality(self, psnr: float) -> Encoded:
        """A file of about that PSNR in dB, see search_psnr. Raises ConfigError: there is none."""
        goal = positive(psnr, "psnr")

        def attempt(file_bits: float) -> tuple[Encoded, float]:
            coded = self._sized(file_bits)
            return coded, measured_psnr(self.image.to(coded.reconstruction.device)[0], coded.reconstruction)

        return search_psnr(attempt, self.bits_for(goal), goal, MAX_BPP * self._pixels)

    def bits_for(self, psnr: float) -> float:
        """About the bits of a file of that quality, from the image's curve: where `at_quality` begins."""
        return bits_for_stop(self.model, self._curve, self._dim, mse_to_stop(self._curve, psnr)) + 400

    def _sized(self, file_bits: float) -> Encoded:
        """Code, look, and where the steps asked for more than their bits could say, stop earlier."""
        best, least = None, math.inf
        for trust in self._trust:
            coded, error, foretold = self._fit(file_bits, trust)
            if best is None or error < least:
                best, least = coded, error
            if self.masked or error <= (MISSED if trust == self._trust[0] else MISSED_AGAIN) * foretold:
                break
        assert best is not None
        return best

    def _fit(self, file_bits: float, trust: float) -> tuple[Encoded, float, float]:
        """The largest file; the error of its state, and the error its curve foretold."""
        config, goal = self.config, file_bits
        varies = config.rule_type.varies
        best: tuple[Encoded, float, float] | None = None
        for _ in range(_MOST_RETRIES):
            for _ in range(2):  # the header's length depends a little on what is in it
                config = self._with_payload(config, self._payload(goal, config), trust)
            coded, error = self.encode(config, self._payload(file_bits, config))
            size = 8 * len(coded.data)
            if size <= file_bits and (best is None or len(coded.data) > len(best[0].data)):
                stopped = config.shares_atoms and config.schedule == "kl"  # where the curve said
                best = coded, error, self._curve.at(config.stop) if stopped else math.inf
            if best is not None and (not varies or 8 * len(best[0].data) >= 0.99 * file_bits):
                return best
            goal *= file_bits / size  # only sizes that vary are not known before
        if best is None:
            raise ConfigError(f"no file of {file_bits / self._pixels:.4g} bpp found; ask for more")
        return best

    def _with_payload(self, config: CodecConfig, bits: float, trust: float) -> CodecConfig:
        """The configuration whose payload is the largest of at most `bits` bits, stopping where the image's curve says.

        `trust` is the part of the bits' worth to count on.

        Raises ConfigError: not even one atom or step fits, or the rule has no such rate.
        """
        model, rule, kl = self.model, config.rule_type, config.schedule == "kl"
        # A rule that shares no atoms has one choice a step: its rate is the number of steps.
        most = math.inf if config.shares_atoms else len(model.training_timesteps())

        @cache
        def stop_for(steps: int) -> int:
            entry_bits = trust * rule.worth(config, bits / steps) * bits / self._dim
            return stop_for_bits(model, self._curve, entry_bits, steps)

        @cache
        def make(count: int) -> CodecConfig:
            if not config.shares_atoms:
                return dataclasses.replace(config, T=count)
            steps = min(config.T, count)
            stop = stop_for(steps) if kl else 0
            tail = min(config.tail, stop + 1) if kl else config.tail
            return dataclasses.replace(config, atoms=count, T=steps, stop=stop, tail=tail)

        def fits(count: int) -> bool:
            return count <= most and rule.payload_bits(make(count), lambda: make(count).steps(model), self._dim) <= bits

        count = _largest(fits, config, bits)
        if count == most:
            raise ConfigError(
                f"{most} steps with K={config.K} spend less than the bitrate asked for; "
                "use a larger K or M, or the preset product"
            )
        return make(count)

    def _payload(self, file_bits: float, config: CodecConfig) -> float:
        """Bits that a file of so many leaves for its payload."""
        header = self.header(config)
        if file_bits < 8 * (header + 1):
            least = 8 * (header + 4) / self._pixels
            raise ConfigError(f"this image needs {header} bytes of header alone; ask for {least:.2f} bpp or more")
        return 8.0 * (file_bits // 8 - header)


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
            raise ConfigError(
                f"{target:g} dB is out of reach of this preset and model; ask for {quality:.2f} dB at most"
            )
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


def positive(value: float, name: str) -> float:
    """A positive, finite rate or quality. Raises ConfigError otherwise."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} is {value}; it must be a positive number")
    return value


class Paced(Toward):
    """The encoder of rules whose payload varies: it takes a given number of bits or a little less.

    An index of reverse channel coding has a random length, so a file of hundreds of them misses its expected size by
    some per cent. The rule offers choices that are as good, and takes those that keep the file on its way. Waits for
    the device at every step: what is chosen next depends on the bits spent.

    Args:
        target, weight: as Toward, of one image.
        rule, steps: the coded steps.
        bits: of the payload; shared by the steps as they are expected to need them.
    """

    def __init__(self, target: Tensor, weight: Tensor | None, rule: Rule, steps: Sequence[Step], bits: float) -> None:
        super().__init__(target, weight)
        self._rule = rule
        bits -= _PAYLOAD_ROUNDING
        expected = [rule.expected_bits(step) for step in steps]
        total = sum(expected)
        self._plan = {
            step.index: bits * so_far / total
            for step, so_far in zip(steps, itertools.accumulate(expected), strict=True)
        }
        self._last = steps[-1].index
        self._spent = 0.0

    def choose(self, context: StepContext) -> Tensor:
        step = context.step
        direction = self._residual(context).flatten(1)
        letters, self._spent = self._rule.choose_near(
            direction, step, self._spent, self._plan[step.index], step.index == self._last
        )
        return letters

"""`rcc`: reverse channel coding, DiffC's rule (Theis et al. 2022; Vonderfecht and Liu, ICLR 2025).

Where every other rule picks the noise that is *best*, this one picks noise that is *distributed* as the forward
process would have it: decoded images are then samples of the model conditioned on the file, at the price of an index
that is about log2(KL) bits longer than the information.

In units where the model's noise is z ~ N(0, I), the posterior q(x_s | x_t, x0) is N(mu, I) with
mu = sqrt(SNR_s - SNR_t) (x0 - x0_hat). The Poisson functional representation (Li and El Gamal 2018) draws from it with
shared candidates z_1, z_2, ... ~ N(0, I): with arrival times s_1 < s_2 < ... of a Poisson process of rate 1 and weights
w_k = N(z_k; mu, I) / N(z_k; 0, I), ln w_k = <z_k, mu> - |mu|^2 / 2, the candidate of least s_k / w_k is one. Its index
is small when KL is: p(k) ~ k^-(1 + 1 / (KL + log2(e) / e + 1)) codes it well (Theis and Yosri 2022). Here that is the
search for the largest <z_k, mu> - ln s_k, the arrival times being the search's per-atom bias; the decoder does not need
them. A step is cut into groups, since the search grows with 2^KL.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ddcm_fast.errors import ConfigError, FormatError, MissingExtraError
from ddcm_fast.lazy import deferred
from ddcm_fast.sampling.rules.base import Grouped, Plan, Rule, Settings
from ddcm_fast.sampling.schedule import Step

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from ddcm_fast.codebook.codebook import Codebook
else:
    deferred(globals(), np="numpy", torch="torch", Codebook="ddcm_fast.codebook.codebook:Codebook")

MAX_LOG2_SIZE = 24
DEFAULT_MARGIN = 6
_QUANTUM = 16  # bits of a group are rounded to 1/16: a last-digit difference between machines must not change a file
_WEIGHT_SCALE = 1 << 20
_ROUNDING = 1e-3  # part of a length by which the coder's probabilities may miss it


def _constriction() -> Any:
    try:
        import constriction
    except ImportError as error:
        raise MissingExtraError(
            "the rule 'rcc' needs the package constriction: pip install 'ddcm-fast[rcc]'"
        ) from error
    return constriction


@lru_cache(maxsize=256)
def class_weights(bits: float, log2_size: int) -> tuple[int, ...]:
    """Integer weights of the classes 0 to log2(K) of an index under the Zipf distribution for `bits` of information.

    Class 0 is index 0, class j >= 1 the indices 2^(j-1) to 2^j - 1. Inside a class the Zipf law is so nearly flat
    (0.03 bits) that an index costs its class and j - 1 plain bits.
    """
    power = 1 / (bits + math.log2(math.e) / math.e + 1)  # the exponent less one

    edges = [0.5] + [2.0**j + 0.5 for j in range(log2_size + 1)]
    masses = [a**-power - b**-power for a, b in itertools.pairwise(edges)]  # integrals of power * x^-(1 + power)
    return tuple(max(1, round(_WEIGHT_SCALE * m / sum(masses))) for m in masses)


def expected_length(information: float, log2_size: int) -> float:
    """Length of the index of a group of 2^log2_size candidates that a step asks for that much information, in bits.

    Measured: an index of 6 to 10 bits of information takes 1.7 more, and on photographs the groups ask for an eighth
    more than their image's curve says. In theory KL + log2(KL + 1) + O(1) is enough (Li and El Gamal 2018). With few
    candidates beyond the information the index cannot be that long.
    """
    return min(1.12 * information + 1.7, float(log2_size))


class Rcc(Grouped):
    """One sample of the posterior a step, by the Poisson functional representation in each of G groups.

    With a `gaussian` codebook the groups' samples are exact but for the truncation to K candidates (`margin`); with
    `sign` and `hadamard` codebooks, whose atoms are Gaussian only in many dimensions, nearly so while a group's
    information is far below a bit an entry.

    A letter is a group's index. Its cost varies, so `write` codes all of them with constriction's range coder.

    Args:
        kind, dim, seed, backend: as Codebook.
        groups: step index -> G of every coded step.
        bits: step index -> the information expected of the whole step; travels with the model or in the file. It sets
            K = 2^(ceil(bits / G) + margin) and the coder's distribution; what an image really needs may differ.
        margin: log2 of the candidates beyond the expected information. ln w_k of the right candidates spreads by
            sqrt(2 KL) nats around KL: too small a margin picks from too few, and the noise carries too little.

    Raises ConfigError: no groups or bits of a step, or K beyond 2^24.
    """

    name, number = "rcc", 4
    varies = samples = True
    held, worked = 3, 8  # arrival times
    # Zeros at the end are not written. No image's own has more than these by chance.
    unwritten = 1 << 16

    def __init__(
        self,
        kind: str,
        dim: int,
        groups: Mapping[int, int],
        bits: Mapping[int, float],
        seed: int = 0,
        backend: str = "auto",
        margin: int = DEFAULT_MARGIN,
    ) -> None:
        if groups.keys() != bits.keys():
            raise ConfigError(
                f"the rule 'rcc' needs groups and bits of the same steps, not {sorted(groups.keys() ^ bits.keys())}"
            )
        self._seed = seed
        self._bits: dict[int, float] = {}
        books: dict[int, Codebook] = {}
        for index, count in groups.items():
            if not (math.isfinite(bits[index]) and bits[index] >= 0 and count >= 1):
                raise ConfigError(
                    f"step {index} has {bits[index]} bits in {count} groups: impossible; it needs at least 0 bits in 1 "
                    "group"
                )
            own = round(_QUANTUM * bits[index] / count) / _QUANTUM
            log2_size = max(1, math.ceil(own) + margin)
            if log2_size > MAX_LOG2_SIZE:
                raise ConfigError(
                    f"step {index} needs a search of 2^{log2_size} candidates, at most 2^{MAX_LOG2_SIZE} is possible: "
                    "use more groups, more steps or a smaller margin"
                )
            self._bits[index] = own
            books[index] = Codebook(kind, dim, 1 << log2_size, count, seed, signed=False, backend=backend)
        super().__init__(books, Codebook(kind, dim, 1, seed=seed, signed=False, backend=backend))

    @classmethod
    def margin_of(cls, settings: Settings) -> int:
        """The margin of a configuration's groups."""
        return DEFAULT_MARGIN

    @classmethod
    def _information(cls, settings: Settings) -> int:
        """Of a group: log2 K less the margin that its search needs."""
        return settings.K.bit_length() - 1 - cls.margin_of(settings)

    @classmethod
    def _length(cls, settings: Settings) -> float:
        """Of a group's index."""
        return expected_length(cls._information(settings), settings.K.bit_length() - 1)

    @classmethod
    def check(cls, settings: Settings) -> None:
        if cls._information(settings) < 1 or settings.K & (settings.K - 1):
            least = 2 ** (cls.margin_of(settings) + 1)
            raise ConfigError(f"K is {settings.K}; {cls.name} takes a power of two, at least {least}")

    @classmethod
    def make(cls, settings: Settings, steps: Sequence[Step], dim: int, backend: str) -> Rule:
        groups = cls.groups_of(settings, steps, dim)
        bits = {index: float(count * cls._information(settings)) for index, count in groups.items()}
        return cls(settings.kind, dim, groups, bits, settings.seed, backend, cls.margin_of(settings))

    @classmethod
    def payload_bits(cls, settings: Settings, plan: Plan, dim: int) -> float:
        return settings.atoms * cls._length(settings)

    @classmethod
    def worth(cls, settings: Settings, step_bits: float) -> float:
        return cls._information(settings) / cls._length(settings)

    def least_bits(self, step: Step) -> float:
        """Every index of the likeliest class, less what the coder's rounding may save."""
        weights = self._weights(step)
        return self.codebook(step).spec.groups * math.log2(sum(weights) / max(weights)) * (1 - _ROUNDING)

    def choose(self, direction: Tensor, step: Step, draw: int = 0) -> Tensor:
        """Not the best noise for the residual `direction`, but a sample of the right one.

        Every `draw` takes other arrival times; atoms that stand out are often drawn again.
        """
        index, _, _ = self.codebook(step).search(
            direction * math.sqrt(step.snr_gain), step.at, -self._log_arrivals(step, direction.device, draw)
        )
        return index

    def choose_near(
        self, direction: Tensor, step: Step, spent: float, goal: float, last: bool
    ) -> tuple[Tensor, float]:
        """Of two samples of each group the one that keeps the file on its way.

        Samples from one codebook often agree, so this moves a file by few per cent only.
        """
        letters, other = (self.choose(direction, step, draw)[0].tolist() for draw in (0, 1))
        lengths, others = self.lengths(letters, step), self.lengths(other, step)

        def miss(total: float) -> tuple[bool, float]:
            return last and total > goal, abs(total - goal)

        total = spent + sum(lengths)
        for g, (first, second) in enumerate(zip(lengths, others, strict=True)):
            if miss(total - first + second) < miss(total):
                total += second - first
                letters[g] = other[g]
        return torch.tensor([letters], device=direction.device, dtype=torch.int64), total

    def noise(self, letters: Tensor, step: Step) -> Tensor:
        return self.codebook(step).atoms(letters, step.at)

    def draw(self, batch: int, step: Step, generator: torch.Generator) -> Tensor:
        """From the coder's distribution, whose files are shorter and whose noise is just as good."""
        spec = self.codebook(step).spec
        weights = torch.tensor(self._weights(step), dtype=torch.float64, device="cpu")
        count = batch * spec.groups
        classes = torch.multinomial(weights, count, replacement=True, generator=generator)
        width = 1 << (classes - 1).clamp_min(0)
        inside = torch.randint(2**62, (count,), generator=generator, dtype=torch.int64, device="cpu") % width
        return torch.where(classes > 0, width + inside, 0).view(batch, spec.groups)

    # ---- files -----------------------------------------------------------------------------------

    def expected_bits(self, step: Step) -> float:
        """What `write` spends in the mean."""
        spec = self.codebook(step).spec
        return spec.groups * expected_length(self._bits[step.index], spec.size.bit_length() - 1)

    def lengths(self, letters: Sequence[int], step: Step) -> list[float]:
        """Bits that `write` spends on each of one image's letters of a step, but for the coder's rounding."""
        weights = self._weights(step)
        whole = sum(weights)
        classes = [k.bit_length() for k in letters]
        return [math.log2(whole / weights[c]) + max(0, c - 1) for c in classes]

    def write(self, letters: Sequence[Sequence[int]], steps: Sequence[Step]) -> bytes:
        """Step by step, first the classes of all groups, then their plain bits."""
        stream, model = _constriction().stream.queue, _constriction().stream.model
        encoder = stream.RangeEncoder()
        for own, step in zip(letters, steps, strict=True):
            classes = np.array([k.bit_length() for k in own], dtype=np.int32)
            encoder.encode(classes, self._class_model(step))
            wide = classes[classes > 1]
            if len(wide):
                inside = np.array([k - (1 << k.bit_length() - 1) for k in own if k > 1], dtype=np.int32)
                encoder.encode(inside, model.Uniform(), np.int32(1) << (wide - 1))
        words: bytes = encoder.get_compressed().astype(">u4").tobytes()
        return self._shortest(words.rstrip(b"\0"), [list(own) for own in letters], steps)

    def _shortest(self, data: bytes, letters: list[list[int]], steps: Sequence[Step]) -> bytes:
        """The least bytes that decode to the letters, zeros following: the coder ends at whole words of four."""
        while data:
            whole = int.from_bytes(data[:-1], "big")
            # What decodes is an interval of numbers: shorter ones are tried on both sides of the one known.
            for value in (whole, whole + 1):
                shorter = value.to_bytes(len(data), "big")[1:]
                if value >> 8 * (len(data) - 1) == 0 and self._decode(shorter, steps) == letters:
                    data = shorter.rstrip(b"\0")
                    break
            else:
                break
        return data

    def read(self, data: bytes, steps: Sequence[Step], prefix: bool = False) -> list[list[int]]:
        if not prefix:
            self.check_length(data, steps)
            low = self._decode(data, steps)
            if len(low) < len(steps) or self.write(low, steps) != data:
                raise FormatError("the payload is not a sequence of indices: the file is truncated or corrupt")
            return low
        # The payloads that begin with `data` lie between those continued by zeros and by ones, and the coder is
        # monotone: what both say is certain. Steps beyond the data need not be looked at.
        spent = itertools.accumulate(self.least_bits(step) for step in steps)
        held = [step for step, bits in zip(steps, spent, strict=True) if bits <= 8 * len(data) + self.unwritten]
        low = self._decode(data, held)
        high = self._decode(data, held, b"\xff")
        certain = 0
        while certain < min(len(low), len(high)) and low[certain] == high[certain]:
            certain += 1
        return low[:certain]

    def _decode(self, data: bytes, steps: Sequence[Step], rest: bytes = b"\0") -> list[list[int]]:
        """Letters of the steps up to the first that no payload can have; `rest` follows the data, on and on."""
        stream, model = _constriction().stream.queue, _constriction().stream.model
        data += rest * (-len(data) % 4 + 8)
        decoder = stream.RangeDecoder(np.frombuffer(data, dtype=">u4").astype(np.uint32))
        letters: list[list[int]] = []
        for step in steps:
            try:
                classes = decoder.decode(self._class_model(step), self.codebook(step).spec.groups)
                index = np.where(classes > 0, np.int32(1) << np.maximum(classes - 1, 0), 0)
                wide = classes > 1
                if wide.any():
                    index[wide] += decoder.decode(model.Uniform(), np.int32(1) << (classes[wide] - 1))
            except AssertionError:  # constriction's way to say that the data is invalid
                break
            letters.append(index.tolist())
        return letters

    def _weights(self, step: Step) -> tuple[int, ...]:
        return class_weights(self._bits[step.index], self.codebook(step).spec.size.bit_length() - 1)

    def _class_model(self, step: Step) -> Any:
        weights = np.array(self._weights(step), dtype=np.float64)
        return _constriction().stream.model.Categorical(weights / weights.sum(), perfect=False)

    def _log_arrivals(self, step: Step, device: torch.device, draw: int) -> Tensor:
        """ln s_k of independent Poisson processes: (G, K) float32; pseudo-random, the encoder's own business."""
        spec = self.codebook(step).spec
        # A CPU's generator takes 32 bits of the seed.
        seed = (self._seed * 0x9E3779B1 + step.index + draw * 0x85EBCA77) % 2**32
        generator = torch.Generator(device).manual_seed(seed)
        gaps = torch.empty(spec.groups, spec.size, dtype=torch.float64, device=device)
        gaps.exponential_(generator=generator)
        return gaps.cumsum(dim=1).log().float()

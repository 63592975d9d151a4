"""How long a run takes on this machine, and how many bytes come of it, foretold from a short measurement.

Seconds of an image = evaluations of the network at its size x seconds of one + search of every coded step + the rest
(planning its schedule, reading it). The evaluations and steps are those of the plan that an average photograph of its
size gets (`Codec.planned`), so nothing is coded: what is measured is one evaluation at each resolution that the model
has, one search at the fewest, a middle and the most atoms a step, and the planning, at up to three sizes.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ddcm_fast.codec.aim import aim_level, aims
from ddcm_fast.codec.batches import each_alone
from ddcm_fast.codec.codec import Codec
from ddcm_fast.codec.job import make_job, padded_size
from ddcm_fast.codec.rate import probes
from ddcm_fast.measure.timing import measure
from ddcm_fast.sampling.choosers import StepContext, toward
from ddcm_fast.sampling.condition import Condition
from ddcm_fast.sampling.model import DiffusionModel
from ddcm_fast.sampling.schedule import Step
from ddcm_fast.sampling.update import complete

#: Sides of what is measured at most, in pixels: beyond, time goes with the area.
_LARGEST, _SMALL = 512, 64
#: Seconds that a single search may take; longer ones are foretold from a smaller picture's.
_LONG = 1.0
#: Encodings in search of a quality: about the mean over crops of Kodak photographs at 24 to 32 dB.
_ENCODINGS = 3.0

#: (size of something, seconds), increasing.
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Cost:
    """Of an image, or of many: seconds of the network, the search and the rest, and bytes of the files."""

    network: float = 0.0
    search: float = 0.0
    rest: float = 0.0
    bytes: float = 0.0

    @property
    def seconds(self) -> float:
        """Of all."""
        return self.network + self.search + self.rest

    def times(self, count: float) -> Cost:
        """Of so many of them."""
        return Cost(self.network * count, self.search * count, self.rest * count, self.bytes * count)

    def plus(self, other: Cost) -> Cost:
        """Of both."""
        return Cost(
            self.network + other.network,
            self.search + other.search,
            self.rest + other.rest,
            self.bytes + other.bytes,
        )


class CostModel:
    """What images cost, by their sizes.

    Args:
        codec: that will code them, with its configuration.
        sizes: (height, width) of images that stand for all, at least one.
        batch_size: how many of a size are coded together.
        bpp, psnr, condition: as Codec.encode.

    Attributes:
        measured: seconds that the measurement took.

    Raises InputError or ConfigError: a size or a rate that cannot be.
    """

    def __init__(
        self,
        codec: Codec,
        sizes: Sequence[tuple[int, int]],
        batch_size: Callable[[int, int], int],
        bpp: float | None = None,
        psnr: float | None = None,
        condition: Condition | None = None,
    ) -> None:
        start = time.perf_counter()
        self._codec, self._batch_size, self._bpp, self._psnr = codec, batch_size, bpp, psnr
        self._condition = codec.model.complete_condition(condition)
        self._alone = each_alone(codec.config, bpp, psnr)
        ordered = sorted({(min(h, _LARGEST), min(w, _LARGEST)) for h, w in sizes}, key=math.prod)
        chosen = sorted({0, len(ordered) // 2, len(ordered) - 1})
        #: Pixels of a measured picture -> points by what the network sees of them, and by the atoms of a step.
        self._evaluations: dict[int, Points] = {}
        self._searches: dict[int, Points] = {}
        with torch.inference_mode(), codec.model.using():
            for size in (ordered[i] for i in chosen):
                self._evaluations[math.prod(size)] = self._time_evaluations(*size)
            first = min(ordered[0][0], _SMALL), min(ordered[0][1], _SMALL)
            for size in dict.fromkeys((first, *(ordered[i] for i in chosen))):
                if self._expected_search(size) <= _LONG:
                    self._searches[math.prod(size)] = self._time_searches(*size)
        self.measured = time.perf_counter() - start

    def image(self, height: int, width: int) -> Cost:
        """Of an image of height x width pixels."""
        codec, pixels = self._codec, height * width
        start = time.perf_counter()
        config, size = codec.planned(height, width, self._bpp, self._psnr)
        steps = make_job(codec.model, config, height, width, codec.backend, codec.limits).steps
        planning = time.perf_counter() - start
        encodings = 1.0 if self._psnr is None else _ENCODINGS
        network = encodings * sum(self._evaluation(step.t, height, width) for step in steps)
        level = aim_level(codec.model, steps) if aims(config, self._condition) else None
        if level is not None:
            network += encodings * self._evaluation(level, height, width)
        if self._alone:
            model = codec.model.sized(self._shape(height, width))
            network += sum(self._evaluation(t, height, width) for t in probes(model))
        search = encodings * sum(self._search(step.atoms, pixels) for step in steps if step.coded)
        return Cost(network, search, encodings * planning, size)

    # ---- the network -----------------------------------------------------------------------------

    def _shape(self, height: int, width: int) -> torch.Size:
        model = self._codec.model
        return torch.Size((1, *model.latent_shape(*padded_size(model, height, width))))

    def _time_evaluations(self, height: int, width: int) -> Points:
        """Seconds of one evaluation by the pixels that the network sees, at every resolution of a picture."""
        model, shape = self._codec.model, self._shape(height, width)
        x = torch.zeros(shape, dtype=torch.float32, device=model.device)
        timesteps = model.training_timesteps()
        t = timesteps[len(timesteps) // 2]
        points = []
        for way in model.resolutions(shape):

            def evaluate(way: DiffusionModel = way) -> None:
                way.predict(x, t, self._condition)

            points.append((height * width * way.cost(t, shape), measure(evaluate, model.device, 0.0).seconds))
        return sorted(points)

    def _evaluation(self, t: float, height: int, width: int) -> float:
        """Seconds of the evaluation at a timestep."""
        pixels = height * width
        near = min(self._evaluations, key=lambda other: abs(math.log(other / pixels)))
        return at(self._evaluations[near], pixels * self._codec.model.cost(t, self._shape(height, width)))

    # ---- the search ------------------------------------------------------------------------------

    def _time_searches(self, height: int, width: int) -> Points:
        """Seconds an image of what follows a coded step's evaluation, by the step's atoms."""
        codec, batch = self._codec, self._batch_size(height, width)
        config, _ = codec.planned(height, width, self._bpp, self._psnr)
        job = make_job(codec.model, config, height, width, codec.backend, codec.limits)
        x = job.noise.to(codec.model.device).expand(batch, *job.shape)
        by_atoms: dict[int, Step] = {step.atoms: step for step in job.coded}
        few_to_many = sorted(by_atoms)
        chosen = sorted({*few_to_many[:1], *few_to_many[len(few_to_many) // 2 :][:1], *few_to_many[-1:]})
        points = []
        for atoms in chosen:
            step = by_atoms[atoms]
            context = StepContext(codec.model, job.rule, step, x, x, x, self._condition)

            def search(context: StepContext = context, step: Step = step) -> None:
                complete(context, toward(context.x.flip(-1)), step)

            points.append((float(atoms), measure(search, codec.model.device, 0.0).seconds / batch))
        return points or [(0.0, 0.0)]

    def _expected_search(self, size: tuple[int, int]) -> float:
        """Seconds of one search of a batch at a size, by what was measured at smaller ones."""
        if not self._searches:
            return 0.0
        largest = max(self._searches)
        seconds = max(seconds for _, seconds in self._searches[largest])
        return seconds * self._batch_size(*size) * math.prod(size) / largest

    def _search(self, atoms: int, pixels: int) -> float:
        """Seconds of a coded step beside its evaluation: they go with the area where the atoms an area are the same."""
        near = min(self._searches, key=lambda other: abs(math.log(other / pixels)))
        points = self._searches[near]
        return (at(points, atoms * near / pixels) if len(points) > 1 else points[0][1]) * pixels / near


def at(points: Points, x: float) -> float:
    """Linear between points; beyond the last in proportion to x, before the first as there."""
    places = [place for place, _ in points]
    i = bisect_right(places, x)
    if i == 0:
        return points[0][1]
    if i == len(points):
        return points[-1][1] * x / points[-1][0]
    (x0, y0), (x1, y1) = points[i - 1], points[i]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)

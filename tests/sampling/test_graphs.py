"""Captured steps: the same bits as the loop, no break of the graph (so nothing waits for the device), own errors.

CUDA graphs themselves need a GPU: here the work they would capture runs eagerly on a CPU, or traced by torch.compile.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import tiny_pipelines
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ddcm_fast import Codec, CodecConfig, Condition, preset
from ddcm_fast.codebook.reference import initial_noise
from ddcm_fast.errors import ConfigError
from ddcm_fast.models import DiffusionModel, TiledModel, wrap_pipeline
from ddcm_fast.models.gaussian_field import GaussianField
from ddcm_fast.models.levels import levels_of
from ddcm_fast.models.network import NetworkModel
from ddcm_fast.sampling.choosers import Chooser, Draw, Match, Replay, toward
from ddcm_fast.sampling.graphs import StepGraphs, Work
from ddcm_fast.sampling.sampler import Sample, sample

torch.set_num_threads(1)

CONFIGS = {
    "ddcm": preset("ddcm", K=64, T=5),
    "uncoded steps": CodecConfig(T=6, K=16, t_range=(800, 300)),
    "product": preset("product", K=64, atoms=17, T=5, tail=2),
    "turbo": preset("turbo", K=64, atoms=23, T=5, tail=2),
}
FOX = Condition("a red fox", guidance_scale=3.0)


def eagerly(work: Work) -> Work:
    """In the place of a capture."""
    return work


class Bench:
    """One model, configuration and pair of images."""

    def __init__(self, model: DiffusionModel, config: CodecConfig, condition: Condition | None = None) -> None:
        self.model, self.condition = model, condition
        self.shape = model.latent_shape(16, 32)
        self.steps = config.steps(model)
        self.rule = config.make_rule(self.steps, math.prod(self.shape), "auto")
        generator = torch.Generator().manual_seed(3)
        self.x0 = [torch.rand(2, *self.shape, generator=generator) * 2 - 1 for _ in range(2)]

    def graphs(self, record: Any = eagerly) -> StepGraphs:
        return StepGraphs(self.model, self.steps, self.rule, record)

    def run(self, chooser: Chooser, graphs: StepGraphs | None = None, batch: int = 2) -> Sample:
        noise = initial_noise(math.prod(self.shape), 0).view(1, *self.shape).expand(batch, *self.shape)
        return sample(self.model, self.steps, self.rule, chooser, noise, self.condition, graphs=graphs)


def same(a: Sample, b: Sample) -> None:
    assert len(a.letters) == len(b.letters)
    assert all(torch.equal(x, y) for x, y in zip(a.letters, b.letters, strict=True))
    assert torch.equal(a.x0, b.x0)


class Convolution(torch.nn.Conv2d):
    """A network that is traced in no time."""

    device, dtype = torch.device("cpu"), torch.float32


class Convolved(NetworkModel):
    """A model around it, with the time as a scale and dynamic thresholding."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        scheduler = DDPMScheduler(clip_sample=False, thresholding=True)
        super().__init__(Convolution(3, 3, 3, padding=1), levels_of(scheduler), "convolution")

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        return (3, height, width)

    def encode(self, image: Tensor) -> Tensor:
        return image

    decode = encode

    def call(self, sample: Tensor, time: Tensor, inputs: dict[str, Any]) -> Tensor:
        return self._run(sample) * (time.view(-1, 1, 1, 1) / 1000)


def model_of(name: str) -> tuple[DiffusionModel, Condition | None]:
    if name == "tiled":
        return TiledModel(Convolved(), 16, 4), None
    return wrap_pipeline(tiny_pipelines.build(name)), FOX if name in ("sd", "sd3") else None


OTHERS = [("ddcm", name) for name in ("edm", "lcm", "sd3")]


@pytest.mark.parametrize(("config", "name"), [*itertools.product(CONFIGS, ("ddpm", "sd", "tiled")), *OTHERS])
def test_as_the_loop(config: str, name: str) -> None:
    model, condition = model_of(name)
    bench = Bench(model, CONFIGS[config], condition)
    graphs = bench.graphs()
    for target in bench.x0:  # the second run replays from its first step
        coded = bench.run(toward(target))
        same(bench.run(toward(target), graphs), coded)
        same(bench.run(Replay(coded.letters), graphs), coded)
        half = coded.letters[:2]
        same(bench.run(Replay(half), graphs), bench.run(Replay(half)))
    weight = torch.linspace(0, 2, bench.shape[-1]).view(1, 1, 1, -1)
    weighted = bench.run(toward(bench.x0[0], weight))
    same(bench.run(toward(bench.x0[0], weight), graphs), weighted)
    same(weighted, bench.run(Match(lambda context: weight * (bench.x0[0] - context.x0_hat))))
    same(bench.run(Draw(4), graphs), bench.run(Draw(4)))
    same(bench.run(toward(bench.x0[0][:1]), graphs, 1), bench.run(toward(bench.x0[0][:1]), batch=1))


NETWORKS = ("ddpm", "edm", "ldm", "sd", "lcm", "sdxl", "pixart-sigma", "sd3", "flux-dev", "sana")


@pytest.mark.parametrize(
    ("config", "name"),
    [*((c, "convolved") for c in CONFIGS), *(pytest.param("ddcm", n, marks=pytest.mark.slow) for n in NETWORKS)],
)
def test_traced_without_a_break(config: str, name: str) -> None:
    """fullgraph fails at anything that needs a tensor's value on the host: in the step, the adapter or the network."""
    model: DiffusionModel = Convolved() if config == "ddcm" else TiledModel(Convolved(), 16, 4)
    condition = None
    if name != "convolved":
        model = wrap_pipeline(tiny_pipelines.build(name))
        condition = FOX if name not in ("ddpm", "edm", "ldm") else None
    bench = Bench(model, CONFIGS[config], condition)
    recorded: list[Work] = []

    def record(work: Work) -> Work:
        recorded.append(work)
        return torch.compile(work, fullgraph=True, backend="aot_eager")

    torch._dynamo.reset()
    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # torch 2.6
    with config.patch({limit: 32}):  # all forms share their code
        graphs = bench.graphs(record)
        coded = bench.run(toward(bench.x0[0]))
        same(bench.run(toward(bench.x0[0]), graphs), coded)
        same(bench.run(Replay(coded.letters), graphs), coded)
    assert 2 <= len(recorded) <= 6  # forms of steps, not steps


def test_conditions_that_change_between_steps() -> None:
    bench = Bench(wrap_pipeline(tiny_pipelines.build("sd")), CONFIGS["ddcm"])
    bench.condition = lambda step: FOX if step.index % 2 else None  # type: ignore[assignment]
    graphs = bench.graphs()
    for _ in range(2):
        same(bench.run(toward(bench.x0[0]), graphs), bench.run(toward(bench.x0[0])))


def test_errors() -> None:
    model = Convolved()
    with pytest.raises(ConfigError, match="need the model on a GPU; 'convolution' is on 'cpu'"):
        Codec(model, cuda_graph=True)
    with pytest.raises(ConfigError, match="on a GPU"):
        Bench(model, CONFIGS["ddcm"]).graphs(None)
    with pytest.raises(ConfigError, match="the rule 'pursuit' cannot be captured in a CUDA graph, only greedy"):
        Bench(model, preset("pursuit", T=3)).graphs()
    with pytest.raises(ConfigError, match="'gaussian-field' cannot be captured"):
        bench = Bench(GaussianField(), CONFIGS["ddcm"])
        bench.run(toward(bench.x0[0]), bench.graphs())
    bench = Bench(model, CONFIGS["ddcm"])
    with pytest.raises(ConfigError, match="cannot serve the chooser"):
        bench.run(Match(lambda context: context.x0_hat), bench.graphs())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("config", CONFIGS)
def test_on_a_gpu(config: str) -> None:
    model = wrap_pipeline(tiny_pipelines.build("ddpm").to("cuda"))
    images: list[Tensor] = [torch.rand(3, 32, 32) * 2 - 1 for _ in range(3)]
    plain, captured = Codec(model, CONFIGS[config]), Codec(model, CONFIGS[config], cuda_graph=True)
    for ours, wanted in zip(captured.encode(images), plain.encode(images), strict=True):
        assert ours.data == wanted.data and torch.equal(ours.reconstruction, wanted.reconstruction)
        assert torch.equal(captured.decode(ours.data), wanted.reconstruction)

"""Predictions on averaged pictures: their noise levels, any size, files, captured steps, tiles, calibration."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ddcm_fast import Codec, load_model, preset
from ddcm_fast.codebook.reference import initial_noise
from ddcm_fast.errors import ModelError
from ddcm_fast.models import DiffusionModel, TiledModel
from ddcm_fast.models.levels import levels_of
from ddcm_fast.models.multiscale import AveragedModel, MultiscaleModel, multiscale
from ddcm_fast.models.network import NetworkModel
from ddcm_fast.sampling.choosers import Replay, toward
from ddcm_fast.sampling.curve import InformationCurve
from ddcm_fast.sampling.graphs import StepGraphs
from ddcm_fast.sampling.information import calibrate, kl_timesteps
from ddcm_fast.sampling.sampler import sample

ERRORS = ((1e-4, 0.2, 0.9), (2e-3, 0.1, 0.5), (5e-3, 0.05, 0.2))
CURVE = InformationCurve((0.0, 500.0, 999.0), (1e-4, 0.05, 0.2), 0.25, (150.0, 400.0), ERRORS)
CONFIG = preset("product", K=64, atoms=30, T=8, stop=50)


class Blur(torch.nn.Module):
    """A network that thinks that pictures are smooth: epsilon is what a 3 x 3 mean leaves, and a bit of the time."""

    device, dtype = torch.device("cpu"), torch.float32

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        smooth = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return (x - smooth) * (1 + 1e-4 * time.view(-1, 1, 1, 1))


class Pixels(NetworkModel):
    """A pixel-space model of any size around it."""

    patch, multiple = 2, 4

    def __init__(self, scheduler: Any = None) -> None:
        super().__init__(Blur(), levels_of(scheduler or DDPMScheduler(clip_sample=True)), "blur")
        self.information = CURVE

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        return (12, height // 2, width // 2)

    def encode(self, image: Tensor) -> Tensor:
        return torch.nn.functional.pixel_unshuffle(image, 2)

    def decode(self, x0: Tensor) -> Tensor:
        return torch.nn.functional.pixel_shuffle(x0, 2).clamp(-1, 1)

    def call(self, sample: Tensor, time: Tensor, inputs: dict[str, Any]) -> Tensor:
        return self._run(sample, time)


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth, (3, height, width)."""
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0].clamp(-1, 1)


def state(model: DiffusionModel, height: int, width: int, t: float = 500.0) -> tuple[Tensor, Tensor]:
    """(x0, x_t) of a picture."""
    x0 = model.encode(picture(height, width)[None])
    alpha, sigma = model.alpha_sigma(t)
    return x0, alpha * x0 + sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))


SCHEDULERS = (
    DDPMScheduler(),
    EDMEulerScheduler(),
    FlowMatchEulerDiscreteScheduler(),
    DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
)


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=("epsilon", "edm", "flow", "v"))
def test_noise_levels_match(scheduler: Any) -> None:
    """The network is given what it knows: alpha x0 + sigma eps of the timestep that it is told."""
    model = Pixels(scheduler)
    grid = model.training_timesteps()
    levels = {model.level(t).time: model.level(t) for t in grid}
    least = min(level.sigma / level.alpha for level in levels.values() if level.alpha > 0)
    for t in grid[::97]:
        alpha, sigma = model.alpha_sigma(t)
        for k in (1, 3):
            level = AveragedModel(model, k).level(t)
            assert (level.alpha, level.sigma) == (alpha, sigma)
            if alpha > 0 and sigma / alpha / 2**k < least:
                continue  # cleaner than all that the network knows
            known = levels[level.time]
            assert (level.scale, level.skip, level.out) == (known.scale, known.skip, known.out)
            assert math.isclose(level.averaged * alpha, known.alpha, abs_tol=0.002)
            coarse = 0.3 if t < 100 else 0.02  # where timesteps are far apart
            assert math.isclose(level.averaged * sigma / 2**k, known.sigma, rel_tol=coarse)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (16, 16), (20, 36), (64, 28)])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_size(height: int, width: int, batch: int) -> None:
    model = MultiscaleModel(Pixels())
    x0, x = state(model, height, width)
    x = x.expand(batch, *x.shape[1:])
    ways = model.resolutions(x.shape)
    assert len(ways) == 1 + int(math.log2(min(height, width) / 4))
    for way in ways:
        x0_hat, eps_hat = way.predict(x, 500.0)
        assert x0_hat.shape == x.shape and torch.equal(x0_hat[0], x0_hat[-1])
        alpha, sigma = model.alpha_sigma(500.0)
        torch.testing.assert_close(alpha * x0_hat + sigma * eps_hat, x, atol=1e-5, rtol=1e-5)
    costs = [way.cost(500.0, x.shape) for way in ways]
    assert costs == sorted(costs, reverse=True) and costs[0] == 1.0
    # A smooth picture is the better for it. The edge is no worse than four times the rest.
    errors = [(way.predict(x, 500.0)[0][:1] - x0).square() for way in ways]
    if len(ways) > 1:
        assert errors[1].mean() < 0.6 * errors[0].mean()
        assert errors[1][..., -1].mean() < 4 * errors[1].mean()


def test_the_curve_says_where() -> None:
    model = MultiscaleModel(Pixels())
    shape = torch.Size((1, *model.latent_shape(64, 64)))
    for t, k in ((0.0, 0), (149.0, 0), (150.0, 1), (399.0, 1), (400.0, 2), (999.0, 2)):
        assert model.at(t, shape) is model.resolutions(shape)[k]
        assert model.cost(t, shape) == 0.25**k
    small = torch.Size((1, *model.latent_shape(8, 64)))
    assert model.at(999.0, small) is model.resolutions(small)[1]
    assert model.fingerprint() != model.inner.fingerprint()
    model.information = None
    assert model.at(999.0, shape) is model.inner and model.fingerprint() == model.inner.fingerprint()
    assert multiscale(model) is model and isinstance(multiscale(Pixels()), MultiscaleModel)


def test_previews_are_averaged_at_least_so_often() -> None:
    model = MultiscaleModel(Pixels())
    coarse = model.coarse(1)
    shape = torch.Size((1, *model.latent_shape(64, 64)))
    for t, k in ((0.0, 1), (399.0, 1), (400.0, 2)):
        assert coarse.at(t, shape) is model.resolutions(shape)[k]
    assert model.at(0.0, shape) is model.resolutions(shape)[0]
    assert coarse.fingerprint() == model.fingerprint() and coarse.sized(shape).cost(0.0, shape) == 0.25
    smallest = torch.Size((1, *model.latent_shape(4, 4)))
    assert model.coarse(3).at(0.0, smallest) is model.inner
    assert Pixels().coarse(2).cost(0.0, shape) == 1.0


def test_the_curve_of_small_pictures() -> None:
    model = MultiscaleModel(Pixels())
    for side, mse in ((4, (1e-4, 0.2, 0.9)), (8, (1e-4, 0.1, 0.5)), (64, CURVE.mse)):
        curve = model.sized(torch.Size((1, *model.latent_shape(side, side)))).information
        assert curve is not None and curve.mse == mse
    assert model.information is CURVE


def test_more_steps_where_they_cost_less() -> None:
    model = MultiscaleModel(Pixels())
    plain = Pixels()
    plain.information = InformationCurve(CURVE.t, CURVE.mse, CURVE.power)
    many, few = (sum(t >= 150 for t in kl_timesteps(m, 20, 50)) for m in (model, plain))
    assert many > few


@pytest.mark.parametrize("tile", [None, (8, 2)])
@pytest.mark.parametrize("size", [(64, 64), (30, 70)])
def test_round_trip(size: tuple[int, int], tile: tuple[int, int] | None) -> None:
    def made() -> Codec:
        return Codec(MultiscaleModel(Pixels() if tile is None else TiledModel(Pixels(), *tile)), CONFIG)

    coded = made().encode(picture(*size))[0]
    assert torch.equal(made().decode(coded.data), coded.reconstruction)
    by_rate = made().encode(picture(*size), bpp=0.9)[0]
    assert torch.equal(made().decode(by_rate.data), by_rate.reconstruction)
    generated = made().generate(1, *size)[0]
    assert torch.equal(made().decode(generated.data), generated.reconstruction)
    other = made()
    other.model.information = InformationCurve(CURVE.t, CURVE.mse, CURVE.power, (150.0, 401.0), ERRORS)
    with pytest.raises(ModelError, match="a calibration of it that is not the file's"):
        other.decode(coded.data)


@pytest.mark.slow
@pytest.mark.parametrize("tile", [None, (8, 2)])
def test_captured_steps(tile: tuple[int, int] | None) -> None:
    """As the loop, to the bit; the graphs' forms are as many as there are resolutions, not timesteps."""
    inner = Pixels()
    model = MultiscaleModel(inner if tile is None else TiledModel(inner, *tile))
    steps = CONFIG.steps(model)
    shape = model.latent_shape(32, 48)
    rule = CONFIG.make_rule(steps, math.prod(shape), "auto")
    recorded: list[Any] = []

    def record(work: Any) -> Any:
        recorded.append(work)
        return torch.compile(work, fullgraph=True, backend="eager")

    torch._dynamo.reset()
    graphs = StepGraphs(model, steps, rule, record)
    noise = initial_noise(math.prod(shape), 0).view(1, *shape)
    x0 = model.encode(picture(32, 48)[None])
    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # torch 2.6
    with config.patch({limit: 32}):  # all forms share their code
        for _ in range(2):
            wanted = sample(model, steps, rule, toward(x0), noise)
            ours = sample(model, steps, rule, toward(x0), noise, graphs=graphs)
            again = sample(model, steps, rule, Replay(wanted.letters), noise, graphs=graphs)
            assert all(torch.equal(a, b) for a, b in zip(wanted.letters, ours.letters, strict=True))
            assert torch.equal(ours.x0, wanted.x0) and torch.equal(again.x0, wanted.x0)
    ways = {model.at(step.t, noise.shape) for step in steps}
    assert len(ways) == 3 and 3 <= len(recorded) <= 2 * len(steps)


def test_calibration_measures_where() -> None:
    images = [picture(64, 64, seed)[None] for seed in range(2)]
    plain = calibrate(Pixels(), images)
    assert plain.averaged_from == ()
    curve = calibrate(multiscale(Pixels()), images)
    assert 1 <= len(curve.averaged_from) <= 4 and list(curve.averaged_from) == sorted(curve.averaged_from)
    assert all(mine <= full for mine, full in zip(curve.mse, plain.mse, strict=True))
    assert curve.mse[-1] < 0.6 * plain.mse[-1]
    assert InformationCurve.from_json(curve.to_json()) == curve and "averaged_from" not in plain.to_json()
    with pytest.raises(ModelError, match="must increase"):
        InformationCurve(CURVE.t, CURVE.mse, CURVE.power, (400.0, 150.0), ERRORS)
    with pytest.raises(ModelError, match="of each resolution"):
        InformationCurve(CURVE.t, CURVE.mse, CURVE.power, (150.0,), ERRORS)


def test_photo_predicts_on_averaged_pictures() -> None:
    photo = load_model("photo", device="cpu", dtype="float32")
    assert isinstance(photo, MultiscaleModel) and len(photo.information.averaged_from) >= 3
    tiled = load_model("photo#tile=16,4", device="cpu", dtype="float32")
    assert isinstance(tiled, MultiscaleModel) and isinstance(tiled.inner, TiledModel)
    assert Path(tiled.name).name == "photo#tile=16,4" and tiled.fingerprint() != photo.fingerprint()
    coded = Codec(photo, CONFIG).encode(picture(40, 72))[0]
    again = load_model("photo", device="cpu", dtype="float32")
    assert torch.equal(Codec(again).decode(coded.data), coded.reconstruction)

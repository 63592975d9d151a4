"""The analytic model: exact denoiser, closed forms, the bound."""

import math

import pytest
import torch

from ddcm_fast.errors import ConfigError
from ddcm_fast.models import load_model
from ddcm_fast.models.gaussian_field import GaussianField

SIZE = (16, 24)


@pytest.fixture
def model():
    return GaussianField()


def covariance(model, height, width):
    """Dense covariance of one channel, (HW, HW), from the definition: F^H diag(power) F."""
    n = height * width
    basis = torch.fft.fft2(torch.eye(n, dtype=torch.float64).view(n, height, width), norm="ortho").reshape(n, n)
    return (basis.conj() @ torch.diag(model.power(height, width).flatten()).to(basis.dtype) @ basis.T).real


def test_variance_spectrum_and_independence(model):
    x = model.draw(400, *SIZE, seed=3).double()
    assert x.shape == (400, 3, *SIZE)
    assert x.square().mean() == pytest.approx(0.25, rel=0.03)
    estimate = torch.fft.fft2(x, norm="ortho").abs().square().mean((0, 1))
    assert torch.allclose(estimate / model.power(*SIZE), torch.ones(SIZE, dtype=torch.float64), atol=0.25)
    assert (x[:, 0] * x[:, 1]).mean().abs() < 0.02
    assert (x.abs() > 1).double().mean() < 0.06


def test_power_follows_the_exponent_and_the_floor():
    power = GaussianField(exponent=2.0, floor=0).power(32, 32)
    assert power[0, 4] / power[0, 8] == pytest.approx(4)
    assert power[0, 0] == power[0, 1] == power.max()
    assert power.mean() == pytest.approx(0.25)
    assert torch.equal(GaussianField(exponent=0).power(8, 8), torch.full((8, 8), 0.25, dtype=torch.float64))
    floored = GaussianField(exponent=6.0, floor=0.01).power(32, 32)
    assert floored.min() >= 0.0025 * 0.9


def test_draw_depends_on_the_seed_only(model):
    assert torch.equal(model.draw(2, 16, 16, seed=1), model.draw(2, 16, 16, seed=1))
    assert not torch.equal(model.draw(1, 16, 16, seed=1), model.draw(1, 16, 16, seed=2))


@pytest.mark.parametrize("t", [999.0, 700.5, 100.0, 0.0])
def test_predict_is_the_conditional_mean(model, t):
    """Against the textbook formula with the dense covariance matrix."""
    height, width = 6, 5
    alpha, sigma = model.alpha_sigma(t)
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    c = covariance(model, height, width)
    wiener = alpha * c @ torch.linalg.inv(alpha**2 * c + sigma**2 * torch.eye(len(c), dtype=torch.float64))
    expected = (x.double().flatten(2) @ wiener.T).view_as(x)
    x0_hat, eps_hat = model.predict(x, t)
    assert x0_hat.dtype == eps_hat.dtype == torch.float32
    assert torch.allclose(x0_hat.double(), expected, atol=2e-5)
    assert torch.allclose(alpha * x0_hat + sigma * eps_hat, x, atol=1e-5)


@pytest.mark.parametrize("t", [900.0, 300.0, 30.0])
def test_mmse_matches_the_error_of_samples(model, t):
    x0 = model.draw(600, *SIZE, seed=5)  # few low frequencies hold most of the power: many samples
    alpha, sigma = model.alpha_sigma(t)
    x = alpha * x0 + sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(6))
    error = (model.predict(x, t)[0] - x0).square().mean()
    assert error == pytest.approx(model.mmse(t, *SIZE), rel=0.03)


def test_mutual_information_is_the_integral_of_the_mmse(model):
    """I-MMSE (Guo, Shamai, Verdu 2005): d information / d SNR = D mmse / (2 ln 2)."""
    a, b = 400.0, 399.0
    gain = model.snr(b) - model.snr(a)
    dim = 3 * SIZE[0] * SIZE[1]
    mean = (model.mmse(a, *SIZE) + model.mmse(b, *SIZE)) / 2
    difference = model.mutual_information(b, *SIZE) - model.mutual_information(a, *SIZE)
    assert difference == pytest.approx(dim * mean * gain / (2 * math.log(2)), rel=1e-4)


def test_noise_levels(model):
    alpha, sigma = model.alpha_sigma(0)
    assert sigma**2 == pytest.approx(1e-4)
    assert alpha**2 + sigma**2 == pytest.approx(1)
    levels = [model.snr(t) for t in (0, 0.5, 1, 10, 998.5, 999)]
    assert levels == sorted(levels, reverse=True)
    for t in (0.0, 0.25, 17.0, 500.75, 999.0):
        assert model.timestep_at(model.snr(t)) == pytest.approx(t, abs=1e-6)
    assert model.timestep_at(1e9) == 0 and model.timestep_at(1e-9) == 999
    with pytest.raises(ConfigError, match="timestep"):
        model.alpha_sigma(1000)


def test_bound_of_white_noise_is_the_gaussian_formula():
    white = GaussianField(exponent=0, channels=1)
    for bits in (0.0, 0.5, 3.0):
        assert white.distortion(bits, 16, 16) == pytest.approx(0.25 * 4**-bits)
    assert white.rate(0.25 / 16, 16, 16) == pytest.approx(2)
    assert white.rate(0.3, 16, 16) == 0


def test_bound_is_consistent(model):
    for bits in (0.1, 1.0, 6.0, 30.0):
        assert model.rate(model.distortion(bits, 32, 32), 32, 32) == pytest.approx(bits, rel=1e-6)
    # Fewer bits than any Gaussian channel of the same distortion.
    for t in (600.0, 200.0, 20.0):
        assert model.rate(model.mmse(t, 32, 32), 32, 32) < model.mutual_information(t, 32, 32) / 1024
    with pytest.raises(ConfigError):
        model.rate(0.0, 32, 32)
    with pytest.raises(ConfigError):
        model.distortion(-1.0, 32, 32)


def test_images_pass_through_unclipped(model):
    x = torch.tensor([[[[-3.0, 3.0]]]])
    assert torch.equal(model.decode(model.encode(x)), x)
    assert model.latent_shape(8, 16) == (3, 8, 16)


def test_fingerprint_and_loading():
    model = load_model("gaussian-field", device="cpu")
    assert isinstance(model, GaussianField)
    assert model.name == "gaussian-field" and model.dtype == torch.float32
    assert model.fingerprint() == GaussianField().fingerprint()
    assert len(model.fingerprint()) == 4
    assert model.fingerprint() != GaussianField(exponent=1.5).fingerprint()
    assert model.fingerprint() != GaussianField(channels=1).fingerprint()


@pytest.mark.parametrize("bad", [{"channels": 2}, {"variance": 0}, {"floor": 2}, {"exponent": math.inf}])
def test_impossible_fields(bad):
    with pytest.raises(ConfigError, match="impossible"):
        GaussianField(**bad)

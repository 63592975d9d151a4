"""Operators of other packages in `restore`: deepinv's where it is installed, and what has A and A_adjoint."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddcm_fast import Codec, load_model
from ddcm_fast.errors import ConfigError, InputError
from ddcm_fast.tasks import operator, restore
from ddcm_fast.tasks.physics import Physics, as_operator


class Mean:
    """y (B, C h w): means of 2x2 pixels as vectors; the adjoint is autograd's, as some of deepinv's are."""

    def A(self, x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 2).flatten(1)

    def A_adjoint(self, y: Tensor) -> Tensor:
        x = torch.zeros(len(y), 1, 8, 8, requires_grad=True)
        (back,) = torch.autograd.grad(self.A(x), x, y)
        return back

    def A_dagger(self, y: Tensor) -> Tensor:
        return 4 * self.A_adjoint(y)


class Mask:
    """y (B, 1, 8, 8): the left half."""

    def A(self, x: Tensor) -> Tensor:
        return x * (torch.arange(8) < 4)

    A_adjoint = A


@pytest.fixture(scope="module")
def codec() -> Codec:
    torch.set_num_threads(1)
    return Codec.from_preset(load_model("digits", device="cpu", dtype="float32"), "ddcm", K=64, T=30)


@pytest.fixture(scope="module")
def digit(codec: Codec) -> Tensor:
    return codec.generate(1, 8, 8, seed=3)[0].reconstruction[None]


def test_the_same_as_the_packages_own(codec: Codec, digit: Tensor) -> None:
    own = operator("srbox2")
    ours = restore(codec, own.forward(digit), own, sigma=0.05)
    theirs = restore(codec, Mean().A(digit), Mean(), sigma=0.05)
    assert theirs.data == ours.data
    assert torch.equal(codec.decode(theirs.data), theirs.reconstruction)


def test_adjoint_and_estimate() -> None:
    x, u = torch.randn(3, 1, 8, 8), torch.randn(3, 16)
    wrapped, flat = as_operator(Mean(), u)
    assert flat.shape == (3, 1, 1, 16) and wrapped.image_size(1, 16) == (8, 8)
    torch.testing.assert_close((wrapped.forward(x) * flat).sum(), (x * wrapped.adjoint(flat, 8, 8)).sum())
    with torch.inference_mode():
        back = wrapped.estimate(wrapped.forward(x), 8, 8)
    torch.testing.assert_close(wrapped.forward(back), wrapped.forward(x))


def test_entries_in_holes_say_nothing(codec: Codec, digit: Tensor) -> None:
    y = Mask().A(digit)
    wrapped = Physics(Mask(), y)
    other = digit.clone()
    other[..., :4] += 0.5
    assert float(wrapped.gap(wrapped.flat(y), other)) == pytest.approx(0.5)
    coded = restore(codec, y, Mask())
    blind = codec.generate(1, 8, 8)[0].reconstruction
    kept, guessed = ((image - digit)[..., :4].square().mean() for image in (coded.reconstruction, blind))
    assert kept < 0.5 * guessed


def test_what_is_no_operator(codec: Codec, digit: Tensor) -> None:
    with pytest.raises(ConfigError, match="give one with A and A_adjoint"):
        restore(codec, digit, object())
    with pytest.raises(InputError, match="cannot take a measurement of shape"):
        restore(codec, digit[..., :5], Mask())
    with pytest.raises(InputError, match="must be"):
        restore(codec, torch.cat((digit, digit)), Mask())

    class Spectrum(Mask):
        def A(self, x: Tensor) -> Tensor:
            return torch.fft.fft2(x)

    with pytest.raises(InputError, match="must make real measurements"):
        restore(codec, digit, Spectrum())


def test_deepinv(codec: Codec, digit: Tensor) -> None:
    physics = pytest.importorskip("deepinv").physics
    filter = torch.ones(1, 1, 3, 3) / 9
    for made in (
        physics.Inpainting((1, 8, 8), mask=0.5),
        physics.Downsampling((1, 8, 8), factor=2, filter="bicubic"),
        physics.Blur(filter, padding="valid"),
        physics.CompressedSensing(m=32, img_size=(1, 8, 8)),
    ):
        made.noise_model = physics.GaussianNoise(0.05)
        y = made(digit)
        coded = restore(codec, y, made, sigma=0.05)
        wrapped, flat = as_operator(made, y)
        blind = codec.generate(1, 8, 8)[0].reconstruction[None]
        assert float(wrapped.gap(flat, coded.reconstruction[None])) < 0.7 * float(wrapped.gap(flat, blind))
        assert torch.equal(codec.decode(coded.data), coded.reconstruction)

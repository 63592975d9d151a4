"""Results do not depend on torch's global state: default dtype, default device, autocast, grad mode, tracing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ddcm_fast import Codebook, Codec, load_model
from ddcm_fast.codebook import reference
from ddcm_fast.models.network import NetworkModel

KINDS = ("gaussian", "sign", "hadamard")
BACKENDS = ("auto", "reference")


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "meta": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference": torch.inference_mode,
    "no grad": torch.no_grad,
    "deterministic": deterministic,
}


@pytest.fixture(params=STATES.values(), ids=STATES.keys())
def state(request):
    """A context in which torch's global state is another."""
    return request.param


def same(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> bool:
    """Equal bits, dtypes and devices."""
    return all(x.dtype == y.dtype and x.device == y.device and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def everything(book: Codebook, residual: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Every operation of a codebook, on residuals of ordinary and of extreme size."""
    index, sign, score = book.search(residual, 5, bias)
    found = [index, sign, score, *book.topk(residual, 5, 3), *book.search(residual * 1e-41, 5)]
    found += [book.scores(residual, 5), *book.scores_and_norms(residual, 5)]
    found += [book.atoms(index, 5, sign), book.atoms(index, 5), book.combine(index[..., None], score[..., None], 5)]
    return (*found, book.initial_noise(2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_codebook(kind, backend, state):
    book = Codebook(kind, 200, 70, groups=3, seed=9, backend=backend)
    residual, bias = torch.randn(2, 200), torch.randn(3, 70)
    expected = everything(book, residual, bias)
    reference._powers.cache_clear()  # so that it is made here
    with state():
        found = everything(Codebook(kind, 200, 70, groups=3, seed=9, backend=backend), residual, bias)
    assert same(found, expected)
    assert same(everything(book, residual, bias), expected)


@pytest.fixture(scope="module")
def field():
    """A small model, a picture and its file."""
    picture = load_model("gaussian-field").draw(1, 32, 32, seed=3)[0].clamp(-1, 1)
    codec = Codec.from_preset(load_model("gaussian-field"), "product", T=4, K=64, atoms=8)
    return picture, codec.encode(picture)[0]


def test_codec(field, state):
    picture, expected = field
    with state():
        codec = Codec.from_preset(load_model("gaussian-field"), "product", T=4, K=64, atoms=8)
        found = codec.encode(picture)[0]
        decoded = codec.decode(expected.data)
    assert found.data == expected.data
    assert same((found.reconstruction, decoded), (expected.reconstruction, expected.reconstruction))


class Linear(torch.nn.Module):
    """A network that autocast would round: a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not torch.is_autocast_enabled("cpu")
        return self.inner(x)


def test_networks_run_with_autocast_off():
    from ddcm_fast.sampling.autocast import without_autocast

    network, x = Linear(), torch.randn(4, 8)
    expected = network(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(without_autocast(network.forward)(x), expected)
        assert torch.is_autocast_enabled("cpu")
    for function in (NetworkModel._inputs, Codec.encode, Codec.decode, Codec.decode_many, Codec._sample):
        assert hasattr(function, "__wrapped__"), function


# ---- tracing and transforms ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_vmap(kind):
    book = Codebook(kind, 60, 40, groups=2)
    residual, step = torch.randn(3, 60), 7
    expected = (*book.search(residual, step), *book.topk(residual, step, 2), book.scores(residual, step))

    def one(r: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = (*book.search(r[None], step), *book.topk(r[None], step, 2), book.scores(r[None], step))
        return tuple(t[0] for t in found)

    assert same(torch.vmap(one)(residual), expected)
    index, sign = expected[:2]
    z = torch.vmap(lambda i, s: book.atoms(i[None], step, s[None])[0])(index, sign)
    assert same((z,), (book.atoms(index, step, sign),))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fake_tensors_have_the_right_shapes(device):
    with FakeTensorMode(allow_non_fake_inputs=False):
        book = Codebook("gaussian", 60, 40, groups=2, backend="reference")
        residual = torch.empty(3, 60, device=device)
        index, sign, score = book.search(residual, 7)
        assert index.shape == sign.shape == score.shape == (3, 2) and index.device.type == device
        assert book.atoms(index, 7, sign).shape == (3, 60)
        assert [t.shape for t in book.topk(residual, 7, 5)] == [(3, 2, 5)] * 3
        assert [t.shape for t in book.scores_and_norms(residual, 7)] == [(3, 2, 40), (2, 40)]
        book.initial_noise(2)
    # What is kept between calls was not made of fake tensors.
    assert same((book.initial_noise(1)[0],), (reference.initial_noise(60, 0),))
    assert book.search(torch.ones(1, 60), 7)[0].shape == (1, 2)


def test_meta_tensors_have_the_right_shapes():
    book = Codebook("sign", 60, 40, groups=2)
    found = book.topk(torch.empty(3, 60, device="meta"), 7, 5)
    assert [(t.device.type, t.shape) for t in found] == [("meta", (3, 2, 5))] * 3


def test_a_choice_has_no_gradient():
    book = Codebook("sign", 60, 40)
    parameter = torch.nn.Parameter(torch.randn(2, 60))
    index, sign, score = book.search(parameter, 7, torch.zeros(40, requires_grad=True))
    coefficient = torch.ones(2, 1, 1, requires_grad=True)
    for tensor in (score, book.scores_and_norms(parameter, 7)[0], book.combine(index[..., None], coefficient, 7)):
        assert not tensor.requires_grad
    assert same((index, sign), book.search(parameter.detach(), 7)[:2])

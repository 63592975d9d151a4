"""Microbenchmarks of the codebook operations on every backend that is here, and of the baseline.

    pytest benchmarks/ --benchmark-group-by=group

D = 16384 (a 64x64x4 latent image). The baseline is the way of DDCM's reference code: draw the K x D codebook
with torch.randn, multiply, argmax. The reference backend is a test oracle and left out where it takes seconds.
"""

from __future__ import annotations

import pytest
import torch

from ddcm_fast.codebook import backends
from ddcm_fast.codebook.codebook import Codebook

DIM = 16384
KINDS = ("gaussian", "sign", "hadamard")


def _codebook(kind: str, size: int, backend: str, groups: int = 1) -> Codebook:
    if backend == "reference":
        pytest.skip("an oracle, not a contender")
    return Codebook(kind, DIM, size, groups=groups, seed=1, backend=backend)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("size", [4096, 16384])
@pytest.mark.parametrize("kind", KINDS)
def test_search(measure, benchmark, backend, kind, size, batch):
    name, device = backend
    codebook = _codebook(kind, size, name)
    residual = torch.randn(batch, DIM, device=device)
    benchmark.group = f"search K={size} B={batch} {device}"
    measure(lambda: codebook.search(residual, 0), device, size * DIM)


@pytest.mark.parametrize("size", [4096])
def test_search_by_randn(measure, benchmark, device, size):
    residual = torch.randn(1, DIM, device=device)

    def search() -> torch.Tensor:
        return (torch.randn(size, DIM, device=device) @ residual[0]).argmax()

    benchmark.group = f"search K={size} B=1 {device}"
    measure(search, device, size * DIM)


@pytest.mark.parametrize("kind", KINDS)
def test_search_of_groups(measure, benchmark, backend, kind):
    name, device = backend
    codebook = _codebook(kind, 4096, name, groups=64)
    residual = torch.randn(1, DIM, device=device)
    benchmark.group = f"search K=4096 G=64 {device}"
    measure(lambda: codebook.search(residual, 0), device, 4096 * DIM)


@pytest.mark.parametrize("kind", KINDS)
def test_topk(measure, benchmark, backend, kind):
    name, device = backend
    codebook = _codebook(kind, 16384, name)
    residual = torch.randn(1, DIM, device=device)
    benchmark.group = f"topk K=16384 M=256 {device}"
    measure(lambda: codebook.topk(residual, 0, 256), device, 16384 * DIM)


@pytest.mark.parametrize("m", [1, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_combine(measure, benchmark, backend, kind, m):
    name, device = backend
    codebook = _codebook(kind, 16384, name)
    index = torch.arange(m, device=device).view(1, 1, m)
    coefficient = torch.ones(1, 1, m, device=device)
    benchmark.group = f"combine M={m} {device}"
    measure(lambda: codebook.combine(index, coefficient, 0), device, m * DIM)


@pytest.mark.parametrize("dim", [16384, 2**18])
def test_rotation(measure, benchmark, backend, dim):
    name, device = backend
    if name == "reference":
        pytest.skip("an oracle, not a contender")
    spec = Codebook("sign", dim, 1).spec
    residual = torch.randn(1, dim, device=device)
    benchmark.group = f"rotation D={dim} {device}"
    measure(lambda: backends.load(name).to_codebook_order(spec, residual), device, dim)

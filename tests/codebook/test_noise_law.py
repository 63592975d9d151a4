"""The noise law: golden vectors that every backend must reproduce, and the statistics of its noise.

Seeds are fixed, so a statistical test passes or fails for good. Bounds are in standard errors: five, for
some hundred numbers looked at.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from backend_checks import backends_here, step_tensor
from torch import Tensor

from ddcm_fast.codebook import backends, reference
from ddcm_fast.codebook.codebook import Codebook
from ddcm_fast.codebook.law import NOISE_LAW_VERSION, CodebookSpec, gaussian_table

GOLDEN_DIR = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((GOLDEN_DIR / f"noise-law-{NOISE_LAW_VERSION}.json").read_text())
KINDS = ("gaussian", "sign", "hadamard")

_make_spec = importlib.util.spec_from_file_location("golden_make", GOLDEN_DIR / "make.py")
golden_make = importlib.util.module_from_spec(_make_spec)
_make_spec.loader.exec_module(golden_make)


_INTERPRETED = [("triton", "cpu")] if backends.why_not("triton", "cpu") is None else []


@pytest.fixture(params=[("reference", "cpu"), *backends_here(), *_INTERPRETED], ids=lambda p: f"{p[0]}-{p[1]}")
def backend(request):
    """(name, device) of a backend, the reference included."""
    return request.param


# ---- golden vectors ------------------------------------------------------------------------------


def test_philox_known_answers():
    for case in GOLDEN["philox"]:
        k, c = ([int(word, 16) for word in case[name].split()] for name in ("key", "counter"))
        block, atom = torch.tensor(c[0]), torch.tensor(c[1])
        words = reference.philox(k[0] | k[1] << 32, block, atom, c[2], c[3])
        assert [f"{int(w):08x}" for w in words] == case["words"].split()


def test_gaussian_table():
    table = gaussian_table()
    digest = hashlib.sha256(table.numpy().astype("<i2").tobytes()).hexdigest()
    assert digest == GOLDEN["gaussian_table_sha256"]
    assert int(table[0]) == 0 and int(table[-1]) == 1107 and (table.diff() >= 0).all()


def _is_slow(case: dict, backend: tuple[str, str]) -> bool:
    return backend in _INTERPRETED and case["dim"] > 200


def test_golden_atoms(backend):
    name, device = backend
    for case in GOLDEN["atoms"]:
        if _is_slow(case, backend):
            continue
        numbers = (case[key] for key in ("kind", "dim", "size", "groups", "seed"))
        codebook = Codebook(*numbers, backend=name)
        index = torch.tensor([case["index"]], device=device)
        z = codebook.atoms(index, case["step"])
        assert golden_make.encode(z.cpu()) == case["z"], case


def test_golden_combinations(backend):
    name, device = backend
    for case in GOLDEN["combinations"]:
        numbers = (case[key] for key in ("kind", "dim", "size", "groups", "seed"))
        codebook = Codebook(*numbers, backend=name)
        index = torch.tensor([case["index"]], device=device)
        coefficient = torch.tensor([case["coefficient"]], device=device)
        z = codebook.combine(index, coefficient, case["step"])
        assert golden_make.encode(z.cpu()) == case["z"], case


def test_golden_rotations(backend):
    name, device = backend
    module = backends.load(name)
    for case in GOLDEN["rotations"]:
        if _is_slow(case, backend):
            continue
        spec = CodebookSpec(case["kind"], case["dim"], 1, 1, case["seed"])
        x = golden_make.fixed_vector(case["dim"]).to(device)
        for function in ("to_image_order", "to_codebook_order"):
            found = getattr(module, function)(spec, x)
            assert golden_make.encode(found.cpu()) == case[function], case


def test_golden_initial_noise():
    for case in GOLDEN["initial_noise"]:
        x = Codebook("sign", case["dim"], 1, seed=case["seed"]).initial_noise(2)
        assert golden_make.encode(x[0]) == case["x"] and torch.equal(x[0], x[1])


# ---- statistics ----------------------------------------------------------------------------------

SIGMAS = 5


def noise(kind: str, dim: int, rows: int, size: int = 1 << 20, first: int = 0, **numbers) -> Tensor:
    """Atoms of many steps, (rows, dim): row s is one atom of step first + s, with a varying index."""
    codebook = Codebook(kind, dim, size, **numbers)
    groups = codebook.spec.groups
    index = (torch.arange(groups) * 101).unsqueeze(0)
    return torch.cat(
        [codebook.atoms((index + 7919 * s) % size, step_tensor(s, "cpu")) for s in range(first, first + rows)]
    )


@pytest.fixture(scope="module")
def bulk():
    """4 million entries of each kind, made once."""
    return {kind: noise(kind, 4096, 1000) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_moments(bulk, kind):
    z = bulk[kind].double().flatten()
    n = z.numel()
    # Standard errors of the sample moments of a standard normal variable.
    for power, expected, error in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert abs(float((z**power).mean()) - expected) < SIGMAS * error / n**0.5 + 2e-4, power
    if kind == "sign":  # every atom has exactly the same length
        assert torch.equal((bulk[kind].double() ** 2).sum(-1), torch.full((1000,), 4096.0).double())


@pytest.mark.parametrize("kind", KINDS)
def test_distribution(bulk, kind):
    # Entries lie on a grid (1/256; for sign sums of 4096 signs / 64, so 1/32; for hadamard sums of
    # such sums, fine): compare the distribution functions half way between grid points.
    spacing = {"gaussian": 1 / 256, "sign": 1 / 32, "hadamard": 1 / 32}[kind]
    z = bulk[kind].flatten().sort().values
    at = (torch.arange(-round(4.5 / spacing), round(4.5 / spacing)) + 0.5) * spacing
    below = torch.searchsorted(z, at.contiguous()).double() / z.numel()
    normal = torch.special.ndtr(at.double())
    distance = float((below - normal).abs().max())
    # Kolmogorov's distance exceeds 2.2 / sqrt(n) with probability 1e-4; the table steps by 2^-16.
    assert distance < 2.2 / z.numel() ** 0.5 + 2**-16, distance


@pytest.mark.parametrize("kind", KINDS)
def test_each_position_is_standard_normal(bulk, kind):
    z = bulk[kind].double()
    rows = len(z)
    worst = NormalDist().inv_cdf(1 - 1e-5 / z.shape[1])  # of 4096 positions at once
    assert float(z.mean(0).abs().max()) < worst / rows**0.5
    assert float((z.var(0) - 1).abs().max()) < 1.1 * worst * (2 / rows) ** 0.5


def correlation(a: Tensor, b: Tensor) -> float:
    """Mean product in standard errors of a mean of products of independent entries."""
    assert a.numel() == b.numel()
    return abs(float((a.double() * b.double()).mean())) * a.numel() ** 0.5


def _atoms(codebook: Codebook, index: Tensor, step: int) -> Tensor:
    return codebook.atoms(index.view(-1, 1).expand(-1, codebook.spec.groups), step)


@pytest.mark.parametrize("kind", KINDS)
def test_independence(kind):
    """Mean products over 1e7 entries, of what differs in one thing only."""
    dim, rows = 4096, 2600
    codebook = Codebook(kind, dim, 2**32, seed=11)
    # Every atom of its own `hadamard` pair (n = 4096): rows of one pair are exactly orthogonal.
    index = torch.arange(rows) * 4096 + torch.arange(rows) % 4096
    z = _atoms(codebook, index, 3)
    pairs = {
        "next atoms": _atoms(codebook, index + 1, 3),
        "atoms 2^31 apart": _atoms(codebook, index + 2**31, 3),
        "next steps": _atoms(codebook, index, 4),
        "seeds": _atoms(Codebook(kind, dim, 2**32, seed=12), index, 3),
        "upper halves of seeds": _atoms(Codebook(kind, dim, 2**32, seed=11 + 2**32), index, 3),
        "next positions": z.roll(1, dims=1),
        "positions one block of 64 apart": z.roll(64, dims=1),
        "mirrored positions": z.flip(1),
    }
    for name, other in pairs.items():
        # A vector times its own mirror image holds every product twice.
        limit = SIGMAS * (2**0.5 if name == "mirrored positions" else 1)
        assert correlation(z, other) < limit, name


@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_independent(kind):
    spec = CodebookSpec(kind, 8192, 2**32, 2, 11)
    module = backends.load(backends.resolve("auto", "cpu"))
    index = (torch.arange(2600) * 4096 + 5).view(-1, 1, 1).expand(-1, 2, 1).contiguous()
    y = module.combine(spec, index, torch.ones(index.shape), step_tensor(0, "cpu"))
    assert correlation(y[:, :4096], y[:, 4096:]) < SIGMAS
    # Group 0's noise is not what the same atom has in a codebook of one group's size either.
    z = module.to_image_order(spec, y)
    assert correlation(z[:, :4096], z[:, 4096:]) < SIGMAS


@pytest.fixture(scope="module")
def initial_noises():
    """x_T of 2^18 entries for seeds 0 to 39."""
    return [reference.initial_noise(2**18, seed) for seed in range(40)]


@pytest.mark.parametrize("kind", KINDS)
def test_independent_of_initial_noise(initial_noises, kind):
    products, count = 0.0, 0
    for seed, x in enumerate(initial_noises):
        z = Codebook(kind, 2**18, 1, seed=seed).atoms(torch.zeros(1, 1, dtype=torch.int64), 0)
        products += float((x.double() * z[0].double()).sum())
        count += x.numel()
    assert count > 1e7 and abs(products) / count**0.5 < SIGMAS


def test_combinations_of_coordinates():
    """Signs of 4 neighbouring coordinates take all 16 patterns equally often."""
    spec = CodebookSpec("sign", 4096, 2600, 1, 3)
    module = backends.load(backends.resolve("auto", "cpu"))
    index = torch.arange(2600).view(-1, 1, 1)
    y = module.combine(spec, index, torch.ones(index.shape), step_tensor(0, "cpu"))
    pattern = ((y.view(-1, 4) < 0).long() * torch.tensor([1, 2, 4, 8])).sum(-1)
    count = pattern.bincount(minlength=16).double()
    expected = len(pattern) / 16
    chi2 = float(((count - expected) ** 2 / expected).sum())
    assert chi2 < 15 + SIGMAS * 30**0.5


def expected_maximum(size: int, signed: bool) -> float:
    """Mean of the largest of `size` standard normal variables (or of their absolute values)."""
    t = torch.linspace(-8 if not signed else 0, 9, 200_001, dtype=torch.float64)
    cdf = torch.special.ndtr(t)
    distribution = (2 * cdf - 1 if signed else cdf) ** size
    return float(t[-1] - torch.trapezoid(distribution, t))


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("kind", KINDS)
def test_best_score_is_that_of_independent_gaussians(kind, signed):
    """What the codec lives on: E[max of K scores] of unit residuals."""
    dim, size, batch, steps = 1024, 4096, 16, 60
    generator = torch.Generator().manual_seed(0)
    codebook = Codebook(kind, dim, size, seed=5, signed=signed)
    best = []
    for step in range(steps):
        r = torch.randn(batch, dim, generator=generator)
        best.append(codebook.search(r / r.norm(dim=1, keepdim=True), step)[2])
    found = torch.cat(best).double()
    error = float(found.std()) / found.numel() ** 0.5
    # Excess kurtosis of a score of 1024 signs is -6 / 1024: up to 0.3 % less at 3.5 sigma.
    expected = expected_maximum(size, signed)
    assert abs(float(found.mean()) - expected) < SIGMAS * error + 0.003 * expected


def test_expected_maximum_itself():
    assert math.isclose(expected_maximum(1, False), 0, abs_tol=1e-6)
    assert math.isclose(expected_maximum(2, False), math.pi**-0.5, abs_tol=1e-6)
    assert math.isclose(expected_maximum(1, True), (2 / math.pi) ** 0.5, abs_tol=1e-6)

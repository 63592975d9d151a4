"""Every backend that is here against the reference (backend_checks.py)."""

from __future__ import annotations

import pytest
import torch
from backend_checks import (
    CASES,
    COMPARISONS,
    KINDS,
    LARGE_CASES,
    SEED,
    STEP,
    TRELLISES,
    Case,
    answers,
    backends_here,
    check_codebook,
    check_not_finite,
    check_planted,
    check_rotation,
    check_scores,
    check_trellis,
    step_tensor,
)

from ddcm_fast.codebook import backends, ops, reference
from ddcm_fast.codebook.codebook import Codebook
from ddcm_fast.codebook.law import CodebookSpec
from ddcm_fast.errors import BackendError, ConfigError, InputError

BACKENDS = backends_here()
pytestmark = pytest.mark.skipif(not BACKENDS, reason="no backend but the reference is here")


@pytest.fixture(params=BACKENDS, ids=lambda p: f"{p[0]}-{p[1]}")
def backend(request):
    """(name, device) of a backend."""
    return request.param


@pytest.fixture(params=CASES, ids=str)
def case(request):
    """A codebook and the shape of its residuals."""
    return request.param


def equal_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.cpu(), b.cpu())


# ---- the grid of shapes --------------------------------------------------------------------------


@pytest.mark.parametrize("compare", COMPARISONS.values(), ids=COMPARISONS)
def test_grid(backend, case, compare):
    name, device = backend
    compare(backends.load(name), answers(case), device)


@pytest.mark.parametrize("shape", TRELLISES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_trellis(backend, kind, shape):
    name, device = backend
    check_trellis(backends.load(name), kind, shape, device)


# ---- big numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [1, 3])
def test_indices_to_2_32(backend, kind, groups):
    name, device = backend
    spec = CodebookSpec(kind, 130, 2**32, groups, 2**64 - 1)
    picks = torch.tensor([2**32 - 1, 2**31, 2**31 - 1, 2**32 - 257, 3])
    index = picks.view(-1, 1, 1).expand(-1, groups, 1).contiguous()
    one = torch.ones(index.shape)
    y = backends.load(name).combine(spec, index.to(device), one.to(device), step_tensor(STEP, device))
    assert equal_bits(y, reference.combine(spec, index, one, STEP))
    assert len(y.unique(dim=0)) == len(picks)


@pytest.mark.parametrize("case", LARGE_CASES, ids=str)
def test_search_beyond_2_32_entries(backend, case):
    name, device = backend
    check_planted(backends.load(name), case, device)


def test_large_dimension(backend):
    name, device = backend
    for kind in KINDS:
        answer = answers(Case(kind, 2**18 + 77, 5, 1))
        check_rotation(backends.load(name), answer, device)
        check_scores(backends.load(name), answer, device)


@pytest.mark.parametrize("kind", KINDS)
def test_not_finite(backend, kind):
    name, device = backend
    check_not_finite(backends.load(name), kind, device)


# ---- ties ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_all_equal_goes_to_the_first(backend, kind, signed):
    name, device = backend
    module, spec = backends.load(name), CodebookSpec(kind, 70, 1000, 2, SEED)
    w, step = torch.zeros(3, 70, device=device), step_tensor(STEP, device)
    index, sign, score = module.search(spec, w, step, signed, None)
    assert (index == 0).all() and (sign == 1).all() and (score == 0).all()
    index, _, _ = module.topk(spec, w, step, 40, signed, None)
    assert equal_bits(index, torch.arange(40).expand(3, 2, 40))


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_duplicate_atoms_in_order(backend, signed):
    # 32 sign patterns among 1000 atoms: every value occurs some 30 times.
    name, device = backend
    case = Case("sign", 5, 1000)
    answer = answers(case)
    value = answer.scores.abs() if signed else answer.scores
    order = value[0, 0].argsort(descending=True, stable=True)
    m = 200
    index, _, _ = backends.load(name).topk(case.spec, answer.w.to(device), step_tensor(STEP, device), m, signed, None)
    assert equal_bits(index[0, 0], order[:m])
    index, _, _ = backends.load(name).search(case.spec, answer.w.to(device), step_tensor(STEP, device), signed, None)
    assert int(index) == int(order[0])


# ---- through Codebook ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_codebook_takes_any_floating_layout(backend, kind):
    name, device = backend
    codebook = Codebook(kind, 48, 60, groups=2, seed=SEED, backend=name)
    wide = torch.randn(4, 4, 4, 6, device=device)
    residual = wide.permute(0, 3, 1, 2)[:, ::2]  # (4, 3, 4, 4), not contiguous
    expected = codebook.search(residual.contiguous().flatten(1), STEP)
    for a, b in zip(codebook.search(residual, STEP), expected, strict=True):
        assert torch.equal(a, b)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        cast = residual.to(dtype)
        for a, b in zip(codebook.search(cast, STEP), codebook.search(cast.float(), STEP), strict=True):
            assert torch.equal(a, b)


def test_codebook_matches_itself_on_the_reference(backend):
    name, device = backend
    for kind in KINDS:
        check_codebook(name, kind, device)
        fast = Codebook(kind, 100, 300, groups=3, seed=SEED, backend=name)
        slow = Codebook(kind, 100, 300, groups=3, seed=SEED, backend="reference")
        residual = torch.randn(2, 100)
        index, sign, _ = slow.search(residual, STEP)
        z = fast.atoms(index.to(device), STEP, sign.to(device))
        assert equal_bits(z, slow.atoms(index, STEP, sign))
        # <z, residual> of the chosen atoms is the sum of the groups' scores.
        _, _, score = fast.search(residual.to(device), STEP)
        product = (z.cpu() * residual).sum(-1)
        torch.testing.assert_close(score.sum(-1).cpu(), product, rtol=1e-4, atol=1e-3)


def test_codebook_refuses_bad_input(backend):
    name, device = backend
    codebook = Codebook("sign", 8, 16, backend=name)
    good = torch.randn(2, 8, device=device)
    with pytest.raises(InputError, match=r"\(2, 7\)"):
        codebook.search(good[:, :7], 0)
    with pytest.raises(InputError, match="floating point"):
        codebook.search(good.long(), 0)
    with pytest.raises(InputError, match="B at least 1"):
        codebook.search(good[:0], 0)
    with pytest.raises(ConfigError, match="step"):
        codebook.search(good, -1)
    with pytest.raises(InputError, match="step"):
        codebook.search(good, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(InputError, match="bias"):
        codebook.search(good, 0, bias=torch.zeros(15, device=device))
    with pytest.raises(ConfigError, match="m is 17"):
        codebook.topk(good, 0, 17)
    with pytest.raises(InputError, match="coefficient"):
        index = torch.zeros(1, 1, 2, dtype=torch.int64, device=device)
        codebook.combine(index, torch.ones(1, 1, 1, device=device), 0)
    with pytest.raises(InputError, match="integer"):
        codebook.combine(good.view(2, 1, 8), good.view(2, 1, 8), 0)
    for bad in (float("nan"), float("inf"), -float("inf")):
        broken = good.clone()
        broken[1, 3] = bad
        with pytest.raises(InputError, match="NaN or infinite"):
            index, _, _ = codebook.search(broken, 0)
            codebook.check_index(index.cpu())  # where the check is left to whoever reads the index
    if device == "cpu":
        with pytest.raises(InputError, match="index is 16"):
            codebook.atoms(torch.tensor([[16]]), 0)


def test_missing_backend_says_why():
    with pytest.raises(BackendError, match="unknown backend"):
        Codebook("sign", 8, 16, backend="abacus")
    for name in backends.names():
        reason = backends.why_not(name, "cpu")
        if reason is not None:
            assert reason
            with pytest.raises(BackendError, match="available: "):
                Codebook("sign", 8, 16, backend=name).search(torch.zeros(1, 8), 0)


# ---- torch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(backend, kind):
    name, device = backend
    r, step = torch.randn(2, 20, device=device), step_tensor(STEP, device)
    index = torch.zeros(2, 2, 3, dtype=torch.int64, device=device)
    coefficient = torch.ones(2, 2, 3, device=device)
    bias = torch.zeros(2, 9, device=device)
    book = ops.codebook_text(CodebookSpec(kind, 20, 9, 2, SEED), name)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    calls = (
        (ops.search, (r, step, None, True, book)),
        (ops.topk, (r, step, bias, 3, True, book)),
        (ops.scores, (r, step, book)),
        (ops.scores_and_norms, (r, step, book)),
        (ops.combine, (index, coefficient, step, book)),
    )
    for op, arguments in calls:
        torch.library.opcheck(op, arguments, test_utils=tests)


def test_compiled_equals_eager(backend):
    name, device = backend
    codebook = Codebook("sign", 64, 40, groups=2, seed=SEED, backend=name)

    def step_of_a_sampler(x, target, step):
        residual = (target - x) * 0.5
        index, sign, score = codebook.search(residual, step)
        z = codebook.atoms(index, step, sign)
        return x * 0.9 + 0.1 * z, index, score

    compiled = torch.compile(step_of_a_sampler, fullgraph=True, backend="aot_eager")
    x, target = torch.randn(2, 64, device=device), torch.randn(2, 64, device=device)
    for step in (0, 5):
        at = step_tensor(step, device)
        for a, b in zip(compiled(x, target, at), step_of_a_sampler(x, target, at), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_scores(backend, kind):
    """Scores are linear in the residual: the gradient is the sum of the atoms, each times its own score's."""
    name, device = backend
    codebook = Codebook(kind, 50, 30, groups=2, seed=SEED, backend=name)
    residual = torch.randn(3, 50, device=device, requires_grad=True)
    weight = torch.randn(3, 2, 30, device=device)
    (codebook.scores(residual, STEP) * weight).sum().backward()
    index = torch.arange(30, device=device).expand(3, 2, 30)
    assert torch.equal(residual.grad, codebook.combine(index, weight, STEP))
    moved = residual.detach() + torch.randn(3, 50, device=device)
    change = (codebook.scores(moved, STEP) - codebook.scores(residual.detach(), STEP)) * weight
    expected = (residual.grad * (moved - residual.detach())).sum()
    torch.testing.assert_close(change.sum(), expected, rtol=1e-3, atol=1e-2)
    book = ops.codebook_text(codebook.spec, name)
    arguments = (residual, step_tensor(STEP, device), book)
    torch.library.opcheck(ops.scores, arguments, test_utils=("test_autograd_registration", "test_aot_dispatch_static"))


# ---- ranges of atoms -----------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("kind", KINDS)
def test_shards_together_are_the_codebook(backend, kind, signed):
    name, device = backend
    codebook = Codebook(kind, 150, 700, groups=2, seed=SEED, signed=signed, backend=name)
    residual, bias = torch.randn(3, 150, device=device), torch.randn(2, 700, device=device)
    for given in (None, bias, bias[0]):
        expected = codebook.search(residual, STEP, given)
        for n in (1, 3):
            found = [codebook.search(residual, STEP, given, shard=(i, n)) for i in range(n)]
            own = 0.0 if given is None else torch.stack([given.expand(2, -1).gather(1, f[0].T).T for f in found])
            best = (torch.stack([f[2] for f in found]) + own).argmax(0, keepdim=True)
            for i, expected_part in enumerate(expected[:2]):
                assert torch.equal(torch.stack([f[i] for f in found]).gather(0, best)[0], expected_part)
            for i, f in enumerate(found):
                first, last = codebook.spec.shard(i, n)
                assert ((f[0] >= first) & (f[0] < last)).all()


def test_shards_of_ties_and_of_what_is_not_finite(backend):
    name, device = backend
    codebook = Codebook("sign", 60, 100, seed=SEED, backend=name)
    index, sign, score = codebook.search(torch.zeros(1, 60, device=device), STEP, shard=(1, 3))
    assert (index.item(), sign.item(), score.item()) == (33, 1, 0)
    with pytest.raises(InputError):
        index, _, _ = codebook.search(torch.full((1, 60), float("nan"), device=device), STEP, shard=(1, 3))
        codebook.check_index(index.cpu())
    for shard in ((3, 3), (-1, 3), (0, 101), (0, 0)):
        with pytest.raises(ConfigError, match="shard"):
            codebook.search(torch.zeros(1, 60, device=device), STEP, shard=shard)

"""What the ops refuse, and residuals, biases and steps at the ends of their ranges, on every backend that is here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from backend_checks import SEED, STEP, backends_here, step_tensor
from torch.utils._pytree import tree_leaves

from ddcm_fast.codebook.codebook import Codebook
from ddcm_fast.errors import BackendError, ConfigError, DDCMError, InputError

KINDS = ("gaussian", "sign", "hadamard")
EVERYWHERE = [*backends_here(), ("reference", "cpu")]


@pytest.fixture(params=EVERYWHERE, ids=lambda p: f"{p[0]}-{p[1]}")
def backend(request):
    """(name, device) of a backend, the reference included."""
    return request.param


# ---- the raw ops ---------------------------------------------------------------------------------

D, K, G, B = 40, 30, 2, 3


def arguments(name: str, device: str) -> dict[str, object]:
    """Good arguments of every op; each test spoils one."""
    fields = {"kind": "gaussian", "dim": D, "size": K, "groups": G, "seed": SEED}
    generator = torch.Generator("cpu").manual_seed(0)
    tensors = {
        "residual": torch.randn(B, D, generator=generator).to(device),
        "bias": torch.randn(G, K, generator=generator).to(device),
        "index": torch.randint(K, (B, G, 2), generator=generator).to(device),
        "coefficient": torch.randn(B, G, 2, generator=generator).to(device),
        "step": step_tensor(STEP, device),
    }
    return {**tensors, "m": 3, "first": 3, "last": K - 2, "signed": True, **fields, "backend": name}


def call(op: str, given: dict[str, object]):
    """Call torch.ops.ddcm_fast.<op> with what it takes of the arguments."""
    overload = getattr(torch.ops.ddcm_fast, op).default
    book = " ".join(str(given[field]) for field in ("backend", "kind", "dim", "size", "groups", "seed"))
    given = {**given, "codebook": book}
    return overload(**{a.name: given[a.name] for a in overload._schema.arguments})


OPS = ("search", "search_range", "topk", "scores", "scores_and_norms", "combine")


def wrong_tensors(good: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tensor of every sort that an op must not read as the good one."""
    wrong = {
        "float64": good.double(),
        "float16": good.half(),
        "int32": good.int(),
        "complex": good.to(torch.complex64),
        "sparse": good.to_sparse(),
        "meta": good.to("meta"),
        "0-d": good.flatten()[0],
        "more dimensions": good[None, None],
        "empty": good[..., :0],
        "too wide": torch.cat((good, good), dim=-1),
        "too narrow": good[..., :-1],
    }
    if good.dtype == torch.float32:
        wrong["int64"] = good.long()
        wrong["quantised"] = torch.quantize_per_tensor(good.cpu(), 0.1, 0, torch.qint8)
    return wrong


@pytest.mark.parametrize("op", OPS)
def test_raw_ops_refuse_wrong_tensors(op, backend):
    name, device = backend
    good = arguments(name, device)
    taken = {a.name for a in getattr(torch.ops.ddcm_fast, op).default._schema.arguments}
    for which in taken & {"residual", "bias", "index", "coefficient"}:
        for what, tensor in wrong_tensors(good[which]).items():
            with pytest.raises((InputError, NotImplementedError, RuntimeError)) as caught:
                call(op, {**good, which: tensor})
            if what not in ("sparse", "quantised", "meta"):
                assert isinstance(caught.value, InputError), (which, what, caught.value)


@pytest.mark.parametrize("op", OPS)
def test_raw_ops_refuse_wrong_numbers(op, backend):
    name, device = backend
    good = arguments(name, device)
    wrong = [
        ("kind", "noise"), ("kind", "sign sign"), ("seed", 2**64), ("seed", "x"),
        ("dim", 0), ("dim", -5), ("dim", D + 1), ("size", 0), ("size", 2**40), ("groups", 0),
        ("groups", D + 1), ("backend", "abacus"), ("backend", "auto"), ("step", step_tensor(STEP, device)[None]),
        ("step", step_tensor(STEP, device).int()), ("step", step_tensor(STEP, device).double()),
    ]  # fmt: skip
    wrong += [("m", 0), ("m", K + 1), ("m", -1)] if op == "topk" else []
    wrong += [("first", K), ("first", -1), ("last", K + 1), ("last", 3)] if op == "search_range" else []
    if device == "cpu":
        wrong += [("step", step_tensor(n, device)) for n in (-1, 2**32, 2**32 + 1, -(2**63))]
        wrong += [("backend", "cuda")]
    for which, value in wrong:
        if op == "combine" and which == "dim" and value == D + 1:
            continue  # a combination of another codebook
        with pytest.raises(DDCMError):
            call(op, {**good, which: value})
    if op == "combine" and device == "cpu":
        for value in (-1, K, 2**63 - 1):
            index = good["index"].clone()
            index[1, 1, 1] = value
            with pytest.raises(InputError):
                call(op, {**good, "index": index})


@pytest.mark.parametrize("op", OPS)
def test_raw_ops_take_what_is_not_contiguous(op, backend):
    name, device = backend
    good = arguments(name, device)
    expected = call(op, good)
    for which in ("residual", "bias", "index", "coefficient"):
        tensor = good[which]
        spread = torch.stack((tensor, tensor + 1), dim=-1)[..., 0]
        turned = tensor.flip(0).flip(0).transpose(0, 1).contiguous().transpose(0, 1)
        for other in (spread, turned):
            assert not other.is_contiguous()
            found = call(op, {**good, which: other})
            for a, b in zip(tree_leaves(found), tree_leaves(expected), strict=True):
                assert torch.equal(a, b)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_on_two_gpus_are_refused():
    book = Codebook("sign", 8, 16)
    with pytest.raises(InputError):
        book.search(torch.randn(1, 8, device="cuda:0"), step_tensor(0, "cuda:1"))
    with pytest.raises(InputError):
        book.combine(torch.zeros(1, 1, 1, dtype=torch.int64, device="cuda:0"), torch.ones(1, 1, 1, device="cuda:1"), 0)


def test_a_backend_of_another_device_is_refused():
    given = arguments("cuda", "cpu")
    with pytest.raises(BackendError, match="cuda"):
        call("search", given)


# ---- integers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step", [1.5, 1.0, -1, 2**32, 2**32 + 1, True, math.nan, math.inf, "1", None, np.float32(1), np.bool_(True),
             np.int64(-1), np.uint64(2**32), np.array(3), [1]], ids=repr,
)  # fmt: skip
def test_steps_that_are_refused(step, backend):
    name, device = backend
    book, residual = Codebook("sign", 8, 16, backend=name), torch.randn(1, 8, device=device)
    for operation in (
        lambda: book.search(residual, step),
        lambda: book.topk(residual, step, 1),
        lambda: book.scores(residual, step),
        lambda: book.atoms(torch.zeros(1, 1, dtype=torch.int64, device=device), step),
    ):
        with pytest.raises(ConfigError, match="step is"):
            operation()


@pytest.mark.parametrize("step", [-1, 2**32, 2**32 + 1])
def test_step_tensors_out_of_range(step, backend):
    name, device = backend
    book, residual = Codebook("sign", 8, 16, backend=name), torch.randn(1, 8, device=device)
    if device == "cpu":
        with pytest.raises(ConfigError, match="step is"):
            book.scores(residual, step_tensor(step, device))
    else:  # nobody looks: modulo 2^32
        expected = book.scores(residual, step % 2**32)
        assert torch.equal(book.scores(residual, step_tensor(step, device)), expected)


def test_numpy_integers_are_integers(backend):
    name, device = backend
    plain = Codebook("sign", 24, 16, 3, seed=5, backend=name)
    numpy = Codebook("sign", np.prod((2, 3, 4)), np.uint16(16), np.int8(3), np.uint64(5), backend=name)
    assert plain.spec == numpy.spec and repr(plain) == repr(numpy)
    assert all(type(n) is int for n in (numpy.spec.dim, numpy.spec.size, numpy.spec.groups, numpy.spec.seed))
    residual = torch.randn(2, 24, device=device)
    for a, b in zip(plain.topk(residual, 7, 2), numpy.topk(residual, np.uint8(7), np.int64(2)), strict=True):
        assert torch.equal(a, b)
    for wrong in (1.5, True, np.float64(2), np.bool_(True), "2", torch.tensor(2)):
        with pytest.raises(ConfigError):
            Codebook("sign", 24, wrong)
        with pytest.raises(ConfigError):
            plain.topk(residual, 0, wrong)


# ---- residuals of any size -----------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_residuals_of_any_size_find_the_same_atoms(kind, groups, backend):
    """Multiples of 2^-149, the smallest denormal, scaled by powers of two from there to the top of float32."""
    name, device = backend
    book = Codebook(kind, 300, 200, groups, SEED, backend=name)
    plain = Codebook(kind, 300, 200, groups, SEED, backend="reference")
    generator = torch.Generator("cpu").manual_seed(1)
    base = torch.randint(-4, 5, (2, 300), generator=generator).double()
    expected = plain.search(base.float(), STEP)
    top = plain.topk(base.float(), STEP, 5)
    for exponent in (-149, -140, -126, -100, -61, -60, -59, 0, 57, 58, 59, 60, 61, 100, 125):
        residual = (base * 2.0**exponent).float()
        assert (residual.abs().amax(1) > 0).all() and residual.isfinite().all()
        index, sign, score = (t.cpu() for t in book.search(residual.to(device), STEP))
        assert torch.equal(index, expected[0]) and torch.equal(sign, expected[1])
        # Scores are right, and infinite only where the true ones are too large.
        true = expected[2].double() * 2.0**exponent
        fits = true.abs() < torch.finfo(torch.float32).max
        torch.testing.assert_close(score[fits].double(), true[fits], rtol=1e-5, atol=2.0**-148)
        assert score[~fits].isinf().all()
        found = [t.cpu() for t in book.topk(residual.to(device), STEP, 5)]
        assert torch.equal(found[0], top[0]) and torch.equal(found[1], top[1])
        every = book.scores(residual.to(device), STEP).cpu()
        assert torch.equal(every.gather(-1, index[..., None])[..., 0] * sign, score)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_neighbours_size(kind, backend):
    name, device = backend
    book = Codebook(kind, 100, 64, 2, SEED, backend=name)
    rows = torch.randn(5, 100) * torch.tensor([1e-44 * 2**10, 1e-30, 1.0, 1e30, 3e37])[:, None]
    together = book.topk(rows.to(device), STEP, 4)
    for i, row in enumerate(rows):
        for a, b in zip(together, book.topk(row[None].to(device), STEP, 4), strict=True):
            assert torch.equal(a[i], b[0])


def test_ordinary_residuals_are_not_touched(backend):
    """The answer to a residual in range is that to one a factor of two larger, bit for bit."""
    name, device = backend
    book = Codebook("gaussian", 100, 64, 2, SEED, backend=name)
    residual = torch.randn(3, 100, device=device)
    index, sign, score = book.search(residual, STEP)
    doubled = book.search(residual * 2, STEP)
    assert torch.equal(index, doubled[0]) and torch.equal(sign, doubled[1]) and torch.equal(score * 2, doubled[2])


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_are_a_tie(kind, backend):
    name, device = backend
    book = Codebook(kind, 100, 64, backend=name)
    rows = torch.stack((torch.zeros(100), torch.full((100,), 1e-44), torch.full((100,), -0.0))).to(device)
    index, sign, score = book.search(rows, STEP)
    assert index[[0, 2]].eq(0).all() and sign[[0, 2]].eq(1).all() and score[[0, 2]].eq(0).all()


# ---- biases --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-42, 1e-20, 1.0, 1e20, 1e37])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_infinite_biases_forbid_and_prefer(signed, scale, backend):
    name, device = backend
    book = Codebook("gaussian", 60, 50, 2, SEED, signed=signed, backend=name)
    residual = (torch.randn(3, 60) * scale).to(device)
    best = book.topk(residual[:1], STEP, 4)[0]
    bias = torch.zeros(2, 50, device=device)
    bias.scatter_(1, best[0, :, :3], -math.inf)
    index, _, score = book.search(residual[:1], STEP, bias)
    assert torch.equal(index, best[..., 3]) and score.isfinite().all()
    assert not torch.isin(book.topk(residual[:1], STEP, 47, bias)[0][0, 0], best[0, 0, :3]).any()
    bias[:, 17] = math.inf
    assert book.search(residual, STEP, bias)[0].eq(17).all()
    assert book.search(residual, STEP, torch.full((50,), -math.inf, device=device))[0].eq(0).all()
    bias = torch.zeros(50, device=device)
    bias[best[0, 0]] = torch.finfo(torch.float32).min  # as masks often say it
    assert not torch.isin(book.search(residual[:1], STEP, bias)[0][0, 0], best[0, 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [2.0**-140, 2.0**-90, 2.0**90, 2.0**115])
def test_biases_of_extreme_residuals(kind, scale, backend):
    """Residual and bias times a power of two: the same choice."""
    name, device = backend
    book = Codebook(kind, 64, 50, 2, SEED, backend=name)
    generator = torch.Generator("cpu").manual_seed(2)
    residual = torch.randint(-4, 5, (2, 64), generator=generator).float()
    bias = torch.randint(-40, 41, (2, 50), generator=generator).float()
    expected = Codebook(kind, 64, 50, 2, SEED, backend="reference").topk(residual, STEP, 3, bias)
    found = book.topk((residual * scale).to(device), STEP, 3, (bias * scale).to(device))
    assert torch.equal(found[0].cpu(), expected[0]) and torch.equal(found[1].cpu(), expected[1])


def test_nan_in_a_bias(backend):
    name, device = backend
    book, residual = Codebook("sign", 60, 50, 2, SEED, backend=name), torch.randn(3, 60, device=device)
    bias = torch.zeros(2, 50, device=device)
    bias[1, 20] = math.nan
    for search in (lambda: book.search(residual, STEP, bias), lambda: book.topk(residual, STEP, 3, bias)):
        if device == "cpu":
            with pytest.raises(InputError, match="NaN"):
                search()
        else:
            index, sign, score = search()
            assert index[:, 1].eq(-1).all() and sign[:, 1].eq(1).all() and score[:, 1].isnan().all()
            assert index[:, 0].ge(0).all()
            with pytest.raises(InputError, match="NaN"):
                book.check_index(index.cpu())


@pytest.mark.parametrize(
    "bias", [torch.zeros(50).to(torch.complex64), torch.zeros(50).to_sparse(), [0.0] * 50, torch.zeros(())]
)
def test_what_is_no_bias(bias):
    with pytest.raises(InputError, match="bias"):
        Codebook("sign", 60, 50).search(torch.randn(1, 60), 0, bias)


# ---- what is no residual, no index -----------------------------------------------------------------


@pytest.mark.parametrize(
    "thing", [torch.tensor(1.0), torch.randn(64), torch.empty(0), torch.zeros(2, 0), torch.randn(0, 64),
              torch.randn(2, 64).to_sparse(), torch.randn(2, 64).to(torch.complex64), torch.randn(2, 64) > 0,
              torch.quantize_per_tensor(torch.randn(2, 64), 0.1, 0, torch.quint8), np.zeros((1, 64)), 3,
              torch.nested.nested_tensor([torch.randn(64)], layout=torch.jagged), torch.randn(2, 64).to_mkldnn()],
    ids=["0-d", "1-d", "empty", "no entries", "no rows", "sparse", "complex", "bool", "quantised", "numpy", "int",
         "nested", "mkldnn"],
)  # fmt: skip
def test_neither_residual_nor_index(thing):
    book = Codebook("sign", 64, 50)
    for operation in (
        lambda: book.search(thing, 0),
        lambda: book.topk(thing, 0, 2),
        lambda: book.scores(thing, 0),
        lambda: book.atoms(thing, 0),
        lambda: book.atoms(torch.zeros(1, 1, dtype=torch.int64), 0, thing),
        lambda: book.combine(thing, torch.ones(1, 1), 0),
        lambda: book.combine(torch.zeros(1, 1, dtype=torch.int64), thing, 0),
    ):
        with pytest.raises(InputError):
            operation()

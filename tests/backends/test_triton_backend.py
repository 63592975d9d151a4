"""Triton's kernels, interpreted or on a GPU, against the reference (a modest grid: the interpreter is slow)."""

from __future__ import annotations

import pytest
import torch

from ddcm_fast.codebook import backends, reference
from ddcm_fast.codebook.codebook import Codebook
from ddcm_fast.codebook.law import CodebookSpec

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
kernels = backends.load("triton")
_REASON = backends.missing("triton", DEVICE)
pytestmark = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))

SEED = 0xFEDCBA9876543210
STEP = 3_000_000_000


def swept(*shape: object) -> object:
    """A case for the sweep of every tile; the interpreter takes long over it."""
    return pytest.param(shape, marks=pytest.mark.slow, id="-".join(map(str, shape)))


#: kind, D, K, G, B: one call and less, cut last calls and sub-blocks, unequal groups, every batch tile.
SHAPES = [
    ("gaussian", 1, 1, 1, 1),
    ("gaussian", 300, 40, 3, 2),
    ("gaussian", 257, 70, 2, 5),
    ("gaussian", 40, 70, 2, 20),
    ("gaussian", 257, 40, 1, 50),
    swept("gaussian", 40, 40, 1, 100),
    swept("gaussian", 40, 70, 1, 130),
    swept("gaussian", 140, 20, 2, 260),
    ("sign", 1, 1, 1, 1),
    ("sign", 130, 20, 2, 2),
    ("sign", 40, 10, 2, 3),
    ("sign", 200, 9, 1, 7),
    ("sign", 40, 10, 1, 9),
    ("sign", 40, 70, 1, 9),
    ("sign", 140, 40, 1, 20),
    ("sign", 40, 33, 1, 40),
    swept("sign", 40, 33, 1, 70),
    swept("sign", 40, 20, 2, 260),
    ("hadamard", 1, 1, 1, 1),
    ("hadamard", 300, 1000, 3, 2),
    ("hadamard", 140, 70, 2, 5),
    ("hadamard", 40, 70, 1, 70),
    ("hadamard", 300, 1000, 3, 9),
    ("hadamard", 16390, 16390, 1, 2),
]


def step_tensor() -> torch.Tensor:
    return torch.tensor(STEP, device=DEVICE)


@pytest.fixture(params=SHAPES, ids=lambda s: "-".join(map(str, s)))
def case(request):
    kind, dim, size, groups, batch = request.param
    spec = CodebookSpec(kind, dim, size, groups, SEED)
    generator = torch.Generator().manual_seed(1)
    # Images of very different scale: each must keep its own precision.
    w = torch.randn(batch, dim, generator=generator) * torch.logspace(-6, 6, batch)[:, None]
    return spec, w


@pytest.mark.parametrize("kind", ["gaussian", "sign"])
@pytest.mark.parametrize("dim", [1, 3, 16, 63, 64, 300, 5000])
def test_rotation_to_the_bit(kind, dim):
    spec = CodebookSpec(kind, dim, 4, 1, SEED)
    x = torch.randn(2, dim)
    w = kernels.to_codebook_order(spec, x.to(DEVICE))
    assert torch.equal(w.cpu(), reference.to_codebook_order(spec, x))
    z = kernels.to_image_order(spec, x.to(DEVICE))
    assert torch.equal(z.cpu(), reference.to_image_order(spec, x))


def test_scores(case):
    spec, w = case
    found = kernels.scores(spec, w.to(DEVICE), step_tensor()).cpu()
    length = reference._split_groups(spec, w).norm(dim=-1, keepdim=True) * spec.max_group_dim**0.5
    error = (found - reference.scores(spec, w, STEP)).abs()
    assert (error <= 1e-6 * length).all()


def test_search_and_topk(case):
    spec, w = case
    # Where scores differ by rounding only, either order is right; so make the best stand out.
    bias = torch.linspace(0, 1, spec.size)[torch.randperm(spec.size)] * w.norm(dim=1).max() * 50
    device = (spec, w.to(DEVICE), step_tensor())
    tolerance = 1e-5 * float(w.norm(dim=1).max()) * spec.max_group_dim**0.5
    ways = ((True, None), (False, bias), (True, bias.repeat(spec.groups, 1)))
    for signed, b in ways if DEVICE == "cuda" or spec.kind != "sign" else ways[len(w) % 2 :][:1]:
        b_device = None if b is None else b.to(DEVICE)
        found = kernels.search(*device, signed, b_device)
        expected = reference.search(spec, w, STEP, signed, b)
        assert torch.equal(found[0].cpu(), expected[0])
        assert torch.equal(found[1].cpu(), expected[1])
        assert (found[2].cpu() - expected[2]).abs().max() <= tolerance
    if DEVICE == "cpu" and spec.kind == "sign":
        return  # 128 bits an entry are 128 rounds of the interpreter; topk's ranking is every kind's
    m = min(5, spec.size)
    found = kernels.topk(*device, m, False, bias.to(DEVICE))
    expected = reference.topk(spec, w, STEP, m, False, bias)
    assert torch.equal(found[0].cpu(), expected[0])
    assert (found[2].cpu() - expected[2]).abs().max() <= tolerance


@pytest.mark.skipif(DEVICE == "cuda", reason="a compiled kernel keeps its constants")
def test_sums_of_more_than_31_bits_are_made_in_segments(monkeypatch):
    import triton.language as tl

    monkeypatch.setattr("ddcm_fast.kernels.search_sign._SEGMENT", tl.constexpr(32))
    spec, w = CodebookSpec("sign", 128 * 33, 7, 1, SEED), torch.randn(9, 128 * 33)
    index, sign, _ = kernels.search(spec, w, step_tensor(), True, None)
    expected = reference.search(spec, w, STEP, True)
    assert torch.equal(index, expected[0]) and torch.equal(sign, expected[1])


@pytest.mark.parametrize("kind", ["gaussian", "hadamard"])
def test_topk_over_several_ranges(kind, monkeypatch):
    monkeypatch.setattr("ddcm_fast.kernels.operations._CANDIDATES", 256)
    spec = CodebookSpec(kind, 60, 700, 1, SEED)
    w = torch.randn(1, 60)
    found = kernels.topk(spec, w.to(DEVICE), step_tensor(), 300, True, None)
    expected = reference.topk(spec, w, STEP, 300, True)
    assert torch.equal(found[0].cpu(), expected[0])
    assert torch.equal(found[1].cpu(), expected[1])


@pytest.mark.parametrize("kind", ["gaussian", "sign", "hadamard"])
def test_search_of_a_range(kind):
    spec, w = CodebookSpec(kind, 60, 150, 2, SEED), torch.randn(2, 60)
    first, bias = spec.atoms_made_together, torch.randn(2, 150)
    found = kernels.search_range(spec, w.to(DEVICE), step_tensor(), True, bias.to(DEVICE), first, 140)
    value = reference.scores(spec, w, STEP, first, 140).abs() + bias[:, first:140]
    assert torch.equal(found[0].cpu(), value.argmax(-1) + first)


@pytest.mark.parametrize("table_bytes", [1, 5000])
def test_programs_of_a_batch_share_signs_range_by_range(table_bytes, monkeypatch):
    monkeypatch.setattr("ddcm_fast.kernels.search_hadamard._TABLE_BYTES", table_bytes)
    spec, w = CodebookSpec("hadamard", 900, 5000, 2, SEED), torch.randn(17, 900)
    # Each range's atoms are the best of some images: the best so far must outlive the ranges after it.
    atoms = torch.linspace(0, 4999, 17).long()[:, None, None].expand(-1, 2, 1)
    w += reference.combine(spec, atoms, torch.ones(17, 2, 1), STEP)
    device = (spec, w.to(DEVICE), step_tensor())
    index, sign, _ = kernels.search(*device, True, None)
    expected = reference.search(spec, w, STEP, True)
    assert torch.equal(index.cpu(), expected[0]) and torch.equal(sign.cpu(), expected[1])
    scores = kernels.scores(*device)
    for i in (0, 3, 4, 16):  # the first and last of programs
        assert torch.equal(kernels.scores(spec, w[i : i + 1].to(DEVICE), step_tensor())[0], scores[i])
    index, _, score = kernels.topk(*device, 3, True, None)
    best = scores.abs().topk(3, dim=-1)
    assert torch.equal(score, best.values)
    assert torch.equal(index, best.indices)


@pytest.mark.parametrize("kind", ["gaussian", "sign", "hadamard"])
@pytest.mark.parametrize("dim, size, groups, batch", [(1, 1, 1, 1), (300, 1000, 3, 2), (1300, 70, 1, 1)])
def test_combine_to_the_bit(kind, dim, size, groups, batch):
    spec = CodebookSpec(kind, dim, size, groups, SEED)
    index, coefficient = torch.randint(size, (batch, groups, 3)), torch.randn(batch, groups, 3)
    found = kernels.combine(spec, index.to(DEVICE), coefficient.to(DEVICE), step_tensor())
    assert torch.equal(found.cpu(), reference.combine(spec, index, coefficient, STEP))


@pytest.mark.parametrize(
    "kind, dim, size, groups, batch",
    [("gaussian", 1, 1, 1, 1), ("gaussian", 300, 100, 3, 3), ("gaussian", 300, 70, 3, 6), ("gaussian", 1300, 40, 1, 5),
     ("gaussian", 40, 70, 1, 130),
     ("sign", 40, 10, 3, 1), ("hadamard", 1, 1, 1, 1), ("hadamard", 300, 1000, 3, 2), ("hadamard", 1300, 70, 1, 1)],
)  # fmt: skip
def test_norms_to_the_bit(kind, dim, size, groups, batch):
    spec, w = CodebookSpec(kind, dim, size, groups, SEED), torch.randn(batch, dim)
    scores, norms = kernels.scores_and_norms(spec, w.to(DEVICE), step_tensor())
    assert torch.equal(norms.cpu(), reference.norms(spec, STEP))
    assert torch.equal(scores, kernels.scores(spec, w.to(DEVICE), step_tensor()))


def test_combine_of_the_last_atoms():
    for kind in ("gaussian", "sign", "hadamard"):
        spec = CodebookSpec(kind, 70, 2**32, 1, SEED)
        index = torch.tensor([[[2**32 - 1, 2**31]]])
        coefficient = torch.ones(1, 1, 2)
        found = kernels.combine(spec, index.to(DEVICE), coefficient.to(DEVICE), step_tensor())
        assert torch.equal(found.cpu(), reference.combine(spec, index, coefficient, STEP))


def test_combine_clamps_indices():
    spec = CodebookSpec("sign", 70, 9, 1, SEED)
    index = torch.tensor([[[-1, 9]]], device=DEVICE)
    clamped = torch.tensor([[[0, 8]]])
    ones = torch.ones(1, 1, 2)
    found = kernels.combine(spec, index, ones.to(DEVICE), step_tensor())
    assert torch.equal(found.cpu(), reference.combine(spec, clamped, ones, STEP))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "kind, bad",
    [("gaussian", float("nan")), ("sign", float("-inf")), ("hadamard", float("inf")), ("hadamard", float("nan"))],
)
def test_non_finite_residuals_answer_minus_one(kind, bad):
    spec = CodebookSpec(kind, 60, 9, 2, SEED)
    w = torch.randn(2, 60)
    expected = reference.search(spec, w, STEP, True)
    w[0, 0] = bad
    index, sign, score = kernels.search(spec, w.to(DEVICE), step_tensor(), True, None)
    assert (index[0] == -1).all() and (sign[0] == 1).all() and score[0].isnan().all()
    assert torch.equal(index[1].cpu(), expected[0][1])
    if DEVICE == "cpu" and kind == "sign":
        return
    index, _, score = kernels.topk(spec, w.to(DEVICE), step_tensor(), 2, True, None)
    assert (index[0] == -1).all() and score[0].isnan().all() and (index[1] >= 0).all()


@pytest.mark.parametrize("kind", ["gaussian", "hadamard"])
def test_ties_go_to_the_lower_index(kind):
    spec = CodebookSpec(kind, 40, 90, 1, SEED)
    w = torch.zeros(1, 40, device=DEVICE)
    index, sign, _ = kernels.search(spec, w, step_tensor(), True, None)
    assert index.item() == 0 and sign.item() == 1
    # An unsigned product of -0 and +0 ties as well.
    assert kernels.search(spec, -w, step_tensor(), False, None)[0].item() == 0
    assert kernels.topk(spec, w, step_tensor(), 9, True, None)[0].flatten().tolist() == list(range(9))


def test_through_the_codebook():
    book = Codebook("sign", 70, 12, groups=2, seed=3, backend="triton")
    residual = torch.randn(2, 70, device=DEVICE)
    index, sign, _ = book.search(residual, 5)
    twin = Codebook("sign", 70, 12, groups=2, seed=3, backend="reference")
    assert torch.equal(index.cpu(), twin.search(residual.cpu(), 5)[0])
    assert torch.equal(book.atoms(index, 5, sign).cpu(), twin.atoms(index.cpu(), 5, sign.cpu()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graph_replays_for_another_step():
    for kind in ("gaussian", "sign", "hadamard"):
        spec = CodebookSpec(kind, 1000, 5000, 2, SEED)
        w, step = torch.randn(2, 1000, device=DEVICE), step_tensor()
        kernels.search(spec, w, step, True, None)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            index, _, _ = kernels.search(spec, w, step, True, None)
        step.fill_(11)
        graph.replay()
        assert torch.equal(index.cpu(), reference.search(spec, w.cpu(), 11, True)[0])

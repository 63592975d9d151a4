"""The pursuit rule against a brute force that forms every candidate, and its enumeration of sequences."""

import itertools

import pytest
import torch

from ddcm_fast import Codebook, load_model
from ddcm_fast.codebook import ops
from ddcm_fast.sampling.rules import Pursuit
from ddcm_fast.sampling.rules.pursuit import coefficient_grid
from ddcm_fast.sampling.schedule import linspace, plan

DIM, SIZE = 96, 40


@pytest.fixture(scope="module")
def step():
    model = load_model("gaussian-field", device="cpu")
    return plan(model, linspace(model, 5))[2]


def brute_force(book, direction, step, atoms, grid):
    """DDCM's matching pursuit as the paper states it, with the K x D codebook in memory, in float64."""
    z = book.atoms(torch.arange(SIZE).view(-1, 1), step.index).double()
    r = direction.double()
    k = int((z @ r).argmax())
    best, letters = z[k], [k]
    while len(letters) < 2 * atoms - 1:
        found = None
        for j, c in enumerate(grid):
            mixed = c**0.5 * best + (1 - c) ** 0.5 * z
            mixed = mixed / mixed.std(dim=1, keepdim=True)
            scores = mixed @ r
            if found is None or scores.max() > found[0]:
                found = (scores.max(), j + 1, int(scores.argmax()), mixed[scores.argmax()])
        if found[0] <= best @ r:
            return letters + [0] * (2 * atoms - 1 - len(letters)), best
        letters += [found[1], found[2]]
        best = found[3]
    return letters, best


@pytest.mark.parametrize("kind", ["gaussian", "sign", "hadamard"])
@pytest.mark.parametrize(("atoms", "bits", "official"), [(2, 1, False), (3, 3, False), (6, 2, True), (4, 1, True)])
def test_equals_brute_force(step, kind, atoms, bits, official):
    book = Codebook(kind, DIM, SIZE, seed=3, signed=False)
    rule = Pursuit(book, atoms, bits, official)
    grid = coefficient_grid(bits, official)
    directions = torch.randn(4, DIM, generator=torch.Generator().manual_seed(atoms))
    letters = rule.choose(directions, step)
    noise = rule.noise(letters, step)
    for row, direction, z in zip(letters.tolist(), directions, noise, strict=True):
        expected, best = brute_force(book, direction, step, atoms, grid)
        if not official:  # there c = 1 only renormalises: whether it still "improves" is the last bit's whim
            assert row == expected
        assert torch.allclose(z.double(), best, atol=1e-5)


@pytest.fixture
def passes(monkeypatch):
    """Names of the backends' operations that go over all atoms, in the order of their calls."""
    called = []

    def counted(name, operation):
        return lambda *args, **kwargs: called.append(name) or operation(*args, **kwargs)

    for name in ("scores", "scores_and_norms", "search", "topk"):
        monkeypatch.setattr(ops, name, counted(name, getattr(ops, name)))
    return called


@pytest.mark.parametrize("kind", ["gaussian", "sign", "hadamard"])
@pytest.mark.parametrize("atoms", [1, 2, 5])
def test_m_atoms_take_m_passes(step, passes, kind, atoms):
    book = Codebook(kind, DIM, SIZE, seed=3, signed=False)
    Pursuit(book, atoms, 3, False).choose(torch.randn(4, DIM), step)
    assert passes == (["search"] if atoms == 1 else ["scores_and_norms"] + ["scores"] * (atoms - 1))


def test_orthogonal_atoms_need_one_pass(step, passes):
    book = Codebook("hadamard", 128, SIZE, seed=3, signed=False)  # n = 64: two whole sub-blocks
    directions = torch.randn(4, 128, generator=torch.Generator().manual_seed(5))
    letters = Pursuit(book, 6, 3, False).choose(directions, step)
    assert passes == ["scores_and_norms"]
    for row, direction in zip(letters.tolist(), directions, strict=True):
        assert row == brute_force(book, direction, step, 6, coefficient_grid(3, False))[0]


def test_refinement_only_improves(step):
    book = Codebook("sign", DIM, SIZE, signed=False)
    direction = torch.randn(8, DIM, generator=torch.Generator().manual_seed(0))
    scores = []
    for atoms in (1, 2, 4, 8):
        rule = Pursuit(book, atoms, 2, False)
        z = rule.noise(rule.choose(direction, step), step)
        scores.append((z * direction).sum(1))
    for worse, better in itertools.pairwise(scores):
        assert (better >= worse - 1e-4).all()


def test_grid():
    assert coefficient_grid(1, official=False) == [0.5]
    assert coefficient_grid(1, official=True) == [1.0]
    assert coefficient_grid(2, official=False) == [0.25, 0.5, 0.75]
    assert coefficient_grid(2, official=True) == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_symbols_enumerate_the_valid_sequences_exactly(step):
    rule = Pursuit(Codebook("sign", 8, 3, signed=False), 3, 1, False)
    (radix,) = rule.radices(step)
    assert radix == 3 * (1 + 3 * (1 + 3))  # one, two or three atoms of three with one coefficient
    seen = set()
    for symbol in range(radix):
        letters = rule.to_letters([symbol], step)
        assert rule.to_symbols(letters, step) == [symbol]
        seen.add(tuple(letters))
    assert len(seen) == radix
    assert {len([c for c in s[1::2] if c]) for s in seen} == {0, 1, 2}


def test_batch_rows_stop_independently(step):
    book = Codebook("gaussian", DIM, SIZE, signed=False)
    rule = Pursuit(book, 5, 1, True)  # its only coefficient, c = 1, adds nothing
    one = book.atoms(torch.tensor([[7]]), step.index)
    many = torch.cat((one, torch.randn(3, DIM, generator=torch.Generator().manual_seed(1))))
    together = rule.choose(many, step)
    for row in range(4):
        assert torch.equal(rule.choose(many[row : row + 1], step)[0], together[row])
    assert together[0, 0] == 7

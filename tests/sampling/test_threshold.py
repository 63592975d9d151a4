"""Turbo-DDCM's rule and the packing of its index sets."""

import itertools
import math
import random
import sys

import pytest
import torch

from ddcm_fast import Codebook
from ddcm_fast.errors import ConfigError, InputError
from ddcm_fast.models.gaussian_field import GaussianField
from ddcm_fast.sampling.bitstream import pack, payload_bits, unpack, unpack_prefix
from ddcm_fast.sampling.choosers import Draw, Match, Replay, toward
from ddcm_fast.sampling.combinatorics import rank, unrank
from ddcm_fast.sampling.rules.threshold import Threshold, pool_weight
from ddcm_fast.sampling.sampler import sample
from ddcm_fast.sampling.schedule import linspace, plan

DIM, K, M = 768, 256, 12


@pytest.fixture
def steps():
    return plan(GaussianField(), linspace(GaussianField(), 6))


def make(kind="sign", size=K, atoms=M, dim=DIM):
    return Threshold(Codebook(kind, dim, size, seed=7), dict.fromkeys(range(64), atoms))


# ---- combinatorics -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(9))
def test_rank_is_a_bijection_in_the_order_of_the_number_system(size):
    for count in range(size + 1):
        sets = list(itertools.combinations(range(size), count))
        numbers = [rank(s, size) for s in sets]
        assert sorted(numbers) == list(range(math.comb(size, count)))
        assert numbers == [sum(math.comb(c, i + 1) for i, c in enumerate(s)) for s in sets]
        assert [tuple(unrank(n, count, size)) for n in numbers] == sets


@pytest.mark.parametrize(
    ("size", "count"),
    [(16384, 1024), (16384, 45), (65536, 300), (1 << 24, 100), (1 << 32, 30), (1 << 32, 1), (1025, 1024), (600, 599)],
)
def test_rank_and_unrank_of_large_sets(size, count):
    rng = random.Random(size * count)
    for _ in range(3):
        elements = sorted(rng.sample(range(size), count))
        number = rank(elements, size)
        assert number == sum(math.comb(c, i + 1) for i, c in enumerate(elements))
        assert unrank(number, count, size) == elements
    last = math.comb(size, count) - 1
    assert unrank(last, count, size) == list(range(size - count, size))
    assert rank(range(size - count, size), size) == last
    assert unrank(0, count, size) == list(range(count))


def test_clustered_sets():
    """Gaps far from the average, where the estimate of a place starts badly."""
    for elements in ([0, 1, 2, 16383], list(range(16000, 16100)), [*range(50), *range(16334, 16384)]):
        assert unrank(rank(elements, 16384), len(elements), 16384) == elements


def test_impossible_sets():
    for bad in ([3, 3], [4, 2], [0, 10], [-1, 2]):
        with pytest.raises(ValueError, match="elements"):
            rank(bad, 10)
    for number, count, size in ((45, 2, 10), (-1, 2, 10), (0, 11, 10)):
        with pytest.raises(ValueError, match="no set"):
            unrank(number, count, size)


def lines_run(function, *arguments):
    """What a call returns, and how many lines of Python it runs: its work, the same on every machine."""
    lines = 0

    def trace(frame, event, argument):
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return function(*arguments), lines
    finally:
        sys.settrace(before)


def test_packing_does_not_search_for_elements(steps):
    """K = 16384, M = 1024: 9 ms in all, since an element takes a few operations and not one for each candidate."""
    rule = make(size=16384, atoms=1024)
    letters = rule.draw(1, steps[0], torch.Generator().manual_seed(0))[0].tolist()
    symbols, packing = lines_run(rule.to_symbols, letters, steps[0])
    again, unpacking = lines_run(rule.to_letters, symbols, steps[0])
    assert again == letters
    assert packing < 32 * 1024 and unpacking < 64 * 1024, (packing, unpacking)


# ---- the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gaussian", "sign", "hadamard"])
def test_chooses_the_largest_scores_and_normalises_their_sum(kind, steps):
    rule = make(kind)
    r = torch.randn(2, DIM, generator=torch.Generator().manual_seed(1))
    letters = rule.choose(r, steps[2])
    z = rule.noise(letters, steps[2])
    assert letters.shape == (2, M) and letters.dtype == torch.int64
    assert torch.equal(letters, letters.sort(dim=1).values)
    atoms = torch.cat([rule.codebook(steps[2]).atoms(torch.tensor([[k]]), 2) for k in range(K)])
    scores = r.double() @ atoms.double().T
    for b in range(2):
        best = scores[b].abs().topk(M).indices
        assert set((letters[b] >> 1).tolist()) == set(best.tolist())
        expected = (atoms[best].double() * scores[b][best].sign()[:, None]).sum(0)
        assert torch.allclose(z[b].double(), expected / expected.std(), atol=1e-5)
    assert torch.allclose(z.std(dim=1), torch.ones(2), atol=1e-6)


def test_orthogonal_codebook_makes_the_best_choice(steps):
    """Among all signed sums of M atoms (here: all 2-subsets) none is closer to the residual's direction."""
    rule = make("hadamard", size=16, atoms=2, dim=256)
    r = torch.randn(1, 256, generator=torch.Generator().manual_seed(2))
    z = rule.noise(rule.choose(r, steps[0]), steps[0])
    candidates = [
        rule.noise(torch.tensor([[2 * i + a, 2 * j + b]]), steps[0])
        for i, j in itertools.combinations(range(16), 2)
        for a in (0, 1)
        for b in (0, 1)
    ]
    assert float(z @ r.T) == pytest.approx(max(float(c @ r.T) for c in candidates), rel=1e-5)


def test_symbols_cost_the_logarithm_of_the_number_of_sets(steps):
    rule = make()
    radices = rule.radices(steps[0])
    assert radices == [math.comb(K, M), 2**M]
    assert payload_bits(radices) == math.ceil(math.log2(math.comb(K, M))) + M
    letters = rule.draw(5, steps[0], torch.Generator().manual_seed(3))
    assert len({tuple(row) for row in letters.tolist()}) == 5
    for row in letters.tolist():
        symbols = rule.to_symbols(row, steps[0])
        assert all(0 <= s < r for s, r in zip(symbols, radices, strict=True))
        assert rule.to_letters(symbols, steps[0]) == row


@pytest.mark.parametrize("kind", ["sign", "hadamard"])
def test_decoder_repeats_the_encoder_bit_for_bit(kind, steps):
    model = GaussianField()
    rule = make(kind)
    x0 = model.draw(1, 16, 16, seed=1)
    noise = rule.codebook(steps[0]).initial_noise(1).view_as(x0)
    encoded = sample(model, steps, rule, toward(x0), noise)
    coded = [s for s in steps if s.coded]
    radices = [radix for s in coded for radix in rule.radices(s)]
    symbols = [x for s, row in zip(coded, encoded.letters, strict=True) for x in rule.to_symbols(row[0].tolist(), s)]
    data = pack(symbols, radices)
    read = unpack(data, radices)
    letters = [torch.tensor([rule.to_letters(read[2 * i : 2 * i + 2], s)]) for i, s in enumerate(coded)]
    assert torch.equal(sample(model, steps, rule, Replay(letters), noise).x0, encoded.x0)
    prefix = unpack_prefix(data[: len(data) // 2], radices)
    assert len(prefix) >= len(symbols) // 2 - 2 and prefix == symbols[: len(prefix)]


def test_more_atoms_come_closer(steps):
    model = GaussianField()
    x0 = model.draw(2, 16, 16, seed=4)
    noise = make().codebook(steps[0]).initial_noise(2).view_as(x0)
    errors = [
        float((sample(model, steps, rule, toward(x0), noise).x0 - x0).square().mean())
        for rule in (make(atoms=1), make(atoms=8), make(atoms=64))
    ]
    assert errors == sorted(errors, reverse=True)


def test_generation_is_reproducible(steps):
    model = GaussianField()
    noise = make().codebook(steps[0]).initial_noise(1).view(1, 3, 16, 16)
    runs = [sample(model, steps, make(), Draw(seed), noise).x0 for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_impossible_parameters():
    for atoms in (0, K + 1):
        with pytest.raises(ConfigError, match="M is"):
            make(atoms=atoms)
    with pytest.raises(ConfigError, match="1024"):
        make(size=4096, atoms=1025)
    for book in (Codebook("sign", DIM, K, groups=2), Codebook("sign", DIM, K, signed=False)):
        with pytest.raises(ConfigError, match="signed codebook of one group"):
            Threshold(book, {0: 4})


# ---- priority ------------------------------------------------------------------------------------


def test_weight_is_the_average_of_the_pixels():
    mask = torch.ones(16, 32)
    mask[:8, :16] = 5
    weight = pool_weight(mask, (4, 4, 4))
    assert weight.shape == (1, 1, 4, 4)
    assert torch.equal(weight[0, 0], torch.tensor([[5.0, 5, 1, 1]] * 2 + [[1.0] * 4] * 2))


def test_priority_moves_the_error_elsewhere(steps):
    model = GaussianField()
    rule = make(atoms=64)
    x0 = model.draw(4, 16, 16, seed=9)
    noise = rule.codebook(steps[0]).initial_noise(4).view_as(x0)
    mask = torch.ones(16, 16)
    mask[:, :8] = 5
    weight = pool_weight(mask, model.latent_shape(16, 16))
    plain = sample(model, steps, rule, toward(x0), noise).x0
    aware = sample(model, steps, rule, Match(lambda c: weight * (x0 - c.x0_hat)), noise).x0
    left, right = (slice(None), slice(None), slice(None), slice(8)), (..., slice(8, None))
    assert (aware - x0)[left].square().mean() < 0.9 * (plain - x0)[left].square().mean()
    assert (aware - x0)[right].square().mean() > (plain - x0)[right].square().mean()


@pytest.mark.parametrize("mask", [torch.ones(3), torch.zeros(4, 4), -torch.ones(4, 4), torch.full((4, 4), math.nan)])
def test_not_a_mask(mask):
    with pytest.raises(InputError, match="mask"):
        pool_weight(mask, (3, 4, 4))

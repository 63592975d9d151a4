"""Trellis-coded noise: the best path, the bits it is worth, the decoder."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from ddcm_fast.errors import ConfigError
from ddcm_fast.models.gaussian_field import GaussianField
from ddcm_fast.sampling.choosers import Draw, Replay, toward
from ddcm_fast.sampling.rules import Product
from ddcm_fast.sampling.rules.trellis import Trellis
from ddcm_fast.sampling.sampler import sample
from ddcm_fast.sampling.schedule import linspace, plan

DIM = 768


@pytest.fixture(scope="module")
def step():
    return plan(GaussianField(), [500.0, 400.0])[0]


def make(groups, bits=4, memory=8, kind="sign", dim=DIM, count=8):
    return Trellis(kind, dim, dict.fromkeys(range(count), groups), bits, memory, seed=3)


def residual(batch, dim=DIM, seed=0):
    return torch.randn(batch, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["gaussian", "sign", "hadamard"])
@pytest.mark.parametrize(("bits", "memory", "groups"), [(1, 1, 8), (1, 3, 9), (2, 4, 5), (2, 5, 4), (3, 3, 3)])
def test_chooses_the_best_of_all_paths(kind, bits, memory, groups, step):
    """Against every sequence of letters, decoded and scored."""
    rule = make(groups, bits, memory, kind, dim=96)
    r = residual(2, 96)
    every = torch.tensor(list(itertools.product(range(1 << bits), repeat=groups)))
    scores = rule.noise(every, step).double() @ r.double().T
    chosen = rule.choose(r, step)
    assert chosen.shape == (2, groups) and chosen.dtype == torch.int64
    got = (rule.noise(chosen, step).double() * r.double()).sum(1)
    assert torch.allclose(got, scores.max(0).values, rtol=1e-5)


def test_one_group_is_the_best_signed_atom(step):
    r = residual(3)
    chosen = make(1, 6, 6).choose(r, step)
    atoms = make(1, 6, 6).noise(torch.arange(64)[:, None], step)
    assert torch.equal(chosen[:, 0], (atoms.double() @ r.double().T).argmax(0))


def test_noise_is_gaussian_and_different_everywhere(step):
    rule = make(24)
    letters = rule.draw(200, step, torch.Generator().manual_seed(1))
    z = rule.noise(letters, step)
    assert float(z.mean()) == pytest.approx(0, abs=0.01)
    assert float(z.square().mean()) == pytest.approx(1, abs=0.01)
    assert float(z.pow(4).mean()) == pytest.approx(3, abs=0.15)
    other = letters.clone()
    other[:, 0] ^= 2  # the first letter matters for as long as the memory lasts
    groups = (rule.noise(other, step) - z).abs().sum(1)
    assert bool((groups > 0).all())
    correlation = (rule.noise(other, step) * z).mean(1)
    assert float(correlation.mean()) == pytest.approx(1 - 3 / 24, abs=0.05)


def test_worth_more_of_its_bits_than_independent_groups(step):
    """m^2 / (2 ln 2) of the bits, m the part of z along the residual: against the rule `product` at 16 bits a group."""
    dim, r = 12288, residual(8, 12288)

    def worth(rule):
        z = rule.noise(rule.choose(r, step), step)
        along = (z * r).sum(1) / r.norm(dim=1)
        bits = sum(math.log2(radix) for radix in rule.radices(step))
        return float(along.square().mean()) / (2 * math.log(2) * bits)

    product = worth(Product("hadamard", dim, 32768, {step.index: 12}, 3, "auto"))
    small = worth(make(48, 4, 4, "hadamard", dim))
    trellis = worth(make(48, 4, 8, "hadamard", dim))
    large = worth(make(48, 4, 12, "hadamard", dim))
    assert product < 0.86 and small < trellis < large
    assert trellis > 0.86 and large > 0.9


@pytest.mark.parametrize("memory", [4, 7, 8])
def test_decoder_repeats_the_encoder_bit_for_bit(memory):
    model = GaussianField()
    steps = plan(model, linspace(model, 6))
    coded = [s for s in steps if s.coded]
    rule = Trellis("hadamard", DIM, {s.index: 5 + s.index for s in coded}, 4, memory)
    x0 = model.draw(1, 16, 16, seed=1)
    noise = rule.codebook(steps[0]).initial_noise(1).view_as(x0)
    encoded = sample(model, steps, rule, toward(x0), noise)
    data = rule.write([row[0].tolist() for row in encoded.letters], coded)
    assert len(data) == sum(5 + s.index for s in coded) * 4 // 8 + (sum(5 + s.index for s in coded) % 2)
    letters = [torch.tensor([row]) for row in rule.read(data, coded)]
    assert torch.equal(sample(model, steps, rule, Replay(letters), noise).x0, encoded.x0)
    start = rule.read(data[:10], coded, prefix=True)
    assert start == [row[0].tolist() for row in encoded.letters][: len(start)] and len(start) >= 2


def test_generation():
    model = GaussianField()
    steps = plan(model, linspace(model, 6))
    rule = make(12)
    noise = rule.codebook(steps[0]).initial_noise(1).view(1, 3, 16, 16)
    runs = [sample(model, steps, rule, Draw(seed), noise).x0 for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_a_step_without_bits_uses_one_group(step):
    rule = make(12)
    free = replace(step, index=99)
    assert rule.codebook(free).spec.groups == 1
    assert rule.uncoded_noise(2, free, torch.device("cpu")).shape == (2, DIM)


def test_impossible_parameters():
    for bits, memory in ((0, 8), (9, 10), (4, 3), (4, 17)):
        with pytest.raises(ConfigError, match="bits"):
            make(4, bits, memory)

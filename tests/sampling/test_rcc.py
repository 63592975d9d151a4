"""Reverse channel coding: the right distribution at nearly the right price, and its entropy-coded payload."""

import itertools
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ddcm_fast import Codebook
from ddcm_fast.codec.rate import Paced
from ddcm_fast.errors import ConfigError, FormatError, MissingExtraError
from ddcm_fast.models.gaussian_field import GaussianField
from ddcm_fast.sampling.choosers import Draw, Replay, toward
from ddcm_fast.sampling.rules import Greedy
from ddcm_fast.sampling.rules.rcc import Rcc, class_weights
from ddcm_fast.sampling.sampler import sample
from ddcm_fast.sampling.schedule import linspace, plan

GROUPS, GROUP_DIM = 16, 64
DIM = GROUPS * GROUP_DIM


@pytest.fixture(scope="module")
def step():
    return plan(GaussianField(), [500.0, 400.0])[0]


def make(count, bits, groups=GROUPS, dim=DIM, kind="gaussian", **settings):
    """A rule for `count` steps with `bits` of information a group."""
    return Rcc(kind, dim, dict.fromkeys(range(count), groups), dict.fromkeys(range(count), bits * groups), **settings)


def coded_with(rule, count, bits, step):
    """`count` steps that code mu with exactly `bits` of information a group: letters, noise and mu (1, D)."""
    mu = torch.full((1, DIM), math.sqrt(2 * math.log(2) * bits / GROUP_DIM))
    steps = [replace(step, index=i) for i in range(count)]
    letters = [rule.choose(mu / math.sqrt(step.snr_gain), s) for s in steps]
    noise = torch.stack([rule.noise(own, s) for own, s in zip(letters, steps, strict=True)])
    return steps, letters, noise, mu


# ---- the distribution ----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [0.5, 2.0])
def test_noise_is_distributed_as_the_posterior(bits, step):
    """z ~ N(mu, I): mean and variance along mu and the norm across it, with a margin that hardly truncates."""
    count = 60
    rule = make(count, bits, margin=10)
    _, _, noise, mu = coded_with(rule, count, bits, step)
    z = noise[:, 0].double()
    direction = (mu / mu.norm()).double()
    # mu is constant, so the permutation of the gaussian kind leaves it: every group sees the same.
    along = (z - mu).mul(direction).sum(1)
    assert along.mean() == pytest.approx(0, abs=4 / math.sqrt(count))
    assert along.var() == pytest.approx(1, abs=4 * math.sqrt(2 / count))
    across = z.square().sum(1) - (z * direction).sum(1).square()
    assert across.mean() / (DIM - 1) == pytest.approx(1, abs=4 * math.sqrt(2 / DIM / count))
    assert (z - mu).abs().max() < 6


def test_information_of_zero_leaves_plain_noise(step):
    rule = make(30, 0.0, margin=4)
    _, letters, noise, _ = coded_with(rule, 30, 0.0, step)
    assert float(noise.square().mean()) == pytest.approx(1, abs=0.05)
    assert float(torch.cat(letters).double().mean()) < 0.5  # the first candidate is as good as any


@pytest.mark.parametrize("kind", ["sign", "hadamard"])
def test_other_codebooks_come_near(kind, step):
    """Weights of +-1 entries favour a mean of tanh(mu) instead of mu: little while mu is small."""
    bits, count = 1.0, 60
    rule = make(count, bits, kind=kind, margin=8)
    _, _, noise, mu = coded_with(rule, count, bits, step)
    gain = float((noise[:, 0] @ mu.T).mean() / mu.square().sum())
    assert gain == pytest.approx(1, abs=0.12)


def test_a_small_margin_carries_too_little(step):
    gains = []
    for margin in (1, 4, 8):
        _, _, noise, mu = coded_with(make(20, 4.0, margin=margin), 20, 4.0, step)
        gains.append(float((noise[:, 0] @ mu.T).mean() / mu.square().sum()))
    assert gains == sorted(gains) and gains[-1] > 0.93


# ---- the price -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1.0, 4.0, 7.0])
def test_rate_is_near_the_information(bits, step):
    """KL + log2(KL + 1) and about a bit a group (Theis and Yosri 2022), far below log2 K."""
    count = 20
    rule = make(count, bits)
    steps, letters, _, _ = coded_with(rule, count, bits, step)
    spent = 8 * len(rule.write([own[0].tolist() for own in letters], steps)) / count / GROUPS
    assert 0.9 * bits < spent < bits + math.log2(bits + 1) + 1.5


@pytest.mark.parametrize(("bits", "log2_size"), [(0.0, 1), (3.0, 9), (12.0, 18)])
def test_weights_follow_zipf(bits, log2_size):
    weights = np.array(class_weights(bits, log2_size), dtype=float)
    assert len(weights) == log2_size + 1
    power = 1 + 1 / (bits + math.log2(math.e) / math.e + 1)
    exact = np.arange(1, 2**log2_size + 1, dtype=float) ** -power
    edges = [0, 1] + [2**j for j in range(1, log2_size + 1)]
    masses = np.array([exact[a:b].sum() for a, b in itertools.pairwise(edges)]) / exact.sum()
    assert np.allclose(weights / weights.sum(), masses, atol=0.05)


# ---- files ---------------------------------------------------------------------------------------


@pytest.fixture
def written(step):
    rule = make(12, 3.0, kind="sign")
    steps = [replace(step, index=i) for i in range(12)]
    generator = torch.Generator().manual_seed(5)
    letters = [rule.draw(1, s, generator)[0].tolist() for s in steps]
    return rule, steps, letters, rule.write(letters, steps)


def test_payload_round_trip(written):
    rule, steps, letters, data = written
    assert rule.read(data, steps) == letters


def test_extreme_letters_round_trip(written):
    rule, steps, _, _ = written
    size = rule.codebook(steps[0]).spec.size
    for value in (0, 1, size - 1):
        letters = [[value] * GROUPS] * len(steps)
        assert rule.read(rule.write(letters, steps), steps) == letters


def test_a_prefix_determines_the_first_steps(written):
    rule, steps, letters, data = written
    known = [len(rule.read(data[:n], steps, prefix=True)) for n in range(len(data) + 1)]
    for n, k in enumerate(known):
        assert rule.read(data[:n], steps, prefix=True) == letters[:k]
    assert known == sorted(known)
    assert known[len(data) // 2] in (5, 6, 7) and known[-1] >= 11


def test_corrupt_payloads_are_refused_or_differ(written):
    rule, steps, letters, data = written
    for bad in (data[:-5], data + b"\1", data + b"\0", b"\xff" * len(data)):
        try:
            assert rule.read(bad, steps) != letters
        except FormatError as error:
            assert "payload" in str(error)
    with pytest.raises(FormatError):
        rule.read(data + b"\0", steps)


def test_decoder_repeats_the_encoder_bit_for_bit():
    model = GaussianField()
    steps = plan(model, linspace(model, 6))
    dim = 768
    coded = [s.index for s in steps if s.coded]
    rule = Rcc("sign", dim, dict.fromkeys(coded, 12), {i: 20.0 * (i + 1) for i in coded})
    x0 = model.draw(1, 16, 16, seed=3)
    noise = rule.codebook(steps[0]).initial_noise(1).view_as(x0)
    encoded = sample(model, steps, rule, toward(x0), noise)
    again = sample(model, steps, rule, toward(x0), noise)
    assert torch.equal(encoded.x0, again.x0)
    own = [s for s in steps if s.coded]
    data = rule.write([row[0].tolist() for row in encoded.letters], own)
    letters = [torch.tensor([row]) for row in rule.read(data, own)]
    assert torch.equal(sample(model, steps, rule, Replay(letters), noise).x0, encoded.x0)


def test_generation_is_reproducible_and_short(step):
    model = GaussianField()
    steps = plan(model, linspace(model, 6))
    coded = [s for s in steps if s.coded]
    rule = make(len(coded), 4.0, groups=8, dim=768)
    noise = rule.codebook(steps[0]).initial_noise(1).view(1, 3, 16, 16)
    runs = [sample(model, steps, rule, Draw(seed), noise) for seed in (1, 1, 2)]
    assert torch.equal(runs[0].x0, runs[1].x0) and not torch.equal(runs[0].x0, runs[2].x0)
    spent = 8 * len(rule.write([row[0].tolist() for row in runs[0].letters], coded))
    assert spent < 0.8 * sum(math.log2(r) for s in coded for r in rule.radices(s))


def test_rules_with_radices_write_through_the_same_methods(step):
    rule = Greedy(Codebook("sign", DIM, 1000))
    steps = [replace(step, index=i) for i in range(7)]
    letters = [[i * 100] for i in range(7)]
    data = rule.write(letters, steps)
    assert len(data) == math.ceil(7 * math.log2(1000) / 8)
    assert rule.read(data, steps) == letters
    assert rule.read(data[:5], steps, prefix=True) == letters[:3]


# ---- errors --------------------------------------------------------------------------------------


def test_impossible_parameters():
    with pytest.raises(ConfigError, match="same steps"):
        Rcc("sign", DIM, {0: 1}, {1: 1.0})
    with pytest.raises(ConfigError, match="impossible"):
        Rcc("sign", DIM, {0: 1}, {0: math.nan})
    with pytest.raises(ConfigError, match="more groups"):
        Rcc("sign", DIM, {0: 1}, {0: 30.0})


def test_missing_package_is_named(written, monkeypatch):
    rule, steps, letters, _ = written
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(MissingExtraError, match=r"ddcm-fast\[rcc\]"):
        rule.write(letters, steps)


# ---- pace ----------------------------------------------------------------------------------------


def test_draws_differ_and_repeat(step):
    rule = make(1, 4.0)
    mu = torch.full((1, DIM), math.sqrt(2 * math.log(2) * 4 / GROUP_DIM / step.snr_gain))
    first, second = (rule.choose(mu, step, draw) for draw in (0, 1))
    assert torch.equal(first, rule.choose(mu, step)) and torch.equal(second, rule.choose(mu, step, 1))
    assert int((first == second).sum()) < GROUPS


def test_a_paced_file_comes_nearer_to_its_size(step):
    count, bits = 20, 6.0
    rule = make(count, bits)
    steps = [replace(step, index=i) for i in range(count)]
    x0 = torch.full((1, DIM), math.sqrt(2 * math.log(2) * bits / GROUP_DIM / step.snr_gain))

    def size(chooser):
        contexts = [SimpleNamespace(rule=rule, step=s, x0_hat=torch.zeros_like(x0)) for s in steps]
        letters = [chooser.choose(context)[0].tolist() for context in contexts]
        data = rule.write(letters, steps)
        assert rule.read(data, steps) == letters
        spent = sum(sum(rule.lengths(own, s)) for own, s in zip(letters, steps, strict=True))
        assert spent - 8 <= 8 * len(data) <= spent + 12
        return 8 * len(data)

    free = size(toward(x0))
    for part in (0.97, 1.03):  # the second samples are often the first ones, so it does not get all the way
        assert abs(size(Paced(x0, None, rule, steps, part * free)) - part * free) < abs(free - part * free)

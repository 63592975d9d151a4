"""Guidance by the choice of atoms: the sign, the effect, files that decode without what guided them."""

import pytest
import torch

from ddcm_fast import Codec, load_model
from ddcm_fast.errors import ConfigError
from ddcm_fast.models import digits
from ddcm_fast.sampling.choosers import Match, StepContext
from ddcm_fast.sampling.condition import Condition
from ddcm_fast.sampling.schedule import linspace, plan
from ddcm_fast.tasks.guidance import Subset, ccfg, ccfg_direction, classifier_gradient


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return load_model("digits", device="cpu")


def batch_codec(model, **settings):
    return Codec.from_preset(model, "ddcm", batch_size=60, **{"K": 64, "T": 100, **settings})


def accuracy(coded, label):
    images = torch.stack([c.reconstruction for c in coded])
    return float((digits.load_classifier()(images).argmax(1) == label).float().mean())


def context_of(model, step, x, condition=None):
    x0_hat, eps_hat = model.predict(x, step.t, condition)
    return StepContext(model, None, step, x, x0_hat, eps_hat, condition)


def test_ccfg_direction_is_the_gradient_of_the_log_likelihood(model):
    """sigma grad log p(c | x) = eps_uncond - eps_cond: it agrees with an independently trained classifier's."""
    images, labels = digits.load_data(test=True)
    steps = plan(model, linspace(model, 100))
    generator = torch.Generator().manual_seed(0)
    for i in (40, 55, 70):
        step, label = steps[i], 3
        x0 = model.encode(images[labels != label][:200])
        x = step.alpha_t * x0 + step.sigma_t * torch.randn(x0.shape, generator=generator)
        context = context_of(model, step, x)
        ours = ccfg_direction(Condition(label=label))(context).flatten(1)
        gradient = classifier_gradient(digits.load_noisy_classifier(), label)(context).flatten(1)
        cosine = torch.cosine_similarity(ours, gradient)
        assert cosine.mean() > 0.2 and (cosine > 0).float().mean() > 0.8


def test_classifier_gradient_against_differences(model):
    step = plan(model, linspace(model, 100))[50]
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    classify = digits.load_noisy_classifier()
    with torch.inference_mode():
        gradient = classifier_gradient(classify, torch.tensor([1, 2]))(context_of(model, step, x))
    h = 1e-2
    for b, label in enumerate((1, 2)):
        shift = torch.zeros_like(x)
        shift[b, 1, 2, 3] = h
        ends = [classify(x + s, step.alpha_t, step.sigma_t).log_softmax(1)[b, label] for s in (shift, -shift)]
        assert float(gradient[b, 1, 2, 3]) == pytest.approx(float(ends[0] - ends[1]) / (2 * h), abs=2e-3)


@pytest.mark.slow
def test_ccfg_raises_class_accuracy_with_the_size_of_the_subset(model):
    codec = batch_codec(model)
    label = 4
    plain = accuracy(codec.sample(ccfg(Condition(label=label), 1), 8, 8, 60), label)
    some = accuracy(codec.sample(ccfg(Condition(label=label), 4), 8, 8, 60), label)
    much = accuracy(codec.sample(ccfg(Condition(label=label), 16), 8, 8, 60), label)
    assert plain < 0.3 and some > plain + 0.3 and much > 0.8


def test_classifier_guidance_raises_class_accuracy(model):
    codec = batch_codec(model)
    chooser = Subset(classifier_gradient(digits.load_noisy_classifier(), 7), 9)
    assert accuracy(codec.sample(chooser, 8, 8, 60), 7) > 0.6


def test_match_takes_the_whole_codebook(model):
    codec = Codec.from_preset(model, "ddcm", K=64, T=100)
    coded = codec.sample(Match(ccfg_direction(Condition(label=4))), 8, 8)
    assert accuracy(coded, 4) == 1


@pytest.mark.parametrize("guide", ["ccfg", "classifier"])
def test_file_decodes_without_the_guide(model, guide):
    codec = Codec.from_preset(model, "ddcm", K=64, T=30)
    gradient = classifier_gradient(digits.load_noisy_classifier(), 2)
    chooser = ccfg(Condition(label=2), 4) if guide == "ccfg" else Subset(gradient, 4)
    coded = codec.sample(chooser, 8, 8)[0]
    assert torch.equal(Codec(model).decode(coded.data), coded.reconstruction)


def test_subset_is_repeatable_and_checked(model):
    codec = Codec.from_preset(model, "ddcm", K=64, T=10)
    files = [codec.sample(ccfg(Condition(label=2), 3, seed=s), 8, 8)[0].data for s in (0, 0, 1)]
    assert files[0] == files[1] != files[2]
    with pytest.raises(ConfigError, match="at least 1"):
        ccfg(Condition(label=2), 0)

"""The built-in class-conditional model: size, labels, guidance, files."""

import pytest
import torch

from ddcm_fast import Codec, load_model
from ddcm_fast.errors import ConfigError, InputError, MissingExtraError, ModelError
from ddcm_fast.models import digits, loading
from ddcm_fast.sampling.condition import Condition


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return load_model("digits", device="cpu")


def batch_codec(model, **settings):
    return Codec.from_preset(model, "ddcm", batch_size=50, **{"K": 64, "T": 50, **settings})


def test_shape_of_the_model(model):
    assert (model.channels, model.min_side, model.classes) == (1, 8, 10)
    assert model.latent_shape(8, 8) == (4, 4, 4)
    assert model.dtype == torch.float32  # what its folder asks for, whatever the machine is native in


def test_labels_make_digits_of_their_class(model):
    codec = batch_codec(model)
    right = 0
    for label in (0, 4, 7):
        coded = codec.generate(50, 8, 8, seed=1, condition=Condition(label=label, guidance_scale=2.0))
        images = torch.stack([c.reconstruction for c in coded])
        right += int((digits.load_classifier()(images).argmax(1) == label).sum())
    assert right >= 140


def test_generated_file_decodes_to_the_very_image(model):
    codec = Codec.from_preset(model, "ddcm", K=64, T=20)
    coded = codec.generate(2, 8, 8, seed=3, condition=Condition(label=5, guidance_scale=2.0))
    for one in coded:
        assert torch.equal(codec.decode(one.data), one.reconstruction)
    assert coded[0].data != coded[1].data
    assert len(coded[0].data) < 60  # 20 steps of 6 bits and the header


def test_compresses_a_digit(model):
    pytest.importorskip("sklearn")
    images, labels = digits.load_data(test=True)
    codec = Codec.from_preset(model, "ddcm", K=256, T=50)
    coded = codec.encode(images[0], Condition(label=int(labels[0])))[0]
    assert torch.equal(codec.decode(coded.data), coded.reconstruction)
    assert (coded.reconstruction - images[0]).square().mean() < 0.15 * images[0].var()


def test_many_labels_in_one_call(model):
    x = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    given = tuple(Condition(label=label, guidance_scale=3.0) for label in (1, 8, 1))
    together = model.predict(x, 500.0, given)[0]
    for row in range(3):
        alone = model.predict(x[row : row + 1], 500.0, given[row])[0]
        torch.testing.assert_close(together[row], alone[0], atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="2 conditions"):
        model.predict(x, 500.0, given[:2])


def test_guidance_is_linear_in_the_network_output(model):
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    t = 300.0
    outs = [model.predict(x, t, c)[0] for c in (None, Condition(label=3), Condition(label=3, guidance_scale=2.0))]
    inside = torch.stack(outs).abs().amax(0) < 1  # where x0_hat is not clipped
    assert inside.any()
    expected = outs[0] + 2 * (outs[1] - outs[0])
    torch.testing.assert_close(outs[2][inside], expected[inside], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (Condition(label=10), "labels 0 to 9"),
        (Condition(prompt="a seven"), "takes a class label"),
    ],
)
def test_wrong_conditions(model, condition, message):
    with pytest.raises(ConfigError, match=message):
        batch_codec(model).generate(1, 8, 8, condition=condition)


def test_side_limits(model):
    with pytest.raises(InputError, match="each side must be 8"):
        batch_codec(model).generate(1, 4, 4)


def test_data_split_is_fixed():
    pytest.importorskip("sklearn")
    images, labels = digits.load_data(test=True)
    assert images.shape == (500, 1, 8, 8) and labels.bincount().tolist() == [50] * 10
    rest, _ = digits.load_data(test=False)
    assert len(rest) == 1297
    assert (digits.load_classifier()(images).argmax(1) == labels).float().mean() > 0.95
    assert images.min() == -1 and images.max() == 1


def test_missing_scikit_learn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"ddcm-fast\[digits\]"):
        digits.load_data(test=True)


def test_missing_classifier(monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "WEIGHTS", tmp_path)
    digits.load_classifier.cache_clear()
    with pytest.raises(ModelError, match=r"models.train digits"):
        digits.load_classifier()
    digits.load_classifier.cache_clear()


def test_training_writes_a_model_that_loads(tmp_path):
    pytest.importorskip("sklearn")
    from ddcm_fast.models.train.command import main

    torch.set_num_threads(1)
    assert main(["digits", "--output", str(tmp_path / "own"), "--steps", "3", "--batch", "8"]) == 0
    own = loading.load_model(str(tmp_path / "own"), device="cpu")
    assert (own.classes, own.min_side) == (10, 8)
    assert own.fingerprint() != load_model("digits", device="cpu").fingerprint()

"""Compressed posterior sampling and blind restoration: consistency, exactness, files, errors."""

import sys

import pytest
import torch

from ddcm_fast import Codec, load_model
from ddcm_fast.errors import ConfigError, InputError, MissingExtraError, ModelError
from ddcm_fast.models import digits
from ddcm_fast.sampling.choosers import Chooser
from ddcm_fast.tasks import operator, restore, restore_blind
from ddcm_fast.tasks.perceptual import align_faces, load_quality
from ddcm_fast.tasks.posterior import Posterior
from ddcm_fast.tasks.restorers import load_restorer, model_denoiser

MASK = torch.ones(8, 8)
MASK[2:5, 2:6] = 0


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return load_model("digits", device="cpu")


@pytest.fixture(scope="module")
def digit():
    pytest.importorskip("sklearn")
    return digits.load_data(test=True)[0][7:8]


def noisy(y, sigma, seed=0):
    return y + sigma * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))


def gap(h, y, image):
    return float((y - h.forward(image[None])).square().mean().sqrt())


@pytest.mark.parametrize("task", ["sr2", "srbox4", "blur1.0", "motion3", "inpaint", "denoise"])
def test_restored_image_agrees_with_the_measurement(model, digit, task):
    h = operator(task, MASK if task == "inpaint" else None)
    y = noisy(h.forward(digit), 0.05)
    codec = Codec.from_preset(model, "ddcm", K=256, T=100)
    coded = restore(codec, y, h)
    blind = codec.generate(1, 8, 8)[0]
    assert gap(h, y, coded.reconstruction) < 0.6 * gap(h, y, blind.reconstruction)
    assert torch.equal(Codec(model).decode(coded.data), coded.reconstruction)


class Audit(Chooser):
    """Takes the shortlist's choice and notes where brute force over the whole codebook agrees."""

    def __init__(self, short, brute):
        self.short, self.brute, self.agree = short, brute, []

    def choose(self, context):
        mine, best = self.short.choose(context), self.brute.choose(context)
        self.agree.append(bool((mine == best).all()))
        return mine


def test_shortlist_against_brute_force(model, digit):
    h = operator("sr2")
    y = h.forward(digit)
    codec = Codec.from_preset(model, "ddcm", K=128, T=50)
    short, brute = (Posterior(h, y, 8, 8, shortlist=n) for n in (16, 128))
    audit = Audit(short, brute)
    codec.sample(audit, 8, 8)
    assert len(audit.agree) == 49
    # Early, v / alpha_s is large and the quadratic part decides: the shortlist of the linear part misses that, and
    # nothing is lost by it (benchmarks/restoration.py digits). Late the linear part decides.
    assert sum(audit.agree[-16:]) > 2 * sum(audit.agree[:16])


def test_brute_force_minimises_the_distance_to_the_measurement(model, digit):
    """The rescored objective is ||y - H(x0_hat + (v / alpha_s) z)||^2 up to a constant."""
    h = operator("srbox2")
    y = h.forward(digit)

    class Check(Chooser):
        def choose(self, context):
            letters = Posterior(h, y, 8, 8, shortlist=64).choose(context)
            z = context.rule.noise(torch.arange(64)[:, None], context.step).view(64, 4, 4, 4)
            x0 = context.x0_hat + context.step.noise / context.step.alpha_s * z
            image = torch.nn.functional.pixel_shuffle(x0, 2)
            losses = (y - h.forward(image)).double().square().sum((1, 2, 3))
            assert float(losses[letters[0, 0]]) == pytest.approx(float(losses.min()), rel=1e-5)
            return letters

    Codec.from_preset(model, "ddcm", K=64, T=12).sample(Check(), 8, 8)


def test_other_rules_follow_the_linear_part(model, digit):
    h = operator("sr2")
    y = h.forward(digit)
    codec = Codec.from_preset(model, "pursuit", K=64, M=2, C=2, T=50)
    coded = restore(codec, y, h)
    assert torch.equal(codec.decode(coded.data), coded.reconstruction)
    assert gap(h, y, coded.reconstruction) < 0.35


def test_noise_level_keeps_noise_out(model, digit):
    y = noisy(digit, 0.5)
    codec = Codec.from_preset(model, "ddcm", K=1024, T=200)
    told, untold = (restore(codec, y, operator("denoise"), sigma).reconstruction for sigma in (0.5, 0.0))
    assert (told - digit[0]).square().mean() < 0.15
    assert gap(operator("denoise"), y, told) > gap(operator("denoise"), y, untold)


def test_sizes_that_are_no_multiple_are_padded(model):
    h = operator("inpaint", torch.ones(10, 9))
    y = torch.zeros(1, 1, 10, 9)
    coded = restore(Codec.from_preset(model, "ddcm", K=16, T=5), y, h)
    assert coded.reconstruction.shape == (1, 10, 9)
    assert torch.equal(Codec(model).decode(coded.data), coded.reconstruction)


def test_bad_measurements(model):
    codec = Codec.from_preset(model, "ddcm", K=16, T=5)
    with pytest.raises(InputError, match=r"\(1, c, h, w\)"):
        restore(codec, torch.zeros(4, 4), operator("sr2"))
    with pytest.raises(InputError, match="NaN"):
        restore(codec, torch.full((1, 1, 4, 4), torch.nan), operator("sr2"))
    with pytest.raises(InputError, match="this operator needs"):
        restore(codec, torch.zeros(1, 3, 4, 4), operator("sr2"))
    with pytest.raises(InputError, match="three channels"):
        restore(codec, torch.zeros(1, 1, 8, 8), operator("color"))
    with pytest.raises(InputError, match="resize the mask"):
        restore(codec, torch.zeros(1, 1, 8, 8), operator("inpaint", torch.ones(9, 8)))
    with pytest.raises(ConfigError, match="noise level"):
        restore(codec, torch.zeros(1, 1, 4, 4), operator("sr2"), sigma=-1.0)
    with pytest.raises(ConfigError, match="at least 1"):
        Posterior(operator("sr2"), torch.zeros(1, 1, 4, 4), 8, 8, shortlist=0)


# ---- blind restoration ---------------------------------------------------------------------------


def brightness(image):
    return image.mean((1, 2, 3))  # "quality": the darker, the better


def test_blind_restoration_follows_the_restorer(model, digit):
    codec = Codec.from_preset(model, "ddcm", K=64, T=60)
    degraded = noisy(digit, 0.5).clamp(-1, 1)[0]
    coded = restore_blind(codec, degraded, model_denoiser(model, 0.5))
    assert torch.equal(Codec(model).decode(coded.data), coded.reconstruction)
    mse = (coded.reconstruction - digit[0]).square().mean()
    assert mse < (degraded - digit[0]).square().mean()


def test_quality_has_its_say(model, digit):
    codec = Codec.from_preset(model, "ddcm", K=64, T=60)
    means = []
    for coefficient in (-20.0, 0.0, 20.0):
        coded = restore_blind(codec, digit[0], lambda y: y, brightness, coefficient)
        means.append(float(coded.reconstruction.mean()))
    assert means[0] > means[1] > means[2]


def test_prediction_made_ahead_is_not_made_again(model, digit):
    calls = []

    class Counting(type(model)):
        def predict(self, x, t, condition=None):
            calls.append(t)
            return super().predict(x, t, condition)

    counting = Counting(model.unet, load_scheduler(), model.name, model.patch, 10)
    counting.min_side = 8
    codec = Codec.from_preset(counting, "ddcm", K=8, T=6)
    coded = restore_blind(codec, digit[0], lambda y: y, brightness)
    assert len(calls) == 1 + 2 * 5  # the first, and two for each of the five coded steps; none is made twice
    assert torch.equal(codec.decode(coded.data), coded.reconstruction)


def load_scheduler():
    from diffusers import DDPMScheduler

    from ddcm_fast.models.names import WEIGHTS

    return DDPMScheduler.from_pretrained(WEIGHTS / "digits")


class Half(torch.nn.Module):
    def forward(self, image):
        return 0.5 * image


@pytest.mark.parametrize("form", ["torch.export", "TorchScript"])
def test_restorer_files(tmp_path, form):
    if form == "torch.export":
        path = tmp_path / "half.pt2"
        torch.export.save(torch.export.export(Half(), (torch.zeros(1, 1, 8, 8),)), path)
    else:
        path = tmp_path / "half.pt"
        torch.jit.trace(Half(), torch.zeros(1, 1, 8, 8)).save(str(path))
    assert torch.equal(load_restorer(path, trust=True)(torch.ones(1, 1, 8, 8)), torch.full((1, 1, 8, 8), 0.5))


def test_restorer_weights(tmp_path):
    """A small SwinIR as DifFace trains it: unshuffled by 8, enlarged by 8, saved from DistributedDataParallel."""
    swinir = pytest.importorskip("spandrel.architectures.SwinIR")
    torch.manual_seed(0)
    network = swinir.SwinIR(
        img_size=8, embed_dim=12, depths=[2], num_heads=[2], window_size=8, mlp_ratio=2, upscale=8, img_range=1.0,
        upsampler="nearest+conv", start_unshuffle=8,
    ).eval()  # fmt: skip
    theirs = {}
    for name, value in network.state_dict().items():
        theirs["module." + name.replace("conv_first.", "conv_first.1.")] = value
    torch.save({"state_dict": theirs}, tmp_path / "swinir.pth")
    with pytest.raises(ModelError, match="--trust"):
        load_restorer(tmp_path / "swinir.pth")
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        restored = load_restorer(tmp_path / "swinir.pth", trust=True)(image)
        wanted = network(image * 0.5 + 0.5).clamp(0, 1) * 2 - 1
    assert restored.shape == image.shape and torch.equal(restored, wanted)
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="spandrel knows"):
        load_restorer(tmp_path / "other.pth", trust=True)


def test_restorer_weights_need_spandrel(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(MissingExtraError, match=r"ddcm-fast\[restorers\]"):
        load_restorer(tmp_path / "x.safetensors")


def test_bad_restorers(model, tmp_path, digit):
    with pytest.raises(InputError, match="no such restorer"):
        load_restorer(tmp_path / "none.pt2")
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ModelError, match="--trust"):
        load_restorer(tmp_path / "text.pt")
    with pytest.raises(InputError, match=r"torch.export.save"):
        load_restorer(tmp_path / "text.pt", trust=True)
    codec = Codec.from_preset(model, "ddcm", K=8, T=5)
    with pytest.raises(InputError, match="cannot take an image of 8x8"):
        restore_blind(codec, digit[0], torch.nn.Linear(7, 7))
    with pytest.raises(InputError, match="returned NoneType"):
        restore_blind(codec, digit[0], lambda y: None)
    with pytest.raises(ConfigError, match="noise level"):
        model_denoiser(model, 0.0)


def test_missing_extras(monkeypatch):
    import sys

    from PIL import Image

    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(MissingExtraError, match=r"ddcm-fast\[quality\]"):
        load_quality("niqe")
    monkeypatch.setitem(sys.modules, "facexlib.utils.face_restoration_helper", None)
    with pytest.raises(MissingExtraError, match=r"ddcm-fast\[faces\]"):
        align_faces(Image.new("RGB", (8, 8)))


def test_quality_of_pyiqa_is_turned_so_that_less_is_better(monkeypatch):
    import sys
    import types

    class Metric:
        lower_better = False

        def __call__(self, image):
            if float(image.mean()) == 0:
                raise AssertionError("no face")
            return image.mean().reshape(1, 1)

    def create_metric(name, device):
        if name != "bright":
            raise KeyError(name)
        return Metric()

    monkeypatch.setitem(sys.modules, "pyiqa", types.SimpleNamespace(create_metric=create_metric))
    images = torch.stack((torch.zeros(3, 4, 4), torch.ones(3, 4, 4)))
    assert load_quality("bright")(images).tolist() == [0, -1]
    with pytest.raises(ConfigError, match="no metric 'dull'"):
        load_quality("dull")

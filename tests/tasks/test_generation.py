"""benchmarks/generation.py: arguments, images, metrics (those mocked), extras that are missing."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddcm_fast import Codec, load_model
from ddcm_fast.errors import ConfigError, InputError, MissingExtraError, ModelError
from ddcm_fast.models import digits
from ddcm_fast.sampling.condition import Condition
from ddcm_fast.tasks.guidance import ClassifierGuided

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "generation.py"


@pytest.fixture(scope="module")
def bench():
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("generation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def reference(tmp_path):
    folder = tmp_path / "real"
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "a.png")
    return folder


@pytest.fixture
def fidelity(monkeypatch):
    calls = []

    def calculate_metrics(**settings):
        calls.append(settings)
        return {"frechet_inception_distance": 12.5, "kernel_inception_distance_mean": 0.25}

    monkeypatch.setitem(sys.modules, "torch_fidelity", types.SimpleNamespace(calculate_metrics=calculate_metrics))
    return calls


def classify(x, t):
    alpha = max(1e-3, 1 - t / 1000)
    return digits.load_noisy_classifier()(x, alpha, (1 - alpha**2) ** 0.5)


def test_images_files_and_scores(bench, reference, fidelity, tmp_path):
    out = tmp_path / "out"
    command = ["--model", "digits", "--reference", str(reference), "--labels", "1", "2", "-n", "2", "-T", "3"]
    assert bench.main([*command, "-K", "0", "4", "--output-dir", str(out), "--device", "cpu"]) == 0
    assert sorted(p.name for p in out.rglob("*.*")) == [
        "000000.ddcm", "000000.png", "000000.png", "000001.ddcm", "000001.png", "000001.png", "results.json",
    ]  # fmt: skip
    assert [Path(c["input1"]).name for c in fidelity] == ["ddpm", "K4"]
    assert '"fid": 12.5' in (out / "results.json").read_text()
    model = load_model("digits", device="cpu")
    decoded = Codec(model).decompress((out / "K4" / "000001.ddcm").read_bytes())
    assert decoded.tobytes() == Image.open(out / "K4" / "000001.png").tobytes()


def test_clip_score(bench, reference, monkeypatch, tmp_path):
    class Network:
        @classmethod
        def from_pretrained(cls, name):
            return cls()

        def __call__(self, **inputs):
            return types.SimpleNamespace(image_embeds=torch.tensor([[1.0, 0]]), text_embeds=inputs["text"])

    class Processor(Network):
        def __call__(self, text, images, **_):
            return {"text": torch.tensor([[1.0, 0]] if text == ["same"] else [[-1.0, 0]])}

    fake = types.SimpleNamespace(CLIPModel=Network, CLIPProcessor=Processor)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    for i in range(2):
        Image.new("L", (8, 8)).save(tmp_path / f"{i:06d}.png")
    assert bench.clip_score(tmp_path, ["same", "other"]) == pytest.approx(50)


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        (["--metrics", "fid"], ConfigError, "--reference DIR"),
        (["--metrics", "clip"], ConfigError, "--captions FILE"),
        (["--reference", "nowhere"], InputError, "no images in nowhere"),
        (["--metrics", "clip", "--captions", "c", "-n", "0"], ConfigError, "at least 1"),
        (["--metrics", "clip", "--captions", "c", "--classifier", "c.pt2"], ConfigError, "--labels"),
    ],
)
def test_bad_arguments(bench, extra, error, message):
    with pytest.raises(error, match=message):
        bench.parse(["--model", "digits", *extra])


def test_unknown_metric(bench, capsys):
    with pytest.raises(SystemExit):
        bench.parse(["--model", "digits", "--metrics", "fid,lpips"])
    assert "unknown metric 'lpips'" in capsys.readouterr().err


def test_labels_and_captions(bench, tmp_path, reference):
    model = load_model("digits", device="cpu")
    common = ["--model", "digits", "--reference", str(reference), "-n", "3"]
    every = bench.conditions(bench.parse([*common, "--labels", "all"]), model)
    assert [c.label for c in every] == [0, 1, 2]
    (tmp_path / "captions.txt").write_text("a cat\n\na dog\n")
    texts = bench.conditions(bench.parse([*common, "--captions", str(tmp_path / "captions.txt")]), model)
    assert [c.prompt for c in texts] == ["a cat", "a dog", "a cat"]
    with pytest.raises(ConfigError, match="numbers or 'all'"):
        bench.conditions(bench.parse([*common, "--labels", "cat"]), model)
    with pytest.raises(InputError, match="no such file of captions"):
        bench.conditions(bench.parse([*common, "--captions", str(tmp_path / "none")]), model)


def test_missing_extras(bench, monkeypatch, tmp_path, reference):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MissingExtraError, match=r"ddcm-fast\[metrics\]"):
        bench.fidelity(tmp_path, reference, ["fid"])
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"ddcm-fast\[metrics\]"):
        bench.clip_score(tmp_path, ["a"])


def test_classifier_guided_model_changes_the_class_and_names_its_files():
    model = load_model("digits", device="cpu")
    guided = ClassifierGuided(model, classify, 7, scale=3.0)
    codec = Codec.from_preset(guided, "ddcm", K=64, T=60, batch_size=20)
    coded = codec.generate(20, 8, 8)
    images = torch.stack([c.reconstruction for c in coded])
    assert (digits.load_classifier()(images).argmax(1) == 7).float().mean() > 0.6
    alone = Codec.from_preset(guided, "ddcm", K=64, T=5)
    one = alone.generate(1, 8, 8)[0]
    assert torch.equal(Codec(ClassifierGuided(model, classify, 7, scale=3.0)).decode(one.data), one.reconstruction)
    for other in (model, ClassifierGuided(model, classify, 7), ClassifierGuided(model, classify, 6, scale=3.0)):
        with pytest.raises(ModelError):
            Codec(other).decode(one.data)
    with pytest.raises(ConfigError, match="labels 0 to 9"):
        codec.generate(1, 8, 8, condition=Condition(label=12))

"""benchmarks/generation.py: arguments, images, metrics (those mocked), extras that are missing."""

import dataclasses
import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipelines import build, clip_tokenizer

from ddcm_fast import Codec, load_model
from ddcm_fast.codec import container
from ddcm_fast.errors import ConfigError, InputError, MissingExtraError, ModelError
from ddcm_fast.evaluation import metrics
from ddcm_fast.models import digits, guided_diffusion
from ddcm_fast.models.guided_diffusion_network import GuidedClassifier, GuidedUNet
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
    command += ["--batch-size", "2", "--output-dir", str(out), "--device", "cpu", "--dtype", "float32"]
    assert bench.main([*command, "-K", "0", "4"]) == 0
    assert sorted(p.name for p in out.rglob("*.*")) == [
        "000000.ddcm", "000000.png", "000000.png", "000001.ddcm", "000001.png", "000001.png", "results.json",
        "results.md", "settings.json",
    ]  # fmt: skip
    assert [Path(c["input1"]).name for c in fidelity] == ["ddpm", "K4"]
    assert all(c["samples_find_deep"] and c["kid_subset_size"] == 1 for c in fidelity)
    assert '"fid": 12.5' in (out / "results.json").read_text()
    assert (out / "results.md").read_text() == (
        "| | fid | kid |\n|---|---|---|\n| DDPM | 12.5 | 0.25 |\n| K = 4 | 12.5 | 0.25 |\n"
    )
    model = load_model("digits", device="cpu")
    decoded = Codec(model).decompress((out / "K4" / "000001.ddcm").read_bytes())
    assert decoded.tobytes() == Image.open(out / "K4" / "000001.png").tobytes()


def test_a_run_goes_on_where_it_ended(bench, reference, fidelity, tmp_path, capsys):
    """Images do not depend on the batch that they are made in; others than asked for are not mixed with them."""
    command = ["--model", "digits", "--reference", str(reference), "--labels", "all", "-T", "3", "--device", "cpu"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert bench.main([*command, "-K", "0", "4", "-n", "3", "--output-dir", str(whole)]) == 0
    command += ["--output-dir", str(parts)]
    assert bench.main([*command, "-K", "0", "4", "-n", "1"]) == 0
    assert bench.main([*command, "-K", "0", "4", "-n", "3", "--batch-size", "2"]) == 0
    for name in ("ddpm/000002.png", "K4/000002.png"):
        one, other = (np.asarray(Image.open(folder / name)).astype(int) for folder in (whole, parts))
        assert abs(one - other).max() <= 1
    assert (whole / "K4/000002.ddcm").read_bytes() == (parts / "K4/000002.ddcm").read_bytes()
    assert bench.main([*command, "-K", "4", "-n", "3", "-T", "5"]) == 2
    assert "have steps 3; give another --output-dir" in capsys.readouterr().err
    assert bench.main([*command, "-K", "4", "-n", "2"]) == 2
    assert "1 images more than -n 2" in capsys.readouterr().err


# ---- the paper's two settings, on tiny stand-ins of the real classes ---------------------------------


@pytest.fixture
def imagenet(monkeypatch, tmp_path):
    """256x256_diffusion.pt and 256x256_classifier.pt: state dicts with the published names, of tiny networks."""
    for name, network in (("256x256_diffusion", GuidedUNet), ("256x256_classifier", GuidedClassifier)):
        preset = dataclasses.replace(
            guided_diffusion.PRESETS[name], size=32, width=32, mult=(1, 2), blocks=1, attention=(16,), head_width=16
        )
        monkeypatch.setitem(guided_diffusion.PRESETS, name, preset)
        torch.manual_seed(0)
        state = network(preset).state_dict()
        torch.save({k: torch.randn_like(v) * 0.1 for k, v in state.items()}, tmp_path / f"{name}.pt")
    return ["--model", str(tmp_path / "256x256_diffusion.pt"), "--classifier", str(tmp_path / "256x256_classifier.pt")]


def test_imagenet_with_classifier_guidance(bench, reference, fidelity, imagenet, tmp_path, capsys):
    out = tmp_path / "out"
    command = [*imagenet, "--labels", "all", "-n", "3", "-K", "0", "2", "4", "8", "16", "64", "-T", "3"]
    command += ["--reference", str(reference), "--batch-size", "2", "--output-dir", str(out), "--device", "cpu"]
    assert bench.main(command) == 2
    assert "--trust" in capsys.readouterr().err
    command += ["--trust", "--dtype", "float32"]
    assert bench.main(command) == 0
    rows = json.loads((out / "results.json").read_text())
    assert [row["K"] for row in rows] == [0, 2, 4, 8, 16, 64] and all(row["samples"] == 3 for row in rows)
    args = bench.parse(command)
    model = bench.load(args)
    told = bench.conditions(args, model)
    assert [c.label for c in told] == [c.label for c in bench.conditions(args, model)]
    assert len({c.label for c in told}) == 3 and max(c.label for c in told) > 100  # drawn among 1000
    data = (out / "K64" / "000002.ddcm").read_bytes()
    assert container.read(data)[0].condition.label == told[2].label
    assert Codec(model).decompress(data).tobytes() == Image.open(out / "K64" / "000002.png").tobytes()
    with pytest.raises(ModelError):
        Codec(model.inner).decompress(data)
    more = ["--draw-seed", "1", "-n", "5"]
    other = bench.conditions(bench.parse([*command, "--trust", *more]), model)
    assert [c.label for c in other[:3]] != [c.label for c in told]


def test_stable_diffusion_at_its_own_size(bench, reference, fidelity, monkeypatch, tmp_path):
    """Stable Diffusion 2.1's configuration says sample_size 96 for 768 pixels; here 12 for 24."""
    pipe = build("sd-v")
    pipe.unet.register_to_config(sample_size=12)
    pipe.save_pretrained(tmp_path / "model")
    seen = []
    clip(monkeypatch, seen)
    captions = tmp_path / "captions_val2014.json"
    captions.write_text(
        json.dumps({"annotations": [
            {"image_id": 9, "id": 1, "caption": "a red fox\n"}, {"image_id": 4, "id": 2, "caption": "a cat"},
            {"image_id": 9, "id": 3, "caption": "a fox"},
        ]})
    )  # fmt: skip
    out = tmp_path / "out"
    command = ["--model", str(tmp_path / "model"), "--guidance-scale", "3", "--captions", str(captions), "-n", "3"]
    command += ["-K", "0", "16", "-T", "3", "--reference", str(reference), "--metrics", "fid,clip", "--batch-size", "2"]
    assert bench.main([*command, "--output-dir", str(out), "--device", "cpu"]) == 0
    assert seen[0] == "openai/clip-vit-large-patch14"
    header = container.read((out / "K16" / "000002.ddcm").read_bytes())[0]
    assert header.condition == Condition("a red fox", guidance_scale=3)
    assert (header.height, header.width) == Image.open(out / "ddpm" / "000001.png").size == (24, 24)
    assert set(json.loads((out / "results.json").read_text())[1]) >= {"fid", "clip"}


def clip(monkeypatch, seen):
    """CLIP for which the caption "same" fits every image, and "a red fox" half."""

    class Network(torch.nn.Module):
        @classmethod
        def from_pretrained(cls, name):
            seen.append(name)
            return cls()

        def forward(self, texts, images):
            angle = torch.tensor([{"same": 0.0, "a red fox": torch.pi / 3}.get(t, torch.pi) for t in texts])
            return types.SimpleNamespace(
                image_embeds=torch.tensor([[1.0, 0]] * len(images)),
                text_embeds=torch.stack((angle.cos(), angle.sin()), 1),
            )

    class Given(dict):
        def to(self, device):
            return self

    class Processor:
        from_pretrained = classmethod(lambda cls, name: cls())

        def __call__(self, text, images, **_):
            return Given(texts=text, images=images)

    fake = types.SimpleNamespace(CLIPModel=Network, CLIPProcessor=Processor)
    monkeypatch.setattr(metrics, "_package", lambda name, extra: fake if name == "transformers" else sys.modules[name])


def test_clip_score(monkeypatch):
    seen = []
    clip(monkeypatch, seen)
    image = Image.new("RGB", (8, 8))
    measure = metrics.ClipScore("ViT-B/16")
    assert seen == ["openai/clip-vit-base-patch16"]
    assert measure([image] * 3, ["same", "a red fox", "other"]) == pytest.approx([100, 50, 0], abs=1e-4)


def test_clip_score_of_the_real_classes(tmp_path):
    """A tiny random CLIP: the score is the cosine of what the two towers say."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": len(tokenizer), "bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1}
    config = transformers.CLIPConfig(
        text_config={**small, **ids, "max_position_embeddings": 8},
        vision_config={**small, "image_size": 8, "patch_size": 4}, projection_dim=8,
    )  # fmt: skip
    network = transformers.CLIPModel(config).eval()
    network.save_pretrained(tmp_path)
    processor = transformers.CLIPProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}), tokenizer
    )
    processor.save_pretrained(tmp_path)
    images = [Image.effect_noise((12, 10), 90).convert("RGB") for _ in range(2)]
    found = metrics.ClipScore(str(tmp_path))(images, ["a red fox", "a cat in the snow a cat in the snow a cat"])
    for image, text, score in zip(images, ["a red fox", "a cat in the snow a"], found, strict=True):
        given = processor(text=[text], images=[image], return_tensors="pt", truncation=True)
        with torch.no_grad():
            out = network(**given)
        cosine = float(torch.cosine_similarity(out.image_embeds, out.text_embeds))
        assert score == pytest.approx(100 * max(0.0, cosine), abs=1e-3)
    with pytest.raises(InputError, match="cannot load the CLIP model"):
        metrics.ClipScore(str(tmp_path / "none"))


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
    common = ["--model", "digits", "--reference", str(reference), "-n", "30"]
    every = [c.label for c in bench.conditions(bench.parse([*common, "--labels", "all"]), model)]
    assert set(every) <= set(range(10)) and len(set(every)) > 5 and every != sorted(every)
    some = [c.label for c in bench.conditions(bench.parse([*common, "--labels", "3", "5"]), model)]
    assert set(some) == {3, 5}
    (tmp_path / "labels.txt").write_text("7\n7\n1\n")
    given = bench.parse([*common, "-n", "2", "--labels", str(tmp_path / "labels.txt")])
    assert [c.label for c in bench.conditions(given, model)] == [7, 7]
    with pytest.raises(InputError, match="has 3 labels for 30 images"):
        bench.labels(bench.parse([*common, "--labels", str(tmp_path / "labels.txt")]), model)
    (tmp_path / "captions.txt").write_text("a cat\n\na dog\n")
    assert bench.captions(bench.parse([*common, "-n", "3", "--captions", str(tmp_path / "captions.txt")])) == [
        "a cat", "a dog", "a cat",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="numbers, 'all' or a file"):
        bench.conditions(bench.parse([*common, "--labels", "cat"]), model)
    with pytest.raises(ConfigError, match="has no classes"):
        bench.conditions(bench.parse([*common, "--labels", "all"]), load_model("gaussian-field"))
    with pytest.raises(InputError, match="cannot read"):
        bench.captions(bench.parse([*common, "--captions", str(tmp_path / "none")]))


def test_missing_extras(bench, monkeypatch, tmp_path, reference):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MissingExtraError, match=r"ddcm-fast\[metrics\]"):
        metrics.of_sets(["fid"], tmp_path, reference)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"ddcm-fast\[metrics\]"):
        metrics.ClipScore()


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

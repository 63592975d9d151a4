"""guided-diffusion networks: the published configurations, and the forward pass against one driven by key names."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ddcm_fast import Codec, CodecConfig, Condition, load_model
from ddcm_fast.errors import ConfigError, ModelError
from ddcm_fast.models import guided_diffusion as gd
from ddcm_fast.models.guided_diffusion_network import GuidedClassifier, GuidedUNet, Preset

torch.set_num_threads(1)

TINY = Preset(32, 32, (1, 2, 2), 1, (16, 8), head_width=16)
VARIANTS = {
    "plain": TINY,
    "classes": dataclasses.replace(TINY, classes=7, cosine=True, qkv_first=True),
    "convolutions": dataclasses.replace(TINY, resample=False, blocks=(1, 2, 1), heads=2),
    "fixed variance": dataclasses.replace(TINY, outputs=3, blocks=2),
}

#: Millions of weights: table 4 and the appendix of Dhariwal & Nichol (2021).
MILLIONS = {
    "64x64_diffusion": 296,
    "128x128_diffusion": 422,
    "256x256_diffusion": 554,
    "512x512_diffusion": 559,
    "64x64_classifier": 65,
    "128x128_classifier": 43,
    "256x256_classifier": 54,
    "512x512_classifier": 54,
}

#: Some names and shapes of the original checkpoints.
KEYS = {
    "256x256_diffusion_uncond": {
        "time_embed.0.weight": (1024, 256),
        "input_blocks.0.0.weight": (256, 3, 3, 3),
        "input_blocks.3.0.in_layers.2.weight": (256, 256, 3, 3),
        "input_blocks.10.1.qkv.weight": (1536, 512, 1),
        "middle_block.1.proj_out.weight": (1024, 1024, 1),
        "output_blocks.2.2.emb_layers.1.weight": (2048, 1024),
        "output_blocks.17.0.skip_connection.weight": (256, 512, 1, 1),
        "out.2.weight": (6, 256, 3, 3),
    },
    "256x256_diffusion": {"label_emb.weight": (1000, 1024)},
    "iddpm_ffhq512": {
        "input_blocks.2.0.op.weight": (32, 32, 3, 3),
        "output_blocks.4.2.conv.weight": (512, 512, 3, 3),
        "out.2.weight": (6, 32, 3, 3),
    },
    "256x256_classifier": {
        "out.2.positional_embedding": (512, 65),
        "out.2.qkv_proj.weight": (1536, 512, 1),
        "out.2.c_proj.weight": (1000, 512, 1),
    },
}


def meta(name: str) -> dict[str, Tensor]:
    preset = gd.PRESETS[name]
    with torch.device("meta"):
        return (GuidedClassifier if preset.classifier else GuidedUNet)(preset).state_dict()


@pytest.mark.parametrize("name", MILLIONS)
def test_published_sizes(name: str) -> None:
    assert round(sum(v.numel() for v in meta(name).values()) / 1e6) == MILLIONS[name]


@pytest.mark.parametrize("name", KEYS)
def test_published_names(name: str) -> None:
    state = meta(name)
    assert {k: tuple(state[k].shape) for k in KEYS[name]} == KEYS[name]


def random_network(preset: Preset) -> Any:
    torch.manual_seed(0)
    network = (GuidedClassifier if preset.classifier else GuidedUNet)(preset).eval()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.05)
    return network


class ByNames:
    """The network's arithmetic, read off the names of the weights alone."""

    def __init__(self, state: dict[str, Tensor], preset: Preset) -> None:
        self.s, self.p = state, preset

    def norm(self, name: str, x: Tensor) -> Tensor:
        grouped = x.reshape(len(x), 32, -1)
        mean, var = grouped.mean(2, keepdim=True), grouped.var(2, unbiased=False, keepdim=True)
        y = ((grouped - mean) / (var + 1e-5).sqrt()).reshape(x.shape)
        shape = (1, -1, *[1] * (x.dim() - 2))
        return y * self.s[name + ".weight"].view(shape) + self.s[name + ".bias"].view(shape)

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        w = self.s[name + ".weight"]
        return F.conv2d(x, w, self.s[name + ".bias"], stride=stride, padding=w.shape[-1] // 2)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.s[name + ".weight"].flatten(1).T + self.s[name + ".bias"]

    def attend(self, qkv: Tensor, heads: int, qkv_first: bool) -> Tensor:
        """(B, N, 3C) -> (B, N, C), one head after the other."""
        c = qkv.shape[2] // 3 // heads
        out = []
        for h in range(heads):
            if qkv_first:
                q, k, v = (qkv[..., i * heads * c + h * c :][..., :c] for i in range(3))
            else:
                q, k, v = (qkv[..., h * 3 * c + i * c :][..., :c] for i in range(3))
            out.append((q @ k.transpose(1, 2) / math.sqrt(c)).softmax(2) @ v)
        return torch.cat(out, 2)

    def residual(self, name: str, x: Tensor, e: Tensor, change: str) -> Tensor:
        def resample(y: Tensor) -> Tensor:
            if change == "down":
                return y.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
            return y.repeat_interleave(2, 2).repeat_interleave(2, 3) if change == "up" else y

        h = self.conv(name + ".in_layers.2", resample(F.silu(self.norm(name + ".in_layers.0", x))))
        scale, shift = self.linear(name + ".emb_layers.1", F.silu(e))[:, :, None, None].chunk(2, 1)
        h = F.silu(self.norm(name + ".out_layers.0", h) * (1 + scale) + shift)
        x = resample(x)
        if name + ".skip_connection.weight" in self.s:
            x = self.conv(name + ".skip_connection", x)
        return x + self.conv(name + ".out_layers.3", h)

    def block(self, name: str, x: Tensor, e: Tensor, last: str) -> Tensor:
        layers = sorted({int(k[len(name) + 1 :].split(".")[0]) for k in self.s if k.startswith(name + ".")})
        seen_residual = False
        for j in layers:
            layer = f"{name}.{j}"
            if layer + ".in_layers.0.weight" in self.s:
                alone = last == "down" and len(layers) == 1 and j == 0
                x = self.residual(layer, x, e, "down" if alone else "up" if last == "up" and seen_residual else "")
                seen_residual = True
            elif layer + ".qkv.weight" in self.s:
                flat = self.norm(layer + ".norm", x).flatten(2).transpose(1, 2)
                heads = self.p.heads or x.shape[1] // self.p.head_width
                h = self.attend(self.linear(layer + ".qkv", flat), heads, self.p.qkv_first)
                x = x + self.linear(layer + ".proj_out", h).transpose(1, 2).view(x.shape)
            elif layer + ".op.weight" in self.s:
                x = self.conv(layer + ".op", x, stride=2)
            elif layer + ".conv.weight" in self.s:
                x = self.conv(layer + ".conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3))
            else:
                x = self.conv(layer, x)
        return x

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        half = self.p.width // 2
        angles = t[:, None] * torch.tensor([10000 ** (-i / half) for i in range(half)])
        e = self.linear("time_embed.2", F.silu(self.linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1))))
        if label is not None:
            e = e + self.s["label_emb.weight"][label]
        blocks = (self.p.blocks,) * len(self.p.mult) if isinstance(self.p.blocks, int) else self.p.blocks
        # After the first convolution: n blocks a level, then one that halves the size, except after the last level.
        downs, at = set(), 0
        for n in blocks[:-1]:
            at += n + 1
            downs.add(at)
        kept = []
        for i in range(1 + sum(blocks) + len(downs)):
            x = self.block(f"input_blocks.{i}", x, e, "down" if i in downs else "")
            kept.append(x)
        x = self.block("middle_block", x, e, "")
        if self.p.classifier:
            h = F.silu(self.norm("out.0", x)).flatten(2).transpose(1, 2)
            h = torch.cat([h.mean(1, keepdim=True), h], 1) + self.s["out.2.positional_embedding"].T
            heads = h.shape[2] // self.p.head_width
            h = self.attend(self.linear("out.2.qkv_proj", h), heads, True)
            return self.linear("out.2.c_proj", h)[:, 0]
        i = 0
        for level in reversed(range(len(blocks))):
            for b in range(blocks[level] + 1):
                up = "up" if level and b == blocks[level] else ""
                x = self.block(f"output_blocks.{i}", torch.cat([x, kept.pop()], 1), e, up)
                i += 1
        return self.conv("out.2", F.silu(self.norm("out.0", x)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_denoiser_by_names(variant: str) -> None:
    preset = VARIANTS[variant]
    network = random_network(preset)
    x = torch.randn(2, 3, 32, 16)
    t = torch.tensor([3.0, 871.0])
    label = torch.tensor([1, 5]) if preset.classes else None
    with torch.no_grad():
        ours, wanted = network(x, t, label), ByNames(network.state_dict(), preset)(x, t, label)
    assert ours.shape == (2, preset.outputs, 32, 16)
    torch.testing.assert_close(ours, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-4)


def test_classifier_by_names(tmp_path: Path) -> None:
    preset = Preset(32, 32, (1, 2, 2), 1, (16, 8), head_width=16, outputs=11, classifier=True)
    network = random_network(preset)
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([3.0, 871.0])
    wanted = ByNames(network.state_dict(), preset)(x, t)
    torch.testing.assert_close(network(x, t), wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-4)
    path = tmp_path / "classifier.pt"
    torch.save(network.state_dict(), path)
    again = gd.load_classifier(path, preset=preset, trust=True)
    assert torch.equal(again(x, t), network(x, t))
    model = gd.GuidedDiffusionModel(random_network(TINY), "tiny")
    classify = gd.for_guidance(again, model)
    state = x.clone().requires_grad_()
    logits = classify(state, *model.alpha_sigma(500.0))
    assert torch.equal(logits, again(x, torch.full((2,), 500.0)))
    logits.sum().backward()
    assert state.grad is not None and bool(state.grad.any())
    with pytest.raises(ModelError, match="load_classifier"):
        gd.load(path, preset=preset)


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpoint_round_trip(variant: str, tmp_path: Path) -> None:
    preset = VARIANTS[variant]
    path = tmp_path / "tiny.pt"
    torch.save(random_network(preset).state_dict(), path)
    model = load_model(str(path), device="cpu", dtype="float32", preset=preset, trust=True)
    condition = Condition(label=3) if preset.classes else None
    image = torch.rand(3, 30, 20) * 2 - 1
    coded = Codec(model, CodecConfig(T=3, K=16)).encode(image, condition)[0]
    assert torch.equal(Codec(model).decode(coded.data), coded.reconstruction)
    narrow = load_model(str(path), device="cpu", dtype="bfloat16", preset=preset, trust=True)
    assert narrow.fingerprint() == model.fingerprint(torch.bfloat16)
    assert (model.classes, model.default_side) == (preset.classes, preset.size)
    assert bool(narrow.predict(torch.randn(1, 3, 32, 32), 500.0, condition)[0].isfinite().all())
    if preset.classes:
        with pytest.raises(ConfigError, match="give a label"):
            Codec(model).encode(image)


def test_a_checkpoint_from_distributed_training(tmp_path: Path) -> None:
    """DifFace's: every name begins with DistributedDataParallel's prefix."""
    state = random_network(TINY).state_dict()
    torch.save(state, tmp_path / "plain.pt")
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "parallel.pt")
    plain, parallel = (gd.load(tmp_path / f"{name}.pt", preset=TINY, trust=True) for name in ("plain", "parallel"))
    assert parallel.fingerprint() == plain.fingerprint()


def test_presets_by_file_name(tmp_path: Path) -> None:
    assert gd.preset_of(Path("256x256_diffusion_uncond.pt")) is gd.PRESETS["256x256_diffusion_uncond"]
    assert gd.preset_of(Path("x/lsun_horse_nodropout.pt")) is gd.PRESETS["lsun_horse"]
    assert gd.preset_of(Path("iddpm_ffhq512_ema500000.pth")) is gd.PRESETS["iddpm_ffhq512"]
    with pytest.raises(ModelError, match="not the name of a published checkpoint"):
        gd.preset_of(Path("mine.pt"))
    with pytest.raises(ModelError, match="no preset 'mine'"):
        gd.preset_of(Path("mine.pt"), "mine")
    with pytest.raises(ModelError, match="no such file"):
        load_model(str(tmp_path / "none.pt"), device="cpu", preset=TINY, trust=True)
    path = tmp_path / "other.pt"
    torch.save(random_network(VARIANTS["classes"]).state_dict(), path)
    with pytest.raises(ModelError, match="does not hold the weights of this configuration"):
        gd.load(path, preset=TINY, trust=True)

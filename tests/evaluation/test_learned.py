"""CompressAI's codecs: files hold all that decoding needs, rates are met, errors are one line."""

from __future__ import annotations

import sys
import types
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ddcm_fast.errors import ConfigError, InputError, MissingExtraError
from ddcm_fast.evaluation import codecs


def smooth(width: int = 90, height: int = 70) -> Image.Image:
    small = np.random.default_rng(5).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


class Network(nn.Module):
    """What CompressAI's networks do, by averages of 8x8 pixels; two strings, the second of their high bits."""

    def __init__(self, quality: int) -> None:
        super().__init__()
        self.steps = 4 << quality

    def compress(self, x: Tensor) -> dict[str, Any]:
        assert x.shape[-1] % 64 == x.shape[-2] % 64 == 0 and x.min() >= 0 and x.max() <= 1 and not self.training
        values = (nn.functional.avg_pool2d(x, 8) * (self.steps - 1)).round().to(torch.int32)
        low, high = (part.numpy().astype(np.uint8).tobytes() for part in (values % 16, values // 16))
        return {"strings": [[zlib.compress(low)], [zlib.compress(high)]], "shape": values.shape[-2:]}

    def decompress(self, strings: list[list[bytes]], shape: torch.Size) -> dict[str, Tensor]:
        low, high = (np.frombuffer(zlib.decompress(one[0]), np.uint8).astype(np.float32) for one in strings)
        values = torch.from_numpy((low + 16 * high) / (self.steps - 1)).reshape(1, 3, *shape)
        return {"x_hat": nn.functional.interpolate(values, scale_factor=8.0)}


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict[str, Any]]]:
    """A stand-in of compressai.zoo; what networks were asked for."""
    asked: list[tuple[int, dict[str, Any]]] = []

    def make(quality: int, **how: Any) -> Network:
        asked.append((quality, how))
        return Network(quality)

    module = types.SimpleNamespace(image_models={"mbt2018-mean": make})
    monkeypatch.setitem(sys.modules, "compressai", types.SimpleNamespace(zoo=module))
    monkeypatch.setitem(sys.modules, "compressai.zoo", module)
    return asked


def test_rates_are_met_and_files_are_whole(zoo: list[tuple[int, dict[str, Any]]]) -> None:
    codec, image = codecs.make("mbt2018-mean:metric=ms-ssim"), smooth()
    assert codec.name == "mbt2018-mean:metric=ms-ssim" and codec.settings["metric"] == "ms-ssim"
    files = [codec._encode(image, level) for level in range(1, 9)]
    assert [quality for quality, _ in zoo] == list(range(1, 9))
    assert all(how == {"metric": "ms-ssim", "pretrained": True} for _, how in zoo)
    assert [len(data) for data in files] == sorted(len(data) for data in files)
    bpp = 8 * len(files[5]) / (90 * 70)
    coded = codec.code(image, bpp)
    assert coded.fits and len(files[5]) <= len(coded.data) < len(files[6]) + (len(files[6]) == len(files[5]))
    assert len(zoo) == 8  # each network is loaded once
    assert not codec.code(image, 0.001).fits
    # Another object, as in another process: the file says which network made it.
    decoded = codecs.make("mbt2018-mean")._decode(coded.data)
    assert decoded.tobytes() == coded.image.tobytes() and decoded.size == (90, 70)
    inner = (slice(8, -8), slice(8, -8))  # averages at the edges have the margin in them
    assert np.abs(np.asarray(decoded)[inner].astype(int) - np.asarray(image)[inner]).mean() < 15


def test_networks_that_cannot_be_had(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(quality: int, **how: Any) -> None:
        raise OSError("no route\nto the host")

    monkeypatch.setitem(sys.modules["compressai.zoo"].image_models, "mbt2018-mean", fails)
    with pytest.raises(InputError, match=r"weights of mbt2018-mean at quality 1, .*: no route$"):
        codecs.make("mbt2018-mean").code(smooth(), 1.0)
    monkeypatch.setitem(sys.modules, "compressai.zoo", None)
    with pytest.raises(MissingExtraError, match=r"ddcm-fast\[compressai\]"):
        codecs.make("cheng2020-anchor")


@pytest.mark.parametrize(
    ("text", "says"), [("mbt2018-mean:K=3", "no setting 'K'"), ("mbt2018:metric=psnr", "is 'psnr'; choose among mse")]
)
def test_settings_that_there_are_not(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        codecs.split(text)


@pytest.mark.parametrize("name", ["bmshj2018-factorized", "mbt2018-mean", "cheng2020-anchor"])
def test_with_compressai_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its networks, with random weights in the place of those that it would fetch."""
    zoo = pytest.importorskip("compressai.zoo")
    own = zoo.image_models[name]

    def random(quality: int, metric: str, pretrained: bool) -> nn.Module:
        assert pretrained
        torch.manual_seed(0)
        network = own(quality, metric)
        network.update()
        return network

    monkeypatch.setitem(zoo.image_models, name, random)
    codec, image = codecs.make(name), smooth()
    data = codec._encode(image, 1)
    assert codec._decode(data).size == image.size
    with torch.inference_mode():
        network = random(1, "mse", True).eval()
        x = torch.zeros(1, 3, 128, 128, dtype=torch.float32, device="cpu")
        x[0, :, 29:99, 19:109] = torch.from_numpy(np.asarray(image) / np.float32(255)).permute(2, 0, 1)
        found = network.compress(x)
        out = network.decompress(**found)["x_hat"][0, :, 29:99, 19:109]
    assert len(data) == sum(len(one[0]) for one in found["strings"]) + 10 + 4 * (len(found["strings"]) - 1)
    assert np.abs(np.asarray(codec._decode(data)) - 255 * out.permute(1, 2, 0).numpy()).max() < 1

"""Tiles: weights, equality where a network is pointwise, files that say how they were tiled."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_pipelines
import torch

from ddcm_fast import Codec, CodecConfig, Condition, load_model
from ddcm_fast.codec.container import read
from ddcm_fast.errors import ConfigError, ModelError
from ddcm_fast.models import TiledModel, wrap_pipeline
from ddcm_fast.models.gaussian_field import GaussianField

CONFIG = CodecConfig(T=3, K=16)


def white(channels: int = 3) -> GaussianField:
    """A model whose x0_hat is the state times a number: tiles cannot matter."""
    return GaussianField(exponent=0.0, channels=channels)


@pytest.mark.parametrize("shape", [(16, 16), (17, 40), (64, 16), (33, 65)])
@pytest.mark.parametrize("tile", [(16, 4), (16, 8), (16, 0)])
def test_pointwise_models_do_not_notice(shape: tuple[int, int], tile: tuple[int, int]) -> None:
    model = white()
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    for ours, wanted in zip(TiledModel(model, *tile).predict(x, 500.0), model.predict(x, 500.0), strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)


def test_one_tile_is_the_model_itself() -> None:
    model = wrap_pipeline(tiny_pipelines.build("ddpm"))
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(TiledModel(model, 16, 4).predict(x, 500.0)[0], model.predict(x, 500.0)[0])


@pytest.mark.parametrize("name", ["sdxl", "dit", "sd3"])
def test_round_trip(name: str, tmp_path: Path) -> None:
    """An image beyond the network's size: DiT's square, SD3's table of positions."""
    tiny_pipelines.build(name).save_pretrained(tmp_path)
    condition = Condition(label=3) if name == "dit" else Condition("a red fox")
    model = load_model(f"{tmp_path}#tile=8,4", device="cpu", dtype="float32")
    image = torch.rand(3, 30, 70, generator=torch.Generator().manual_seed(3)) * 2 - 1
    coded = Codec(model, CONFIG).encode(image, condition)[0]
    header, _ = read(coded.data)
    assert header.model == f"{tmp_path.name}#tile=8,4"
    again = load_model(f"{tmp_path}#tile=8,4", device="cpu", dtype="float32")
    assert torch.equal(Codec(again).decode(coded.data), coded.reconstruction)
    for other in (str(tmp_path), f"{tmp_path}#tile=8,2"):
        with pytest.raises(ModelError, match="#tile=8,4"):
            Codec(load_model(other, device="cpu", dtype="float32")).decode(coded.data)


@pytest.mark.parametrize("tile", [(8, 5), (0, 0), (8, -1)])
def test_impossible_tiles(tile: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="tiles of"):
        TiledModel(white(), *tile)


def test_tiles_fit_the_network() -> None:
    model = wrap_pipeline(tiny_pipelines.build("sd"))
    with pytest.raises(ConfigError, match="multiples of 2 entries"):
        TiledModel(model, 9, 2)

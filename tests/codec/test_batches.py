"""Many images and files at a time: the same bits as one by one where that is asked for, rates, order and mixtures."""

from __future__ import annotations

import pytest
import tiny_pipelines
import torch

from ddcm_fast import Codec, load_model, preset
from ddcm_fast.codec import container
from ddcm_fast.errors import FormatError
from ddcm_fast.models import DiffusionModel, wrap_pipeline
from ddcm_fast.models.one_by_one import OneByOneModel

torch.set_num_threads(1)
FIXED = preset("ddcm", T=5, K=256)


@pytest.fixture(scope="module")
def photo() -> DiffusionModel:
    return load_model("photo", device="cpu", dtype="float32")


def pictures(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    coarse = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(-1, 1)


@pytest.mark.parametrize("name", ["ddcm", "product", "trellis"])
def test_an_exact_batch_codes_each_image_as_if_alone(photo: DiffusionModel, name: str) -> None:
    small = {"ddcm": {"K": 256}, "product": {"K": 256, "atoms": 60}, "trellis": {"K": 256, "C": 4, "atoms": 60}}
    config = preset(name, T=5, **small[name])
    images = pictures(3)
    alone, together = Codec(photo, config), Codec(photo, config, batch_size=3, exact=True)
    for one, other in zip(alone.encode(images), together.encode(images), strict=True):
        assert one.data == other.data and torch.equal(one.reconstruction, other.reconstruction)
    files = [one.data for one in alone.encode(images)]
    for data, image in zip(files, together.decode_many(files), strict=True):
        assert torch.equal(image, alone.decode(data))


def test_a_batch_through_the_network_differs_in_the_last_bits_at_most(photo: DiffusionModel) -> None:
    files = [one.data for one in Codec(photo, FIXED).encode(pictures(4))]
    decoded = Codec(photo, FIXED, batch_size=4).decode_many(files)
    for data, image in zip(files, decoded, strict=True):
        torch.testing.assert_close(image, Codec(photo).decode(data), atol=1e-4, rtol=0)


def test_rates_that_are_numbers_of_steps_are_met_in_batches(photo: DiffusionModel) -> None:
    images = pictures(3)
    config = preset("ddcm", K=4096)
    together = Codec(photo, config, batch_size=3, exact=True).encode(images, bpp=0.5)
    alone = Codec(photo, config).encode(images, bpp=0.5)
    assert [one.data for one in together] == [one.data for one in alone]
    assert all(0.48 < one.bpp <= 0.5 for one in together)
    assert len({container.read(one.data)[0].config.T for one in together}) == 1


def test_files_of_all_kinds_come_back_in_order(photo: DiffusionModel) -> None:
    files = []
    for seed, (height, width) in enumerate(((32, 32), (24, 40), (32, 32), (24, 40), (32, 32))):
        codec = Codec(photo, preset("ddcm", T=4 + seed % 2, K=64))
        files.append(codec.encode(pictures(1, height, width).roll(seed, 2))[0].data)
    decoded = Codec(photo, batch_size=2, exact=True).decode_many(files)
    assert len(decoded) == len(files) and Codec(photo).decode_many([]) == []
    for data, image in zip(files, decoded, strict=True):
        assert torch.equal(image, Codec(photo).decode(data))
    with pytest.raises(FormatError, match="checksum"):
        Codec(photo).decode_many([files[0], files[1][:-1]])


def test_each_image_has_its_own_condition() -> None:
    model = wrap_pipeline(tiny_pipelines.build("sd"))
    codec = Codec(model, FIXED, batch_size=2, exact=True)
    coded = codec.encode(pictures(2, 16, 16), condition=["a cat", "a dog"])
    decoded = codec.decode_many([one.data for one in coded])
    for one, image, prompt in zip(coded, decoded, ("a cat", "a dog"), strict=True):
        header, _ = container.read(one.data)
        assert header.condition.prompt == prompt
        assert torch.equal(image, one.reconstruction) and torch.equal(image, Codec(model).decode(one.data))


def test_the_model_itself_is_unchanged(photo: DiffusionModel) -> None:
    one_by_one, x = OneByOneModel(photo), torch.randn(2, *photo.latent_shape(32, 32))
    assert one_by_one.fingerprint() == photo.fingerprint()
    for t in (20.0, 700.0):
        alone = [photo.predict(row, t) for row in x.split(1)]
        together = one_by_one.predict(x, t)
        way = one_by_one.at(t, x.shape)
        assert way is one_by_one.at(t, x.shape)
        captured = way.predictor(None, x.shape)(x, way.level(t))
        for which in (0, 1):
            assert torch.equal(together[which], torch.cat([row[which] for row in alone]))
            torch.testing.assert_close(captured[which], together[which], atol=1e-5, rtol=1e-5)

"""How a codec is called by users of diffusers: prompts an image, seeds an image, callbacks after steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scheduler_cases import picture
from tiny_pipelines import build

from ddcm_fast import Codec, CodecConfig, Condition, load_model
from ddcm_fast.codec import container
from ddcm_fast.errors import ConfigError
from ddcm_fast.sampling.choosers import Draw

CONFIG = CodecConfig(T=4, K=64)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_a_prompt_for_each_image(name: str, batch_size: int) -> None:
    codec = Codec(build(name), CONFIG, batch_size=batch_size)
    images, prompts = [picture(), picture().rotate(90), picture()], ["a red fox", "a cat", "a cat in the snow"]
    files = codec.compress(images, prompt=prompts)
    assert [container.read(data)[0].condition.prompt for data in files] == prompts
    first, last = (codec.decode(files[i]) for i in (0, 2))
    assert not torch.equal(first, last)  # of one picture, with two prompts
    alone = [codec.compress(image, prompt=prompt) for image, prompt in zip(images, prompts, strict=True)]
    assert alone == codec.compress(images, condition=prompts) or batch_size > 1
    for data, coded in zip(files, codec.encode(images, prompt=prompts), strict=True):
        assert data == coded.data
        torch.testing.assert_close(codec.decode(data), coded.reconstruction, atol=1e-4, rtol=1e-4)
        if batch_size == 1:
            assert torch.equal(codec.decode(data), coded.reconstruction)
    one = codec.compress(images, prompt="a cat")
    assert {container.read(data)[0].condition.prompt for data in one} == {"a cat"}


def test_prompts_that_do_not_fit() -> None:
    codec = Codec(build("sd"), CONFIG)
    with pytest.raises(ConfigError, match="2 conditions for 1 images"):
        codec.compress(picture(), prompt=["a cat", "a red fox"])
    with pytest.raises(ConfigError, match="give one of them"):
        codec.compress(picture(), Condition("a cat"), prompt="a cat")
    with pytest.raises(ConfigError, match="give one of them"):
        codec.generate(1, 16, 16, condition="a cat", prompt="a cat")
    coded = codec.generate(2, 16, 16, prompt=["a cat", "a red fox"])
    assert [container.read(one.data)[0].condition.prompt for one in coded] == ["a cat", "a red fox"]


def test_seeds_for_each_image() -> None:
    model = load_model("digits", device="cpu", dtype="float32")
    codec, batched = (Codec(model, CONFIG, batch_size=size) for size in (1, 3))
    files = [one.data for one in codec.generate(4, 8, 8, [5, 6, 7, 5])]
    assert files[0] == files[3] and len(set(files)) == 3
    assert [one.data for one in batched.generate(4, 8, 8, (5, 6, 7, 5))] == files
    assert codec.generate(1, 8, 8, 6)[0].data == files[1]
    generators = [torch.Generator().manual_seed(n) for n in (1, 1)]
    first, second = batched.generate(2, 8, 8, generators)
    assert first.data == second.data
    with pytest.raises(ConfigError, match="2 seeds for 3 images"):
        codec.generate(3, 8, 8, [1, 2])
    with pytest.raises(ConfigError, match="2 seeds for 3 images"):
        batched.sample(Draw([1, 2]), 8, 8, 3)


def test_a_callback_sees_every_step() -> None:
    seen: list[Any] = []

    def callback(codec: Any, index: int, timestep: float, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append((codec, index, timestep, {name: tensor.clone() for name, tensor in tensors.items()}))
        return tensors  # as diffusers' do

    pipe = build("sd")
    codec = Codec(pipe, CONFIG, batch_size=2, callback_on_step_end=callback)
    quiet = Codec(pipe, CONFIG, batch_size=2)
    images = [picture(), picture().rotate(90)]
    coded = codec.encode(images)
    assert [one.data for one in coded] == [one.data for one in quiet.encode(images)]
    assert [index for _, index, _, _ in seen] == [0, 1, 2, 3]
    times = [timestep for _, _, timestep, _ in seen]
    assert times[0] == codec.model.max_timestep and times == sorted(times, reverse=True)
    assert all(who is codec and tensors["latents"].shape == (2, 4, 8, 8) for who, _, _, tensors in seen)
    last = seen[-1][3]
    torch.testing.assert_close(last["latents"], last["x0_hat"])
    reconstruction = codec.model.decode(last["latents"])
    torch.testing.assert_close(reconstruction[1], coded[1].reconstruction, atol=1e-5, rtol=1e-5)
    seen.clear()
    codec.decompress(coded[0].data)
    codec.generate(1, 16, 16)
    assert [index for _, index, _, _ in seen] == [0, 1, 2, 3] * 2

    def stop(codec: Any, index: int, timestep: float, tensors: dict[str, torch.Tensor]) -> None:
        raise KeyboardInterrupt

    codec.callback_on_step_end = stop
    with pytest.raises(KeyboardInterrupt):
        codec.decompress(coded[0].data)
    codec.callback_on_step_end = None
    assert codec.decompress(coded[0].data).size == (16, 16)
    with pytest.raises(ConfigError, match="leave the callback out"):
        Codec(pipe, CONFIG, cuda_graph=True, callback_on_step_end=stop)

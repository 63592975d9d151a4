"""Pipelines that are wrapped: left as they were found, and everything done to them noticed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from test_pipelines import CONDITIONS, CONFIG, FOX, image
from torch import Tensor, nn

from ddcm_fast import Codec, Condition, load_model
from ddcm_fast.codec import container
from ddcm_fast.errors import DDCMWarning, ModelError
from ddcm_fast.models import DiffusionModel, wrap_pipeline
from ddcm_fast.models.lent import Lent, Part


def networks(pipe: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def state(pipe: Any) -> dict[str, Any]:
    """Everything of a pipeline that its owner could see changed."""
    seen: dict[str, Any] = {"scheduler": copy.deepcopy(vars(pipe.scheduler))}
    for part, network in networks(pipe).items():
        for name, module in network.named_modules():
            plain = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str, type(None)))}
            hooks = [len(v) for k, v in sorted(vars(module).items()) if k.endswith("_hooks")]
            seen[f"{part} {name}"] = (plain, hooks, type(getattr(module, "processor", None)))
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            seen[f"{part} {name} tensor"] = (
                id(tensor), tensor.data_ptr(), tensor.untyped_storage().data_ptr(), tensor._version, tensor.stride(),
                tensor.dtype, tensor.requires_grad, tensor.grad is None,
            )  # fmt: skip
    return seen


def unaligned(network: nn.Module) -> None:
    """Weights as they lie when mapped from a file."""
    for parameter in network.parameters():
        place = torch.empty(parameter.numel() + 1, dtype=parameter.dtype)[1:].view(parameter.shape)
        parameter.data = place.copy_(parameter.data)


@pytest.mark.parametrize("name", tiny_pipelines.PIPELINES)
def test_a_pipeline_is_left_as_it_was_found(name: str) -> None:
    pipe = tiny_pipelines.build(name)
    expected = Codec(tiny_pipelines.build(name), CONFIG).encode(image(), CONDITIONS.get(name))[0]
    for part, network in networks(pipe).items():
        if part.startswith("text_encoder"):  # transformers puts hooks of its own on a network that runs first
            network(torch.ones(1, 8, dtype=torch.int64), output_hidden_states=True)
        unaligned(network)
        network.train()
        for parameter in list(network.parameters())[::2]:
            parameter.requires_grad_()
        if hasattr(network, "use_tiling"):
            network.enable_tiling()
            network.use_slicing = True
    weights = copy.deepcopy({name: part.state_dict() for name, part in networks(pipe).items()})
    before = state(pipe)
    codec = Codec(pipe, CONFIG)
    coded = codec.encode(image(), CONDITIONS.get(name))[0]
    assert coded.data == expected.data and torch.equal(coded.reconstruction, expected.reconstruction)
    assert torch.equal(codec.decode(coded.data), coded.reconstruction) and not coded.reconstruction.requires_grad
    after = state(pipe)
    assert [key for key in {**before, **after} if str(before.get(key)) != str(after.get(key))] == []
    for part, network in networks(pipe).items():
        assert all(torch.equal(weights[part][key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["ddpm", "sd", "sdxl"])
def test_a_pipeline_still_makes_the_same_picture(name: str) -> None:
    pipe = tiny_pipelines.build(name)
    how: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np"}
    if name == "sdxl":  # whose autoencoder overflows in float16: the codec widens it, and so does the pipeline
        pipe.vae.register_to_config(force_upcast=True)
        pipe.to(torch.float16)
    if name != "ddpm":
        how |= {"prompt": "a red fox", "height": 32, "width": 32}
    before = pipe(**how, generator=torch.Generator().manual_seed(1)).images
    coded = Codec(pipe, CONFIG).encode(image())[0]
    assert bool(coded.reconstruction.isfinite().all())
    after = pipe(**how, generator=torch.Generator().manual_seed(1)).images
    assert (before == after).all()


def test_a_training_pipeline_still_learns() -> None:
    pipe = tiny_pipelines.build("ddpm")
    pipe.unet.requires_grad_(True).train()
    optimizer = torch.optim.SGD(pipe.unet.parameters(), 0.1)
    codec = Codec(pipe, CONFIG)
    first = codec.encode(image())[0]
    pipe.unet(torch.randn(1, 3, 16, 16), 5).sample.mean().backward()
    optimizer.step()
    assert codec.encode(image())[0].data != first.data
    with pytest.raises(ModelError, match="made with model"):
        codec.decode(first.data)


# ---- the fingerprint -----------------------------------------------------------------------------


def scaled(network: nn.Module, factor: float, every: bool = False) -> None:
    with torch.no_grad():
        for parameter in list(network.parameters())[: None if every else 1]:
            parameter.mul_(factor)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "one tensor by half": lambda pipe: scaled(pipe.unet, 0.5),
    "one tensor by 1.01": lambda pipe: scaled(pipe.unet, 1.01),
    "all by 1.01": lambda pipe: scaled(pipe.unet, 1.01, every=True),
    "a little more": lambda pipe: pipe.unet.conv_in.weight.data.add_(1e-4),
    "through .data": lambda pipe: pipe.unet.conv_in.weight.data.mul_(1.5),
    "other memory": lambda pipe: setattr(pipe.unet.conv_in.weight, "data", pipe.unet.conv_in.weight.data * 1.5),
    "autoencoder": lambda pipe: scaled(pipe.vae, 1.01),
    "text encoder": lambda pipe: scaled(pipe.text_encoder, 1.01, every=True),
    "FreeU": lambda pipe: pipe.enable_freeu(0.9, 0.2, 1.2, 1.4),
    "another network": lambda pipe: setattr(pipe, "unet", tiny_pipelines.build("sd", seed=2).unet),
    "another autoencoder": lambda pipe: setattr(pipe, "vae", tiny_pipelines.build("sd", seed=2).vae),
    "other levels": lambda pipe: setattr(pipe, "scheduler", DDIMScheduler(beta_end=0.03)),
    "tiles": lambda pipe: setattr(pipe.vae, "tile_sample_min_size", 16),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_picture_changes_the_fingerprint(change: str) -> None:
    """And a codec that lives through it makes everything anew: the same as one that was made after it."""
    pipe = tiny_pipelines.build("sd")
    codec = Codec(pipe, CONFIG)
    before = codec.encode(image(), FOX)[0]
    CHANGES[change](pipe)
    fresh = Codec(pipe, CONFIG)
    assert fresh.model.fingerprint() != container.read(before.data)[0].fingerprint
    if change != "tiles":  # which only large pictures are cut into, and no counter tells of
        assert codec.encode(image(), FOX)[0].data == fresh.encode(image(), FOX)[0].data
        with pytest.raises(ModelError, match="fingerprint"):
            codec.decode(before.data)


def offloaded(pipe: Any) -> None:
    """What `enable_sequential_cpu_offload` does with a network."""
    accelerate = pytest.importorskip("accelerate")
    for network in networks(pipe).values():
        accelerate.cpu_offload(network, torch.device("cpu"))


def offloaded_whole(pipe: Any) -> None:
    """To the device on which it is already: accelerate's hooks run, but nothing moves."""
    pytest.importorskip("accelerate")
    pipe.enable_model_cpu_offload(device="cpu")


def mapped(pipe: Any) -> None:
    """What a `device_map` does with a network."""
    accelerate = pytest.importorskip("accelerate")
    for network in (pipe.unet, pipe.vae):
        places = {name: "cpu" for name, _ in network.named_children()}
        accelerate.dispatch_model(network, places, main_device="cpu", force_hooks=True)


def offloaded_by_diffusers(pipe: Any) -> None:
    hooks = pytest.importorskip("diffusers.hooks")
    for network in networks(pipe).values():
        device = torch.device("cpu")
        hooks.apply_group_offloading(network, device, device, offload_type="leaf_level")


SAME: dict[str, Callable[[Any], Any]] = {
    "compiled": lambda pipe: setattr(pipe, "unet", torch.compile(pipe.unet, backend="eager")),
    "compiled within": lambda pipe: setattr(
        pipe.unet, "mid_block", torch.compile(pipe.unet.mid_block, backend="eager")
    ),
    "fused projections": lambda pipe: pipe.fuse_qkv_projections(),
    "offloaded": offloaded,
    "offloaded whole": offloaded_whole,
    "mapped": mapped,
    "offloaded by diffusers": offloaded_by_diffusers,
    "an equal scheduler": lambda pipe: setattr(
        pipe, "scheduler", EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    ),
    "FreeU off again": lambda pipe: (pipe.enable_freeu(0.9, 0.2, 1.2, 1.4), pipe.disable_freeu()),
    "channels last": lambda pipe: pipe.unet.to(memory_format=torch.channels_last),
    "unaligned": lambda pipe: unaligned(pipe.unet),
}


@pytest.mark.parametrize(
    "change", [pytest.param(name, marks=[pytest.mark.slow] * name.startswith("compiled")) for name in SAME]
)
def test_what_leaves_the_picture_leaves_the_fingerprint(change: str) -> None:
    coded = Codec(tiny_pipelines.build("sd"), CONFIG).encode(image(), FOX)[0]
    pipe = tiny_pipelines.build("sd")
    living = Codec(pipe, CONFIG)
    assert torch.equal(living.decode(coded.data), coded.reconstruction)
    SAME[change](pipe)
    for codec in (living, Codec(pipe, CONFIG)):
        torch.testing.assert_close(codec.decode(coded.data), coded.reconstruction, atol=1e-4, rtol=0)
        again = codec.encode(image(), FOX)[0]
        assert torch.equal(codec.decode(again.data), again.reconstruction)
        assert container.read(again.data)[0].fingerprint == container.read(coded.data)[0].fingerprint


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_wider_network_knows_a_narrower_ones_fingerprint(dtype: torch.dtype) -> None:
    wide, narrow = wrap_pipeline(tiny_pipelines.build("sd")), wrap_pipeline(tiny_pipelines.build("sd").to(dtype))
    assert wide.fingerprint(dtype) == narrow.fingerprint() != wide.fingerprint()
    assert wide.fingerprint()[:2] == narrow.fingerprint()[:2]  # all that a narrower one can tell of a wider one's
    coded = Codec(wide, CONFIG).encode(image())[0]
    with pytest.warns(DDCMWarning, match="float32"):
        Codec(narrow).decode(coded.data)
    other = tiny_pipelines.build("sd")
    scaled(other.unet, 1.01, every=True)
    mine = Codec(narrow, CONFIG).encode(image())[0]
    with pytest.raises(ModelError, match="weights of other values"):
        Codec(other).decode(mine.data)


def test_active_adapters_and_their_scales() -> None:
    peft = pytest.importorskip("peft")
    pipe = tiny_pipelines.build("sd")
    codec = Codec(pipe, CONFIG)
    plain = codec.encode(image(), FOX)[0]
    torch.manual_seed(1)
    for name in ("a", "b"):
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False), name)
    seen = {}
    for names, scales in ((["a"], [1.0]), (["a"], [0.25]), (["b"], [1.0]), (["a", "b"], [1.0, 0.5])):
        pipe.unet.set_adapters(names, scales)
        coded = codec.encode(image(), FOX)[0]
        assert torch.equal(codec.decode(coded.data), coded.reconstruction)
        seen[container.read(coded.data)[0].fingerprint] = coded
    pipe.unet.set_adapters(["a"], [1.0])
    pipe.unet.fuse_lora()
    fused = codec.encode(image(), FOX)[0]
    seen[container.read(fused.data)[0].fingerprint] = fused
    pipe.unet.unload_lora()
    assert torch.equal(codec.decode(fused.data), fused.reconstruction)
    assert len(seen) == 5 and container.read(plain.data)[0].fingerprint not in seen
    off = tiny_pipelines.build("sd")
    off.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "c")
    off.unet.disable_adapters()
    assert torch.equal(Codec(off).decode(plain.data), plain.reconstruction)


#: What can be done to a network, each of which the next look must tell from nothing.
DONE: dict[str, Callable[[Any], Any]] = {
    "a module for another": lambda net: net.__setitem__(0, nn.Linear(4, 4)),
    "a module deep inside": lambda net: net[1].__setitem__(0, nn.Conv2d(3, 3, 1)),
    "one module more": lambda net: net.append(nn.SiLU()),
    "one module less": lambda net: net.pop(2),
    "a parameter for another": lambda net: setattr(net[0], "weight", nn.Parameter(net[0].weight.detach().clone())),
    "no parameter": lambda net: setattr(net[0], "bias", None),
    "a parameter more": lambda net: net[2].register_parameter("more", nn.Parameter(torch.ones(1))),
    "a buffer more": lambda net: net[2].register_buffer("more", torch.ones(1)),
    "other memory": lambda net: setattr(net[0].weight, "data", net[0].weight.data.clone()),
    "in place": lambda net: net[1][1].running_mean.add_(1),
    "in place, unseen by torch": lambda net: net[1][1].running_mean.data.add_(1),
    "another dtype": lambda net: net[0].to(torch.bfloat16),
    "an adapter": lambda net: setattr(net[2], "scaling", {"a": 1.0}),
    "an adapter's scale": lambda net: net[3].scaling.update(a=0.5),
    "FreeU": lambda net: [setattr(net[0], name, 1.1) for name in ("s1", "s2", "b1", "b2")],
}


@pytest.mark.parametrize("done", DONE)
def test_whatever_is_done_to_a_network_is_seen(done: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)), nn.SiLU(), nn.SiLU())
    net[3].scaling = {"a": 1.0}
    lent = Lent(lambda: [Part("", net)])
    assert [lent.changed() for _ in range(3)] == [True, False, False]
    DONE[done](net)
    assert [lent.changed() for _ in range(3)] == [True, False, False]
    net.note = "of no account"
    assert not lent.changed()


def test_networks_are_looked_at_once_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Codec(tiny_pipelines.build("ddpm"), CONFIG)
    looks: list[bool] = []
    monkeypatch.setattr(Lent, "changed", lambda self: looks.append(True))
    codec.compress(image())
    assert len(looks) == 1


# ---- dtypes, devices, names ----------------------------------------------------------------------


def test_what_cannot_be_coded_with_is_refused_when_wrapped() -> None:
    with pytest.raises(ModelError, match=r"float64, not float32, bfloat16 or float16; .*pipe\.to"):
        Codec(tiny_pipelines.build("ddpm").to(torch.float64))
    empty = tiny_pipelines.build("ddpm")
    empty.unet.to("meta")
    with pytest.raises(ModelError, match="has no weights"):
        Codec(empty)


def test_float8_storage() -> None:
    pipe = tiny_pipelines.build("sd")
    if not hasattr(pipe.unet, "enable_layerwise_casting"):
        pytest.skip("this diffusers has no layerwise casting")
    plain = Codec(tiny_pipelines.build("sd"), CONFIG).encode(image())[0]
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    codec = Codec(pipe, CONFIG)
    coded = codec.encode(image())[0]
    assert torch.equal(codec.decode(coded.data), coded.reconstruction)
    with pytest.raises(ModelError, match="weights of other values"):  # float8 is another network
        codec.decode(plain.data)


def test_moved_to_another_dtype_under_a_living_codec() -> None:
    pipe = tiny_pipelines.build("ddpm")
    codec = Codec(pipe, CONFIG)
    codec.encode(image())
    pipe.to(torch.bfloat16)
    coded = codec.encode(image())[0]
    assert container.read(coded.data)[0].dtype == "bfloat16"
    assert torch.equal(Codec(pipe).decode(coded.data), coded.reconstruction)


def test_files_carry_no_path(tmp_path: Path) -> None:
    folder = tmp_path / "somebody" / "tiny"
    tiny_pipelines.build("ddpm").save_pretrained(folder)
    loaded = load_model(str(folder), device="cpu", dtype="float32")
    from diffusers import DDPMPipeline

    wrapped: DiffusionModel = wrap_pipeline(DDPMPipeline.from_pretrained(folder))
    assert loaded.name == wrapped.name == "tiny"
    data = Codec(loaded, CONFIG).compress(image())
    assert isinstance(data, bytes) and b"somebody" not in data
    named = wrap_pipeline(tiny_pipelines.build("ddpm"), name="another name")
    picture: Tensor = Codec(named).decode(data)
    assert torch.equal(picture, Codec(loaded).decode(data))


def test_prompts_are_prepared_anew_with_another_text_encoder() -> None:
    pipe = tiny_pipelines.build("sd")
    codec = Codec(pipe, CONFIG)
    before = codec.compress(image(), Condition("a red fox", guidance_scale=3.0))
    pipe.text_encoder = tiny_pipelines.build("sd", seed=2).text_encoder
    assert codec.compress(image(), Condition("a red fox", guidance_scale=3.0)) != before

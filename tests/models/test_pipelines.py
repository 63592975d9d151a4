"""Every adapter on a tiny pipeline of diffusers' real classes, saved and loaded back."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from torch import Tensor

from ddcm_fast import Codec, CodecConfig, Condition, load_model
from ddcm_fast.errors import ConfigError, MissingExtraError, ModelError
from ddcm_fast.models import DiffusionModel, latent, wrap_pipeline
from ddcm_fast.models.latent import LatentModel
from ddcm_fast.sampling.model import eps_from_x0
from ddcm_fast.sampling.schedule import plan
from ddcm_fast.sampling.update import advance

CONFIG = CodecConfig(T=3, K=16)
FOX = Condition("a red fox", "blurry", guidance_scale=3.0)
CONDITIONS: dict[str, Condition] = {
    "consistency": Condition(label=2),
    "dit": Condition(label=2, guidance_scale=3.0),
    "sd": FOX,
    "sd-v": FOX,
    "lcm": Condition("a red fox", guidance_scale=8.0),
    "sdxl": FOX,
    "pixart-sigma": FOX,
    "pixart-alpha": FOX,
    "sd3": FOX,
    "flux-dev": Condition("a red fox", guidance_scale=2.0),
    "flux-schnell": FOX,
    "sana": FOX,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Saves a pipeline once and returns its folder."""
    saved: dict[str, Path] = {}

    def save(name: str) -> Path:
        if name not in saved:
            saved[name] = tmp_path_factory.mktemp(name)
            tiny_pipelines.build(name).save_pretrained(saved[name])
        return saved[name]

    return save


def image(height: int = 32, width: int = 32) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def load(path: Path, dtype: str = "float32") -> DiffusionModel:
    return load_model(str(path), device="cpu", dtype=dtype)


@pytest.mark.parametrize("name", tiny_pipelines.PIPELINES)
def test_round_trip_bit_for_bit(name: str, folder: Any) -> None:
    """Encode with the folder's model, decode with the pipeline in memory: the same model loaded in two ways."""
    model, pipe = load(folder(name)), tiny_pipelines.build(name)
    assert wrap_pipeline(pipe).fingerprint() == model.fingerprint()
    condition = CONDITIONS.get(name)
    width = 30 if name == "dit" else 25  # diffusers' DiT takes squares only
    coded = Codec(model, CONFIG).encode(image(30, width), condition)[0]
    assert coded.reconstruction.shape == (3, 30, width) and bool(coded.reconstruction.isfinite().all())
    assert torch.equal(Codec(pipe, CONFIG).decode(coded.data), coded.reconstruction)


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_matter_and_are_checked(name: str, folder: Any) -> None:
    model, condition = load(folder(name)), CONDITIONS[name]
    codec = Codec(model, CONFIG)
    other = Condition(label=3) if condition.label is not None else Condition("a cat in snow", guidance_scale=3.0)
    coded = codec.encode(image(), condition, embed_condition=False)[0]
    assert torch.equal(codec.decode(coded.data, condition=condition), coded.reconstruction)
    for wrong in (None, other):
        with pytest.raises(ConfigError, match="condition"):
            codec.decode(coded.data, condition=wrong)
    x = torch.randn(1, *model.latent_shape(32, 32), generator=torch.Generator().manual_seed(1))
    t = model.training_timesteps()[len(model.training_timesteps()) // 2]
    own, with_other = model.predict(x, t, condition)[0], model.predict(x, t, other)[0]
    assert not torch.equal(own, with_other)
    with pytest.raises(ConfigError):
        codec.encode(image(), Condition(label=1) if condition.label is None else Condition("a fox"))


@pytest.mark.parametrize("name", tiny_pipelines.PIPELINES)
def test_alpha_x0_plus_sigma_eps_is_x(name: str, folder: Any) -> None:
    model = load(folder(name))
    assert model.latent_shape(64, 32)[1] == 2 * model.latent_shape(64, 32)[2]
    times = model.training_timesteps()
    assert all(a > b for a, b in itertools.pairwise(times)) and times[0] == model.max_timestep
    for t in (times[0], times[len(times) // 2], times[-1]):
        alpha, sigma = model.alpha_sigma(t)
        x = torch.randn(2, *model.latent_shape(32, 32), generator=torch.Generator().manual_seed(1))
        x = x * (alpha**2 + sigma**2) ** 0.5
        x0_hat, eps_hat = model.predict(x, t, CONDITIONS.get(name))
        assert x0_hat.dtype == eps_hat.dtype == torch.float32 and x0_hat.shape == x.shape
        close = 1e-5 * float((alpha * x0_hat).abs().max() + x.abs().max())
        torch.testing.assert_close(alpha * x0_hat + sigma * eps_hat, x, atol=close, rtol=0)


# ---- the pipelines' own sampling, step for step --------------------------------------------------


def ours(model: DiffusionModel, times: list[float], noise: Tensor, condition: Condition | None) -> Tensor:
    """eta = 0 through our update."""
    x = noise
    for step in plan(model, times, eta=[0.0] * len(times)):
        x0_hat, eps_hat = model.predict(x, step.t, condition)
        torch.testing.assert_close(eps_hat, eps_from_x0(x, x0_hat, step.alpha_t, step.sigma_t))
        x = advance(step, x0_hat, eps_hat, None)
    return x


def deterministic(pipe: Any) -> None:
    """DDIM on the trailing grid, which ends in the clean image, for the models with alphas_cumprod."""
    from diffusers import DDIMScheduler

    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
    )


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("name", ["sd", "sd-v", "sdxl", "pixart-sigma", "pixart-alpha", "sd3", "flux-dev",
                                  "flux-schnell", "sana"])  # fmt: skip
def test_text_to_image_as_the_pipeline(name: str, guided: bool) -> None:
    """Latents of the pipeline's own call (embeddings, guidance, sizes, packing) against ours."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipe = tiny_pipelines.build(name)
    flow = name in ("sd3", "flux-dev", "flux-schnell", "sana")
    if name == "sana":
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    elif not flow:
        deterministic(pipe)
    model = wrap_pipeline(pipe)
    width = 32 if name == "sana" else 16
    noise = torch.randn(1, *model.latent_shape(32, width), generator=torch.Generator().manual_seed(5))
    own: dict[str, Any] = {}
    latents = noise
    condition = Condition("a red fox", "blurry" if guided else None, guidance_scale=3.0 if guided else 1.0)
    if name.startswith("flux"):
        latents = pipe._pack_latents(noise, 1, *noise.shape[1:])
        if name == "flux-dev":
            condition = Condition("a red fox", guidance_scale=3.0 if guided else 1.0)
        elif guided:
            own = {"true_cfg_scale": 3.0}
    if name == "sana":
        own = {"complex_human_instruction": None, "use_resolution_binning": False}
    if name.startswith("pixart"):
        own = {"use_resolution_binning": False, "clean_caption": False}
    theirs = pipe(
        prompt=condition.prompt,
        **({"negative_prompt": condition.negative_prompt} if condition.negative_prompt else {}),
        guidance_scale=condition.guidance_scale, height=32, width=width, num_inference_steps=4, latents=latents,
        output_type="latent", return_dict=False, **own,
    )[0]  # fmt: skip
    if name.startswith("flux"):
        theirs = pipe._unpack_latents(theirs, 32, 16, pipe.vae_scale_factor)
    times = [float(t) for t in pipe.scheduler.timesteps]
    mine = ours(model, times, noise, condition)
    torch.testing.assert_close(mine, theirs, atol=3e-5 * max(1.0, float(theirs.abs().max())), rtol=1e-4)


@pytest.mark.parametrize("name", ["ldm", "dit", "ddpm"])
def test_other_pipelines_as_their_own(name: str) -> None:
    """Images of the pipeline's own call against ours, from the same generator."""
    from diffusers import DDIMPipeline

    pipe = tiny_pipelines.build(name)
    deterministic(pipe)
    model = wrap_pipeline(pipe)
    side = 16 if name == "dit" else 32
    shape = (1, *model.latent_shape(side, side))
    if name == "ddpm":
        pipe = DDIMPipeline(pipe.unet, pipe.scheduler)
        shape = (1, 3, 16, 16)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(shape, generator=generator)
    generator.manual_seed(5)
    condition = Condition(label=4, guidance_scale=3.0) if name == "dit" else None
    call = {"class_labels": [4], "guidance_scale": 3.0} if name == "dit" else {}
    theirs = pipe(num_inference_steps=4, generator=generator, output_type="np", **call).images
    mine = model.decode(ours(model, [float(t) for t in pipe.scheduler.timesteps], noise, condition))
    mine = ((mine + 1) / 2).permute(0, 2, 3, 1)
    torch.testing.assert_close(mine, torch.from_numpy(theirs), atol=1e-4, rtol=0)


# ---- loading -------------------------------------------------------------------------------------


def test_photo_through_both_ways_of_loading(tmp_path: Path) -> None:
    from diffusers import DDPMPipeline

    from ddcm_fast.models import PixelModel
    from ddcm_fast.models.multiscale import MultiscaleModel

    photo = load_model("photo", device="cpu", dtype="float32")
    assert isinstance(photo, MultiscaleModel) and isinstance(photo.inner, PixelModel)
    network = photo.inner.unet
    config = CodecConfig(T=4, K=64)
    coded = Codec(photo, config).encode(image(32, 48))[0]
    folder = Path(str(network.config._name_or_path))
    assert (folder / "scheduler_config.json").is_file()
    by_path = load_model(str(folder), device="cpu", dtype="float32")
    assert torch.equal(Codec(by_path).decode(coded.data), coded.reconstruction)
    # The same network as a pipeline: without the space-to-depth that only ddcm.json knows of it has 12 channels.
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_pretrained(folder)
    DDPMPipeline(network, scheduler).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="12 image channels"):
        load(tmp_path)
    unet = DDPMPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32).unet
    again = MultiscaleModel(PixelModel(unet, scheduler, "photo", patch=photo.inner.patch))
    again.information = photo.information
    assert again.fingerprint() == photo.fingerprint()
    assert torch.equal(Codec(again).decode(coded.data), coded.reconstruction)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_are_the_same_model(dtype: str, folder: Any) -> None:
    wide, narrow = load(folder("sd")), load(folder("sd"), dtype)
    assert narrow.dtype == getattr(torch, dtype) and narrow.fingerprint() == wide.fingerprint(narrow.dtype)
    coded = Codec(narrow, CONFIG).encode(image(), FOX)[0]
    assert coded.reconstruction.dtype == torch.float32
    assert torch.equal(Codec(narrow).decode(coded.data), coded.reconstruction)
    with pytest.warns(UserWarning, match=dtype):
        Codec(wide).decode(coded.data)


def test_large_images_pass_the_autoencoder_in_tiles(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(folder("sd"))
    assert isinstance(model, LatentModel)
    whole = model.encode(image(96, 64)[None])
    coded = Codec(model, CONFIG).encode(image(96, 64))[0]
    monkeypatch.setattr(latent, "TILED_FROM", 64 * 64)
    tiled = model.encode(image(96, 64)[None])
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
    in_tiles = Codec(model, CONFIG).encode(image(96, 64))[0]
    assert not torch.equal(in_tiles.reconstruction, coded.reconstruction)
    assert torch.equal(Codec(load(folder("sd"))).decode(in_tiles.data), in_tiles.reconstruction)
    small = model.encode(image(64, 64)[None])
    monkeypatch.setattr(latent, "TILED_FROM", 2**21)
    assert torch.equal(model.encode(image(64, 64)[None]), small)


def test_fingerprint_covers_the_autoencoder(folder: Any) -> None:
    pipe = tiny_pipelines.build("sd")
    pipe.vae.decoder.conv_out.weight.data.neg_()
    assert wrap_pipeline(pipe).fingerprint() != load(folder("sd")).fingerprint()


def test_batches_and_mixed_conditions(folder: Any) -> None:
    model = load(folder("sd"))
    x = torch.randn(2, *model.latent_shape(32, 32), generator=torch.Generator().manual_seed(1))
    cat = Condition("a cat", guidance_scale=3.0)
    together = model.predict(x, 500.0, (FOX, cat))[0]
    for i, condition in enumerate((FOX, cat)):
        alone = model.predict(x[i : i + 1], 500.0, condition)[0]
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)
    coded = Codec(model, CONFIG, batch_size=2).encode([image(), image().flip(2)], FOX)
    assert len(coded) == 2


def test_names_and_unknown_classes(folder: Any, tmp_path: Path) -> None:
    assert load(folder("ddpm")).name == folder("ddpm").name
    assert wrap_pipeline(tiny_pipelines.build("ddpm"), name="mine").name == "mine"
    with pytest.raises(ModelError, match=r"object is not supported; these pipelines are:.*StableDiffusionPipeline"):
        Codec(object())
    with pytest.raises(ModelError, match="neither a built-in model"):
        load_model("no-such-model")
    (tmp_path / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(ModelError, match="holds a VQModel"):
        load(tmp_path)
    with pytest.raises(ModelError, match="cannot load model"):
        load_model("nobody/no-such-model-here", local_files_only=True)


def test_missing_transformers(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddcm_fast.models import loading

    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"ddcm-fast\[text\]"):
        load(folder("sd"))
    load(folder("ddpm"))


def test_sizes(folder: Any) -> None:
    model = load(folder("sd3"))
    model.check_size(64, 64)
    with pytest.raises(ConfigError, match="up to 64 pixels"):
        model.check_size(64, 68)
    with pytest.raises(ConfigError, match="multiples of 4"):
        model.check_size(32, 34)


def test_compiled_network_is_called(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compile_(network: Any) -> Any:
        return lambda *a, **k: calls.append(1) or network(*a, **k)

    monkeypatch.setattr(torch, "compile", compile_)
    model = load_model(str(folder("ddpm")), device="cpu", dtype="float32", compile=True)
    model.predict(torch.zeros(1, 3, 16, 16), 10.0)
    assert calls == [1] and model.fingerprint() == load(folder("ddpm")).fingerprint()


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.slow
def test_compiled_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile for real, of a U-Net as small as they get: the encoder's picture bit for bit."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(8,), layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4, add_attention=False,
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "model")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    model = load_model(str(tmp_path / "model"), device="cpu", dtype="float32", compile=True)
    coded = Codec(model, CONFIG).encode(image(16, 16))[0]
    assert torch.equal(Codec(model).decode(coded.data), coded.reconstruction)
    assert any((tmp_path / "cache").rglob("*.so"))  # it did compile
    plain = Codec(load(tmp_path / "model")).decode(coded.data)
    torch.testing.assert_close(plain, coded.reconstruction, atol=1e-3, rtol=0)

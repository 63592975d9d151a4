"""DDCMScheduler in unmodified pipelines of diffusers' real classes: files replay, and steps are diffusers' own."""

from __future__ import annotations

import math
import runpy
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import scheduler_cases
import torch
from scheduler_cases import CASES, output
from tiny_pipelines import build
from torch import Tensor

import ddcm_fast
from ddcm_fast import Codec, CodecConfig, Limits
from ddcm_fast.cli import main
from ddcm_fast.codec import container
from ddcm_fast.codec.scheduler import DDCMScheduler
from ddcm_fast.errors import ConfigError, DDCMWarning, FormatError, InputError, LimitError, ModelError
from ddcm_fast.sampling import Draw, Match, StepContext

ROOT = Path(__file__).resolve().parents[2]

RULES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "pursuit": {"M": 3, "C": 2},
    "product": {"atoms": 24},
    "threshold": {"atoms": 24},
    "trellis": {"atoms": 24, "C": 3},
    "rcc": {"atoms": 8},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def with_codebook(pipe: Any, **settings: Any) -> DDCMScheduler:
    """The pipeline's scheduler replaced by one of codebooks."""
    settings = {"K": 256, "kind": "hadamard", "seed": 3, **settings}
    pipe.scheduler = DDCMScheduler.from_config(pipe.scheduler.config, **settings)
    return pipe.scheduler


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quiet_files(scheduler: DDCMScheduler) -> list[bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DDCMWarning)
        return scheduler.files()


def states(scheduler: DDCMScheduler, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the scheduler's steps return, as they are taken."""
    seen: list[Tensor] = []
    step = scheduler.step

    def recorded(*args: Any, **kwargs: Any) -> Any:
        out = step(*args, **kwargs)
        seen.append(out[0])
        return out

    monkeypatch.setattr(scheduler, "step", recorded)
    return seen


# ---- the real classes ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_generation_replays_bit_for_bit(name: str) -> None:
    case = CASES[name]
    pipe = case.build()
    scheduler = with_codebook(pipe)
    more = {"latents": scheduler.initial_latents((1, *case.state))} if case.latents else {}
    made = output(pipe, case, generator=seeded(), **more)
    if case.latents:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DDCMWarning)
            data = scheduler.to_bytes()
    else:
        with pytest.warns(DDCMWarning, match="initial_latents"):
            data = scheduler.to_bytes()
    torch.manual_seed(1)
    other = output(pipe, case, generator=seeded(6) if case.latents else seeded(), **more)
    with scheduler.replay(data):
        # With the codebook's x_T nothing else is drawn, so that no generator is needed.
        again = output(pipe, case, generator=seeded(), **more)
        assert quiet_files(scheduler) == [data]
    assert torch.equal(again, made)
    assert case.latents is False or not torch.equal(other, made)


@pytest.mark.parametrize("name", scheduler_cases.COMPRESSED)
def test_compression_follows_a_target(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    pipe = case.build()
    scheduler = with_codebook(pipe, K=4096)
    target = torch.randn(1, *case.state, generator=seeded(1))
    more: dict[str, Any] = {"num_inference_steps": 10}
    if case.latents:
        more["latents"] = scheduler.initial_latents((1, *case.state))

    def residual(context: StepContext) -> Tensor:
        return target - context.x0_hat

    seen = states(scheduler, monkeypatch)
    with scheduler.toward(target):
        made = output(pipe, case, generator=seeded(), **more)
    coded = float((seen[-1] - target).square().mean())
    data = quiet_files(scheduler)
    with scheduler.using(Match(residual)):
        assert torch.equal(output(pipe, case, generator=seeded(), **more), made)
    with scheduler.using(Match(lambda context: -residual(context))):
        output(pipe, case, generator=seeded(), **more)
    assert coded < float((seen[-1] - target).square().mean())
    with scheduler.replay(data):
        assert torch.equal(output(pipe, case, generator=seeded(), **more), made)


def test_a_picture_is_compressed_through_the_autoencoder(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = CASES["sd"].build()
    scheduler = with_codebook(pipe)
    seen: list[StepContext] = []
    picture = scheduler_cases.picture()
    with scheduler.toward(picture, vae=pipe.vae):
        chooser = scheduler._chooser
        monkeypatch.setattr(chooser, "choose", lambda context, own=chooser.choose: seen.append(context) or own(context))
        output(pipe, CASES["sd"])
        expected = Codec(CASES["sd"].build()).model.encode(torch.as_tensor(
            scheduler_cases.np.asarray(picture) / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)[None])  # fmt: skip
        torch.testing.assert_close(chooser.target, expected, atol=1e-5, rtol=1e-5)
    assert len(seen) == 3


@pytest.mark.parametrize("rule", RULES)
def test_rules(rule: str) -> None:
    case = CASES["sd"]
    pipe = case.build()
    if rule == "rcc":
        pytest.importorskip("constriction")
    scheduler = with_codebook(pipe, rule=rule, **RULES[rule])
    more = {"latents": scheduler.initial_latents((1, *case.state))}
    with scheduler.toward(torch.zeros(1, *case.state)):
        made = output(pipe, case, **more)
    data = scheduler.to_bytes()
    with_codebook(pipe)  # the file says what the codebook is
    with pipe.scheduler.replay(data):
        assert torch.equal(output(pipe, case, latents=pipe.scheduler.initial_latents((1, *case.state))), made)
        assert pipe.scheduler.to_bytes() == data


# ---- one step --------------------------------------------------------------------------------------


def _flow_solver() -> Any:
    return diffusers.DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", solver_order=1, use_flow_sigmas=True, flow_shift=1.0,
        prediction_type="flow_prediction",
    )  # fmt: skip


STEPS: dict[str, Any] = {
    **{
        f"ddpm-{prediction}-{spacing}": lambda prediction=prediction, spacing=spacing: diffusers.DDPMScheduler(
            prediction_type=prediction, timestep_spacing=spacing, thresholding=spacing == "trailing", steps_offset=1
        )
        for prediction in ("epsilon", "v_prediction", "sample")
        for spacing in ("leading", "trailing")
    },
    "ddpm-zero-snr": lambda: diffusers.DDPMScheduler(
        rescale_betas_zero_snr=True, prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing"
    ),
    "euler-ancestral": lambda: diffusers.EulerAncestralDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="leading"
    ),
    "flow-sde": _flow_solver,
    "edm-sde": lambda: diffusers.EDMDPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", solver_order=1, euler_at_final=True
    ),
    "lcm": lambda: diffusers.LCMScheduler(),
    "wuerstchen": lambda: diffusers.DDPMWuerstchenScheduler(),
    "wuerstchen-bent": lambda: diffusers.DDPMWuerstchenScheduler(scaler=1.5),
    "cosine-sde": lambda: pytest.importorskip("torchsde") and diffusers.CosineDPMSolverMultistepScheduler(
        solver_order=1
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_diffusers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = STEPS[name]()
    ours = DDCMScheduler.from_config(theirs.config, K=64, seed=1)
    theirs.set_timesteps(8)
    if name == "flow-sde":  # the two place their sigmas differently
        ours.set_timesteps(sigmas=theirs.sigmas[:-1].numpy())
    else:
        ours.set_timesteps(8)
        assert torch.allclose(ours.timesteps.float(), theirs.timesteps.float(), atol=1e-5)
    noise: list[Tensor] = []
    module = sys.modules[type(theirs).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: noise[-1], raising=False)
    for place in range(7):
        x, output = (torch.randn(2, 3, 4, 4, generator=seeded(10 * place + i)) for i in range(2))
        # Euler's states are those of variance exploding.
        steps = ours._timesteps
        scale = steps.model.alpha_sigma(steps.plan[place].t)[0] if name == "euler-ancestral" else 1.0
        after = steps.plan[place].alpha_s if name == "euler-ancestral" else 1.0
        if name in ("edm-sde", "cosine-sde"):
            given = ours.scale_model_input(x, ours.timesteps[place])
            torch.testing.assert_close(given, theirs.scale_model_input(x, theirs.timesteps[place]))
        ours._run = None
        mine = ours.step(output, ours.timesteps[place], x, generator=seeded(place))
        noise.append(ours._run.rule.noise(ours._run.letters[0], steps.plan[place]).view_as(x))
        t = theirs.timesteps[place]
        if name.startswith("wuerstchen"):
            t = t.expand(len(x))
        if name == "cosine-sde":
            theirs.noise_sampler = lambda *a: noise[-1]
        if name.startswith("flow"):
            other = theirs.step(output, t, x, variance_noise=noise[-1]).prev_sample
        else:
            other = theirs.step(output, t, x / scale).prev_sample * after
        torch.testing.assert_close(mine.prev_sample, other, atol=1e-5, rtol=1e-5)


def test_steps_are_the_codecs() -> None:
    pipe = build("ddpm")
    pipe.unet.to(memory_format=torch.channels_last)  # as the codec evaluates it: another order rounds differently
    codec = Codec(pipe, CodecConfig(T=5, K=64, kind="sign", seed=9))
    (coded,) = codec.generate(1, 16, 16, seed=4)
    scheduler = with_codebook(pipe, K=64, kind="sign", seed=9)
    scheduler.set_timesteps(timesteps=[999, 749, 500, 250, 0])
    x = scheduler.initial_latents((1, 3, 16, 16))
    with scheduler.using(Draw(4)), torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipe.unet(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(x[0].clamp(-1, 1), coded.reconstruction, atol=1e-5, rtol=1e-5)
    _, codec_payload = container.read(coded.data)
    _, payload = container.read(scheduler.to_bytes())
    assert payload[3:] == codec_payload


def test_add_noise_is_the_forward_process() -> None:
    x0, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    vp = diffusers.DDPMScheduler()
    at = torch.tensor([10, 700])
    mine = DDCMScheduler.from_config(vp.config).add_noise(x0, noise, at)
    torch.testing.assert_close(mine, vp.add_noise(x0, noise, at), atol=1e-6, rtol=1e-5)
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = DDCMScheduler.from_config(flow.config)
    for scheduler in (flow, ours):
        scheduler.set_timesteps(5)
    at = flow.timesteps[[1, 3]]
    torch.testing.assert_close(ours.scale_noise(x0, at, noise), flow.scale_noise(x0, at, noise), atol=1e-6, rtol=1e-5)
    assert torch.equal(ours.sigmas, flow.sigmas)
    edm = diffusers.EDMEulerScheduler()
    ours = DDCMScheduler.from_config(edm.config)
    for scheduler in (edm, ours):
        scheduler.set_timesteps(5)
    at = edm.timesteps[[1, 3]]
    torch.testing.assert_close(ours.add_noise(x0, noise, at), edm.add_noise(x0, noise, at), atol=1e-4, rtol=1e-5)
    with pytest.raises(ConfigError, match="not one of"):
        ours.add_noise(x0, noise, torch.tensor([0.123]))


# ---- batches, generators, callbacks ----------------------------------------------------------------


def test_images_of_a_call_have_letters_of_their_own() -> None:
    case = CASES["sd"]
    pipe = case.build()
    scheduler = with_codebook(pipe)
    more = {"num_images_per_prompt": 3, "latents": scheduler.initial_latents((3, *case.state))}
    made = output(pipe, case, generator=seeded(), **more)
    files = scheduler.files()
    assert len(set(files)) == 3
    assert not torch.equal(made[0], made[1])
    with pytest.raises(ConfigError, match="made 3 images"):
        scheduler.to_bytes()
    with scheduler.replay(files):
        assert torch.equal(output(pipe, case, **more), made)
    with scheduler.replay(files[::-1]):
        torch.testing.assert_close(output(pipe, case, **more), made.flip(0), atol=1e-5, rtol=1e-5)
    with scheduler.replay(files[1]):  # one file, for every image
        torch.testing.assert_close(output(pipe, case, **more), made[[1, 1, 1]], atol=1e-5, rtol=1e-5)
    with scheduler.replay(files[:2]), pytest.raises(FormatError, match="2 files for 3 images"):
        output(pipe, case, **more)


def test_guided_dit_steps_each_image_twice() -> None:
    pipe = build("dit")
    scheduler = with_codebook(pipe)
    call = {"class_labels": [1], "guidance_scale": 3.0, "num_inference_steps": 4, "output_type": "np"}
    made = pipe(generator=seeded(), **call).images
    files = quiet_files(scheduler)
    assert len(files) == 2
    with scheduler.replay(files[0]):
        assert (pipe(generator=seeded(), **call).images == made).all()


def test_generators_and_seeds_choose_letters() -> None:
    case = CASES["sd"]
    pipe = case.build()
    scheduler = with_codebook(pipe)
    more = {"num_images_per_prompt": 2, "latents": scheduler.initial_latents((2, *case.state))}

    def files(**given: Any) -> list[bytes]:
        output(pipe, case, **given, **more)
        return scheduler.files()

    own = files(generator=[seeded(1), seeded(2)])
    assert own == files(generator=[seeded(1), seeded(2)])
    assert own[::-1] == files(generator=[seeded(2), seeded(1)])
    assert files(generator=seeded(1)) == files(generator=seeded(1))
    torch.manual_seed(8)
    first = files()
    assert files() != first
    torch.manual_seed(8)
    assert files() == first
    with scheduler.using(Draw(1)):
        drawn = files(generator=seeded(1))
    with scheduler.using(Draw(1)):
        assert files(generator=seeded(2)) == drawn


def test_callbacks_and_interruptions() -> None:
    case = CASES["sd"]
    pipe = case.build()
    scheduler = with_codebook(pipe)
    more = {"latents": scheduler.initial_latents((1, *case.state))}
    seen: list[int] = []

    def callback(pipe: Any, step: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(step)
        pipe._interrupt = step == 1
        return {"latents": tensors["latents"].clamp(-2, 2)}

    made = output(pipe, case, callback_on_step_end=callback, **more)
    assert seen == [0, 1]
    data = scheduler.to_bytes()
    assert container.read(data)[0].config.T == 2
    with scheduler.replay(data):
        assert torch.equal(output(pipe, case, callback_on_step_end=callback, **more), made)


# ---- adapters and offloading -----------------------------------------------------------------------


def _lora(pipe: Any) -> dict[str, Any]:
    peft = pytest.importorskip("peft")
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "style")
    return {"cross_attention_kwargs": {"scale": 0.7}}


def _ip_adapter(pipe: Any) -> dict[str, Any]:
    """An IP-Adapter of random weights, given the embedding of an image."""
    unet, cross, dim = pipe.unet, pipe.unet.config.cross_attention_dim, 8
    torch.manual_seed(0)
    layers = {}
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            inner = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for which in ("k", "v"):
                layers[f"{number}.to_{which}_ip.weight"] = torch.randn(inner, cross) * 0.3
    projection = {"proj.weight": torch.randn(4 * cross, dim), "proj.bias": torch.randn(4 * cross),
                  "norm.weight": torch.ones(cross), "norm.bias": torch.zeros(cross)}  # fmt: skip
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": layers}])
    return {"ip_adapter_image_embeds": [torch.randn(2, 1, dim)]}


def _offload_model(pipe: Any) -> dict[str, Any]:
    pytest.importorskip("accelerate")
    pipe.enable_model_cpu_offload(device="cpu")
    return {}


def _offload_layers(pipe: Any) -> dict[str, Any]:
    """What `enable_sequential_cpu_offload` does with a network; itself it refuses to work without an accelerator."""
    accelerate = pytest.importorskip("accelerate")
    with pytest.raises(RuntimeError, match="accelerator"):
        pipe.enable_sequential_cpu_offload()
    for network in (pipe.unet, pipe.vae, pipe.text_encoder):
        accelerate.cpu_offload(network, torch.device("cpu"))
    return {}


def _offload_groups(pipe: Any) -> dict[str, Any]:
    hooks = pytest.importorskip("diffusers.hooks")
    for network in (pipe.unet, pipe.vae):
        hooks.apply_group_offloading(network, torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    return {}


CHANGES = {
    "LoRA": _lora,
    "IP-Adapter": _ip_adapter,
    "enable_model_cpu_offload": _offload_model,
    "accelerate.cpu_offload": _offload_layers,
    "group offloading": _offload_groups,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_done_to_a_pipeline(change: str) -> None:
    """Adapters change the picture, offloading changes nothing; the letters replay in either."""
    case = CASES["sd"]
    pipe = case.build()
    scheduler = with_codebook(pipe)
    more: dict[str, Any] = {"latents": scheduler.initial_latents((1, *case.state))}
    plain = output(pipe, case, generator=seeded(), **more)
    more |= CHANGES[change](pipe)
    made = output(pipe, case, generator=seeded(), **more)
    data = scheduler.to_bytes()
    with scheduler.replay(data):
        assert torch.equal(output(pipe, case, **more), made)
        assert scheduler.to_bytes() == data
    assert torch.allclose(made, plain, atol=1e-5) is (change not in ("LoRA", "IP-Adapter"))
    target = torch.zeros(1, *case.state)
    with scheduler.toward(target):
        coded = output(pipe, case, **more)
    with scheduler.replay(scheduler.to_bytes()):
        assert torch.equal(output(pipe, case, **more), coded)


def test_wuerstchen_in_half_precision() -> None:
    """Its pipelines round the timesteps to the networks' dtype, and give one an image."""
    case = CASES["wuerstchen-prior"]
    pipe = case.build().to(dtype=torch.bfloat16)
    scheduler = with_codebook(pipe)
    more: dict[str, Any] = {"latents": scheduler.initial_latents((2, *case.state), dtype=torch.bfloat16)}
    more |= {"num_images_per_prompt": 2, "num_inference_steps": 60, "output_type": "pt"}
    made = pipe(**{**case.call, **more}).image_embeddings
    files = scheduler.files()
    assert container.read(files[0])[0].config.T == 60
    with scheduler.replay(files):
        assert torch.equal(pipe(**{**case.call, **more}).image_embeddings, made)


def test_half_precision() -> None:
    case = CASES["sd"]
    pipe = case.build().to(dtype=torch.bfloat16)
    scheduler = with_codebook(pipe)
    more = {"latents": scheduler.initial_latents((1, *case.state), dtype=torch.bfloat16)}
    made = output(pipe, case, **more)
    data = scheduler.to_bytes()
    assert container.read(data)[0].dtype == "bfloat16"
    with scheduler.replay(data):
        assert torch.equal(output(pipe, case, **more), made)


# ---- configurations --------------------------------------------------------------------------------


def test_saving_and_loading(tmp_path: Path) -> None:
    scheduler = with_codebook(build("sd"), K=512, kind="sign", rule="product", atoms=9)
    scheduler.save_pretrained(tmp_path)
    again = DDCMScheduler.from_pretrained(tmp_path)
    assert {**again.config} == {**scheduler.config}
    assert again._settings == scheduler._settings
    for one in (again, scheduler):
        one.set_timesteps(5)
    assert torch.equal(again.timesteps, scheduler.timesteps)
    assert diffusers.PNDMScheduler in scheduler.compatibles
    back = diffusers.EulerDiscreteScheduler.from_config(scheduler.config)
    assert back.config.beta_end == scheduler.config.beta_end == 0.012


def test_saving_and_loading_a_pipeline(tmp_path: Path) -> None:
    pipe = build("ddpm")
    with_codebook(pipe, K=512)
    pipe.save_pretrained(tmp_path)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(again.scheduler, DDCMScheduler)
    assert again.scheduler.config.K == 512


def test_other_classes_keep_their_schedules() -> None:
    for name in ("DPMSolverMultistepScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler", "DDIMScheduler"):
        config = getattr(diffusers, name)(beta_schedule="scaled_linear", timestep_spacing="leading").config
        scheduler = DDCMScheduler.from_config(config)
        scheduler.set_timesteps(10)
        assert scheduler.timesteps.tolist() == list(range(900, -1, -100))
        assert scheduler.alphas_cumprod[-1] == pytest.approx(0.0047 if config["beta_end"] == 0.012 else 0.0, abs=1e-2)
    heun = diffusers.FlowMatchHeunDiscreteScheduler(shift=2.0)
    assert DDCMScheduler.from_config(heun.config).config.source == "FlowMatchEulerDiscreteScheduler"
    continuous = diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction")
    for config in (continuous.config, diffusers.SCMScheduler().config):
        with pytest.raises(ModelError, match="not supported"):
            DDCMScheduler.from_config(config)


@pytest.mark.parametrize(
    "settings, text",
    [({"K": 0}, "K is 0"), ({"kind": "uniform"}, "unknown kind"), ({"rule": "product"}, "atoms"),
     ({"source": "os"}, "unknown source"), ({"seed": -1}, "seed is -1")],
)  # fmt: skip
def test_impossible_settings(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        DDCMScheduler.from_config(diffusers.DDPMScheduler().config, **settings)


# ---- what does not fit -----------------------------------------------------------------------------


def _sd_run() -> tuple[Any, DDCMScheduler, bytes, dict[str, Any]]:
    pipe = CASES["sd"].build()
    scheduler = with_codebook(pipe)
    more = {"latents": scheduler.initial_latents((1, *CASES["sd"].state))}
    output(pipe, CASES["sd"], **more)
    return pipe, scheduler, scheduler.to_bytes(), more


def test_foreign_and_damaged_files() -> None:
    _, scheduler, data, _ = _sd_run()
    foreign = Codec(build("ddpm"), CodecConfig(T=2, K=4)).generate(1, 16, 16)[0].data
    header, payload = container.read(data)
    empty = container.write(header, b"")
    odd = container.write(header, b"\x07" + payload[1:])
    for bad in (b"", b"PNG", data[:-1], data[:20], data[:-1] + bytes([data[-1] ^ 1]), foreign, empty, odd):
        with pytest.raises(FormatError) as error, scheduler.replay(bad):
            pass
        assert "\n" not in str(error.value)
    with pytest.raises(InputError), scheduler.replay("a.ddcm"):
        pass
    with pytest.raises(FormatError, match="replay it there"):
        Codec(build("ddpm")).decode(data)
    scheduler.limits = Limits(payload=1)
    with pytest.raises(LimitError), scheduler.replay(data):
        pass


def test_the_command_line_knows_these_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.ddcm"
    path.write_bytes(_sd_run()[2])
    assert main(["info", str(path)]) == 0
    said = capsys.readouterr().out
    assert "DDCMScheduler" in said and "bpp" not in said
    for more in ([], ["--model", "photo"]):
        assert main(["decompress", str(path), str(tmp_path / "a.png"), *more]) == 2
        assert "replay it there" in capsys.readouterr().err


def test_files_of_another_call() -> None:
    pipe, scheduler, data, more = _sd_run()
    case = CASES["sd"]
    header, payload = container.read(data)
    with scheduler.replay(data):
        for given in (
            {**more, "num_inference_steps": 5},
            {**more, "latents": torch.randn(1, *case.state)},
            {"latents": scheduler.initial_latents((1, 4, 16, 16)), "height": 32, "width": 32},
        ):
            with pytest.raises(FormatError, match="cannot do"):
                output(pipe, case, **given)
    for wrong in (payload + b"\x00", payload[:-1], payload[:1] + b"\x00\x01" + payload[3:]):
        with scheduler.replay(container.write(header, wrong)), pytest.raises(FormatError):
            output(pipe, case, **more)
    with pytest.raises(FormatError, match="one run"), scheduler.replay([data, container.write(header, b"\0" * 9)]):
        pass


def test_misuse_says_what_to_do() -> None:
    scheduler = DDCMScheduler.from_config(diffusers.DDPMScheduler().config, K=16)
    with pytest.raises(ConfigError, match="no step was taken"):
        scheduler.to_bytes()
    scheduler.set_timesteps(4)
    x = scheduler.initial_latents((1, 3, 4, 4))
    with pytest.raises(ConfigError, match="not one of"):
        scheduler.step(x, 3, x)
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(ConfigError, match="follow one another"):
        scheduler.step(x, scheduler.timesteps[2], x)
    with pytest.raises(ConfigError, match="follow one another"):
        scheduler.step(x.repeat(2, 1, 1, 1), scheduler.timesteps[1], x.repeat(2, 1, 1, 1))
    with pytest.raises(ConfigError, match="takes no sigmas"):
        scheduler.set_timesteps(sigmas=[1.0, 0.5])
    with pytest.raises(InputError, match="float64"):
        scheduler.step(x.double(), scheduler.timesteps[0], x)
    with scheduler.toward(x), pytest.raises(InputError):
        scheduler.step(x * math.nan, scheduler.timesteps[0], x)
    huge = DDCMScheduler.from_config(diffusers.DDPMScheduler().config, K=2**32, kind="gaussian")
    huge.set_timesteps(1000)
    with huge.toward(torch.zeros(1, 3, 64, 64)), pytest.raises(LimitError):
        huge.step(torch.zeros(1, 3, 64, 64), huge.timesteps[0], huge.initial_latents((1, 3, 64, 64)))


def test_the_table_of_the_documentation() -> None:
    page = ROOT / "docs" / "models.md"
    assert scheduler_cases.table() in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("example", ["text_to_image", "img2img", "own_objective", "text_to_audio"])
@pytest.mark.filterwarnings("ignore::ddcm_fast.errors.DDCMWarning")
def test_examples(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    CASES["stable-audio" if example == "text_to_audio" else "sd"].build().save_pretrained(tmp_path / "model")
    path = ROOT / "examples" / f"{example}.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 30
    monkeypatch.chdir(tmp_path)
    scheduler_cases.picture().save("photo.jpg")
    monkeypatch.setattr(sys, "argv", [path.name, str(tmp_path / "model")])
    runpy.run_path(str(path), run_name="__main__")
    assert len(list(tmp_path.iterdir())) > 2  # the model and the photograph
    assert "False" not in capsys.readouterr().out


def test_states_of_any_number_of_dimensions() -> None:
    scheduler = DDCMScheduler.from_config(diffusers.DDPMScheduler().config, K=16)
    scheduler.set_timesteps(3)
    x = start = scheduler.initial_latents((2, 48))
    for t in scheduler.timesteps:
        x = scheduler.step(0.1 * x, t, x, return_dict=False)[0]
    assert x.shape == start.shape and not torch.equal(x[0], x[1])


def test_the_package_has_it_at_its_top() -> None:
    assert ddcm_fast.DDCMScheduler is DDCMScheduler


def test_a_refiner_goes_on_where_the_base_ends() -> None:
    base, refiner = build("sdxl"), CASES["sdxl-img2img"].build()
    call = {"prompt": "a red fox", "num_inference_steps": 6, "guidance_scale": 2.0}

    def run() -> Any:
        latents = base(**call, height=16, width=16, latents=start, denoising_end=0.5, output_type="latent").images
        return refiner(**call, image=latents, denoising_start=0.5, output_type="np", generator=seeded()).images

    for pipe in (base, refiner):
        with_codebook(pipe)
    start = base.scheduler.initial_latents((1, *CASES["sdxl"].state))
    made = run()
    files = base.scheduler.to_bytes(), quiet_files(refiner.scheduler)[0]
    assert [container.read(data)[0].config.T for data in files] == [3, 3]
    with base.scheduler.replay(files[0]), refiner.scheduler.replay(files[1]):
        assert (run() == made).all()

"""Pipelines of diffusers' real classes, tiny and random, with DDCMScheduler: how each is built and called.

`python tests/scheduler_cases.py` prints the table of docs/models.md.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tiny_pipelines import EMBED, build, clip_text, clip_tokenizer, fast_tokenizer, t5_text, unet_text, vae

PROMPT = {"prompt": "a red fox"}
SIZE = {"height": 16, "width": 16}


class Case(NamedTuple):
    """A pipeline: how it is built and called, the shape of its state, and whether `latents` can be given."""

    build: Callable[[], Any]
    call: dict[str, Any]
    state: tuple[int, ...]
    latents: bool = True


def picture(side: int = 16) -> Image.Image:
    """A picture to begin from or to compress."""
    return Image.effect_mandelbrot((side, side), (-3, -2.5, 2, 2.5), 50).convert("RGB")


def seeded(pipe: Any) -> Any:
    """The pipeline for tests: quiet, without gradients, and no weights all zero."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            for parameter in part.parameters():
                if parameter.dim() > 1 and not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.05)
            part.requires_grad_(False).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _again(name: str, cls: str) -> Callable[[], Any]:
    """The parts of a tiny pipeline in another class."""

    def make() -> Any:
        import diffusers

        parts = build(name).components
        made = getattr(diffusers, cls)
        more = {"requires_safety_checker": False} if "safety_checker" in parts else {}
        return seeded(made(**{k: v for k, v in parts.items() if k != "image_encoder"}, **more))

    return make


def _controlnet() -> Any:
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    parts = build("sd").components
    control = ControlNetModel(
        in_channels=4, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=EMBED,
        conditioning_embedding_out_channels=(4, 8),
    )  # fmt: skip
    return seeded(StableDiffusionControlNetPipeline(**parts, controlnet=control, requires_safety_checker=False))


def _stable_audio() -> Any:
    from diffusers import (
        AutoencoderOobleck,
        EDMDPMSolverMultistepScheduler,
        StableAudioDiTModel,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )

    torch.manual_seed(0)
    transformer = StableAudioDiTModel(
        sample_size=4, in_channels=3, num_layers=2, attention_head_dim=4, num_key_value_attention_heads=2,
        num_attention_heads=2, cross_attention_dim=4, cross_attention_input_dim=4, global_states_input_dim=8,
        out_channels=3, time_proj_dim=8,
    )  # fmt: skip
    auto = AutoencoderOobleck(
        encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3, decoder_input_channels=3,
        audio_channels=2, channel_multiples=[2, 4], sampling_rate=4,
    )  # fmt: skip
    projection = StableAudioProjectionModel(text_encoder_dim=EMBED, conditioning_dim=4, min_value=0, max_value=32)
    return seeded(
        StableAudioPipeline(
            auto, t5_text(), projection, fast_tokenizer(), transformer,
            # Its own scheduler, of the same levels, needs torchsde.
            EDMDPMSolverMultistepScheduler(
                prediction_type="v_prediction", sigma_min=0.3, sigma_max=500, sigma_data=1.0,
                sigma_schedule="exponential",
            ),
        )
    )  # fmt: skip


def _animatediff() -> Any:
    from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter

    torch.manual_seed(0)
    motion = MotionAdapter(
        block_out_channels=(16, 32), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=4
    )
    return seeded(
        AnimateDiffPipeline(
            vae(), clip_text(), clip_tokenizer(), unet_text(), motion,
            DDIMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False),
        )
    )  # fmt: skip


def _wan() -> Any:
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

    torch.manual_seed(0)
    auto = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
                            temperal_downsample=[False, True, True])  # fmt: skip
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=EMBED, freq_dim=256, ffn_dim=32, num_layers=2, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    return seeded(WanPipeline(fast_tokenizer(), t5_text(), auto, scheduler, transformer))


def _cogvideox() -> Any:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2,
        text_embed_dim=EMBED, num_layers=1, sample_width=2, sample_height=2, sample_frames=9, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=8,
    )  # fmt: skip
    auto = AutoencoderKLCogVideoX(
        in_channels=3, out_channels=3, down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4, block_out_channels=(8, 8, 8, 8), latent_channels=4,
        layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4,
    )  # fmt: skip
    scheduler = CogVideoXDDIMScheduler(snr_shift_scale=3.0, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    return seeded(CogVideoXPipeline(fast_tokenizer(), t5_text(), auto, transformer, scheduler))


def _audioldm2() -> Any:
    from diffusers import (
        AudioLDM2Pipeline,
        AudioLDM2ProjectionModel,
        AudioLDM2UNet2DConditionModel,
        AutoencoderKL,
        DDIMScheduler,
    )
    from transformers import (
        ClapConfig,
        ClapFeatureExtractor,
        ClapModel,
        GPT2Config,
        GPT2LMHeadModel,
        SpeechT5HifiGan,
        SpeechT5HifiGanConfig,
    )

    torch.manual_seed(0)
    unet = AudioLDM2UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=8, sample_size=32, in_channels=4,
        out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=(8, EMBED),
    )  # fmt: skip
    auto = AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=8,
    )  # fmt: skip
    small = {"num_hidden_layers": 1, "intermediate_size": 32, "projection_dim": 8}
    clap = ClapModel(
        ClapConfig(
            text_config={
                **small, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "vocab_size": 32, "hidden_size": 8,
                "num_attention_heads": 1,
            },
            audio_config={
                **small, "spec_size": 8, "window_size": 4, "num_mel_bins": 8, "depths": [1, 1], "patch_stride": 2,
                "num_attention_heads": [1, 1], "hidden_size": 192, "patch_size": 2, "patch_embed_input_channels": 4,
            },
            projection_dim=EMBED,
        )
    )  # fmt: skip
    language = GPT2LMHeadModel(
        GPT2Config(n_embd=EMBED, n_head=1, n_layer=1, vocab_size=32, n_positions=99, bos_token_id=0, eos_token_id=1)
    )
    vocoder = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=8, sampling_rate=16000, upsample_initial_channel=16, upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
            normalize_before=False,
        )
    )  # fmt: skip
    return seeded(
        AudioLDM2Pipeline(
            auto, clap, t5_text(), AudioLDM2ProjectionModel(EMBED, EMBED, EMBED), language, fast_tokenizer(),
            fast_tokenizer(), ClapFeatureExtractor(feature_size=8, hop_length=7900), unet,
            DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False),
            vocoder,
        )
    )  # fmt: skip


def _beside(pipeline: Any) -> Any:
    """The package of a pipeline, which has its networks; Wuerstchen's is at another place in newer diffusers."""
    return import_module(pipeline.__module__.rpartition(".")[0])


def _wuerstchen_prior() -> Any:
    from diffusers import DDPMWuerstchenScheduler, WuerstchenPriorPipeline

    torch.manual_seed(0)
    prior = _beside(WuerstchenPriorPipeline).WuerstchenPrior(c_in=2, c=8, depth=2, c_cond=EMBED, c_r=8, nhead=2)
    return seeded(WuerstchenPriorPipeline(clip_tokenizer(), clip_text(), prior, DDPMWuerstchenScheduler()))


def _wuerstchen() -> Any:
    from diffusers import DDPMWuerstchenScheduler, WuerstchenDecoderPipeline

    torch.manual_seed(0)
    decoder = _beside(WuerstchenDecoderPipeline).WuerstchenDiffNeXt(
        c_cond=EMBED, c_hidden=[320], nhead=[-1], blocks=[1], level_config=["CT"], clip_embd=EMBED,
        inject_effnet=[False],
    )  # fmt: skip
    vqgan = _beside(WuerstchenDecoderPipeline).PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2)
    return seeded(
        WuerstchenDecoderPipeline(
            clip_tokenizer(), clip_text(), decoder, DDPMWuerstchenScheduler(), vqgan, latent_dim_scale=4.0
        )
    )


def _kandinsky() -> Any:
    from diffusers import DDPMScheduler, KandinskyV22Pipeline, UNet2DConditionModel, VQModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=8, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", addition_embed_type="image", cross_attention_dim=EMBED,
        encoder_hid_dim=EMBED, encoder_hid_dim_type="image_proj", attention_head_dim=8, norm_num_groups=8,
        resnet_time_scale_shift="scale_shift", class_embed_type=None,
    )  # fmt: skip
    movq = VQModel(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), latent_channels=4, num_vq_embeddings=12,
        norm_num_groups=4, norm_type="spatial", vq_embed_dim=4, layers_per_block=1,
    )  # fmt: skip
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=True, prediction_type="epsilon")
    return seeded(KandinskyV22Pipeline(unet, scheduler, movq))


_PIXART = {**PROMPT, **SIZE, "use_resolution_binning": False, "clean_caption": False}
_SANA = {**PROMPT, "height": 32, "width": 32, "use_resolution_binning": False, "clean_caption": False,
         "complex_human_instruction": None}  # fmt: skip
_MASK = Image.fromarray(np.tile(np.array([0, 255], np.uint8).repeat(8), (16, 1)))
_LATENT, _PIXEL = (4, 8, 8), (3, 16, 16)

#: Name -> case.
CASES: dict[str, Case] = {
    "ddpm": Case(lambda: build("ddpm"), {}, _PIXEL, False),
    "ddim": Case(lambda: build("ddim"), {}, _PIXEL, False),
    "edm": Case(lambda: build("edm"), {}, _PIXEL, False),
    "consistency": Case(lambda: build("consistency"), {"class_labels": 1}, _PIXEL),
    "ldm": Case(lambda: build("ldm"), {}, (3, 16, 16), False),
    "dit": Case(lambda: build("dit"), {"class_labels": [1], "guidance_scale": 1.0}, _LATENT, False),
    "sd": Case(lambda: build("sd"), {**PROMPT, **SIZE, "negative_prompt": "blurry"}, _LATENT),
    "sd-v": Case(lambda: build("sd-v"), {**PROMPT, **SIZE}, _LATENT),
    "sd-img2img": Case(
        _again("sd", "StableDiffusionImg2ImgPipeline"), {**PROMPT, "image": picture(), "strength": 0.7}, _LATENT, False
    ),
    "sd-inpaint": Case(
        _again("sd", "StableDiffusionInpaintPipeline"),
        {**PROMPT, **SIZE, "image": picture(), "mask_image": _MASK, "strength": 1.0}, _LATENT,
    ),
    "sd-controlnet": Case(_controlnet, {**PROMPT, "image": picture()}, _LATENT),
    "lcm": Case(lambda: build("lcm"), {**PROMPT, **SIZE}, _LATENT),
    "sdxl": Case(lambda: build("sdxl"), {**PROMPT, **SIZE}, _LATENT),
    "sdxl-img2img": Case(
        _again("sdxl", "StableDiffusionXLImg2ImgPipeline"), {**PROMPT, "image": picture(), "strength": 0.7}, _LATENT,
        False,
    ),
    "pixart-sigma": Case(lambda: build("pixart-sigma"), _PIXART, _LATENT),
    "sd3": Case(lambda: build("sd3"), {**PROMPT, **SIZE}, _LATENT),
    "sd3-img2img": Case(
        _again("sd3", "StableDiffusion3Img2ImgPipeline"), {**PROMPT, **SIZE, "image": picture(), "strength": 0.7},
        _LATENT, False,
    ),
    "flux-dev": Case(lambda: build("flux-dev"), {**PROMPT, **SIZE}, (16, 16)),
    "sana": Case(lambda: build("sana"), _SANA, (4, 16, 16)),
    "kandinsky": Case(
        _kandinsky, {"image_embeds": torch.ones(1, EMBED), "negative_image_embeds": torch.zeros(1, EMBED), **SIZE},
        _LATENT,
    ),
    "wuerstchen-prior": Case(_wuerstchen_prior, {**PROMPT, "height": 128, "width": 128}, (2, 3, 3)),
    "wuerstchen": Case(
        _wuerstchen, {**PROMPT, "image_embeddings": torch.ones(1, 4, 4, 4), "guidance_scale": 2.0}, (4, 16, 16)
    ),
    "audioldm2": Case(
        _audioldm2, {**PROMPT, "transcription": "a red fox", "audio_length_in_s": 0.004, "max_new_tokens": 2}, (4, 8, 4)
    ),
    "stable-audio": Case(_stable_audio, {**PROMPT, "audio_end_in_s": 1.0}, (3, 4)),
    "animatediff": Case(_animatediff, {**PROMPT, **SIZE, "num_frames": 2}, (4, 2, 8, 8)),
    "cogvideox": Case(_cogvideox, {**PROMPT, **SIZE, "num_frames": 9, "max_sequence_length": 8}, (3, 4, 2, 2)),
    "wan": Case(_wan, {**PROMPT, **SIZE, "num_frames": 5}, (16, 2, 2, 2)),
}  # fmt: skip


def output(pipe: Any, case: Case, **more: Any) -> torch.Tensor:
    """What the pipeline makes, of any kind, as one array."""
    steps = {} if "num_inference_steps" in more else {"num_inference_steps": 4}
    given = {**case.call, **steps, "output_type": "np", **more}
    made = pipe(**given)
    return torch.as_tensor(np.asarray(next(iter(made.values()))))


#: Cases that a target is followed in.
COMPRESSED = (
    *("ddpm", "edm", "ldm", "dit", "sd", "sd-inpaint", "sd-controlnet", "sdxl", "pixart-sigma", "sd3", "flux-dev"),
    *("sana", "wuerstchen-prior", "audioldm2", "stable-audio"),
)


def table() -> str:
    """The table of docs/models.md."""
    rows = ["| Class | x_T | Tested |", "| --- | --- | --- |"]
    for name, case in CASES.items():
        pipe = case.build()
        start = "`latents=`" if case.latents else "the pipeline's own"
        what = "generation, compression" if name in COMPRESSED else "generation"
        rows.append(f"| `{type(pipe).__name__}` ({name}) | {start} | {what} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())

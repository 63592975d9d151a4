"""Tiny, randomly initialised pipelines of diffusers' real classes, for tests without a network."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

WORDS = ["a", "red", "fox", "cat", "in", "the", "snow", "blurry", "photo"]
EMBED = 16


def clip_tokenizer() -> Any:
    """A CLIPTokenizer whose vocabulary is WORDS, made on the spot."""
    from transformers import CLIPTokenizer

    vocabulary = [w + "</w>" for w in WORDS] + sorted({c for w in WORDS for c in w} | {"z"})
    vocabulary += [c + "</w>" for c in sorted({c for w in WORDS for c in w} | {"z"})]
    # A chain of merges for every word: f o x</w> -> fo x</w> -> fox</w>.
    merges = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
            parts = [parts[0] + parts[1], *parts[2:]]
            if parts[0] not in vocabulary:
                vocabulary.append(parts[0])
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=8, pad_token="<|endoftext|>")


def fast_tokenizer() -> Any:
    """A word-level tokenizer with padding, in the place of T5's and Gemma's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    raw = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=8
    )


def clip_text(projection: bool = False, size: int = EMBED) -> Any:
    """CLIP's text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    vocabulary = len(clip_tokenizer())
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=size, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8, projection_dim=size, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5_text(size: int = EMBED) -> Any:
    """T5's encoder."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=32, d_model=size, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config).eval()


def unet2d(channels: int = 3, out: int | None = None, **more: Any) -> Any:
    """An unconditional U-Net of two levels."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=16, in_channels=channels, out_channels=out or channels, block_out_channels=(16, 16),
        layers_per_block=1, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=8, **more,
    )  # fmt: skip


def unet_text(cross: int = EMBED, **more: Any) -> Any:
    """A text-conditional U-Net of two levels over four latent channels."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross, attention_head_dim=8, norm_num_groups=8, **more,
    )  # fmt: skip


def vae(channels: int = 4, **more: Any) -> Any:
    """An AutoencoderKL that halves the size."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, norm_num_groups=4, sample_size=32, **more,
    )  # fmt: skip


def _ddpm() -> Any:
    from diffusers import DDPMPipeline, DDPMScheduler

    return DDPMPipeline(unet2d(), DDPMScheduler())


def _ddim() -> Any:
    from diffusers import DDIMPipeline, DDIMScheduler

    return DDIMPipeline(unet2d(out=6), DDIMScheduler(beta_schedule="squaredcos_cap_v2", thresholding=True))


def _edm() -> Any:
    from diffusers import DDPMPipeline, DDPMScheduler, EDMEulerScheduler

    pipe = DDPMPipeline(unet2d(), DDPMScheduler())
    pipe.register_modules(scheduler=EDMEulerScheduler(num_train_timesteps=100))
    return pipe


def _consistency() -> Any:
    from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline

    return ConsistencyModelPipeline(unet2d(num_class_embeds=5), CMStochasticIterativeScheduler())


def _ldm() -> Any:
    from diffusers import DDIMScheduler, LDMPipeline, VQModel

    vq = VQModel(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=3, num_vq_embeddings=32, sample_size=32,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, clip_sample=False)
    return LDMPipeline(vq, unet2d(), scheduler)


def _dit() -> Any:
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=1000, activation_fn="gelu-approximate", norm_type="ada_norm_zero",
        norm_elementwise_affine=False, attention_bias=True,
    )  # fmt: skip
    return DiTPipeline(transformer, vae(), DDIMScheduler(clip_sample=False))


def _sd(prediction: str = "epsilon") -> Any:
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    scheduler = PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction, steps_offset=1,
        skip_prk_steps=True,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=unet_text(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _lcm() -> Any:
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    return LatentConsistencyModelPipeline(
        vae=vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=unet_text(time_cond_proj_dim=8),
        scheduler=LCMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sdxl() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    unet = unet_text(
        cross=2 * EMBED, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + EMBED, use_linear_projection=True,
        transformer_layers_per_block=(1, 1),
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip_text(), text_encoder_2=clip_text(projection=True), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    )  # fmt: skip


def _pixart(sigma: bool = True) -> Any:
    from diffusers import (
        DPMSolverMultistepScheduler,
        PixArtAlphaPipeline,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
    )

    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8 if sigma else 128, patch_size=2, cross_attention_dim=24, caption_channels=EMBED,
    )  # fmt: skip
    cls = PixArtSigmaPipeline if sigma else PixArtAlphaPipeline
    return cls(fast_tokenizer(), t5_text(), vae(), transformer, DPMSolverMultistepScheduler())


def _sd3() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=2 * EMBED, caption_projection_dim=16, pooled_projection_dim=2 * EMBED, out_channels=4,
        pos_embed_max_size=16,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text(projection=True), tokenizer=clip_tokenizer(), text_encoder_2=clip_text(projection=True),
        tokenizer_2=clip_tokenizer(), text_encoder_3=t5_text(2 * EMBED), tokenizer_3=fast_tokenizer(),
    )  # fmt: skip


def _flux(guidance: bool = True) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=EMBED, pooled_projection_dim=EMBED, guidance_embeds=guidance, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guidance), vae=vae(shift_factor=0.1),
        text_encoder=clip_text(), tokenizer=clip_tokenizer(), text_encoder_2=t5_text(), tokenizer_2=fast_tokenizer(),
        transformer=transformer,
    )  # fmt: skip


def _sana() -> Any:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    text = Gemma2Model(
        Gemma2Config(
            vocab_size=32,
            hidden_size=EMBED,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    ).eval()
    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=EMBED,
        patch_size=1, sample_size=8, mlp_ratio=2.0,
    )  # fmt: skip
    dc = AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41,
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    return SanaPipeline(fast_tokenizer(), text, dc, transformer, scheduler)


#: Name -> how to build it.
PIPELINES: dict[str, Callable[[], Any]] = {
    "ddpm": _ddpm,
    "ddim": _ddim,
    "edm": _edm,
    "consistency": _consistency,
    "ldm": _ldm,
    "dit": _dit,
    "sd": _sd,
    "sd-v": lambda: _sd("v_prediction"),
    "lcm": _lcm,
    "sdxl": _sdxl,
    "pixart-sigma": _pixart,
    "pixart-alpha": lambda: _pixart(sigma=False),
    "sd3": _sd3,
    "flux-dev": _flux,
    "flux-schnell": lambda: _flux(guidance=False),
    "sana": _sana,
}


def build(name: str, seed: int = 0) -> Any:
    """One of PIPELINES with weights from a seed. Zero-initialised layers get weights, so that outputs matter."""
    torch.manual_seed(seed)
    pipe = PIPELINES[name]()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            for parameter in part.parameters():
                if parameter.dim() > 1 and not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.05)
            part.requires_grad_(False).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe

"""Rectified flow transformers: Stable Diffusion 3, Flux, Sana. The state keeps its plain (C, H, W) form throughout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from ddcm_fast.errors import ConfigError
from ddcm_fast.models.levels import FlowLevels, is_flow, levels_of
from ddcm_fast.models.network import Inputs
from ddcm_fast.models.text import TextModel, texts
from ddcm_fast.sampling.condition import Condition


def _dynamic_shift(scheduler: Any, tokens: int) -> float | None:
    """mu of schedulers whose shift grows with the number of tokens, at the model's own size (as in the pipelines).

    One grid of timesteps must serve all sizes here, since it only says where the network may be evaluated.
    """
    c = scheduler.config
    if not c.get("use_dynamic_shifting"):
        return None
    low, high = c.get("base_image_seq_len", 256), c.get("max_image_seq_len", 4096)
    first, last = c.get("base_shift", 0.5), c.get("max_shift", 1.15)
    return float(first + (last - first) * (tokens - low) / (high - low))


class StableDiffusion3Model(TextModel):
    """Stable Diffusion 3 and 3.5 (StableDiffusion3Pipeline; Esser et al. 2024)."""

    default_guidance = 7.0

    @classmethod
    def from_pipeline(cls, pipe: Any, name: str, compiled: bool = False) -> StableDiffusion3Model:
        """Wrap a pipeline."""
        network = pipe.transformer
        patch = int(network.config.patch_size)
        mu = _dynamic_shift(pipe.scheduler, (int(network.config.sample_size) // patch) ** 2)
        return cls(pipe, network, FlowLevels(pipe.scheduler, mu=mu), name, patch, compiled)

    def check_size(self, height: int, width: int) -> None:
        """The table of positions ends somewhere."""
        super().check_size(height, width)
        most = int(self.network.config.pos_embed_max_size) * self.multiple
        if max(height, width) > most:
            raise ConfigError(f"model {self.name!r} takes sides up to {most} pixels; use tiles for {width}x{height}")

    def prepare(self, condition: Condition | None, guided: bool, shape: torch.Size) -> Inputs:
        prompt, negative = texts(condition)
        with_, without, pooled, no_pooled = self._pipe.encode_prompt(
            prompt=prompt,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=guided,
            negative_prompt=negative,
        )
        return {
            "encoder_hidden_states": self._rows(guided, without, with_),
            "pooled_projections": self._rows(guided, no_pooled, pooled),
        }

    def call(self, sample: Tensor, time: Tensor, inputs: Inputs) -> Tensor:
        return self._run(hidden_states=sample, timestep=time, **inputs, return_dict=False)[0]


class FluxModel(TextModel):
    """Flux.1 (FluxPipeline; Black Forest Labs 2024): packed latents, positions, an embedded guidance scale.

    Guidance-distilled models (dev) take the scale as a number and no negative prompt; others (schnell) are guided
    classifier-free where a scale other than 1 is asked for.
    """

    @classmethod
    def from_pipeline(cls, pipe: Any, name: str, compiled: bool = False) -> FluxModel:
        """Wrap a pipeline."""
        network = pipe.transformer
        mu = _dynamic_shift(pipe.scheduler, (int(pipe.default_sample_size) // 2) ** 2)
        levels = FlowLevels(pipe.scheduler, time_scale=1e-3, mu=mu)
        model = cls(pipe, network, levels, name, 2, compiled)
        model.default_side = int(pipe.default_sample_size) * model.autoencoder.factor
        if model._embeds_guidance:
            model.default_guidance = 3.5
        return model

    @property
    def _embeds_guidance(self) -> bool:
        return bool(self.network.config.guidance_embeds)

    def complete_condition(self, condition: Condition | None) -> Condition | None:
        condition = super().complete_condition(condition)
        if condition is not None and condition.negative_prompt and self._embeds_guidance:
            raise ConfigError(f"model {self.name!r} has its guidance distilled: it takes no negative prompt")
        return condition

    def guidance(self, condition: Condition | None) -> float | None:
        return None if self._embeds_guidance else super().guidance(condition)

    def prepare(self, condition: Condition | None, guided: bool, shape: torch.Size) -> Inputs:
        """Positions have no batch: they go in tuples, which are handed on as they are."""
        prompt, negative = texts(condition)
        with_, pooled, text_ids = self._pipe.encode_prompt(prompt=prompt, prompt_2=None, device=self.device)
        without, no_pooled = None, None
        if guided:
            without, no_pooled, _ = self._pipe.encode_prompt(prompt=negative or "", prompt_2=None, device=self.device)
        rows, columns = shape[-2] // 2, shape[-1] // 2
        ids = torch.zeros(rows, columns, 3, dtype=torch.float32, device="cpu")
        ids[..., 1] += torch.arange(rows, dtype=torch.int64, device="cpu")[:, None]
        ids[..., 2] += torch.arange(columns, dtype=torch.int64, device="cpu")[None, :]
        inputs: Inputs = {
            "encoder_hidden_states": self._rows(guided, without, with_),
            "pooled_projections": self._rows(guided, no_pooled, pooled),
            "txt_ids": (text_ids.to(self.device, self.dtype),),
            "img_ids": (ids.reshape(-1, 3).to(self.device, self.dtype),),
        }
        if self._embeds_guidance:
            scale = 1.0 if condition is None or condition.guidance_scale is None else condition.guidance_scale
            inputs["guidance"] = torch.tensor([scale], device=self.device, dtype=torch.float32)
        return inputs

    def call(self, sample: Tensor, time: Tensor, inputs: Inputs) -> Tensor:
        """Packing is a space-to-depth of 2, one token a 2x2 block."""
        height, width = sample.shape[-2] // 2, sample.shape[-1] // 2
        tokens = pixel_unshuffle(sample, 2).flatten(2).transpose(1, 2).contiguous()
        rest = {k: v[0] if isinstance(v, tuple) else v for k, v in inputs.items()}
        out = self._run(hidden_states=tokens, timestep=time.to(sample.dtype), **rest, return_dict=False)[0]
        return pixel_shuffle(out.transpose(1, 2).unflatten(2, (height, width)), 2)


class SanaModel(TextModel):
    """Sana (SanaPipeline; Xie et al. 2024): a linear transformer over a deep compression autoencoder's latents.

    Prompts are taken as they are, without the long instruction that the pipeline puts before them by default.
    """

    default_guidance = 4.5

    @classmethod
    def from_pipeline(cls, pipe: Any, name: str, compiled: bool = False) -> SanaModel:
        """Wrap a pipeline."""
        network = pipe.transformer
        levels = levels_of(pipe.scheduler)
        if is_flow(pipe.scheduler):
            levels = FlowLevels(pipe.scheduler, time_scale=float(network.config.get("timestep_scale", 1.0)))
        return cls(pipe, network, levels, name, int(network.config.patch_size), compiled)

    def prepare(self, condition: Condition | None, guided: bool, shape: torch.Size) -> Inputs:
        prompt, negative = texts(condition)
        with_, mask, without, no_mask = self._pipe.encode_prompt(
            prompt, guided, negative_prompt=negative or "", device=self.device
        )
        return {
            "encoder_hidden_states": self._rows(guided, without, with_),
            "encoder_attention_mask": self._rows(guided, no_mask, mask),
        }

    def call(self, sample: Tensor, time: Tensor, inputs: Inputs) -> Tensor:
        return self._run(sample, timestep=time, **inputs, return_dict=False)[0]

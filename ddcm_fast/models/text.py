"""Text-to-image latent diffusion: Stable Diffusion 1 and 2, SDXL, latent consistency models, PixArt.

The pipelines' own `encode_prompt` makes the embeddings, once a prompt. Without a condition the empty prompt is used,
without guidance, as DDCM does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddcm_fast.models.latent import LatentModel, unet_patch
from ddcm_fast.models.lent import Part, uncompiled
from ddcm_fast.models.levels import Levels, levels_of
from ddcm_fast.models.network import Inputs
from ddcm_fast.sampling.condition import Condition

_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


class TextModel(LatentModel):
    """A latent model with a prompt.

    Args:
        pipe: the pipeline, for `encode_prompt`. network, levels, name, patch, compiled: see LatentModel.
    """

    def __init__(self, pipe: Any, network: Any, levels: Levels, name: str, patch: int, compiled: bool = False) -> None:
        super().__init__(network, pipe.vae, levels, name, patch, compiled)
        self._pipe = pipe

    def parts(self) -> list[Part]:
        """Transformers renames the text encoders' weights now and then: names say nothing."""
        encoders = (getattr(self._pipe, name, None) for name in _ENCODERS)
        return [*super().parts(), *(Part(None, uncompiled(each)) for each in encoders if each is not None)]

    def complete_condition(self, condition: Condition | None) -> Condition | None:
        return self._complete_prompt(condition)

    def _rows(self, guided: bool, without: Tensor | None, with_: Tensor) -> Tensor:
        """The rows of a conditioning tensor: (2 or 1, ...) on the device; floats in the network's dtype."""
        rows = torch.cat((without, with_)) if guided and without is not None else with_
        return rows.to(self.device, self.dtype if rows.dtype.is_floating_point else rows.dtype)

    def _pixels(self, shape: torch.Size) -> tuple[int, int]:
        return shape[-2] * self.autoencoder.factor, shape[-1] * self.autoencoder.factor


def texts(condition: Condition | None) -> tuple[str, str | None]:
    """Prompt, negative prompt."""
    return ("", None) if condition is None else (condition.prompt or "", condition.negative_prompt)


class StableDiffusionModel(TextModel):
    """Stable Diffusion 1.x and 2.x (StableDiffusionPipeline) and latent consistency models on it.

    A U-Net with a guidance embedding (LatentConsistencyModelPipeline) is told the guidance scale instead of being
    evaluated twice.
    """

    default_guidance = 7.5

    @classmethod
    def from_pipeline(cls, pipe: Any, name: str, compiled: bool = False) -> StableDiffusionModel:
        """Wrap a pipeline."""
        return cls(pipe, pipe.unet, levels_of(pipe.scheduler), name, unet_patch(pipe.unet), compiled)

    @property
    def _embeds_guidance(self) -> bool:
        return self.network.config.get("time_cond_proj_dim") is not None

    def guidance(self, condition: Condition | None) -> float | None:
        return None if self._embeds_guidance else super().guidance(condition)

    def prepare(self, condition: Condition | None, guided: bool, shape: torch.Size) -> Inputs:
        prompt, negative = texts(condition)
        with_, without = self._pipe.encode_prompt(prompt, self.device, 1, guided, negative)[:2]
        inputs: Inputs = {"encoder_hidden_states": self._rows(guided, without, with_)}
        return {**inputs, **self._guidance_embedding(condition)}

    def _guidance_embedding(self, condition: Condition | None) -> Inputs:
        if not self._embeds_guidance:
            return {}
        scale = 1.0 if condition is None or condition.guidance_scale is None else condition.guidance_scale
        size = self.network.config.time_cond_proj_dim
        w = torch.tensor([scale - 1.0], dtype=torch.float32, device="cpu")
        row = self._pipe.get_guidance_scale_embedding(w, embedding_dim=size)
        return {"timestep_cond": row.to(self.device, self.dtype)}

    def call(self, sample: Tensor, time: Tensor, inputs: Inputs) -> Tensor:
        return self._run(sample, time, **inputs, return_dict=False)[0]


class StableDiffusionXLModel(StableDiffusionModel):
    """SDXL (StableDiffusionXLPipeline): two text encoders, a pooled embedding and the image's size as conditions."""

    default_guidance = 5.0

    def prepare(self, condition: Condition | None, guided: bool, shape: torch.Size) -> Inputs:
        """Without a condition: the pipeline's unconditional embedding (zeros)."""
        prompt, negative = texts(condition)
        with_, without, pooled, no_pooled = self._encode(prompt, negative)
        if not prompt:
            # What guidance pushes away from by default is what the network was trained on without a prompt.
            _, with_, _, pooled = self._encode("", None)
        height, width = self._pixels(shape)
        rows = [[height, width, 0, 0, height, width]] * (2 if guided else 1)
        times = torch.tensor(rows, dtype=torch.int64, device="cpu")
        return {
            "encoder_hidden_states": self._rows(guided, without, with_),
            "text_embeds": self._rows(guided, no_pooled, pooled),
            "time_ids": times.to(self.device, self.dtype),
            **self._guidance_embedding(condition),
        }

    def _encode(self, prompt: str, negative: str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self._pipe.encode_prompt(
            prompt=prompt, device=self.device, do_classifier_free_guidance=True, negative_prompt=negative
        )

    def call(self, sample: Tensor, time: Tensor, inputs: Inputs) -> Tensor:
        added = {k: inputs[k] for k in ("text_embeds", "time_ids")}
        rest = {k: v for k, v in inputs.items() if k not in added}
        return self._run(sample, time, **rest, added_cond_kwargs=added, return_dict=False)[0]


class PixArtModel(TextModel):
    """PixArt-alpha and PixArt-Sigma (Chen et al. 2023, 2024): a transformer with T5 embeddings and their mask."""

    default_guidance = 4.5

    @classmethod
    def from_pipeline(cls, pipe: Any, name: str, compiled: bool = False) -> PixArtModel:
        """Wrap a pipeline."""
        network = pipe.transformer
        return cls(pipe, network, levels_of(pipe.scheduler), name, int(network.config.patch_size), compiled)

    def prepare(self, condition: Condition | None, guided: bool, shape: torch.Size) -> Inputs:
        prompt, negative = texts(condition)
        with_, mask, without, no_mask = self._pipe.encode_prompt(
            prompt, guided, negative_prompt=negative or "", device=self.device
        )
        inputs: Inputs = {
            "encoder_hidden_states": self._rows(guided, without, with_),
            "encoder_attention_mask": self._rows(guided, no_mask, mask),
        }
        if getattr(self.network, "use_additional_conditions", False):  # the 1024 pixel PixArt-alpha
            height, width = self._pixels(shape)
            rows = 2 if guided else 1
            inputs["resolution"] = torch.tensor([[height, width]] * rows, dtype=self.dtype, device=self.device)
            inputs["aspect_ratio"] = torch.tensor([[height / width]] * rows, dtype=self.dtype, device=self.device)
        return inputs

    def call(self, sample: Tensor, time: Tensor, inputs: Inputs) -> Tensor:
        added = {k: inputs.get(k) for k in ("resolution", "aspect_ratio")}
        rest = {k: v for k, v in inputs.items() if k not in added}
        out = self._run(sample, timestep=time, **rest, added_cond_kwargs=added, return_dict=False)
        return out[0]

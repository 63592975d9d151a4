"""OpenAI's guided-diffusion models (Dhariwal & Nichol 2021): their published checkpoints load as they are.

PRESETS holds the published configurations, by file name; DifFace's FFHQ-512 model and the FFHQ-256 model known from
DPS belong to the same family.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddcm_fast.errors import ModelError, first_line, out_of_memory
from ddcm_fast.models.guided_diffusion_network import GuidedClassifier, GuidedUNet, Preset
from ddcm_fast.models.levels import levels_of
from ddcm_fast.models.names import short_name
from ddcm_fast.models.network import Inputs, NetworkModel
from ddcm_fast.models.trust import check_pickle
from ddcm_fast.sampling.condition import Condition
from ddcm_fast.sampling.model import DiffusionModel

CLASSES = 1000  # of ImageNet

_MULT = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}


def _classifier(size: int, blocks: int = 2) -> Preset:
    return Preset(size, 128, _MULT[size], blocks, outputs=CLASSES, classifier=True)


#: Checkpoint file names (without the ending) and their configurations, from the README files of openai/guided-diffusion
#: and zsyOAOA/DifFace.
PRESETS = {
    "64x64_diffusion": Preset(64, 192, _MULT[64], 3, classes=CLASSES, cosine=True, qkv_first=True),
    "128x128_diffusion": Preset(128, 256, _MULT[128], heads=4, classes=CLASSES),
    "256x256_diffusion": Preset(256, 256, _MULT[256], classes=CLASSES),
    "256x256_diffusion_uncond": Preset(256, 256, _MULT[256]),
    "512x512_diffusion": Preset(512, 256, _MULT[512], classes=CLASSES),
    "lsun_bedroom": Preset(256, 256, _MULT[256]),
    "lsun_cat": Preset(256, 256, _MULT[256]),
    "lsun_horse": Preset(256, 256, _MULT[256]),
    "ffhq_10m": Preset(256, 128, _MULT[256], 1, (16,)),
    "iddpm_ffhq512": Preset(512, 32, (1, 2, 4, 8, 8, 16, 16), (1, 2, 2, 2, 2, 3, 4), resample=False),
    "64x64_classifier": _classifier(64, 4),
    "128x128_classifier": _classifier(128),
    "256x256_classifier": _classifier(256),
    "512x512_classifier": _classifier(512),
}


def for_guidance(classifier: GuidedClassifier, model: DiffusionModel) -> Callable[[Tensor, float, float], Tensor]:
    """A classifier as ddcm_fast.tasks.guidance wants it: (state, alpha, sigma) -> logits, differentiable in the state.

    The timestep is the model's with the nearest log ratio of alpha and sigma.
    """
    times = sorted(model.training_timesteps())
    ratios = [math.log(sigma / alpha) for alpha, sigma in map(model.alpha_sigma, times)]

    def classify(x: Tensor, alpha: float, sigma: float) -> Tensor:
        wanted = math.log(sigma / alpha)
        i = min(bisect_left(ratios, wanted), len(ratios) - 1)
        if i and wanted - ratios[i - 1] < ratios[i] - wanted:
            i -= 1
        return classifier(x, torch.full((len(x),), times[i], device=x.device, dtype=torch.float32))

    return classify


class GuidedDiffusionModel(NetworkModel):
    """A guided-diffusion denoiser as a DiffusionModel; x0_hat is clipped to [-1, 1], as in OpenAI's sampler."""

    def __init__(self, network: GuidedUNet, name: str, compiled: bool = False) -> None:
        diffusers: Any = import_module("diffusers")
        self.preset = network.preset
        betas = "squaredcos_cap_v2" if self.preset.cosine else "linear"
        scheduler = diffusers.DDPMScheduler(beta_schedule=betas, clip_sample=True)
        super().__init__(network, levels_of(scheduler), name, compiled)
        self.multiple = 2 ** (len(self.preset.mult) - 1)
        self.classes, self.default_side = self.preset.classes, self.preset.size

    def description(self) -> dict[str, Any]:
        return {**self.levels.describe(), **asdict(self.preset)}

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        return (3, height, width)

    def encode(self, image: Tensor) -> Tensor:
        return image.to(self.device, torch.float32)

    def decode(self, x0: Tensor) -> Tensor:
        return x0.clamp(-1, 1)

    def complete_condition(self, condition: Condition | None) -> Condition | None:
        """Conditional networks need a label, and have none that says "none"."""
        if not self.classes:
            return super().complete_condition(condition)
        return self._complete_label(condition, None)

    def prepare(self, condition: Condition | None, guided: bool, shape: torch.Size) -> Inputs:
        if not self.classes:
            return {}
        labels = self._label_rows(condition, None, guided)
        return {"label": torch.tensor(labels, device=self.device, dtype=torch.int64)}

    def call(self, sample: Tensor, time: Tensor, inputs: Inputs) -> Tensor:
        return self._run(sample, time, **inputs)


def preset_of(path: Path, preset: str | Preset | None = None) -> Preset:
    """The configuration asked for, or the one whose name the file's name begins with (the longest).

    Raises ModelError: there is none.
    """
    if isinstance(preset, Preset):
        return preset
    names = [n for n in PRESETS if preset == n] if preset else [n for n in PRESETS if path.stem.startswith(n)]
    if not names:
        what = f"no preset {preset!r}" if preset else f"{path.name!r} is not the name of a published checkpoint"
        raise ModelError(f"{what}; give preset= one of {', '.join(PRESETS)}")
    return PRESETS[max(names, key=len)]


def _load_into(
    kind: type[Any], path: Path, preset: Preset, device: torch.device, dtype: torch.dtype, trust: bool
) -> Any:
    check_pickle(path, trust)
    with torch.device("meta"):
        network = kind(preset)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        # DistributedDataParallel's prefix, as in DifFace's checkpoints.
        network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()}, assign=True)
    except FileNotFoundError as error:
        raise ModelError(f"no such file: {path}") from error
    except Exception as error:  # torch.load raises whatever the pickle machinery does
        if out_of_memory(error):
            raise
        raise ModelError(
            f"{path} does not hold the weights of this configuration, try another preset=: {first_line(error)}"
        ) from error
    return network.to(device, dtype).eval().requires_grad_(False)


def load(
    path: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    preset: str | Preset | None = None,
    compile: bool = False,
    trust: bool = False,
) -> GuidedDiffusionModel:
    """A denoiser from an original .pt state dict; the preset is found from the file's name unless given.

    Such a file is a pickle, whose reading torch restricts to tensors (weights_only) and which is loaded only with
    `trust`.

    Raises ModelError: unknown preset, weights of another configuration, or no `trust`.
    """
    path = Path(path)
    config = preset_of(path, preset)
    if config.classifier:
        raise ModelError(f"{path.name!r} is a classifier; load it with guided_diffusion.load_classifier")
    network = _load_into(GuidedUNet, path, config, torch.device(device), dtype, trust)
    return GuidedDiffusionModel(network, short_name(str(path)), compile)


def load_classifier(
    path: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    preset: str | Preset | None = None,
    trust: bool = False,
) -> GuidedClassifier:
    """A noisy classifier from an original .pt state dict (see load), for classifier guidance: (x_t, time) -> logits.

    Raises ModelError: unknown preset, weights of another configuration, or no `trust`.
    """
    path = Path(path)
    config = preset_of(path, preset)
    if not config.classifier:
        raise ModelError(f"{path.name!r} is a denoiser; load it with load_model")
    return _load_into(GuidedClassifier, path, config, torch.device(device), dtype, trust)

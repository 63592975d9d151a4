"""OpenAI's guided-diffusion networks (Dhariwal & Nichol 2021), so that their published checkpoints load as they are.

diffusers' UNet2DModel cannot hold them (another order of q, k and v, scale-shift normalisation, up and down sampling
inside residual blocks, another count of blocks a level), so this is a compact network with the checkpoints' own names
of weights. PRESETS holds the published configurations, by file name; DifFace's FFHQ-512 model and the FFHQ-256 model
known from DPS belong to the same family.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddcm_fast.errors import ModelError, out_of_memory
from ddcm_fast.models.levels import levels_of
from ddcm_fast.models.names import short_name
from ddcm_fast.models.network import Inputs, NetworkModel
from ddcm_fast.models.trust import check_pickle
from ddcm_fast.sampling.condition import Condition
from ddcm_fast.sampling.model import DiffusionModel

CLASSES = 1000  # of ImageNet
_GROUPS = 32


@dataclass(frozen=True)
class Preset:
    """A published configuration.

    Attributes:
        size: of the images it was trained on.
        width: channels of the first level; mult: of each level, as multiples. blocks: residual blocks a level.
        attention: resolutions with attention. heads or head_width: attention heads, or channels a head.
        outputs: 6 with a learned variance. classes: of labels (0: unconditional).
        cosine: the cosine schedule, else linear betas.
        resample: up and down sampling in residual blocks, else by plain convolutions.
        qkv_first: the "new attention order": q, k, v are split before heads, else heads before q, k, v.
        classifier: the encoder half with attention pooling, for classifier guidance.
    """

    size: int
    width: int
    mult: tuple[float, ...]
    blocks: int | tuple[int, ...] = 2
    attention: tuple[int, ...] = (32, 16, 8)
    heads: int | None = None
    head_width: int = 64
    outputs: int = 6
    classes: int = 0
    cosine: bool = False
    resample: bool = True
    qkv_first: bool = False
    classifier: bool = False


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


class _Norm(nn.GroupNorm):
    """Group normalisation in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__(_GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
        return y.to(x.dtype)


class _Resample(nn.Module):
    """Nearest upsampling or mean downsampling by two, without weights, inside residual blocks."""

    def __init__(self, up: bool) -> None:
        super().__init__()
        self._up = up

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self._up else F.avg_pool2d(x, 2)


class _Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class _Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Residual(nn.Module):
    """GroupNorm, SiLU, convolution, twice; the embedding scales and shifts the second normalisation."""

    def __init__(self, before: int, embedding: int, after: int, resample: nn.Module | None = None) -> None:
        super().__init__()
        self._resample = resample
        self.in_layers = nn.Sequential(_Norm(before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * after))
        self.out_layers = nn.Sequential(
            _Norm(after), nn.SiLU(), nn.Identity(), nn.Conv2d(after, after, 3, padding=1)
        )  # the identity keeps the place of the dropout
        self.skip_connection = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, act, conv = self.in_layers
        h = act(norm(x))
        if self._resample is not None:
            h, x = self._resample(h), self._resample(x)
        h = conv(h)
        scale, shift = self.emb_layers(embedding)[..., None, None].chunk(2, dim=1)
        norm, act, _, conv = self.out_layers
        h = conv(act(norm(h) * (1 + scale) + shift))
        return self.skip_connection(x) + h


def _attend(qkv: Tensor, heads: int, qkv_first: bool) -> Tensor:
    """(B, 3 C, N) -> (B, C, N), attention over N positions."""
    b, width, n = qkv.shape
    c = width // (3 * heads)
    if qkv_first:
        q, k, v = qkv.view(b, 3, heads, c, n).unbind(1)
    else:
        q, k, v = qkv.view(b, heads, 3, c, n).unbind(2)
    out = F.scaled_dot_product_attention(q.transpose(2, 3), k.transpose(2, 3), v.transpose(2, 3))
    return out.transpose(2, 3).reshape(b, heads * c, n)


class _Attention(nn.Module):
    def __init__(self, channels: int, preset: Preset) -> None:
        super().__init__()
        self._heads = preset.heads or channels // preset.head_width
        self._qkv_first = preset.qkv_first
        self.norm = _Norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = _attend(self.qkv(self.norm(x).flatten(2)), self._heads, self._qkv_first)
        h = self.proj_out(h).view(x.shape)
        return x + h


class _AttentionPool(nn.Module):
    """CLIP's pooling: attention with the mean as one more position, whose output is read."""

    def __init__(self, side: int, channels: int, head_width: int, outputs: int) -> None:
        super().__init__()
        self._heads = channels // head_width
        self.positional_embedding = nn.Parameter(torch.zeros(channels, side**2 + 1, dtype=torch.float32, device="cpu"))
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        x = torch.cat((x.mean(dim=2, keepdim=True), x), dim=2) + self.positional_embedding
        return self.c_proj(_attend(self.qkv_proj(x), self._heads, qkv_first=True))[:, :, 0]


class _Layers(nn.Sequential):
    """Layers of which the residual blocks are given the embedding."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, _Residual) else layer(x)
        return x


class _Encoder(nn.Module):
    """Time embedding, input blocks and middle block, shared by denoiser and classifier."""

    def __init__(self, preset: Preset, channels: int) -> None:
        super().__init__()
        self.preset = preset
        width, embedding = preset.width, 4 * preset.width
        self.time_embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        now = int(preset.mult[0] * width)
        self.skips = [now]
        self.input_blocks = nn.ModuleList([_Layers(nn.Conv2d(channels, now, 3, padding=1))])
        for level, (side, wide, blocks) in enumerate(self.levels()):
            for _ in range(blocks):
                layers: list[nn.Module] = [_Residual(now, embedding, wide)]
                now = wide
                if side in preset.attention:
                    layers.append(_Attention(now, preset))
                self.input_blocks.append(_Layers(*layers))
                self.skips.append(now)
            if level < len(preset.mult) - 1:
                down = _Residual(now, embedding, now, _Resample(up=False)) if preset.resample else _Down(now)
                self.input_blocks.append(_Layers(down))
                self.skips.append(now)
        self.middle_block = _Layers(
            _Residual(now, embedding, now), _Attention(now, preset), _Residual(now, embedding, now)
        )
        self.width = now

    def levels(self) -> list[tuple[int, int, int]]:
        """Side at the training size, channels and residual blocks of each level."""
        p = self.preset
        blocks = (p.blocks,) * len(p.mult) if isinstance(p.blocks, int) else p.blocks
        return [(p.size >> i, int(m * p.width), n) for i, (m, n) in enumerate(zip(p.mult, blocks, strict=True))]

    def embed(self, time: Tensor) -> Tensor:
        """(B,) -> (B, 4 width): cosines and sines of geometric frequencies, through two layers."""
        half = self.preset.width // 2
        places = torch.arange(half, dtype=torch.float32, device=time.device)
        angles = time.float()[:, None] * torch.exp(-math.log(10000) / half * places)
        return self.time_embed(torch.cat((angles.cos(), angles.sin()), dim=1).to(self.dtype))

    def encode(self, x: Tensor, embedding: Tensor) -> Iterator[Tensor]:
        """The output of every input block, then of the middle block."""
        for block in self.input_blocks:
            x = block(x, embedding)
            yield x
        yield self.middle_block(x, embedding)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return next(self.parameters()).device


class GuidedUNet(_Encoder):
    """The denoiser: x (B, 3, H, W), time (B,), label (B,) or None -> (B, outputs, H, W)."""

    def __init__(self, preset: Preset) -> None:
        super().__init__(preset, 3)
        embedding = 4 * preset.width
        if preset.classes:
            self.label_emb = nn.Embedding(preset.classes, embedding)
        skips, now = list(self.skips), self.width
        self.output_blocks = nn.ModuleList()
        for level, (side, wide, blocks) in reversed(list(enumerate(self.levels()))):
            for i in range(blocks + 1):
                layers: list[nn.Module] = [_Residual(now + skips.pop(), embedding, wide)]
                now = wide
                if side in preset.attention:
                    layers.append(_Attention(now, preset))
                if level and i == blocks:
                    up = _Residual(now, embedding, now, _Resample(up=True)) if preset.resample else _Up(now)
                    layers.append(up)
                self.output_blocks.append(_Layers(*layers))
        self.out = nn.Sequential(_Norm(now), nn.SiLU(), nn.Conv2d(now, preset.outputs, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """The network's raw output: eps and, with 6 outputs, the learned variance."""
        embedding = self.embed(time)
        if label is not None:
            embedding = embedding + self.label_emb(label)
        *kept, h = self.encode(x.to(self.dtype), embedding)
        for block in self.output_blocks:
            h = block(torch.cat((h, kept.pop()), dim=1), embedding)
        return self.out(h)


class GuidedClassifier(_Encoder):
    """The noisy classifier: x_t (B, 3, size, size), time (B,) -> logits (B, 1000)."""

    def __init__(self, preset: Preset) -> None:
        super().__init__(preset, 3)
        side = preset.size >> (len(preset.mult) - 1)
        pool = _AttentionPool(side, self.width, preset.head_width, preset.outputs)
        self.out = nn.Sequential(_Norm(self.width), nn.SiLU(), pool)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Logits of the classes."""
        *_, h = self.encode(x.to(self.dtype), self.embed(time))
        return self.out(h).float()


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
        first = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(f"{path} does not hold the weights of this configuration: {first}") from error
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

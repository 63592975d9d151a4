"""OpenAI's guided-diffusion networks (Dhariwal & Nichol 2021) under their checkpoints' own names of weights.

diffusers' UNet2DModel cannot hold them: another order of q, k and v, scale-shift normalisation, up and down sampling
inside residual blocks, another count of blocks a level.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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

"""The photo model to be trained: settings, noise schedule, network and evaluation.

It is an unconditional pixel-space denoiser of natural images. An image in [-1, 1] goes through an
orthonormal space-to-depth (``pixel_unshuffle`` by 2, say, makes a 3 x H x W image 12 x H/2 x W/2 and
leaves white noise white), and a fully convolutional ``diffusers.UNet2DModel`` predicts epsilon or v
under the DDPM schedule with linear betas. The network's input channels tell the space-to-depth.

Two choices serve the codec. Timesteps are drawn mostly uniformly in log-SNR over the noise levels
a codec spends its bits on: the ideal cost of a coded step is the change of SNR times the squared
error of x0, which is the change of log-SNR times the squared error of epsilon, so the mean loss
under this density is the bits the model wastes. And each sample's loss is weighted by a small
negative power of SNR, so that the nearly clean levels, whose epsilon is mostly unpredictable, do
not drown the gradient of the noisier ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from ddcm_fast import files
from ddcm_fast.errors import first_line
from ddcm_fast.models.loading import default_dtype
from ddcm_fast.models.train.data import to_model
from ddcm_fast.models.train.errors import TrainError

Denoiser = Any
"""A ``diffusers.UNet2DModel``; diffusers' classes are untyped."""

EVAL_TIMESTEPS: tuple[int, ...] = (20, 50, 100, 200, 300, 500, 700, 900)
"""Timesteps of the evaluation table."""

PHOTO_CONFIG: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 12,
    "out_channels": 12,
    "layers_per_block": 2,
    "block_out_channels": [64, 96, 160],
    "down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 16,
    "add_attention": False,
}
"""``UNet2DModel`` arguments of the built-in photo model (6.6 M parameters)."""

DTYPES = ("auto", "bf16", "fp32")
PREDICTIONS = ("epsilon", "v_prediction")
WEIGHTS_NAME, SCHEDULER_NAME = "diffusion_pytorch_model.safetensors", "scheduler_config.json"
BUILT_IN = Path(__file__).resolve().parents[1] / "weights" / "photo"


@dataclasses.dataclass
class TrainConfig:
    """Settings of one training run. A crop of ``c`` pixels is drawn ``batch * (crops[0]/c)**2``
    at a time, so every crop size costs about the same a step. ``batch`` None: `usual_batch`'s."""

    steps: int | None = None
    minutes: float | None = None
    batch: int | None = None
    crops: tuple[int, ...] = (64,)
    lr: float = 6e-4
    final_lr: float = 0.01
    warmup: int = 300
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    dtype: str = "auto"
    prediction: str = "epsilon"
    eager: bool = False
    device: str = "cpu"
    seed: int = 0
    scales: tuple[float, ...] = (0.5, 0.5)
    short_side: int = 288
    holdout: int = 40
    pages: float = 0.0
    page_count: int = 1500
    t_range: tuple[int, int] = (10, 600)
    t_uniform: float = 0.25
    snr_power: float = 0.25
    log_every: int = 50
    save_minutes: float = 5.0
    stop_after: int | None = None


@dataclasses.dataclass
class EvalTable:
    """Mean squared error of epsilon (``mse``) at each timestep (``timesteps``), over ``images``
    images of ``size`` pixels."""

    timesteps: tuple[int, ...]
    mse: tuple[float, ...]
    images: int
    size: int

    def markdown(self) -> str:
        """The table as three lines of Markdown."""
        head = " | ".join(str(t) for t in self.timesteps)
        rule = "|---" * (len(self.timesteps) + 1) + "|"
        body = " | ".join(f"{m:.4f}" for m in self.mse)
        return f"| t | {head} |\n{rule}\n| MSE | {body} |"


def check(config: TrainConfig) -> None:
    """Raises TrainError: settings that no run can have."""
    if config.steps is None and config.minutes is None:
        raise TrainError("give --steps, --minutes or both")
    for name in ("steps", "minutes", "batch", "lr", "save_minutes", "log_every", "stop_after"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise TrainError(f"--{name.replace('_', '-')} must be positive, got {value}")
    if not config.crops or any(c < 16 or c % 16 for c in config.crops):
        raise TrainError(f"crops must be multiples of 16, got {list(config.crops)}")
    if not config.scales or min(config.scales) < 0 or not sum(config.scales) > 0:
        raise TrainError(f"--scales are shares, none negative and not all 0, got {list(config.scales)}")
    if not 0.0 <= config.ema < 1.0:
        raise TrainError(f"--ema must lie in [0, 1), got {config.ema}")
    if config.dtype not in DTYPES:
        raise TrainError(f"--dtype must be one of {', '.join(DTYPES)}, got {config.dtype}")
    if config.prediction not in PREDICTIONS:
        raise TrainError(f"--prediction must be one of {', '.join(PREDICTIONS)}, got {config.prediction}")
    if not 0.0 <= config.pages < 1.0:
        raise TrainError(f"--pages must lie in [0, 1), got {config.pages}")
    if config.page_count < 1:
        raise TrainError(f"--page-count must be at least 1, got {config.page_count}")
    if config.holdout < 1:
        raise TrainError(f"--holdout must be at least 1, got {config.holdout}")


def alphas_cumprod(num_steps: int = 1000, beta_0: float = 1e-4, beta_1: float = 0.02) -> np.ndarray:
    """The DDPM schedule: float64 ``(num_steps,)``, the signal's share of the variance at each t."""
    abar: np.ndarray = np.cumprod(1.0 - np.linspace(beta_0, beta_1, num_steps, dtype=np.float64))
    return abar


def timestep_density(abar: np.ndarray, t_range: tuple[int, int] = (10, 600), uniform: float = 0.25) -> np.ndarray:
    """Probability of drawing each timestep: float64, the shape of ``abar``, summing to 1.

    A share ``uniform`` is spread evenly over all timesteps; the rest is uniform in log-SNR over
    ``t_range`` (both ends included).
    """
    lo, hi = t_range
    if not 0 <= lo < hi < len(abar):
        raise TrainError(f"t range must satisfy 0 <= low < high < {len(abar)}, got {lo} {hi}")
    if not 0.0 <= uniform <= 1.0:
        raise TrainError(f"the uniform share of timesteps must lie in [0, 1], got {uniform}")
    log_snr = np.log(abar) - np.log1p(-abar)
    slope = np.abs(np.gradient(log_snr))
    inside = np.zeros_like(slope)
    inside[lo : hi + 1] = slope[lo : hi + 1]
    density: np.ndarray = (1.0 - uniform) * inside / inside.sum() + uniform / len(abar)
    return density


def loss_weights(abar: np.ndarray, power: float, density: np.ndarray) -> np.ndarray:
    """Loss weight of each timestep, ``clamp(SNR, e^-5, e^5)**-power``, with mean 1 under
    ``density``."""
    log_snr = np.clip(np.log(abar) - np.log1p(-abar), -5.0, 5.0)
    weight: np.ndarray = np.exp(-power * log_snr)
    weight /= (weight * density).sum()
    return weight


def usable_device(name: str) -> torch.device:
    """The device of that name. Raises TrainError: no tensor can be made there."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device, dtype=torch.float32)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise TrainError(f"cannot use device {name!r}: {first_line(error)}") from error
    return device


def usual_batch(device: torch.device) -> int:
    """Crops of 64 pixels a step that fill a device: eight a multiprocessor of a GPU, 32 on a CPU."""
    if device.type != "cuda":
        return 32
    return max(32, torch.cuda.get_device_properties(device).multi_processor_count * 8 // 64 * 64)


def patch_of(model: Denoiser) -> int:
    """The space-to-depth before a network, from its input channels: 12 -> 2, 48 -> 4.

    Raises TrainError: the channels are not three times a square, or the network returns others.
    """
    channels, out = int(model.config.in_channels), int(model.config.out_channels)
    patch = math.isqrt(channels // 3)
    if channels != 3 * patch**2 or out != channels:
        raise TrainError(f"the photo model needs 3, 12, 27 or 48 channels in and as many out, got {channels} and {out}")
    return patch


def autocast(device: torch.device, dtype: str) -> contextlib.AbstractContextManager[Any]:
    """What the network runs in: bfloat16 autocast, or nothing for ``fp32``.

    ``auto`` is bfloat16 where the device is native in it: elsewhere it is emulated, and six times as slow or worse.
    """
    if dtype == "fp32" or (dtype == "auto" and default_dtype(device) != torch.bfloat16):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _unet() -> Any:
    """``diffusers.UNet2DModel``, imported when first needed: it takes seconds."""
    return importlib.import_module("diffusers").UNet2DModel


def load_model(folder: str | os.PathLike[str]) -> Denoiser:
    """A ``UNet2DModel`` from a local diffusers folder (float32)."""
    path = Path(folder)
    if not (path / "config.json").is_file() or not (path / WEIGHTS_NAME).is_file():
        raise TrainError(f"no model in {path}: needs config.json and {WEIGHTS_NAME}")
    try:
        model = _unet().from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainError(f"cannot load the model in {path}: {first_line(error)}") from error
    patch_of(model)
    return model


def new_model(config: str | os.PathLike[str] | None) -> Denoiser:
    """A freshly initialised model from a ``UNet2DModel`` config file, or the built-in shape."""
    if config is None:
        return _unet()(**PHOTO_CONFIG)
    try:
        fields = json.loads(Path(config).read_text())
        model = _unet()(**{k: v for k, v in fields.items() if not k.startswith("_")})
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise TrainError(f"cannot build a model from {config}: {first_line(error)}") from error
    patch_of(model)
    return model


def prediction_of(folder: str | os.PathLike[str] | None) -> str:
    """What the network of a folder predicts, as its scheduler says; epsilon where there is none."""
    path = Path(folder or "") / SCHEDULER_NAME
    if folder is None or not path.is_file():
        return "epsilon"
    try:
        return str(json.loads(path.read_text())["prediction_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainError(f"cannot read {path}: {first_line(error)}") from error


def epsilon_of(guess: torch.Tensor, noisy: torch.Tensor, abar: torch.Tensor, prediction: str) -> torch.Tensor:
    """What a network's output says of epsilon; v = sqrt(abar) eps - sqrt(1 - abar) x0 (Salimans and Ho 2022)."""
    if prediction == "epsilon":
        return guess
    return abar.sqrt() * guess + (1.0 - abar).sqrt() * noisy


def save_model(model: Denoiser, prediction: str, folder: Path, outputs: files.Outputs) -> None:
    """Write the files of a diffusers folder, which were added to `outputs`."""
    scheduler = importlib.import_module("diffusers").DDPMScheduler(prediction_type=prediction)
    with tempfile.TemporaryDirectory() as name:
        fresh = Path(name)
        model.save_pretrained(fresh, safe_serialization=True)
        config = json.loads((fresh / "config.json").read_text())
        config.pop("_name_or_path", None)  # a folder of this machine
        outputs.write(folder / SCHEDULER_NAME, (scheduler.to_json_string()).encode())
        outputs.write(folder / "config.json", (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
        outputs.write(folder / WEIGHTS_NAME, (fresh / WEIGHTS_NAME).read_bytes())


@torch.no_grad()
def evaluate(
    model: Denoiser,
    crops: torch.Tensor,
    *,
    prediction: str = "epsilon",
    timesteps: Sequence[int] = EVAL_TIMESTEPS,
    dtype: str = "auto",
    batch: int = 4,
    seed: int = 0,
) -> EvalTable:
    """Mean squared error of epsilon at each timestep.

    ``crops`` are uint8 N x 3 x H x W. Image i gets the same noise for every model, device and
    batch size: drawn on the CPU from a seed made of ``seed`` and i, one draw a timestep.
    """
    device, patch = next(model.parameters()).device, patch_of(model)
    was_training = model.training
    model.eval()
    abar = torch.from_numpy(alphas_cumprod())
    x0 = to_model(crops, 1)
    sums = np.zeros(len(timesteps))
    for start in range(0, len(x0), batch):
        part = x0[start : start + batch]
        generators = [torch.Generator("cpu").manual_seed(seed * 1_000_003 + start + row) for row in range(len(part))]
        for column, t in enumerate(timesteps):
            rows = (torch.randn(part.shape[1:], generator=g, dtype=torch.float32, device="cpu") for g in generators)
            noise = torch.stack(list(rows))
            a = float(abar[t])
            noisy = (math.sqrt(a) * part + math.sqrt(1.0 - a) * noise).to(device)
            times = torch.full((len(part),), t, device=device, dtype=torch.long)
            with autocast(device, dtype):
                guess = model(pixel_unshuffle(noisy, patch), times).sample
            guess = epsilon_of(pixel_shuffle(guess.float(), patch), noisy, abar[t].float().to(device), prediction)
            error = (guess.cpu() - noise).double().square().mean(dim=(1, 2, 3))
            sums[column] += float(error.sum())
    model.train(was_training)
    mse = tuple(float(s) / len(x0) for s in sums)
    return EvalTable(tuple(timesteps), mse, len(x0), crops.shape[-1])

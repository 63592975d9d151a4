"""Train the built-in models: ``python -m ddcm_fast.models.train photo --help``.

``photo`` is an unconditional pixel-space denoiser of natural images. An image in [-1, 1] is made
twelve channels by an orthonormal space-to-depth (``pixel_unshuffle`` by 2, so a 3 x H x W image
becomes 12 x H/2 x W/2 and white noise stays white noise), and a fully convolutional
``diffusers.UNet2DModel`` predicts epsilon under the DDPM schedule with linear betas.

Two choices serve the codec. Timesteps are drawn mostly uniformly in log-SNR over the noise levels
a codec spends its bits on: the ideal cost of a coded step is the change of SNR times the squared
error of x0, which is the change of log-SNR times the squared error of epsilon, so the mean loss
under this density is the bits the model wastes. And each sample's loss is weighted by a small
negative power of SNR, so that the nearly clean levels, whose epsilon is mostly unpredictable, do
not drown the gradient of the noisier ones.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import importlib
import io
import json
import math
import os
import pickle
import signal
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from ddcm_fast import files
from ddcm_fast.errors import ConfigError, DDCMError
from ddcm_fast.models.train import digits as train_digits

__all__ = [
    "EVAL_TIMESTEPS",
    "PHOTO_CONFIG",
    "EvalTable",
    "PhotoCache",
    "TrainConfig",
    "TrainError",
    "alphas_cumprod",
    "evaluate",
    "load_eval_folder",
    "load_photos",
    "main",
    "sample_batch",
    "timestep_density",
    "train_photo",
]

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

STATE_NAME = "train-state.pt"
STATE = files.Kind("a file of torch.save", zipfile.is_zipfile)
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
BUILT_IN = Path(__file__).resolve().parents[1] / "weights" / "photo"
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
STALL_SECONDS = 10.0
"""The longest one step may count towards ``minutes`` (a paused process does not age)."""


class TrainError(ConfigError):
    """Training was asked for something that cannot be done."""


@dataclasses.dataclass
class TrainConfig:
    """Settings of one training run. A crop of ``c`` pixels is drawn ``batch * (crops[0]/c)**2``
    at a time, so every crop size costs about the same a step."""

    steps: int | None = None
    minutes: float | None = None
    batch: int = 32
    crops: tuple[int, ...] = (64,)
    lr: float = 6e-4
    final_lr: float = 0.01
    warmup: int = 300
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    dtype: str = "bf16"
    device: str = "cpu"
    seed: int = 0
    scales: tuple[float, ...] = (0.5, 0.5)
    short_side: int = 288
    holdout: int = 40
    t_range: tuple[int, int] = (10, 600)
    t_uniform: float = 0.25
    snr_power: float = 0.25
    log_every: int = 50
    save_minutes: float = 5.0
    stop_after: int | None = None


@dataclasses.dataclass
class PhotoCache:
    """Decoded photographs, each uint8 H x W x 3, split into training and held-out ones."""

    train: list[torch.Tensor]
    held_out: list[torch.Tensor]


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


# --------------------------------------------------------------------------------------- schedule


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


# ------------------------------------------------------------------------------------------- data


def _decode(data: bytes, name: str, short_side: int | None) -> torch.Tensor:
    """One photograph as uint8 H x W x 3, at most ``short_side`` pixels on the short side."""
    try:
        with Image.open(io.BytesIO(data)) as handle:
            image = handle.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise TrainError(f"cannot decode {name}: {_line(error)}") from error
    if short_side is not None and min(image.size) > short_side:
        scale = short_side / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image))


def _line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not Path(name).name.startswith(".")


def load_photos(
    archive: str | os.PathLike[str],
    *,
    short_side: int = 288,
    holdout: int = 40,
    train: bool = True,
) -> PhotoCache:
    """Decode every photograph of a tar file once.

    The held-out photographs are spread evenly over the archive's names in sorted order, so they
    depend on the archive alone. With ``train=False`` only those are decoded.
    """
    path = Path(archive)
    if not path.is_file():
        raise TrainError(f"no such tar file: {path}")
    try:
        with tarfile.open(path) as tar:
            members = sorted(
                (m for m in tar.getmembers() if m.isfile() and _is_image(m.name)),
                key=lambda m: m.name,
            )
            if len(members) <= holdout:
                raise TrainError(f"{path} holds {len(members)} images: too few to hold out {holdout}")
            held = {(2 * i + 1) * len(members) // (2 * holdout) for i in range(holdout)}
            cache = PhotoCache([], [])
            for index, member in enumerate(members):
                if index not in held and not train:
                    continue
                stream = tar.extractfile(member)
                assert stream is not None
                photo = _decode(stream.read(), member.name, short_side)
                (cache.held_out if index in held else cache.train).append(photo)
    except tarfile.TarError as error:
        raise TrainError(f"{path} is not a readable tar file: {_line(error)}") from error
    return cache


def centre_crops(photos: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    """Centre crops of the photographs that are large enough: uint8 N x 3 x size x size."""
    crops = []
    for photo in photos:
        top, left = (photo.shape[0] - size) // 2, (photo.shape[1] - size) // 2
        if top >= 0 and left >= 0:
            crops.append(photo[top : top + size, left : left + size].permute(2, 0, 1))
    if not crops:
        raise TrainError(f"no image is at least {size} x {size} pixels")
    return torch.stack(crops)


def load_eval_folder(folder: str | os.PathLike[str], size: int = 256) -> torch.Tensor:
    """Centre crops of the images in a folder, in name order: uint8 N x 3 x size x size."""
    path = Path(folder)
    if not path.is_dir():
        raise TrainError(f"no such folder: {path}")
    names = sorted(p for p in path.iterdir() if p.is_file() and _is_image(p.name))
    if not names:
        raise TrainError(f"no images in {path}")
    return centre_crops([_decode(p.read_bytes(), p.name, None) for p in names], size)


def to_model(crops: torch.Tensor) -> torch.Tensor:
    """uint8 N x 3 x H x W to the model's space: float32 N x 12 x H/2 x W/2 in [-1, 1]."""
    return F.pixel_unshuffle(crops.float() / 127.5 - 1.0, 2)


def sample_batch(
    photos: Sequence[torch.Tensor],
    batch: int,
    crop: int,
    scales: Sequence[float],
    generator: torch.Generator,
) -> torch.Tensor:
    """Random crops in the model's space: float32 ``batch`` x 12 x crop/2 x crop/2.

    ``scales[k]`` is the share of them (up to a common factor) averaged down k times by 2, as far as the
    photograph is large enough; half are flipped left to right. ``photos`` are uint8 H x W x 3, each at
    least ``crop`` pixels.
    """
    rand = torch.rand((batch, 5), generator=generator, dtype=torch.float64, device="cpu").tolist()
    limits = np.cumsum(scales) / np.sum(scales)
    out = torch.empty((batch, 3, crop, crop), dtype=torch.float32, device="cpu")
    for row, (pick, y, x, shrink, flip) in enumerate(rand):
        photo = photos[int(pick * len(photos))]
        height, width = photo.shape[:2]
        factor = 2 ** int(np.searchsorted(limits, shrink, side="right"))
        while factor > 1 and min(height, width) < factor * crop:
            factor //= 2
        side = factor * crop
        top, left = int(y * (height - side + 1)), int(x * (width - side + 1))
        patch = photo[top : top + side, left : left + side].permute(2, 0, 1).float()
        if factor > 1:
            patch = F.avg_pool2d(patch, factor)
        out[row] = patch.flip(2) if flip < 0.5 else patch
    return F.pixel_unshuffle(out / 127.5 - 1.0, 2)


# ------------------------------------------------------------------------------------------ model


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device, dtype=torch.float32)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise TrainError(f"cannot use device {name!r}: {_line(error)}") from error
    return device


def _autocast(device: torch.device, dtype: str) -> contextlib.AbstractContextManager[Any]:
    if dtype == "fp32":
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
        return _unet().from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainError(f"cannot load the model in {path}: {_line(error)}") from error


def _new_model(config: str | os.PathLike[str] | None) -> Denoiser:
    """A freshly initialised model from a ``UNet2DModel`` config file, or the built-in shape."""
    if config is None:
        return _unet()(**PHOTO_CONFIG)
    try:
        fields = json.loads(Path(config).read_text())
        model = _unet()(**{k: v for k, v in fields.items() if not k.startswith("_")})
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise TrainError(f"cannot build a model from {config}: {_line(error)}") from error
    if model.config.in_channels != 12 or model.config.out_channels != 12:
        raise TrainError(f"{config}: the photo model needs 12 input and 12 output channels")
    return model


def save_model(model: Denoiser, folder: Path, outputs: files.Outputs) -> None:
    """Write the two files of a diffusers folder, which were added to `outputs`."""
    with tempfile.TemporaryDirectory() as name:
        fresh = Path(name)
        model.save_pretrained(fresh, safe_serialization=True)
        config = json.loads((fresh / "config.json").read_text())
        config.pop("_name_or_path", None)  # a folder of this machine
        outputs.write(folder / "config.json", (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
        outputs.write(folder / WEIGHTS_NAME, (fresh / WEIGHTS_NAME).read_bytes())


# ------------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def evaluate(
    model: Denoiser,
    crops: torch.Tensor,
    *,
    timesteps: Sequence[int] = EVAL_TIMESTEPS,
    dtype: str = "bf16",
    batch: int = 4,
    seed: int = 0,
) -> EvalTable:
    """Mean squared error of epsilon at each timestep.

    ``crops`` are uint8 N x 3 x H x W. Image i gets the same noise for every model, device and
    batch size: drawn on the CPU from a seed made of ``seed`` and i, one draw a timestep.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    abar = torch.from_numpy(alphas_cumprod())
    x0 = to_model(crops)
    sums = np.zeros(len(timesteps))
    for start in range(0, len(x0), batch):
        part = x0[start : start + batch]
        generators = [torch.Generator("cpu").manual_seed(seed * 1_000_003 + start + row) for row in range(len(part))]
        for column, t in enumerate(timesteps):
            rows = (torch.randn(part.shape[1:], generator=g, dtype=torch.float32, device="cpu") for g in generators)
            noise = torch.stack(list(rows))
            a = float(abar[t])
            noisy = math.sqrt(a) * part + math.sqrt(1.0 - a) * noise
            times = torch.full((len(part),), t, device=device, dtype=torch.long)
            with _autocast(device, dtype):
                guess = model(noisy.to(device), times).sample
            error = (guess.float().cpu() - noise).double().square().mean(dim=(1, 2, 3))
            sums[column] += float(error.sum())
    model.train(was_training)
    mse = tuple(float(s) / len(x0) for s in sums)
    return EvalTable(tuple(timesteps), mse, len(x0), crops.shape[-1])


# --------------------------------------------------------------------------------------- training


class _Clock:
    """Seconds a run was active: no single step counts for more than ``STALL_SECONDS``."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._last = time.monotonic()

    def start(self) -> None:
        """Forget the time since the last tick."""
        self._last = time.monotonic()

    def tick(self) -> float:
        now = time.monotonic()
        self.seconds += min(now - self._last, STALL_SECONDS)
        self._last = now
        return self.seconds


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list, so that a run ends after its step and saves."""
    seen: list[int] = []
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda n, _frame: seen.append(n))
    except ValueError:  # not the main thread
        pass
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log(line: str) -> None:
    """One line on standard output, past a progress bar."""
    with tqdm.external_write_mode():
        print(line, flush=True)


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Linear warm-up over ``warmup`` steps times a cosine from 1 to ``final_lr`` over the run."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * warm * (config.final_lr + (1.0 - config.final_lr) * cosine)


def _check(config: TrainConfig) -> None:
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
    if config.dtype not in ("bf16", "fp32"):
        raise TrainError(f"--dtype must be bf16 or fp32, got {config.dtype}")
    if config.holdout < 1:
        raise TrainError(f"--holdout must be at least 1, got {config.holdout}")


def train_photo(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: TrainConfig,
    *,
    init: str | os.PathLike[str] | None = None,
    unet_config: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> EvalTable | None:
    """Train the photo model on a tar of photographs.

    Writes the averaged (EMA) weights to the diffusers folder ``output`` and everything needed to
    go on to ``train-state.pt`` in it, about every ``save_minutes``. ``init`` is a diffusers folder
    to start from; without it the model starts fresh, in the shape of ``unet_config``. ``resume``
    goes on from ``output``. On one device a resumed run takes the steps that an uninterrupted one
    would have taken. Returns the held-out table, or None where the run stopped early.
    """
    _check(config)
    device = _device(config.device)
    abar = alphas_cumprod()
    density = timestep_density(abar, config.t_range, config.t_uniform)
    if not Path(data).is_file():
        raise TrainError(f"no such tar file: {data}")
    folder = Path(output)
    outputs = files.Outputs([Path(data)], folder=folder)
    for name, kind in (("config.json", files.JSON), (WEIGHTS_NAME, files.SAFETENSORS), (STATE_NAME, STATE)):
        outputs.add(folder / name, kind)

    state: dict[str, Any] | None = None
    if resume:
        try:
            state = torch.load(folder / STATE_NAME, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise TrainError(f"cannot resume from {folder}: {_line(error)}") from error

    torch.manual_seed(config.seed)
    if state is not None:
        model = load_model(folder)
        model.load_state_dict(state["model"])
    else:
        model = load_model(init) if init is not None else _new_model(unet_config)
    memory = torch.channels_last if device.type != "mps" else torch.contiguous_format
    model.to(device=device, memory_format=memory).train()
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay)
    draws = torch.Generator("cpu").manual_seed(config.seed)
    noises = torch.Generator(device).manual_seed(config.seed + 1)
    clock = _Clock()
    step = 0
    if state is not None:
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        draws.set_state(state["draws"])
        noises.set_state(state["noises"])
        step = int(state["step"])
        clock.seconds = float(state["seconds"])
        del state

    cache = load_photos(data, short_side=config.short_side, holdout=config.holdout)
    photos = [p for p in cache.train if min(p.shape[:2]) >= max(config.crops)]
    if not photos:
        raise TrainError(f"no training photograph is {max(config.crops)} pixels on each side")
    _log(
        f"{len(photos)} training photographs ({len(cache.train) - len(photos)} too small), "
        f"{len(cache.held_out)} held out; "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters on {device}"
    )

    weight = torch.from_numpy(loss_weights(abar, config.snr_power, density)).float().to(device)
    signal_scale = torch.from_numpy(np.sqrt(abar)).float().to(device)
    noise_scale = torch.from_numpy(np.sqrt(1.0 - abar)).float().to(device)
    density_t = torch.from_numpy(density)
    first = step
    clock.start()
    clock_saved = clock.seconds
    logged = (step, clock.seconds)
    running: list[torch.Tensor] = []
    losses: list[torch.Tensor] = []

    def save() -> None:
        content = {
            "model": model.state_dict(),
            "ema": ema.state_dict(),
            "optimizer": optimizer.state_dict(),
            "draws": draws.get_state(),
            "noises": noises.get_state(),
            "step": step,
            "seconds": clock.seconds,
            "config": dataclasses.asdict(config),
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        save_model(ema, folder, outputs)
        outputs.write(folder / STATE_NAME, buffer.getvalue())

    def progress() -> float:
        parts = [0.0]
        if config.steps is not None:
            parts.append(step / config.steps)
        if config.minutes is not None:
            parts.append(clock.seconds / (60.0 * config.minutes))
        return max(parts)

    bar = tqdm(total=config.steps, initial=step, disable=not sys.stderr.isatty(), unit="step")
    stopped = False
    with _stop_signals() as signals, bar:
        while progress() < 1.0:
            if signals or (config.stop_after is not None and step - first >= config.stop_after):
                stopped = True
                break
            rate = learning_rate(config, step, progress())
            for group in optimizer.param_groups:
                group["lr"] = rate
            which = int(torch.randint(len(config.crops), (), generator=draws, dtype=torch.int64, device="cpu"))
            crop = config.crops[which]
            batch = max(1, round(config.batch * (config.crops[0] / crop) ** 2))
            times = torch.multinomial(density_t, batch, replacement=True, generator=draws)
            x0 = sample_batch(photos, batch, crop, config.scales, draws)
            x0, times = x0.to(device), times.to(device)
            noise = torch.randn(x0.shape, generator=noises, device=device, dtype=torch.float32)
            noisy = (
                signal_scale[times, None, None, None] * x0 + noise_scale[times, None, None, None] * noise
            ).contiguous(memory_format=memory)
            with _autocast(device, config.dtype):
                guess = model(noisy, times).sample
            errors = (guess.float() - noise).square().mean(dim=(1, 2, 3))
            loss = (weight[times] * errors).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            step += 1
            decay = min(config.ema, step / (10.0 + step))
            with torch.no_grad():
                for average, value in zip(ema.parameters(), model.parameters(), strict=True):
                    average.lerp_(value, 1.0 - decay)
            losses.append(loss.detach())
            running.append(norm.detach())
            clock.tick()
            bar.update()
            if step % config.log_every == 0:
                mean = float(torch.stack(losses).mean())
                if not math.isfinite(mean):
                    raise TrainError(f"the loss is not finite at step {step}: lower --lr")
                speed = (step - logged[0]) / max(1e-9, clock.seconds - logged[1])
                _log(
                    f"step {step} loss {mean:.5f} grad {float(torch.stack(running).mean()):.3f} "
                    f"lr {rate:.2e} {speed:.2f} steps/s {clock.seconds / 60:.1f} min "
                    f"{100 * min(1.0, progress()):.0f}%"
                )
                logged = (step, clock.seconds)
                running, losses = [], []
            if clock.seconds - clock_saved >= 60.0 * config.save_minutes:
                save()
                clock_saved = clock.seconds
    save()
    if stopped:
        _log(f"stopped and saved at step {step}; go on with --resume")
        return None
    sides = sorted(min(p.shape[:2]) for p in cache.held_out)
    size = min(256, sides[len(sides) // 2] // 16 * 16)
    table = evaluate(ema, centre_crops(cache.held_out, size), dtype=config.dtype)
    _log(f"done: {step} steps, {clock.seconds / 60:.1f} minutes; averaged weights in {folder}")
    _log(f"held-out photographs ({table.images} of {table.size} x {table.size}):")
    _log(table.markdown())
    return table


# ------------------------------------------------------------------------------------ command line


def _run_photo(args: argparse.Namespace) -> None:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.evaluate is not None:
        device = _device(args.device)
        target = Path(args.evaluate)
        if target.is_file():
            cache = load_photos(target, short_side=args.short_side, holdout=args.holdout, train=False)
            crops = centre_crops(cache.held_out, args.eval_size)
        else:
            crops = load_eval_folder(target, args.eval_size)
        model = load_model(args.init if args.init is not None else BUILT_IN).to(device)
        table = evaluate(model, crops, dtype=args.dtype, seed=args.seed)
        print(f"mean squared error of epsilon, {table.images} centre crops of {table.size} pixels")
        print(table.markdown())
        return
    if args.data is None or args.output is None:
        raise TrainError("training needs --data and --output (or give --evaluate)")
    settings: dict[str, Any] = {field.name: getattr(args, field.name) for field in dataclasses.fields(TrainConfig)}
    settings["crops"] = tuple(settings["crops"])
    settings["t_range"] = tuple(settings["t_range"])
    settings["scales"] = tuple(settings["scales"])
    config = TrainConfig(**settings)
    train_photo(
        args.data,
        args.output,
        config,
        init=args.init,
        unet_config=args.config,
        resume=args.resume,
    )


def _add_photo(commands: Any) -> None:
    d = TrainConfig()
    p = commands.add_parser(
        "photo",
        help="the unconditional photograph model",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.set_defaults(run=_run_photo)
    p.add_argument("--data", metavar="TAR", help="tar file of photographs")
    p.add_argument("--output", metavar="DIR", help="folder for the averaged weights and the state")
    p.add_argument("--init", metavar="DIR", help="diffusers folder to start from (or to evaluate)")
    p.add_argument("--config", metavar="JSON", help="UNet2DModel config of a fresh model")
    p.add_argument("--resume", action="store_true", help="go on from --output")
    p.add_argument(
        "--evaluate",
        metavar="PATH",
        help="train nothing: print the error table of --init (default: the built-in model) on a "
        "folder of images, or on the held-out photographs of a tar file",
    )
    p.add_argument("--eval-size", type=int, default=256, help="side of the centre crops")
    p.add_argument("--steps", type=int, help="steps in all")
    p.add_argument("--minutes", type=float, help="active minutes in all (pauses do not count)")
    p.add_argument("--stop-after", type=int, help="save and stop after this many steps of this run")
    p.add_argument("--batch", type=int, default=d.batch, help="crops a step, of the first size")
    p.add_argument(
        "--crop",
        dest="crops",
        type=int,
        nargs="+",
        default=list(d.crops),
        help="crop sizes in pixels; each step draws one",
    )
    p.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=list(d.scales),
        help="shares of crops at full size, averaged down by 2, by 4, ...",
    )
    p.add_argument("--short-side", type=int, default=d.short_side, help="photographs' short side")
    p.add_argument("--holdout", type=int, default=d.holdout, help="photographs held out")
    p.add_argument("--lr", type=float, default=d.lr, help="peak learning rate")
    p.add_argument("--final-lr", type=float, default=d.final_lr, help="last rate / peak rate")
    p.add_argument("--warmup", type=int, default=d.warmup, help="warm-up steps")
    p.add_argument("--weight-decay", type=float, default=d.weight_decay, help="AdamW's")
    p.add_argument("--clip", type=float, default=d.clip, help="largest gradient norm")
    p.add_argument("--ema", type=float, default=d.ema, help="decay of the averaged weights")
    p.add_argument(
        "--t-range",
        type=int,
        nargs=2,
        metavar=("LOW", "HIGH"),
        default=list(d.t_range),
        help="timesteps drawn uniformly in log-SNR",
    )
    p.add_argument("--t-uniform", type=float, default=d.t_uniform, help="share of uniform t")
    p.add_argument("--snr-power", type=float, default=d.snr_power, help="loss weight SNR**-power")
    p.add_argument("--dtype", choices=("bf16", "fp32"), default=d.dtype, help="autocast type")
    p.add_argument("--device", default=d.device, help="cpu, cuda, cuda:1, ...")
    p.add_argument("--threads", type=int, help="CPU threads")
    p.add_argument("--seed", type=int, default=d.seed, help="random seed")
    p.add_argument("--log-every", type=int, default=d.log_every, help="steps between log lines")
    p.add_argument("--save-minutes", type=float, default=d.save_minutes, help="between savings")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (2 for an error the user caused)."""
    parser = argparse.ArgumentParser(prog="python -m ddcm_fast.models.train", description="Train the built-in models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="MODEL")
    _add_photo(commands)
    train_digits.add_parser(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except DDCMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0

"""Train the built-in `digits` model and its two classifiers: ``python -m ddcm_fast.models.train digits``.

The denoiser is a ``diffusers.UNet2DModel`` of 0.16 M parameters with class embeddings. It sees the 8x8 image as four
channels of 4x4 (an orthonormal space-to-depth, so white noise stays white), predicts v (Salimans and Ho 2022) under
DDPM's linear betas, and one label in eight is dropped for the extra class "unconditional" (Ho and Salimans 2022), so
that it serves classifier-free guidance. Everything is float32: the networks are too small to gain from less.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pixel_unshuffle
from tqdm import tqdm

from ddcm_fast import files
from ddcm_fast.models import digits
from ddcm_fast.models.names import EXTRA_FILE, WEIGHTS

UNET_CONFIG: dict[str, Any] = {
    "sample_size": 4,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
    "add_attention": False,
    "num_class_embeds": digits.CLASSES + 1,
}
SETTINGS = {
    "space_to_depth": 2,
    "classes": digits.CLASSES,
    "min_side": digits.SIDE,
    "default_side": digits.SIDE,
    "dtype": "float32",
}
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
LABEL_DROPOUT = 0.125
EMA = 0.999


def _cosine(step: int, steps: int, warmup: int = 200) -> float:
    """Learning rate factor: linear warm-up, then a half cosine to 1 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _batches(images: Tensor, labels: Tensor, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    rows = torch.randint(len(images), (batch,), generator=generator, dtype=torch.int64, device="cpu")
    return images[rows], labels[rows]


def train_denoiser(steps: int, batch: int, seed: int, progress: bool = True) -> tuple[nn.Module, Any]:
    """The class-conditional denoiser with averaged weights, and its scheduler."""
    diffusers = importlib.import_module("diffusers")  # untyped, and slow to import
    torch.manual_seed(seed)
    generator = torch.Generator("cpu").manual_seed(seed)
    images, labels = digits.load_data(test=False)
    state = pixel_unshuffle(images, 2)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, prediction_type="v_prediction", clip_sample=True)
    alpha = scheduler.alphas_cumprod.sqrt()
    sigma = (1 - scheduler.alphas_cumprod).sqrt()
    unet = diffusers.UNet2DModel(**UNET_CONFIG)
    average = copy.deepcopy(unet).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3, weight_decay=1e-4)
    bar = tqdm(range(steps), disable=not progress, desc="denoiser", unit="step", mininterval=10)
    running = 0.0
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * _cosine(step, steps)
        x0, label = _batches(state, labels, batch, generator)
        dropped = torch.rand(batch, generator=generator, dtype=torch.float32, device="cpu") < LABEL_DROPOUT
        label = torch.where(dropped, digits.CLASSES, label)
        t = torch.randint(1000, (batch,), generator=generator, dtype=torch.int64, device="cpu")
        a, s = alpha[t].view(-1, 1, 1, 1), sigma[t].view(-1, 1, 1, 1)
        eps = torch.randn(x0.shape, generator=generator, dtype=torch.float32, device="cpu")
        v = unet(a * x0 + s * eps, t.float(), class_labels=label).sample
        loss = (v - (a * eps - s * x0)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        decay = min(EMA, (step + 1) / (step + 10))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), unet.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        running += (loss.item() - running) / min(step + 1, 200)
        if step % 100 == 99:
            bar.set_postfix(loss=f"{running:.4f}", refresh=False)
    return average, scheduler


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moved by at most one pixel, as augmentation of the classifiers (the border is background, -1)."""
    dy, dx = torch.randint(-1, 2, (2,), generator=generator, dtype=torch.int64, device="cpu").tolist()
    wide = nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
    return wide[:, :, 1 + dy : 1 + dy + digits.SIDE, 1 + dx : 1 + dx + digits.SIDE]


def train_classifier(steps: int, seed: int) -> digits.DigitsClassifier:
    """The classifier of clean digits."""
    torch.manual_seed(seed)
    generator = torch.Generator("cpu").manual_seed(seed)
    images, labels = digits.load_data(test=False)
    net = digits.DigitsClassifier()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * _cosine(step, steps)
        x, y = _batches(images, labels, 128, generator)
        x = _shifted(x, generator)
        x = x + 0.1 * torch.randn(x.shape, generator=generator, dtype=torch.float32, device="cpu")
        loss = cross_entropy(net(x), y, label_smoothing=0.02)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return net.eval()


def train_noisy_classifier(steps: int, alphas_cumprod: Tensor, seed: int) -> digits.NoisyDigitsClassifier:
    """The classifier of x_t at every noise level of the denoiser's schedule."""
    torch.manual_seed(seed)
    generator = torch.Generator("cpu").manual_seed(seed)
    images, labels = digits.load_data(test=False)
    alpha, sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
    values = [digits.log_snr(float(a), float(s)) for a, s in zip(alpha, sigma, strict=True)]
    levels = torch.tensor(values, dtype=torch.float32, device="cpu")
    net = digits.NoisyDigitsClassifier()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * _cosine(step, steps)
        x, y = _batches(images, labels, 256, generator)
        t = torch.randint(len(alpha), (len(x),), generator=generator, dtype=torch.int64, device="cpu")
        pixels = _shifted(x, generator).flatten(1)
        noise = torch.randn(pixels.shape, generator=generator, dtype=torch.float32, device="cpu")
        noisy = alpha[t, None] * pixels + sigma[t, None] * noise
        loss = cross_entropy(net(noisy, levels[t]), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return net.eval()


def train(output: Path, steps: int, batch: int, seed: int, progress: bool = True) -> None:
    """Train the three networks and write the model folder."""
    from safetensors.torch import save

    outputs = files.Outputs(folder=output)
    for name in ("config.json", "scheduler_config.json", EXTRA_FILE):
        outputs.add(output / name, files.JSON)
    for name in (WEIGHTS_NAME, digits.CLEAN_FILE, digits.NOISY_FILE):
        outputs.add(output / name, files.SAFETENSORS)
    unet, scheduler = train_denoiser(steps, batch, seed, progress)
    images, labels = digits.load_data(test=True)
    clean = train_classifier(max(1, steps // 4), seed)
    noisy = train_noisy_classifier(max(1, steps // 2), scheduler.alphas_cumprod, seed)
    with tempfile.TemporaryDirectory() as folder:
        unet.save_pretrained(folder)  # type: ignore[operator]
        scheduler.save_pretrained(folder)
        for name in ("config.json", "scheduler_config.json", WEIGHTS_NAME):
            outputs.write(output / name, Path(folder, name).read_bytes())
    outputs.write(output / EXTRA_FILE, (json.dumps(SETTINGS) + "\n").encode())
    outputs.write(output / digits.CLEAN_FILE, save(clean.state_dict()))
    outputs.write(output / digits.NOISY_FILE, save(noisy.state_dict()))
    with torch.inference_mode():
        accuracy = (clean(images).argmax(1) == labels).float().mean()
        level = torch.full((len(images),), digits.log_snr(1.0, 0.0), dtype=torch.float32, device="cpu")
        at_end = (noisy(images.flatten(1), level).argmax(1) == labels).float().mean()
    print(f"held-out accuracy: classifier {accuracy:.3f}, noisy classifier on clean images {at_end:.3f}")
    print(f"wrote {output}")


def _run(args: argparse.Namespace) -> None:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    train(args.output, args.steps, args.batch, args.seed)


def add_parser(commands: Any) -> None:
    """The subcommand `digits` of ``python -m ddcm_fast.models.train``."""
    p = commands.add_parser(
        "digits",
        help="the class-conditional model of scikit-learn's digits and its classifiers",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.set_defaults(run=_run)
    p.add_argument("--output", type=Path, default=WEIGHTS / digits.NAME, help="model folder to write")
    p.add_argument("--steps", type=int, default=8000, help="of the denoiser; the classifiers take fewer")
    p.add_argument("--batch", type=int, default=128, help="images a step of the denoiser")
    p.add_argument("--threads", type=int, help="CPU threads")
    p.add_argument("--seed", type=int, default=0, help="random seed")

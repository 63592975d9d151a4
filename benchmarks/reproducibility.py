"""How far a decoder's picture drifts from the encoder's when the two networks differ in their last bits.

    python benchmarks/reproducibility.py --image IMAGE --T 20 50 100 --output benchmarks/results/reproducibility.json

One crop is coded by a reference network (one image a call, one thread). Its letters are then decoded by
networks that compute something slightly different. For each: PSNR against the encoder's reconstruction (inf: the same
bits), and against the original, which is what a viewer notices. With --grid, the same with a state rounded to a grid at
every step on both sides. Results are appended to the output.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddcm_fast import CodecConfig, load_model
from ddcm_fast.images import to_tensor
from ddcm_fast.models import DiffusionModel
from ddcm_fast.models.base import eps_from_x0
from ddcm_fast.models.network import NetworkModel
from ddcm_fast.reference import initial_noise
from ddcm_fast.sampler import Replay, sample, toward

Predict = Callable[..., tuple[Tensor, Tensor]]


def psnr(a: Tensor, b: Tensor) -> float:
    """dB of two images in [-1, 1]."""
    mse = float((a.double() - b.double()).square().mean())
    return math.inf if mse == 0 else 10 * math.log10(4 / mse)


def rounded(model: DiffusionModel, predict: Predict, grid: float) -> Predict:
    """A model that sees, and goes on from, the state on a grid (in units of the state's standard deviation)."""

    def wrapped(x: Tensor, t: float, condition: Any = None) -> tuple[Tensor, Tensor]:
        alpha, sigma = model.alpha_sigma(t)
        x = torch.round(x / grid) * grid
        x0_hat, _ = predict(x, t, condition)
        return x0_hat, eps_from_x0(x, x0_hat, alpha, sigma)

    return wrapped


def unaligned(model: NetworkModel) -> None:
    """Move the weights to odd addresses, as weights mapped from a file have."""
    for p in model.network.parameters():
        room = torch.empty(p.numel() + 16, dtype=p.dtype)
        offset = 1 + (-(room.data_ptr() // p.element_size())) % 16
        moved = room[offset : offset + p.numel()].as_strided(p.shape, p.stride())
        p.data = moved.copy_(p.data)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--model", default="photo")
    parser.add_argument("--K", type=int, default=4096)
    parser.add_argument("--T", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--grid", type=float, nargs="*", default=[], help="also with states rounded to these grids")
    parser.add_argument("--dtype", default="float32", help="of the reference network")
    parser.add_argument("--compile", action="store_true", help="also against a compiled network")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    picture = np.asarray(Image.open(args.image).convert("RGB"))
    top, left = (picture.shape[0] - args.crop) // 2, (picture.shape[1] - args.crop) // 2
    crop = Image.fromarray(picture[top : top + args.crop, left : left + args.crop])
    original = to_tensor(crop)

    other = "bfloat16" if args.dtype == "float32" else "float32"

    def load(dtype: str = args.dtype, compiled: bool = False) -> NetworkModel:
        model = load_model(args.model, device="cpu", dtype=dtype, compile=compiled)
        assert isinstance(model, NetworkModel)
        return model

    reference = load()
    moved = load()
    unaligned(moved)
    #: name -> model, images a call, threads.
    decoders: dict[str, tuple[NetworkModel, int, int]] = {
        "same": (load(), 1, 1),
        "batch of 4": (reference, 4, 1),
        "2 threads": (reference, 1, 2),
        "unaligned weights": (moved, 1, 1),
        other: (load(other), 1, 1),
    }
    if args.compile:
        decoders["compiled"] = (load(compiled=True), 1, 1)
    shape = reference.latent_shape(args.crop, args.crop)
    dim = math.prod(shape)
    rows = []
    for steps_count in args.T:
        config = CodecConfig(rule="greedy", T=steps_count, K=args.K)
        steps = config.steps(reference)
        rule = config.make_rule(reference, steps, dim, "auto")
        noise = initial_noise(dim, config.seed).view(1, *shape)
        for grid in [0.0, *args.grid]:

            def run(model: NetworkModel, batch: int, chooser: Any, grid: float = grid) -> Any:
                own = model.predict
                if grid:
                    model.predict = rounded(model, own, grid)  # type: ignore[method-assign]
                try:
                    return sample(model, steps, rule, chooser, noise.expand(batch, *shape))  # noqa: B023
                finally:
                    model.predict = own  # type: ignore[method-assign]

            torch.set_num_threads(1)
            coded = run(reference, 1, toward(reference.encode(original)))
            wanted = reference.decode(coded.x0)
            row: dict[str, Any] = {"T": steps_count, "grid": grid, "psnr_encoder": round(psnr(wanted, original), 3)}
            for name, (model, batch, threads) in decoders.items():
                torch.set_num_threads(threads)
                letters = [step.expand(batch, -1) for step in coded.letters]
                decoded = model.decode(run(model, batch, Replay(letters)).x0)[:1]
                drift, quality = psnr(decoded, wanted), psnr(decoded, original)
                row[name] = {
                    "drift_db": "inf" if drift == math.inf else round(drift, 2),
                    "max": float((decoded - wanted).abs().max() * 127.5),
                    "psnr": round(quality, 3),
                }
            rows.append(row)
            print(json.dumps(row), flush=True)
    result = {
        "model": args.model,
        "dtype": args.dtype,
        "fingerprint": reference.fingerprint().hex(),
        "image": args.image.name,
        "crop": args.crop,
        "K": args.K,
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "max": "largest difference in 1/255",
        "rows": rows,
    }
    if args.output:
        known = json.loads(args.output.read_text()) if args.output.is_file() else []
        args.output.write_text(json.dumps([*known, result], indent=1) + "\n")


if __name__ == "__main__":
    main()

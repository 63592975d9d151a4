"""How far a decoder's picture drifts from the encoder's when the two networks differ in their last bits.

    python benchmarks/reproducibility.py --image IMAGE --preset ddcm product --T 20 100 300 1000 --compile \\
        --output benchmarks/results/reproducibility.json

One crop is coded by a reference network (one image a call, one thread). Its letters are then decoded by
networks that compute something slightly different. For each: PSNR against the encoder's reconstruction (inf: the same
bits), and against the original, which is what a viewer notices. With --grid, the same with a state rounded to a grid at
every step on both sides; with --isa avx2 sse4.1, also against processes without newer instructions, as on older
processors; with --other-device cuda, also against a network on a GPU. Results are appended to the output, which is
written after every row.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddcm_fast import Codec, CodecConfig, load_model, preset
from ddcm_fast.codebook.reference import initial_noise
from ddcm_fast.codec.images import to_tensor
from ddcm_fast.files import write_json
from ddcm_fast.models import DiffusionModel
from ddcm_fast.models.multiscale import MultiscaleModel
from ddcm_fast.models.network import NetworkModel
from ddcm_fast.sampling.choosers import Replay, toward
from ddcm_fast.sampling.model import eps_from_x0
from ddcm_fast.sampling.sampler import Sample, sample

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


#: Instruction sets of older processors: what torch's kernels, oneDNN and ours are told.
ISAS = {"avx2": ("avx2", "AVX2", "avx2"), "sse4.1": ("default", "SSE41", "portable")}

_DECODE = """
import sys, torch
from ddcm_fast import Codec, load_model
torch.set_num_threads(1)
data, model, dtype, output = sys.argv[1:]
torch.save(Codec(load_model(model, dtype=dtype)).decode(open(data, "rb").read()), output)
"""


def on_older_processor(data: bytes, model: str, dtype: str, isa: str) -> Tensor:
    """A file decoded by a process that keeps to an instruction set."""
    limits = dict(zip(("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DDCM_CPU_ISA"), ISAS[isa], strict=True))
    with tempfile.TemporaryDirectory() as folder:
        file, output = Path(folder, "file.ddcm"), Path(folder, "decoded.pt")
        file.write_bytes(data)
        command = [sys.executable, "-c", _DECODE, str(file), model, dtype, str(output)]
        subprocess.run(command, env={**os.environ, **limits}, check=True)
        decoded: Tensor = torch.load(output)
    return decoded


def configuration(name: str, steps: int, size: int | None, model: DiffusionModel) -> CodecConfig:
    """A preset with `steps` coded steps; its own schedule where the model has as many timesteps, else linspace."""
    config = preset(name, T=steps, K=size)
    if config.schedule == "kl" and sum(t > config.stop for t in model.training_timesteps()) < steps:
        config = preset(name, T=steps, K=size, schedule="linspace", stop=0, tail=0)
    return config


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--model", default="photo")
    parser.add_argument("--preset", nargs="+", default=["ddcm"])
    parser.add_argument("--K", type=int, help="the preset's by default")
    parser.add_argument("--T", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--grid", type=float, nargs="*", default=[], help="also with states rounded to these grids")
    parser.add_argument("--dtype", default="float32", help="of the reference network")
    parser.add_argument("--batch", type=int, default=4, help="images a call of the decoder with another batch")
    parser.add_argument("--compile", action="store_true", help="also against a compiled network")
    parser.add_argument("--isa", nargs="*", choices=ISAS, default=[], help="also against these instruction sets")
    parser.add_argument("--other-device", help="also against the network on this device, such as cuda")
    parser.add_argument("--without", nargs="*", default=[], help="decoders to leave out, by their names in the rows")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    picture = np.asarray(Image.open(args.image).convert("RGB"))
    top, left = (picture.shape[0] - args.crop) // 2, (picture.shape[1] - args.crop) // 2
    crop = Image.fromarray(picture[top : top + args.crop, left : left + args.crop])
    original = to_tensor(crop)

    other = "bfloat16" if args.dtype == "float32" else "float32"

    def load(dtype: str = args.dtype, compiled: bool = False, device: str = "cpu") -> NetworkModel:
        model = load_model(args.model, device=device, dtype=dtype, compile=compiled)
        model = model.inner if isinstance(model, MultiscaleModel) else model
        assert isinstance(model, NetworkModel)
        return model

    reference = load()
    #: name -> model, images a call, threads.
    decoders: dict[str, tuple[NetworkModel, int, int]] = {
        "same": (load(), 1, 1),
        f"batch of {args.batch}": (reference, args.batch, 1),
        "2 threads": (reference, 1, 2),
        other: (load(other), 1, 1),
    }
    if args.compile:
        decoders["compiled"] = (load(compiled=True), 1, 1)
    if args.other_device:
        decoders[args.other_device] = (load(device=args.other_device), 1, 1)
    decoders = {name: decoder for name, decoder in decoders.items() if name not in args.without}
    shape = reference.latent_shape(args.crop, args.crop)
    dim = math.prod(shape)
    words = [Path(word).name if word == str(args.image) else word for word in sys.argv[1:]]
    result: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/reproducibility.py", *words]),
        "model": args.model,
        "dtype": args.dtype,
        "fingerprint": reference.fingerprint().hex(),
        "image": args.image.name,
        "crop": args.crop,
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "max": "largest difference in 1/255",
        "rows": [],
    }
    known = json.loads(args.output.read_text()) if args.output and args.output.is_file() else []

    def run(model: NetworkModel, config: CodecConfig, batch: int, chooser: Any, grid: float) -> Sample:
        """One reverse process."""
        steps = config.steps(reference)
        rule = config.make_rule(steps, dim, "auto")
        noise = initial_noise(dim, config.seed).view(1, *shape).expand(batch, *shape)
        own = model.predict
        if grid:
            model.predict = rounded(model, own, grid)  # type: ignore[method-assign]
        try:
            return sample(model, steps, rule, chooser, noise)
        finally:
            model.predict = own  # type: ignore[method-assign]

    for steps_count in args.T:
        for name in args.preset:
            config = configuration(name, steps_count, args.K, reference)
            for grid in [0.0, *args.grid]:
                torch.set_num_threads(1)
                coded = run(reference, config, 1, toward(reference.encode(original)), grid)
                wanted = reference.decode(coded.x0)
                row: dict[str, Any] = {
                    "preset": name,
                    "K": config.K,
                    "T": steps_count,
                    "schedule": config.schedule,
                    "grid": grid,
                    "psnr_encoder": round(psnr(wanted, original), 3),
                }

                def compared(decoded: Tensor, wanted: Tensor = wanted) -> dict[str, Any]:
                    drift = psnr(decoded, wanted)
                    return {
                        "drift_db": "inf" if drift == math.inf else round(drift, 2),
                        "max": float((decoded - wanted).abs().max() * 127.5),
                        "psnr": round(psnr(decoded, original), 3),
                    }

                for decoder, (model, batch, threads) in decoders.items():
                    torch.set_num_threads(threads)
                    letters = [step.expand(batch, -1) for step in coded.letters]
                    decoded = model.decode(run(model, config, batch, Replay(letters), grid).x0)[:1].cpu()
                    row[decoder] = compared(decoded)
                if args.isa and not grid:
                    torch.set_num_threads(1)
                    file = Codec(reference, config).encode(crop)[0]
                    assert torch.equal(file.reconstruction[None], wanted)
                    for isa in args.isa:
                        row[isa] = compared(on_older_processor(file.data, args.model, args.dtype, isa)[None])
                result["rows"].append(row)
                print(json.dumps(row), flush=True)
                if args.output:
                    write_json(args.output, [*known, result], 1)


if __name__ == "__main__":
    main()

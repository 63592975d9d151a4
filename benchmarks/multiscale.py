"""The codec with predictions on averaged pictures, beside the same network at full resolution alone.

    python benchmarks/multiscale.py --images DIR --data train-photos.tar --output benchmarks/results/multiscale.json

Each image's centre crop is coded by both, one after the other. The model at full resolution gets its own information
curve, measured in this run on held-out photographs of the training archive. Measured: PSNR, processor seconds of
encoding and evaluations, in the equivalent of full resolution, those of rate control included; then the same for
generating a picture, which is written beside the output.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from photographs import centre_crops, processor
from torch import Tensor

from ddcm_fast import Codec, load_model, preset
from ddcm_fast.codec.images import psnr, to_tensor
from ddcm_fast.models.multiscale import MultiscaleModel
from ddcm_fast.models.train.data import centre_crops as held_out_crops
from ddcm_fast.models.train.data import load_photos
from ddcm_fast.sampling.information import calibrate
from ddcm_fast.sampling.model import DiffusionModel

RATES = (0.05, 0.1, 0.25, 0.5)


class Meter:
    """Counts a model's evaluations without changing anything."""

    def __init__(self, model: DiffusionModel) -> None:
        self.work = 0.0
        predict = model.predict

        def counted(x: Tensor, t: float, condition: Any = None) -> tuple[Tensor, Tensor]:
            self.work += model.cost(t, x.shape)
            return predict(x, t, condition)

        model.predict = counted  # type: ignore[method-assign]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--data", type=Path, required=True, help="tar file of photographs, as for training")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument("--model", default="photo", help="(default: photo)")
    parser.add_argument("--only", nargs="*", help="names of images, without their endings")
    parser.add_argument("--calibration", type=int, default=8, help="held-out photographs (default: 8)")
    parser.add_argument("--generate", type=int, default=60, help="steps of the picture generated (default: 60)")
    args = parser.parse_args()
    averaged = load_model(args.model)
    if not isinstance(averaged, MultiscaleModel):
        parser.error(f"{args.model} has no calibration that averages: run ddcm calibrate")
    full = load_model(args.model).inner  # type: ignore[attr-defined]
    held_out = held_out_crops(load_photos(args.data, train=False).held_out, 256)
    full.information = calibrate(full, [crop[None] / 127.5 - 1 for crop in held_out[: args.calibration].float()])
    models = {"full": (full, Meter(full)), "averaged": (averaged, Meter(averaged))}
    crops = {name: crop for name, crop in centre_crops(args.images, 256) if not args.only or name in args.only}
    record: dict[str, Any] = {
        "command": f"python benchmarks/multiscale.py --images DIR --data train-photos.tar --output {args.output}"
        + (f" --only {' '.join(args.only)}" if args.only else ""),
        "machine": f"{processor()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "model": f"{args.model} ({averaged.fingerprint().hex()}), {averaged.dtype}",
        "averaged_from": list(averaged.information.averaged_from) if averaged.information else [],
        "coded": [],
        "generated": [],
    }

    def measured(key: str, work: Any) -> tuple[Any, dict[str, Any]]:
        meter, start = models[key][1], time.process_time()
        meter.work = 0.0
        result = work()
        said = {"model": key, "cpu_seconds": time.process_time() - start, "evaluations": round(meter.work, 2)}
        return result, said

    for rule, bpp in [*(("product", bpp) for bpp in RATES), ("trellis", 0.1)]:
        for name, crop in crops.items():
            for key, (model, _) in models.items():
                codec = Codec(model, preset(rule))
                coded, said = measured(key, lambda codec=codec, crop=crop, bpp=bpp: codec.encode(crop, bpp=bpp)[0])
                quality = psnr(to_tensor(crop)[0], coded.reconstruction.cpu())
                row = {"rule": rule, "target": bpp, "image": name, "bpp": coded.bpp, "psnr": quality, **said}
                record["coded"].append(row)
                print(row, flush=True)
        args.output.write_text(json.dumps(record, indent=1) + "\n")
    for key, (model, _) in models.items():
        codec = Codec(model, preset("ddcm", T=args.generate))
        coded, said = measured(key, lambda codec=codec: codec.generate(1, 256, 256)[0])
        coded.image.save(args.output.with_name(f"{args.output.stem}_{key}.png"))
        record["generated"].append({"steps": args.generate, **said})
        print(record["generated"][-1], flush=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

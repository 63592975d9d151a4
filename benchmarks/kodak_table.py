"""Bits and PSNR of DDCM's rules on photographs, with JPEG at the nearest size beside them.

    python benchmarks/kodak_table.py --images DIR --output benchmarks/results/kodak-table.json

Each image's centre crop is compressed with K in {16, 256, 4096} and two pursuit settings, decompressed, and compared
with the encoder's reconstruction. JPEG is Pillow's with optimised Huffman tables, at the quality whose file is nearest.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from pathlib import Path

import torch
from photographs import centre_crops, processor
from PIL import Image

from ddcm_fast import Codec, load_model, preset
from ddcm_fast.codebook import backends
from ddcm_fast.codec.images import psnr, to_tensor
from ddcm_fast.files import write_json

SETTINGS = {
    "ddcm K=16": ("ddcm", {"K": 16}),
    "ddcm K=256": ("ddcm", {"K": 256}),
    "ddcm K=4096": ("ddcm", {"K": 4096}),
    "pursuit K=1024 M=4 C=3": ("pursuit", {"K": 1024, "M": 4, "C": 3}),
    "pursuit K=4096 M=12 C=3": ("pursuit", {"K": 4096, "M": 12, "C": 3}),
}


def jpeg_near(image: Image.Image, size: int) -> tuple[int, float]:
    """Bytes and PSNR of the JPEG whose size is nearest to `size` bytes."""
    best = None
    for quality in range(1, 96):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        length = len(buffer.getvalue())
        if best is None or abs(length - size) < abs(best[0] - size):
            best = (length, psnr(to_tensor(image), to_tensor(Image.open(buffer))))
    assert best is not None
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument("--crop", type=int, default=256, help="side of the centre crop (default: 256)")
    parser.add_argument("-T", type=int, default=50, help="steps (default: 50)")
    args = parser.parse_args()
    model = load_model("photo")
    crops = dict(centre_crops(args.images, args.crop))
    rows = []
    for name, (rule, settings) in SETTINGS.items():
        codec = Codec(model, preset(rule, T=args.T, **settings))
        per_image = {}
        for stem, crop in crops.items():
            start = time.perf_counter()
            coded = codec.encode(crop)[0]
            encode = time.perf_counter() - start
            jpeg_bytes, jpeg_psnr = jpeg_near(crop, len(coded.data))
            per_image[stem] = {
                "bytes": len(coded.data),
                "bpp": coded.bpp,
                "psnr": psnr(to_tensor(crop)[0], coded.reconstruction.cpu()),
                "encode_seconds": encode,
                "jpeg_bpp": 8 * jpeg_bytes / args.crop**2,
                "jpeg_psnr": jpeg_psnr,
            }
            if stem == next(iter(crops)):  # decoding costs as much as encoding: once a setting shows that it is exact
                start = time.perf_counter()
                assert torch.equal(codec.decode(coded.data), coded.reconstruction)
                decode = time.perf_counter() - start
        keys = ("bpp", "psnr", "encode_seconds", "jpeg_bpp", "jpeg_psnr")
        mean = {key: sum(one[key] for one in per_image.values()) / len(per_image) for key in keys}
        rows.append({"setting": name, "T": args.T, "mean": mean, "decode_seconds": decode, "images": per_image})
        print(
            f"{name:26} {mean['bpp']:.4f} bpp {mean['psnr']:6.2f} dB {mean['encode_seconds']:5.1f} s   "
            f"JPEG {mean['jpeg_bpp']:.4f} bpp {mean['jpeg_psnr']:6.2f} dB",
            flush=True,
        )
        record = {
            "command": f"python benchmarks/kodak_table.py --images DIR -T {args.T} --crop {args.crop}"
            f" --output {args.output}",
            "machine": f"{processor()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "backend": backends.resolve("auto", model.device),
            "model": f"photo ({model.fingerprint().hex()}), {model.dtype}",
            "crop": args.crop,
            "rows": rows,
        }
        write_json(args.output, record, 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How soon thumbnails of .ddcm files are there, and how near to those of the whole pictures.

    python benchmarks/previews.py --images DIR --output benchmarks/results/previews.json

The centre crop of each image is coded at a quarter of a bit a pixel. Its thumbnails are made as Pillow's `thumbnail`
makes them, of the preview (twice as large as the thumbnail: `reducing_gap`) and of the whole picture. Measured: seconds
of wall clock, on one thread, and PSNR between the two thumbnails.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from photographs import centre_crops, ran
from PIL import Image

import ddcm_fast.pillow  # noqa: F401  (Pillow then opens .ddcm files)
from ddcm_fast import Codec, load_model, preset
from ddcm_fast.codec.images import psnr, to_tensor

KEYS = ("whole_s", "preview_s", "psnr")


def thumbnail(data: bytes, side: int, model: Any, gap: float | None) -> tuple[Image.Image, float]:
    """A thumbnail and the seconds it took; `gap` is Pillow's, None to decode the whole picture."""
    start = time.perf_counter()
    image = Image.open(io.BytesIO(data))
    image.model = model  # type: ignore[attr-defined]
    image.thumbnail((side, side), reducing_gap=gap)
    return image.copy(), time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument("--size", type=int, default=512, help="of the crops (default: 512)")
    parser.add_argument("--preset", default="trellis", help="(default: trellis)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model("photo")
    codec = Codec(model, preset(args.preset))
    rows: list[dict[str, Any]] = []
    for name, crop in centre_crops(args.images, args.size):
        data = codec.compress(crop, bpp=0.25)
        assert isinstance(data, bytes)
        for side in (args.size // parts for parts in (4, 8, 16, 32)):
            whole, slow = thumbnail(data, side, model, None)
            quick, soon = thumbnail(data, side, model, 2.0)
            near = psnr(to_tensor(whole), to_tensor(quick))
            rows.append({"image": name, "side": side, "whole_s": slow, "preview_s": soon, "psnr": near})
            print(f"{name} {side}: {slow:.2f} s, by a preview {soon:.2f} s, {near:.1f} dB", flush=True)
    means = {
        side: {key: statistics.mean(row[key] for row in rows if row["side"] == side) for key in KEYS}
        for side in dict.fromkeys(row["side"] for row in rows)
    }
    text = {
        **ran(args),
        "preset": args.preset,
        "means": means,
        "rows": rows,
    }
    args.output.write_text(json.dumps(text, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

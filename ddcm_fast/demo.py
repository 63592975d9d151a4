"""`make demo`: a photograph through the whole system, with the files to look at."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from PIL import Image

from . import Codec, backends, load_model
from .errors import DDCMError, MissingExtraError
from .images import psnr, to_tensor


def photograph() -> Image.Image:
    """scikit-image's astronaut, 512x512 RGB (NASA, public domain). Raises MissingExtraError without scikit-image."""
    try:
        from skimage import data
    except ImportError as error:
        raise MissingExtraError("the demo needs scikit-image: pip install 'ddcm-fast[demo]'") from error
    return Image.fromarray(data.astronaut())


def side_by_side(*images: Image.Image) -> Image.Image:
    """Images of one height in a row."""
    sheet = Image.new("RGB", (sum(image.width for image in images), images[0].height))
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width
    return sheet


def main() -> int:
    """Compress, decompress, compare, and say what it took."""
    parser = argparse.ArgumentParser(prog="python -m ddcm_fast.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for the results (default: demo)")
    parser.add_argument("--bpp", type=float, default=0.25, help="bits a pixel (default: 0.25)")
    args = parser.parse_args()
    try:
        image = photograph()
        model = load_model("photo")
        codec = Codec.from_preset(model, progress=None)
        start = time.perf_counter()
        coded = codec.encode(image, bpp=args.bpp)[0]
        middle = time.perf_counter()
        decoded = codec.decompress(coded.data)
        end = time.perf_counter()
    except DDCMError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "astronaut.ddcm").write_bytes(coded.data)
    decoded.save(args.output / "astronaut.png")
    side_by_side(image, decoded).save(args.output / "side-by-side.png")
    quality = psnr(to_tensor(image), to_tensor(decoded))
    backend = backends.resolve("auto", model.device)
    print(
        f"{len(coded.data)} bytes, {coded.bpp:.3f} bpp, PSNR {quality:.2f} dB; {middle - start:.1f} s to compress, "
        f"{end - middle:.1f} s to decompress on {model.device} (backend {backend})"
    )
    print(f"look at {args.output / 'side-by-side.png'}: the original and what is left of it")
    return 0


if __name__ == "__main__":
    sys.exit(main())

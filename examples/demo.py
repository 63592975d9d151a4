"""`make demo`: a photograph through the whole system, with the files to look at."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ddcm_fast import Codec, load_model
from ddcm_fast.cli.pictures import image_bytes
from ddcm_fast.cli.terminal import guarded, say
from ddcm_fast.codebook import backends
from ddcm_fast.codec.container import FILE
from ddcm_fast.codec.images import psnr, to_tensor
from ddcm_fast.errors import MissingExtraError
from ddcm_fast.files import Outputs, picture


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


def main(argv: Sequence[str] | None = None) -> int:
    """Compress, decompress, compare, and say what it took. Returns the exit status (see terminal)."""
    return guarded(lambda: _demo(argv))


def _demo(argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="python examples/demo.py", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for the results (default: demo)")
    parser.add_argument("--bpp", type=float, default=0.25, help="bits a pixel (default: 0.25)")
    parser.add_argument("--force", action="store_true", help="replace existing files of another kind, too")
    args = parser.parse_args(argv)
    outputs = Outputs(force=args.force, folder=args.output)
    packed, back, both = (args.output / name for name in ("astronaut.ddcm", "astronaut.png", "side-by-side.png"))
    outputs.add(packed, FILE)
    for path in (back, both):
        outputs.add(path, picture("PNG"))
    image = photograph()
    model = load_model("photo")
    codec = Codec.from_preset(model, progress=None)
    start = time.perf_counter()
    coded = codec.encode(image, bpp=args.bpp)[0]
    middle = time.perf_counter()
    decoded = codec.decompress(coded.data)
    end = time.perf_counter()
    outputs.write(packed, coded.data)
    outputs.write(back, image_bytes(decoded, back.name))
    outputs.write(both, image_bytes(side_by_side(image, decoded), both.name))
    quality = psnr(to_tensor(image), to_tensor(decoded))
    backend = backends.resolve("auto", model.device)
    say(
        f"{len(coded.data)} bytes, {coded.bpp:.3f} bpp, PSNR {quality:.2f} dB; {middle - start:.1f} s to compress, "
        f"{end - middle:.1f} s to decompress on {model.device} (backend {backend})"
    )
    say(f"look at {both}: the original and what is left of it")


if __name__ == "__main__":
    sys.exit(main())

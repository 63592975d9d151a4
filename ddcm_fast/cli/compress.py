"""`ddcm compress`."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddcm_fast.cli import many
from ddcm_fast.cli.arguments import (
    add_coding,
    add_common,
    add_condition,
    add_json,
    add_rate,
    condition_of,
    path_or,
    rate_of,
    settings_of,
)
from ddcm_fast.cli.compress_many import add_options
from ddcm_fast.cli.compress_many import run as many_run
from ddcm_fast.cli.loading import load, make_codec
from ddcm_fast.cli.pictures import is_image_ending, read_image
from ddcm_fast.cli.terminal import complain, tell
from ddcm_fast.codec import container
from ddcm_fast.codec.config import preset
from ddcm_fast.errors import InputError
from ddcm_fast.files import STDIN, STDOUT, Outputs

if TYPE_CHECKING:
    from PIL import Image


def add_parser(commands: Any) -> None:
    """The subcommand `compress`."""
    p = commands.add_parser(
        "compress",
        description="Compress an image, or many into one folder. Results that are there already are not made again.",
    )
    inputs = p.add_argument(
        "inputs",
        nargs="+",
        type=path_or(STDIN),
        metavar="input",
        help="an image file (PNG, JPEG, WebP, TIFF, AVIF, ...), coded as it shows in sRGB, transparency over white; or "
        "many: files, folders, patterns, .tar archives",
    )
    p.add_argument("output", type=path_or(STDOUT), help="the .ddcm file to write; a folder, if the images are many")
    add_rate(p)
    p.add_argument("--mask", type=Path, help="a grey image of the same size: bits go where it is bright")
    add_condition(p).add_argument(
        "--withhold-condition",
        action="store_true",
        help="only a hash of it travels in the file: decompress must be given it again",
    )
    add_coding(p)
    add_options(p, inputs)
    add_json(p, "size, quality and time")
    add_common(p)
    p.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    if many.is_many(args):
        many_run(args)
        return
    many.refuse_options(args)
    (args.input,) = args.inputs
    _one(args)


def _one(args: argparse.Namespace) -> None:
    from ddcm_fast.codebook import backends
    from ddcm_fast.codec.images import psnr, to_tensor

    config = preset(args.preset, **settings_of(args))
    if is_image_ending(args.output.suffix) and not args.force:
        raise InputError(f"{args.output} has the ending of an image; end the output in .ddcm")
    outputs = Outputs([args.input, args.mask], args.force)
    outputs.add(args.output, container.FILE)
    image = read_image(args.input, args)
    mask = None if args.mask is None else read_image(args.mask, args, background="black")
    model = load(args, args.model)
    codec = make_codec(args, model, config)
    start = time.perf_counter()
    coded = codec.encode(
        image,
        condition=condition_of(args),
        embed_condition=not args.withhold_condition,
        mask=mask,
        **rate_of(args, config),
    )[0]
    seconds = time.perf_counter() - start
    outputs.write(args.output, coded.data)
    quality = psnr(to_tensor(image, model.channels)[0], coded.reconstruction.cpu())
    used = container.read(coded.data)[0].config
    jpeg = _jpeg_psnr(image, len(coded.data)) if mask is None and model.channels == 3 else None
    facts = {
        "output": str(args.output),
        "bytes": len(coded.data),
        "bpp": coded.bpp,
        "psnr": quality if math.isfinite(quality) else None,
        "jpeg_psnr": jpeg,
        "seconds": seconds,
        "model": model.name,
        "evaluations": codec.work(used, image.height, image.width),
        "backend": backends.resolve(args.backend, model.device),
    }
    tell(
        f"{args.output}: {len(coded.data):8} bytes, {coded.bpp:7.4f} bpp, PSNR {quality:5.2f} dB, {seconds:6.1f} s "
        f"(model {model.name}, network evaluations: {facts['evaluations']:.3g}, backend {facts['backend']})",
        args,
        facts,
    )
    if jpeg is not None and quality < min(jpeg - _HOPELESS, _PERFECT) and not args.quiet:
        complain(
            f"warning: {args.input} is no picture for the model {model.name!r}: a JPEG of {len(coded.data)} bytes has "
            f"{jpeg:.1f} dB, {jpeg - quality:.1f} more than this file"
        )


#: dB by which a JPEG is to be better before that is said, and above which nobody sees a difference.
_HOPELESS, _PERFECT = 0.5, 42.0


def _jpeg_psnr(image: Image.Image, size: int) -> float | None:
    """PSNR in dB of the best JPEG of at most `size` bytes; None if there is none so small."""
    from ddcm_fast.codec.images import psnr, to_tensor
    from ddcm_fast.evaluation.codecs import make

    shown = image.convert("RGB")
    coded = make("jpeg", None).code(shown, 8 * size / (shown.width * shown.height))
    if not coded.fits:
        return None
    quality = psnr(to_tensor(shown), to_tensor(coded.image))
    return quality if math.isfinite(quality) else None

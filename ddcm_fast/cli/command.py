"""The `ddcm` command."""

from __future__ import annotations

import argparse
import io
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ddcm_fast import __version__
from ddcm_fast.cli import tasks
from ddcm_fast.cli.terminal import EXIT_HELP, MISTAKE, complain, guarded, say
from ddcm_fast.codebook.law import KINDS
from ddcm_fast.codec.codec import DEFAULT_PRESET
from ddcm_fast.codec.config import PRESETS, SCHEDULES, SHARING_RULES, CodecConfig, preset
from ddcm_fast.codec.container import FILE, MAGIC
from ddcm_fast.codec.images import describe_endings
from ddcm_fast.codec.limits import OPTIONS, Limits
from ddcm_fast.codec.rate import QUALITIES
from ddcm_fast.errors import DDCMWarning, InputError
from ddcm_fast.files import JSON, MAX_PIPED, STDIN, STDOUT, Kind, Outputs, is_regular, picture, read
from ddcm_fast.sampling.condition import ConditionHash

if TYPE_CHECKING:
    from PIL import Image

IMAGE_OUTPUT = f"the image to write; its ending says the format: {describe_endings()}"

_EPILOG = """examples:
  ddcm compress photo.jpg photo.ddcm             compress with the built-in model
  ddcm decompress photo.ddcm photo.png           and back
  ddcm info photo.ddcm                           what is in the file
  ddcm compress photo.jpg photo.ddcm --bpp 0.5   at most half a bit a pixel
  ddcm compress photo.jpg photo.ddcm --psnr 30   as small as 30 dB allow
  ddcm decompress photo.ddcm early.png --first 30%
  ddcm compress photo.jpg small.ddcm --preset ddcm -T 200 -K 65536
  ddcm compress - - < photo.jpg | ddcm decompress - early.png        "-" is standard input or output

Presets: {presets}.
An input is never overwritten; an existing file is replaced only by one of its own kind, or with --force.
{status}
"""


DEFAULT_MODEL = "photo"

#: Images that one `ddcm generate` makes.
_MOST_IMAGES = 10_000


def _is_image_ending(ending: str) -> bool:
    from PIL import Image

    Image.init()
    return ending.lower() in Image.registered_extensions()


def image_name(path: Path, asked: str | None = None) -> str:
    """A name whose ending says the format to write: the one asked for, else the path's; PNG for a pipe without one."""
    if asked is not None:
        return f"image.{asked}"
    return "image.png" if not path.suffix and not is_regular(path) else path.name


def image_kind(name: str) -> Kind:
    """What an image of this name replaces. Raises InputError: an ending of no format that holds it."""
    from ddcm_fast.codec.images import writing_format

    return picture(writing_format(name)[0])


def image_bytes(image: Image.Image, name: str) -> bytes:
    """An image as the bytes of a file of this name."""
    from ddcm_fast.codec.images import save_image

    buffer = io.BytesIO()
    save_image(image, buffer, name)
    return buffer.getvalue()


def read_image(path: Path, **how: Any) -> Image.Image:
    """An image from a file, a pipe or standard input, see images.load_image. Raises InputError."""
    from ddcm_fast.codec.images import load_image

    return load_image(path if is_regular(path) else io.BytesIO(read(path, MAX_PIPED)), **how)


def tell(text: str, args: argparse.Namespace) -> None:
    """Say what was done, beside standard output where that carries the result."""
    if not args.quiet:
        say(text, sys.stderr if getattr(args, "output", None) == STDOUT else None)


def load(args: argparse.Namespace, name: str, dtype: str | None):  # type: ignore[no-untyped-def]
    """The model of a name that the user gave."""
    from ddcm_fast.models import load_model

    return load_model(name, device=args.device, dtype=dtype, trust=args.trust)


def load_for(args: argparse.Namespace, name: str, dtype: str):  # type: ignore[no-untyped-def]
    """The model of a file: --model, else the one that its header names if that is built in.

    Whether it is the file's is decided by the fingerprint.
    """
    from ddcm_fast.models.loading import require_builtin

    if args.model is None:
        require_builtin(name)
    return load(args, args.model or name, args.dtype or dtype)


def settings(args: argparse.Namespace) -> dict[str, object]:
    names = ("T", "K", "M", "C", "atoms", "kind", "schedule", "stop", "tail", "ancestral_tail", "seed", "t_range")
    given: dict[str, object] = {name: getattr(args, name) for name in names}
    if args.t_range is not None:
        given["t_range"] = (max(args.t_range), min(args.t_range))
    return given


def _target(args: argparse.Namespace, config: CodecConfig) -> dict[str, Any]:
    """The bitrate or quality asked for: --bpp, --psnr or --quality, else medium unless the rate was set by hand."""
    if args.bpp is not None:
        return {"bpp": args.bpp}
    if args.psnr is not None:
        return {"psnr": args.psnr}
    if args.quality is not None:
        return {"bpp": QUALITIES[args.quality]}
    by_hand = args.M is not None or args.atoms is not None or config.rule not in SHARING_RULES
    return {} if by_hand else {"bpp": QUALITIES["medium"]}


def _progress(args: argparse.Namespace) -> bool | None:
    return False if args.quiet else None


def _compress(args: argparse.Namespace) -> None:
    from ddcm_fast.codebook import backends
    from ddcm_fast.codec import container
    from ddcm_fast.codec.codec import Codec
    from ddcm_fast.codec.images import psnr, to_tensor

    config = preset(args.preset, **settings(args))
    if _is_image_ending(args.output.suffix) and not args.force:
        raise InputError(f"{args.output} has the ending of an image; end the output in .ddcm")
    outputs = Outputs([args.input, args.mask], args.force)
    outputs.add(args.output, FILE)
    image = read_image(args.input)
    mask = None if args.mask is None else read_image(args.mask, background="black")
    model = load(args, args.model, args.dtype)
    codec = Codec(model, config, args.backend, progress=_progress(args), limits=limits_of(args))
    start = time.perf_counter()
    coded = codec.encode(
        image,
        condition=tasks.condition_of(args),
        embed_condition=not args.withhold_condition,
        mask=mask,
        **_target(args, config),
    )[0]
    seconds = time.perf_counter() - start
    outputs.write(args.output, coded.data)
    quality = psnr(to_tensor(image, model.channels)[0], coded.reconstruction.cpu())
    used = container.read(coded.data)[0].config
    tell(
        f"{args.output}: {len(coded.data)} bytes, {coded.bpp:.4f} bpp, PSNR {quality:.2f} dB, {seconds:.1f} s "
        f"(model {model.name}, network evaluations: {codec.work(used, image.height, image.width):.3g}, "
        f"backend {backends.resolve(args.backend, model.device)})",
        args,
    )


def _decompress(args: argparse.Namespace) -> None:
    from ddcm_fast.codec import container
    from ddcm_fast.codec.codec import Codec

    name = image_name(args.output, args.format)
    outputs = Outputs([args.input], args.force)
    outputs.add(args.output, image_kind(name))
    data = read(args.input, start=MAGIC)
    start = time.perf_counter()
    if args.input.suffix == ".bin" and not data.startswith(MAGIC):
        image, said = _decode_official(args)
    else:
        header, _ = container.read(data, args.ignore_checksum)
        model = load_for(args, header.model, header.dtype)
        codec = Codec(model, backend=args.backend, progress=_progress(args), limits=limits_of(args))
        start = time.perf_counter()
        image, said = codec.decompress(data, args.ignore_checksum, tasks.condition_of(args), args.first), ""
    outputs.write(args.output, image_bytes(image, name))
    tell(f"{args.output}: {image.width}x{image.height}, {time.perf_counter() - start:.1f} s{said}", args)


def _decode_official(args: argparse.Namespace) -> tuple[Image.Image, str]:
    """A file of the DDCM authors' code; its folder's name says what it is (float32 unless --dtype says otherwise)."""
    from ddcm_fast.codec import official
    from ddcm_fast.codec.images import to_pil

    found = official.Settings.of_path(args.input.resolve())
    model = load_for(args, found.hub_id, "float32")
    image = to_pil(official.decode(args.input, model, found, _progress(args), limits_of(args)))
    return image, f", official DDCM file of {found.hub_id}"


def _info(args: argparse.Namespace) -> None:
    import dataclasses

    from ddcm_fast.codec import container

    data = read(args.input, start=MAGIC)
    header, payload = container.read(data, args.ignore_checksum)
    pixels = header.width * header.height
    say(f"image      {header.width}x{header.height}")
    bpp = 8 * len(data) / pixels
    say(f"size       {len(data)} bytes, {bpp:.4f} bpp ({len(data) - len(payload)} bytes of header)")
    say(f"model      {header.model} (fingerprint {header.fingerprint.hex()}), {header.dtype}")
    for field in dataclasses.fields(header.config):
        value = getattr(header.config, field.name)
        if value != field.default or field.name in ("rule", "kind", "K", "T", "schedule", "seed"):
            say(f"{field.name:<10} {value}")
    if header.condition is not None:
        hidden = isinstance(header.condition, ConditionHash)
        say(f"condition  {'does not travel with the file' if hidden else header.condition}")
    if header.edit is not None:
        say(f"edited     from step {header.edit.start} on: {header.edit.condition or 'no condition'}")


def _generate(args: argparse.Namespace) -> None:
    from ddcm_fast.codec.codec import Codec

    if not 1 <= args.count <= _MOST_IMAGES:
        raise InputError(f"-n is {args.count}; ask for 1 to {_MOST_IMAGES} images")
    config = preset(args.preset, **settings(args))
    outputs = Outputs(force=args.force, folder=args.output_dir)
    names = [args.output_dir / f"{i:04d}.png" for i in range(args.count)]
    for name in names:
        tasks.add(outputs, name)
    model = load(args, args.model, args.dtype)
    codec = Codec(model, config, args.backend, progress=_progress(args), limits=limits_of(args))
    width, height = args.size or (model.default_side, model.default_side)
    images = tasks.generate(codec, args, height, width)
    for name, coded in zip(names, images, strict=True):
        tasks.write(outputs, name, coded)
    tell(f"{args.output_dir}: {args.count} images and their files, {images[0].bpp:.4f} bpp each", args)


def path_or(standard: Path) -> Any:
    """The type of a path on the command line; "-" is a standard stream, "./-" a file of that name."""
    return lambda text: standard if text == "-" else Path(text)


def seed(text: str) -> int:
    """The type of a seed on the command line: 0 to 2^64 - 1."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; give an integer from 0 to 2^64 - 1")
    return value


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, as in 256x256") from error
    return width, height


def _share(text: str) -> float:
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share, as in 30% or 0.3") from error


def _calibrate(args: argparse.Namespace) -> None:
    from ddcm_fast.codec.images import MAX_PIXELS_TO_CUT, load_image, to_tensor
    from ddcm_fast.models.loading import EXTRA_FILE, WEIGHTS, builtin_models
    from ddcm_fast.models.multiscale import multiscale
    from ddcm_fast.sampling.information import calibrate, store

    for option, value in (("--most", args.most), ("--side", args.side)):
        if value < 1:
            raise InputError(f"{option} is {value}; it must be at least 1")
    folder = WEIGHTS / args.model if args.model in builtin_models() else Path(args.model)
    if not folder.is_dir():
        raise InputError(f"the curve is stored with the model, and {args.model!r} is no local folder; save it first")
    Outputs().add(folder / EXTRA_FILE, JSON)
    if not args.images.is_dir():
        raise InputError(f"no such folder of images: {args.images}")
    model = load(args, args.model, args.dtype)
    paths = sorted(path for path in args.images.rglob("*") if path.is_file())[: args.most]
    images = []
    for path in paths:
        image = load_image(path, MAX_PIXELS_TO_CUT)
        side = min(args.side, *image.size) // model.multiple * model.multiple
        if side == 0:
            raise InputError(f"{path} is too small for this model")
        left, top = (image.width - side) // 2, (image.height - side) // 2
        images.append(to_tensor(image.crop((left, top, left + side, top + side)), model.channels))
    curve = calibrate(multiscale(model), images, _progress(args))
    store(curve, folder)
    tell(f"{folder.name}: information curve of {len(images)} images stored; files made before need the old one", args)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options that every command which runs a model takes."""
    group = parser.add_argument_group("where and how it runs")
    group.add_argument("--device", help="cpu or cuda (default: a GPU if there is one)")
    group.add_argument("--dtype", help="of the network: float32, bfloat16 or float16 (default: what is native here)")
    group.add_argument("--backend", default="auto", help="of the codebook: auto, cuda, triton, cpu or reference")
    group.add_argument(
        "--trust",
        action="store_true",
        help="load files whose format can run code: pickled weights (.bin, .ckpt, .pt), .pt2 and TorchScript restorers",
    )
    group.add_argument("--force", action="store_true", help="replace existing files of another kind; search for hours")
    group.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    add_limits(parser)


def _amount(text: str) -> int:
    found = re.fullmatch(r"(\d{1,18})([kMGT]?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, as in 5000000, 5M or 16G")
    return int(found[1]) << 10 * " kMGT".index(found[2] or " ")


def add_limits(parser: argparse.ArgumentParser) -> None:
    """The options that set Limits."""
    group = parser.add_argument_group("what files and settings may ask for (as in 5000000, 5M or 16G, M being 2^20)")
    for name, (what, default) in OPTIONS.items():
        option = f"--max-{name.replace('_', '-')}"
        group.add_argument(option, type=_amount, metavar="N", help=f"{what} (default: {default})")


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits that the options give; --force lifts the one on time."""
    given = {name: getattr(args, f"max_{name}") for name in OPTIONS}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if args.force:
        asked["seconds"] = math.inf
    return Limits(**asked)


def add_coding(parser: argparse.ArgumentParser) -> None:
    """Options that say how an image is coded."""
    names = "; ".join(f"{name}: {text}" for name, (_, text) in PRESETS.items())
    group = parser.add_argument_group("how it is coded (each default comes from the preset)")
    group.add_argument("--model", default=DEFAULT_MODEL, help="built-in model, model folder or hub id (default: photo)")
    group.add_argument("--preset", default=DEFAULT_PRESET, help=f"{names} (default: %(default)s)")
    group.add_argument("-T", type=int, help="steps, which is network evaluations")
    group.add_argument("-K", type=int, help="atoms in the codebook; a larger K codes more bits a step")
    group.add_argument("-M", type=int, help="atoms a step (all presets but ddcm)")
    group.add_argument("--atoms", type=int, help="atoms in the whole file (instead of M)")
    group.add_argument("-C", type=int, help="bits of a coefficient (pursuit)")
    group.add_argument("--kind", choices=KINDS, help="of codebook")
    group.add_argument("--schedule", choices=SCHEDULES, help="which timesteps are visited")
    group.add_argument("--stop", type=int, help="timestep at which coding ends (schedule kl)")
    group.add_argument("--tail", type=int, help="steps after it: 1 for the best PSNR, more for sharper pictures")
    group.add_argument(
        "--ancestral-tail", action="store_const", const=True, help="with noise in the tail (DDPM), which helps no PSNR"
    )
    group.add_argument("--t-range", type=int, nargs=2, metavar=("HIGH", "LOW"), help="timesteps that carry bits")
    group.add_argument("--seed", type=seed, help="of the codebook, 64 bit (default: 0)")


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments; argparse prints the usage before."""

    def error(self, message: str) -> NoReturn:
        complain(f"{message} (see {self.prog} --help)")
        self.exit(MISTAKE)


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    qualities = ", ".join(f"{name} {bpp:g}" for name, bpp in QUALITIES.items())
    parser = _Parser(
        prog="ddcm",
        description="Compress images with a pretrained diffusion model and codebook noise (DDCM).",
        epilog=_EPILOG.format(presets=", ".join(PRESETS), status=EXIT_HELP),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ddcm-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    compress = commands.add_parser("compress", help="image -> .ddcm file", description="Compress an image.")
    compress.add_argument(
        "input",
        type=path_or(STDIN),
        help="an image file (PNG, JPEG, WebP, TIFF, AVIF, ...), coded as it shows in sRGB, transparency over white",
    )
    compress.add_argument("output", type=path_or(STDOUT), help="the .ddcm file to write")
    rate = compress.add_argument_group("how small").add_mutually_exclusive_group()
    rate.add_argument("--quality", choices=QUALITIES, help=f"bits a pixel: {qualities} (default: medium)")
    rate.add_argument("--bpp", type=float, help="bits a pixel of the whole file, never exceeded")
    rate.add_argument("--psnr", type=float, help="quality in dB to meet within 0.2 dB, by a few encodings")
    compress.add_argument("--mask", type=Path, help="a grey image of the same size: bits go where it is bright")
    tasks.add_condition(compress).add_argument(
        "--withhold-condition",
        action="store_true",
        help="only a hash of it travels in the file: decompress must be given it again",
    )
    add_coding(compress)
    add_common(compress)
    compress.set_defaults(run=_compress)

    decompress = commands.add_parser("decompress", help=".ddcm file -> image", description="Decompress a file.")
    decompress.add_argument("input", type=path_or(STDIN), help="a .ddcm file")
    decompress.add_argument("output", type=path_or(STDOUT), help=IMAGE_OUTPUT)
    decompress.add_argument("--format", help="of the image where no ending says it, as in webp (default: png)")
    decompress.add_argument("--model", help="the file's model, if it is not built in: a folder or hub id")
    decompress.add_argument("--ignore-checksum", action="store_true", help="decode a damaged or cut file as it is")
    decompress.add_argument("--first", type=_share, default=1.0, help="decode only this part of the file, as in 30%%")
    tasks.add_condition(decompress)
    add_common(decompress)
    decompress.set_defaults(run=_decompress)

    info = commands.add_parser("info", help="what is in a .ddcm file", description="Describe a .ddcm file.")
    info.add_argument("input", type=path_or(STDIN), help="a .ddcm file")
    info.add_argument("--ignore-checksum", action="store_true", help="read a damaged file as it is")
    info.set_defaults(run=_info)

    calibrate = commands.add_parser(
        "calibrate",
        help="measure a model's information curve",
        description="Measure on sample images how much information each noise level of a model holds, and store the "
        "curve in the model's folder. Schedules and bit allocation follow it; files depend on it.",
    )
    calibrate.add_argument("--model", required=True, help="built-in model or a model folder")
    calibrate.add_argument("--images", type=Path, required=True, help="a folder of images like those to compress")
    calibrate.add_argument("--most", type=int, default=32, help="how many of them (default: 32)")
    calibrate.add_argument("--side", type=int, default=256, help="of the centre crop in pixels (default: 256)")
    add_common(calibrate)
    calibrate.set_defaults(run=_calibrate)

    generate = commands.add_parser(
        "generate",
        help="random images and their files",
        description="Draw images at random from the model; each comes with the .ddcm file that decodes to it.",
    )
    generate.add_argument("--output-dir", type=Path, required=True, help="where 0000.png, 0000.ddcm, ... go")
    generate.add_argument("-n", dest="count", type=int, default=1, help="how many images (default: 1)")
    generate.add_argument("--size", type=_size, help="WIDTHxHEIGHT (default: 256x256, or the model's own)")
    generate.add_argument("--draw-seed", type=seed, default=0, help="of the random choice of atoms (default: 0)")
    tasks.add_guidance(generate)
    add_coding(generate)
    add_common(generate)
    generate.set_defaults(run=_generate, preset="ddcm")
    tasks.add_parsers(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit status (see terminal); an error is one line on standard error."""
    # What a library has to say of an error is in our own line; its log would only surround it.
    for library in ("DIFFUSERS", "TRANSFORMERS", "HF_HUB"):
        os.environ.setdefault(f"{library}_VERBOSITY", "critical")
    return guarded(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    args = build_parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other libraries' are for their developers
        warnings.simplefilter("always", DDCMWarning)
        warnings.showwarning = lambda message, *_, **__: complain(f"warning: {message}")
        args.run(args)


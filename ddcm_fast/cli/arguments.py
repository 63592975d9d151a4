"""What commands share: types of arguments, groups of options, and what the package wants of their values."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

from ddcm_fast.codec.config import DEFAULT_MODEL, DEFAULT_PRESET, PRESETS, QUALITIES, CodecConfig, options
from ddcm_fast.codec.limits import OPTIONS, Limits
from ddcm_fast.errors import ConfigError
from ddcm_fast.sampling.condition import Condition

# ---- types ---------------------------------------------------------------------------------------


def path_or(standard: Path) -> Any:
    """The type of a path on the command line; "-" is a standard stream, "./-" a file of that name."""
    return lambda text: standard if text == "-" else Path(text)


def integer(text: str) -> int:
    """The type of every integer on the command line."""
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer; write it in digits, as in 4096") from error


def number(text: str) -> float:
    """The type of every number on the command line that need not be whole."""
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; give one, as in 0.25") from error


def seed(text: str) -> int:
    """The type of a seed on the command line: 0 to 2^64 - 1."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; give an integer from 0 to 2^64 - 1")
    return value


def size(text: str) -> tuple[int, int]:
    """The type of a picture's size on the command line: WIDTHxHEIGHT."""
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, as in 256x256") from error
    return width, height


def share(text: str) -> float:
    """The type of a part of something on the command line: 30% or 0.3."""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share, as in 30% or 0.3") from error


def amount(text: str) -> int:
    """The type of a limit on the command line: 5000000, 5M or 16G."""
    found = re.fullmatch(r"(\d{1,18})([kMGT]?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, as in 5000000, 5M or 16G")
    return int(found[1]) << 10 * " kMGT".index(found[2] or " ")


# ---- where and how it runs -----------------------------------------------------------------------


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
    how_much = group.add_mutually_exclusive_group()
    how_much.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    how_much.add_argument("-v", "--verbose", action="store_true", help="say what is loaded, and how it is coded")
    limits = parser.add_argument_group("what files and settings may ask for (as in 5000000, 5M or 16G, M being 2^20)")
    for name, (what, default) in OPTIONS.items():
        option = f"--max-{name.replace('_', '-')}"
        limits.add_argument(option, type=amount, metavar="N", help=f"{what} (default: {default})")


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """The option --json."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as one JSON object")


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits that the options give; --force lifts the one on time."""
    given = {name: getattr(args, f"max_{name}") for name in OPTIONS}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if args.force:
        asked["seconds"] = math.inf
    return Limits(**asked)


def progress(args: argparse.Namespace) -> bool | None:
    """Whether to show progress bars; None: on a terminal."""
    return False if args.quiet else None


# ---- how an image is coded -----------------------------------------------------------------------


def add_coding(parser: argparse.ArgumentParser) -> None:
    """Options that say how an image is coded."""
    names = "; ".join(f"{name}: {text}" for name, (_, text) in PRESETS.items())
    group = parser.add_argument_group("how it is coded (each default comes from the preset)")
    group.add_argument("--model", default=DEFAULT_MODEL, help="built-in model, model folder or hub id (default: photo)")
    group.add_argument("--preset", default=DEFAULT_PRESET, help=f"{names} (default: %(default)s)")
    for name, how in options():
        option = f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"
        group.add_argument(option, **(how | {"type": seed} if name == "seed" else how))


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The preset's fields that add_coding's options replace, None for those that were not given."""
    given: dict[str, Any] = {name: getattr(args, name) for name, _ in options()}
    if args.t_range is not None:
        given["t_range"] = (max(args.t_range), min(args.t_range))
    return given


def add_rate(parser: argparse.ArgumentParser) -> None:
    """Options that say how small a file is to be."""
    qualities = ", ".join(f"{name} {bpp:g}" for name, bpp in QUALITIES.items())
    rate = parser.add_argument_group("how small").add_mutually_exclusive_group()
    rate.add_argument("--quality", choices=QUALITIES, help=f"bits a pixel: {qualities} (default: medium)")
    rate.add_argument("--bpp", type=float, help="bits a pixel of the whole file, never exceeded")
    rate.add_argument("--psnr", type=float, help="quality in dB to meet within 0.2 dB, by a few encodings")


def rate_of(args: argparse.Namespace, config: CodecConfig) -> dict[str, Any]:
    """The bitrate or quality asked for: --bpp, --psnr or --quality, else medium unless the rate was set by hand."""
    if args.bpp is not None:
        return {"bpp": args.bpp}
    if args.psnr is not None:
        return {"psnr": args.psnr}
    if args.quality is not None:
        return {"bpp": QUALITIES[args.quality]}
    by_hand = args.M is not None or args.atoms is not None or not config.shares_atoms
    return {} if by_hand else {"bpp": QUALITIES["medium"]}


# ---- which images --------------------------------------------------------------------------------


def add_recipe(parser: argparse._ActionsContainer) -> None:
    """The option that takes the inputs as a published data set."""
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="the inputs are this data set as it is published: only its images, cut and resized as the paper does "
        "(kodak24, div2k, clic2020, imagenet256)",
    )


def add_sets(parser: argparse.ArgumentParser) -> None:
    """Options of FID and KID."""
    parser.add_argument("--patch", type=int, help="side of the patches of patch-fid and patch-kid (default: 256)")
    parser.add_argument(
        "--inception",
        type=Path,
        help="with --trust, the weights of torch-fidelity's network (default: it fetches them)",
    )


def patch_of(args: argparse.Namespace, default: int | None = None) -> int:
    """The side of the patches: --patch, else `default`, else HiFiC's. Raises ConfigError, also for --inception."""
    from ddcm_fast.evaluation.sets import PATCH_SIDE
    from ddcm_fast.models.trust import check_pickle

    if args.inception is not None:
        check_pickle(args.inception, args.trust)
    if args.patch is not None and args.patch < 1:
        raise ConfigError(f"--patch is {args.patch}; it must be at least 1")
    return args.patch or default or PATCH_SIDE


# ---- what a conditional model is told ------------------------------------------------------------


def add_condition(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Options that say what a conditional model is told; their group."""
    group = parser.add_argument_group("what a conditional model is told")
    group.add_argument("--label", type=int, help="class, of a class-conditional model")
    group.add_argument("--prompt", help="text, of a text-to-image model")
    group.add_argument("--negative-prompt", help="text to stay away from")
    group.add_argument("--guidance-scale", type=float, help="of classifier-free guidance (default: the model's own)")
    return group


def add_classifier(group: argparse._ArgumentGroup) -> None:
    """Options of classifier guidance, which a file needs again to be decoded."""
    group.add_argument(
        "--classifier",
        type=Path,
        metavar="FILE",
        help="with --trust, guide by a classifier of noisy images, (x_t, t) -> logits: one of guided-diffusion's "
        "checkpoints by its name (256x256_classifier.pt), or a .pt2 or TorchScript file; decoding needs it too",
    )
    group.add_argument("--classifier-scale", type=float, default=1.0, help="of classifier guidance (default: 1)")


def condition_of(args: argparse.Namespace) -> Condition | None:
    """The condition that the options give, None for none."""
    given = Condition(args.prompt, args.negative_prompt, args.label, args.guidance_scale)
    return given if given else None

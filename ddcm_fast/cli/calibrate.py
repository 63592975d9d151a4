"""`ddcm calibrate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddcm_fast.cli.arguments import add_common, progress
from ddcm_fast.cli.loading import load
from ddcm_fast.cli.pictures import read_image
from ddcm_fast.cli.terminal import tell
from ddcm_fast.errors import InputError
from ddcm_fast.files import JSON, Outputs

if TYPE_CHECKING:
    from torch import Tensor

    from ddcm_fast.sampling.model import DiffusionModel


def add_parser(commands: Any) -> None:
    """The subcommand `calibrate`."""
    p = commands.add_parser(
        "calibrate",
        description="Measure on sample images how much information each noise level of a model holds, and store the "
        "curve in the model's folder. Schedules and bit allocation follow it; files depend on it.",
    )
    p.add_argument("--model", required=True, help="built-in model or a model folder")
    p.add_argument("--images", type=Path, required=True, help="a folder of images like those to compress")
    p.add_argument("--most", type=int, default=32, help="how many of them (default: 32)")
    p.add_argument("--side", type=int, default=256, help="of the centre crop in pixels (default: 256)")
    add_common(p)
    p.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from ddcm_fast.models.loading import builtin_models
    from ddcm_fast.models.multiscale import multiscale
    from ddcm_fast.models.names import EXTRA_FILE, WEIGHTS
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
    model = load(args, args.model)
    paths = sorted(path for path in args.images.rglob("*") if path.is_file())[: args.most]
    images = [_centre(path, model, args) for path in paths]
    store(calibrate(multiscale(model), images, progress(args)), folder)
    tell(f"{folder.name}: information curve of {len(images)} images stored; files made before need the old one", args)


def _centre(path: Path, model: DiffusionModel, args: argparse.Namespace) -> Tensor:
    """The middle of a picture, at most --side wide and high: (1, channels, H, W)."""
    from ddcm_fast.codec.images import MAX_PIXELS_TO_CUT, to_tensor

    image = read_image(path, args, MAX_PIXELS_TO_CUT)
    side = min(args.side, *image.size) // model.multiple * model.multiple
    if side == 0:
        raise InputError(f"{path} has {image.width}x{image.height} pixels; each side needs {model.multiple}")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return to_tensor(image.crop((left, top, left + side, top + side)), model.channels)

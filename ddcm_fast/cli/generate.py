"""`ddcm generate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddcm_fast.cli.arguments import (
    APPLICATION_PRESET,
    add_coding,
    add_common,
    add_condition,
    condition_of,
    seed,
    settings_of,
    size,
)
from ddcm_fast.cli.loading import load, make_codec
from ddcm_fast.cli.pictures import add_pair, write_pair
from ddcm_fast.cli.terminal import tell
from ddcm_fast.codec.config import preset
from ddcm_fast.errors import ConfigError, InputError
from ddcm_fast.files import Outputs

if TYPE_CHECKING:
    from ddcm_fast.codec.codec import Codec, Encoded

#: Images that one command makes.
_MOST_IMAGES = 10_000


def add_parser(commands: Any) -> None:
    """The subcommand `generate`."""
    p = commands.add_parser(
        "generate",
        description="Draw images at random from the model; each comes with the .ddcm file that decodes to it.",
    )
    p.add_argument("--output-dir", type=Path, required=True, help="where 0000.png, 0000.ddcm, ... go")
    p.add_argument("-n", dest="count", type=int, default=1, help="how many images (default: 1)")
    p.add_argument("--size", type=size, help="WIDTHxHEIGHT (default: 256x256, or the model's own)")
    p.add_argument("--draw-seed", type=seed, default=0, help="of the random choice of atoms (default: 0)")
    add_condition(p)
    p.add_argument(
        "--ccfg",
        type=int,
        metavar="N",
        help="compressed classifier-free guidance towards the label or prompt: at each step the best of N random "
        "atoms (the paper: 2 to 9 of K = 64); the file then decodes without label and prompt",
    )
    add_coding(p)
    add_common(p)
    p.set_defaults(run=_run, preset=APPLICATION_PRESET)


def _run(args: argparse.Namespace) -> None:
    if not 1 <= args.count <= _MOST_IMAGES:
        raise InputError(f"-n is {args.count}; ask for 1 to {_MOST_IMAGES} images")
    config = preset(args.preset, **settings_of(args))
    outputs = Outputs(force=args.force, folder=args.output_dir)
    names = [args.output_dir / f"{i:04d}.png" for i in range(args.count)]
    for name in names:
        add_pair(outputs, name)
    model = load(args, args.model)
    width, height = args.size or (model.default_side, model.default_side)
    images = _draw(make_codec(args, model, config), args, height, width)
    for name, coded in zip(names, images, strict=True):
        write_pair(outputs, name, coded)
    tell(f"{args.output_dir}: {args.count} images and their files, {images[0].bpp:.4f} bpp each", args)


def _draw(codec: Codec, args: argparse.Namespace, height: int, width: int) -> list[Encoded]:
    condition = condition_of(args)
    if args.ccfg is None:
        return codec.generate(args.count, height, width, args.draw_seed, condition)
    if condition is None:
        raise ConfigError("--ccfg guides towards a condition: give --label or --prompt")
    from ddcm_fast.tasks.guidance import ccfg

    chooser = ccfg(codec.model.complete_condition(condition), args.ccfg, args.draw_seed)
    return codec.sample(chooser, height, width, args.count)

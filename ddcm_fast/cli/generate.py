"""`ddcm generate`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddcm_fast.cli.arguments import (
    add_classifier,
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
from ddcm_fast.codec.batches import batches, together
from ddcm_fast.codec.config import APPLICATION_PRESET, preset
from ddcm_fast.errors import ConfigError, InputError
from ddcm_fast.files import Outputs
from ddcm_fast.sampling.condition import Condition

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
    p.add_argument("-n", dest="count", type=int, help="how many images (default: 1, or one for each label or caption)")
    p.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="images a network call (default: 1); of more than one, last bits of a decoded file can differ from the "
        "image beside it",
    )
    p.add_argument("--size", type=size, help="WIDTHxHEIGHT (default: 256x256, or the model's own)")
    p.add_argument(
        "--draw-seed", type=seed, default=0, help="of the random choice of atoms (default: 0); each image has its own"
    )
    group = add_condition(p)
    many = group.add_mutually_exclusive_group()
    many.add_argument("--labels", type=Path, metavar="FILE", help="a text file with each image's class, one a line")
    many.add_argument(
        "--captions",
        type=Path,
        metavar="FILE",
        help="a file with the prompt of each image: text, one a line, or MS-COCO's captions (.json)",
    )
    add_classifier(group)
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
    from ddcm_fast.sampling.draws import own_seeds

    asked = _conditions(args)
    if not 1 <= len(asked) <= _MOST_IMAGES:
        raise InputError(f"-n is {len(asked)}; ask for 1 to {_MOST_IMAGES} images")
    config = preset(args.preset, **settings_of(args))
    outputs = Outputs(force=args.force, folder=args.output_dir)
    names = [args.output_dir / f"{i:04d}.png" for i in range(len(asked))]
    for name in names:
        add_pair(outputs, name)
    model = load(args, args.model)
    codec = make_codec(args, model, config, args.batch_size)
    conditions = [model.complete_condition(condition) for condition in asked]
    seeds = own_seeds(args.draw_seed, len(asked))
    bits = 0.0
    for batch in batches(range(len(asked)), conditions, args.batch_size):
        images = _draw(codec, args, [conditions[i] for i in batch], [seeds[i] for i in batch])
        for i, coded in zip(batch, images, strict=True):
            write_pair(outputs, names[i], coded)
            bits += coded.bpp
    tell(f"{args.output_dir}: {len(asked)} images and their files, {bits / len(asked):.4f} bpp each", args)


def _conditions(args: argparse.Namespace) -> list[Condition | None]:
    """One for each image."""
    from ddcm_fast.cli.conditions import read_captions, read_labels

    given = condition_of(args)
    if args.labels is None and args.captions is None:
        return [given] * (1 if args.count is None else max(0, args.count))
    path, name = (args.labels, "label") if args.captions is None else (args.captions, "prompt")
    if getattr(args, name) is not None:
        raise ConfigError(f"--{name} is {getattr(args, name)!r}, and {path} has one for each image; leave it out")
    values: list[Any] = read_labels(path) if name == "label" else read_captions(path)
    count = len(values) if args.count is None else args.count
    if count > len(values):
        raise InputError(f"{path} has {len(values)} lines for {count} images; it must have one for each")
    return [replace(given or Condition(), **{name: value}) for value in values[: max(0, count)]]


def _draw(
    codec: Codec, args: argparse.Namespace, conditions: list[Condition | None], seeds: list[int]
) -> list[Encoded]:
    """One batch, of one guidance scale."""
    width, height = args.size or (codec.model.default_side, codec.model.default_side)
    if args.ccfg is None:
        return codec.generate(len(seeds), height, width, seeds, conditions)
    if not any(conditions):
        raise ConfigError("--ccfg guides towards a condition: give --label or --prompt")
    if args.classifier is not None:
        raise ConfigError(f"--ccfg is {args.ccfg}, and guides without --classifier; leave one of them out")
    from ddcm_fast.tasks.guidance import ccfg

    return codec.sample(ccfg(together(conditions), args.ccfg, seeds[0]), height, width, len(seeds))

"""`ddcm decompress`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddcm_fast.cli import many
from ddcm_fast.cli.arguments import (
    add_classifier,
    add_common,
    add_condition,
    condition_of,
    limits_of,
    path_or,
    progress,
    share,
)
from ddcm_fast.cli.decompress_many import run as many_run
from ddcm_fast.cli.loading import load_for, make_codec
from ddcm_fast.cli.pictures import OUTPUT_HELP, image_bytes, image_kind, image_name
from ddcm_fast.cli.terminal import tell
from ddcm_fast.codec import container
from ddcm_fast.errors import ConfigError
from ddcm_fast.files import STDIN, STDOUT, Outputs, read

if TYPE_CHECKING:
    from PIL import Image


def add_parser(commands: Any) -> None:
    """The subcommand `decompress`."""
    p = commands.add_parser(
        "decompress",
        description="Decompress a file, or many into one folder. Results that are there already are not made again.",
    )
    p.add_argument(
        "inputs",
        nargs="+",
        type=path_or(STDIN),
        metavar="input",
        help="a .ddcm file; or many: files, folders, patterns, .tar archives",
    )
    p.add_argument("output", type=path_or(STDOUT), help=f"{OUTPUT_HELP}; a folder, if the files are many")
    p.add_argument("--format", help="of the image where no ending says it, as in webp (default: png)")
    p.add_argument("--model", help="the file's model, if it is not built in: a folder or hub id")
    p.add_argument("--ignore-checksum", action="store_true", help="decode a damaged or cut file as it is")
    p.add_argument("--first", type=share, default=1.0, help="decode only this part of the file, as in 30%%")
    p.add_argument(
        "--preview",
        type=Path,
        metavar="IMAGE",
        help="write this after a third of the time, too: what the picture looks like by then",
    )
    add_classifier(add_condition(p))
    many.add_many(p)
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
    name = image_name(args.output, args.format)
    outputs = Outputs([args.input], args.force)
    outputs.add(args.output, image_kind(name))
    if args.preview is not None:
        outputs.add(args.preview, image_kind(image_name(args.preview, None)))
    data = read(args.input, start=container.MAGIC)
    if args.input.suffix == ".bin" and not data.startswith(container.MAGIC):
        if args.preview is not None:
            raise ConfigError(f"--preview is {args.preview}; an official file has none, leave it out")
        start = time.perf_counter()
        image, said = _decode_official(args)
    else:
        header, _ = container.read(data, args.ignore_checksum)
        codec = make_codec(args, load_for(args, header.model, header.dtype))
        start = time.perf_counter()
        told = condition_of(args)
        image, said = codec.decompress(data, args.ignore_checksum, told, args.first, _early(args, outputs, start)), ""
    outputs.write(args.output, image_bytes(image, name))
    tell(f"{args.output}: {image.width}x{image.height}, {time.perf_counter() - start:6.1f} s{said}", args)


def _early(args: argparse.Namespace, outputs: Outputs, start: float) -> Callable[[Image.Image], None] | None:
    """Writes --preview, if it is given."""
    path = args.preview
    if path is None:
        return None

    def write(image: Image.Image) -> None:
        outputs.write(path, image_bytes(image, str(path)))
        tell(f"{path}: a preview, {time.perf_counter() - start:6.1f} s", args)

    return write


def _decode_official(args: argparse.Namespace) -> tuple[Image.Image, str]:
    """A file of the DDCM authors' code; its folder's name says what it is (float32 unless --dtype says otherwise)."""
    from ddcm_fast.codec import official
    from ddcm_fast.codec.images import to_pil

    found = official.Settings.of_path(args.input.resolve())
    model = load_for(args, found.hub_id, "float32")
    prompt = args.prompt
    if prompt is None and found.cfg is not None:
        prompt = official.source_prompt(args.input)
    image = to_pil(official.decode(args.input, model, found, progress(args), limits_of(args), prompt))
    return image, f", official DDCM file of {found.hub_id}"

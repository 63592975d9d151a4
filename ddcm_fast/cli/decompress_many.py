"""`ddcm decompress` of many files into one folder."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ddcm_fast.cli import many
from ddcm_fast.cli.arguments import condition_of
from ddcm_fast.cli.loading import load_for, make_codec
from ddcm_fast.cli.pictures import image_bytes, image_kind
from ddcm_fast.codec import container
from ddcm_fast.files import MAX_FILE

if TYPE_CHECKING:
    from ddcm_fast.bulk.run import Work
    from ddcm_fast.codec.codec import Codec


def run(args: argparse.Namespace) -> None:
    """Decompress what the arguments name."""
    from ddcm_fast.bulk.sources import find

    many.check(args, {})
    name = f"image.{args.format or 'png'}"
    kind = image_kind(name)
    items = find(args.inputs, lambda ending: ending.lower() == ".ddcm", ".ddcm files", MAX_FILE)
    if args.engine == "ray":
        from ddcm_fast.cli.on_ray import run as on_ray

        on_ray(args)
        return
    many.run(args, items, lambda: _make(args, name), f".{name.partition('.')[2]}", kind)


def _make(args: argparse.Namespace, name: str) -> tuple[Work, str]:
    codecs: dict[tuple[str, str], Codec] = {}

    def work(content: bytes) -> tuple[bytes, dict[str, int]]:
        header, _ = container.read(content, args.ignore_checksum)
        key = (header.model, header.dtype)
        if key not in codecs:
            codecs[key] = make_codec(args, load_for(args, header.model, header.dtype))
            codecs[key].progress = False
        image = codecs[key].decompress(content, args.ignore_checksum, condition_of(args), args.first)
        return image_bytes(image, name), {"width": image.width, "height": image.height}

    how = {"model": args.model, "dtype": args.dtype, "condition": condition_of(args)}
    if args.classifier is not None:
        how |= {"classifier": args.classifier, "classifier_scale": args.classifier_scale}
    return work, many.settings(name=name, first=args.first, ignore=args.ignore_checksum, **how)
